"""Doing it again, in another form, in another order of rules: the same bytes, or the same numbers.

Bytes: a second run on the result, the same run twice, fused to plugin and back, the same export twice. Numbers: inlined
functions, the rules in another order.
"""

from __future__ import annotations

from itertools import permutations
from random import Random

import onnx
import pytest

from msconv_deploy.ops.forms import Form
from msconv_deploy.optimizing import OptimizeOptions, optimize_file
from tests.metamorphic import relations
from tests.metamorphic.cases import random_cases
from tests.metamorphic.equality import expressions
from tests.surgery.random_graphs import defined_by_onnxruntime
from tests.tile_models import plain_conv, tiled_conv

pytestmark = defined_by_onnxruntime
RELATIONS = [
    relations.the_result_agrees,
    relations.a_second_run_changes_nothing,
    relations.the_same_bytes_twice,
    relations.forms_convert_without_loss,
    relations.the_order_of_rules_keeps_the_meaning,
]
named = pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.__name__)


@pytest.fixture(scope="module")
def drawn():
    return random_cases(100)


@named
def test_random_graphs(relation, drawn):
    for number, case in enumerate(drawn):
        relation(case, Random(number))


@named
def test_networks(relation, networks):
    for case in networks.values():
        relation(case, Random(case.label))


@pytest.mark.parametrize("form", list(Form))
def test_a_file_twice(form, tmp_path):
    """The second time the file is copied: nothing is left to do. And the same file gives the same file."""
    options = OptimizeOptions(when="always", form=form.value, verify=form is not Form.PLUGIN)
    source = tiled_conv(tmp_path / "m.onnx")
    for name in ("a", "b"):
        optimize_file(source, tmp_path / f"{name}.onnx", options)
    report = optimize_file(tmp_path / "a.onnx", tmp_path / "c.onnx", OptimizeOptions(when="always", verify=False))
    assert report.unchanged
    assert (tmp_path / "a.onnx").read_bytes() != source.read_bytes()
    assert len({(tmp_path / f"{name}.onnx").read_bytes() for name in "abc"}) == 1


@pytest.mark.parametrize("external", [False, True])
def test_a_file_without_sites_is_the_file(external, tmp_path):
    source = plain_conv(tmp_path / "m.onnx", external)
    report = optimize_file(source, tmp_path / "copy.onnx", OptimizeOptions(when="always"))
    assert report.unchanged
    if not external:
        assert (tmp_path / "copy.onnx").read_bytes() == source.read_bytes()
        return
    for mine, its in zip(*(onnx.load(tmp_path / f"{n}.onnx").graph.initializer for n in ("copy", "m")), strict=True):
        assert mine.SerializeToString() == its.SerializeToString()


def test_an_export_twice(tmp_path):
    """One checkpoint and one seed give the same bytes."""
    pytest.importorskip("torch", reason="export needs torch: pip install 'msconv-deploy[torch]'")
    from msconv_deploy.exporting import export_recipe, load_recipe

    recipe = load_recipe("export/minimal_tiled.toml")
    for folder in ("first", "second"):
        export_recipe(recipe, tmp_path / folder, validate=False, build_check=False)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / f).rglob("*.onnx")} for f in ("first", "second"))
    assert len(first) == len(recipe.export.forms) * len(recipe.export.precision)
    assert first == second


def test_rules_that_do_not_meet(networks):
    """Of a network in which each node belongs to one rule, every order makes the same graph."""
    for name in ("noise_map_denoiser", "unfolded_convolution", "channel_sum_filter", "collapsible_blocks"):
        case, graphs = networks[name], []
        for order in permutations(("contractions", "unfolds", "merges")):
            graphs.append(expressions(relations.in_order(case, case.model, [*order, "distances", "broadcasts"]).model))
        assert graphs.count(expressions(case.result.model)) == len(graphs), name
