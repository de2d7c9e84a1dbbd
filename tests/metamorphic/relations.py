"""The relations: each takes a model and asserts how its optimized spelling and that of a changed model are related.

A relation raises AssertionError where it does not hold; ``test_planted_faults.py`` shows for each one a fault that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx

from msconv_deploy.ops.forms import Form, convert_form, form_of, msconv_nodes
from msconv_deploy.ops.schema import register_schema
from msconv_deploy.surgery import optimize as surgery
from msconv_deploy.surgery.broadcasts import broadcast_pass
from msconv_deploy.surgery.choice.choose import When, choose
from msconv_deploy.surgery.distances import distance_pass
from msconv_deploy.surgery.merges import merge_pass
from msconv_deploy.surgery.optimize import Result
from msconv_deploy.surgery.passes import always, faster
from msconv_deploy.surgery.rules import drop_expand, sink_broadcast
from msconv_deploy.surgery.unfolds import unfold_pass
from tests.metamorphic import spellings
from tests.metamorphic.equality import expressions, nameless_sites, report_of, serialized
from tests.surgery.graphs import assert_interface_kept, compare, session

Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    """A model and inputs at which it runs.

    Attributes:
        form, allow, when: as for ``optimize_model``.
        tolerance: of numerical equality; None: what ``compare`` takes for the type.
    """

    label: str
    model: onnx.ModelProto
    inputs: list[Arrays]
    allow: tuple[str, ...] = ()
    form: Form = Form.PORTABLE
    when: When = "always"
    tolerance: float | None = None
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def optimize(self, model: onnx.ModelProto) -> Result:
        return self.optimize_to(model, self.form)

    def optimize_to(self, model: onnx.ModelProto, form: Form) -> Result:
        return surgery.optimize_model(model, Path(), self.when, form=form, allow=self.allow)

    @property
    def result(self) -> Result:
        """Of the model itself."""
        if "result" not in self.cache:
            self.cache["result"] = self.optimize(self.model)
        return self.cache["result"]

    @property
    def expected(self) -> list[list[np.ndarray]]:
        if "expected" not in self.cache:
            self.cache["expected"] = outputs(self.model, self.inputs)
        return self.cache["expected"]

    def agrees(self, model: onnx.ModelProto, what: str, optimize: bool = False) -> None:
        """The model computes what the original does; optimize: with ONNX Runtime's own optimizations."""
        for expected, got in zip(self.expected, outputs(model, self.inputs, optimize), strict=True):
            compare(expected, got, (self.label, what), self.tolerance)


def outputs(model: onnx.ModelProto, inputs: list[Arrays], optimize: bool = False) -> list[list[np.ndarray]]:
    """On each of the inputs; the ones that the model does not have (any more) are left out."""
    running = session(model, optimize)
    asked = {value.name for value in running.get_inputs()}
    return [running.run(None, {name: array for name, array in given.items() if name in asked}) for given in inputs]


Relation = Callable[[Case, Random], None]


# -- other spellings of the model: the same expressions, the same sites --------------------------------------------------


def odd_names_change_nothing(case: Case, rng: Random) -> None:
    """Byte for byte the same file and the same report once the names are replaced by the old ones."""
    renaming = spellings.odd_names(case.model, rng)
    found = case.optimize(spellings.renamed(case.model, renaming))
    back = spellings.with_names(found.model, renaming.back, renaming.back, renaming.back)
    for node in back.graph.node:
        for entry in node.metadata_props:
            entry.value = renaming.back(entry.value)
    assert serialized(back) == serialized(case.result.model), (case.label, "the graph depends on names")
    assert _mapped(report_of(found), renaming.back) == report_of(case.result), (
        case.label,
        "the report depends on names",
    )


def shuffled_names_change_nothing(case: Case, rng: Random) -> None:
    _same_graph(case, spellings.renamed(case.model, spellings.shuffled_names(case.model, rng)))


def numbered_names_change_nothing(case: Case, rng: Random) -> None:
    _same_graph(case, spellings.renamed(case.model, spellings.numbered_names(case.model, rng)))


def names_of_nodes_change_nothing(case: Case, rng: Random) -> None:
    """None, one for all, and those of their results."""
    for spelling in (spellings.unnamed_nodes, spellings.nodes_of_one_name, spellings.nodes_named_like_their_results):
        _same_graph(case, spelling(case.model))


def order_of_nodes_changes_nothing(case: Case, rng: Random) -> None:
    """The sites may be found in another order."""
    _same_graph(case, spellings.reordered_nodes(case.model, rng), ordered=False)


def order_of_initializers_changes_nothing(case: Case, rng: Random) -> None:
    _same_graph(case, spellings.reordered_initializers(case.model, rng))


def constants_may_be_nodes(case: Case, rng: Random) -> None:
    """Initializers as Constant nodes, and back as initializers again."""
    nodes = spellings.initializers_as_nodes(case.model, rng)
    _same_graph(case, nodes)
    _same_graph(case, spellings.nodes_as_initializers(nodes))


def annotations_change_nothing_and_stay(case: Case, rng: Random) -> None:
    annotated = spellings.annotated(case.model)
    result = _same_graph(case, annotated)
    assert_interface_kept(annotated, result.model)
    assert result.model.graph.doc_string == annotated.graph.doc_string, case.label
    assert list(result.model.graph.metadata_props) == list(annotated.graph.metadata_props), case.label
    for node in result.model.graph.node:
        own = {entry.key for entry in node.metadata_props}
        assert ("msconv.rule" in own) != ("annotated" in own), (case.label, node.name)


def value_infos_change_nothing(case: Case, rng: Random) -> None:
    """What the file says of the tensors between, where it is true, is what shape inference finds anyway."""
    told = spellings.with_value_infos(case.model)
    found = case.optimize(told)
    bare = case.optimize(spellings.without_value_infos(told))
    assert expressions(found.model) == expressions(bare.model), case.label
    assert nameless_sites(found) == nameless_sites(bare), case.label


def _same_graph(case: Case, other: onnx.ModelProto, ordered: bool = True) -> Result:
    """Another spelling is optimized to the same expressions, with the same sites; sites may be told in another order."""
    assert expressions(other) == expressions(case.model), (case.label, "the spelling itself is another graph")
    found = case.optimize(other)
    wanted, got = nameless_sites(case.result), nameless_sites(found)
    if not ordered:
        wanted, got = sorted(wanted, key=repr), sorted(got, key=repr)
    assert got == wanted, (case.label, "other sites")
    assert expressions(found.model) == expressions(case.result.model), (case.label, "another graph")
    return found


def _mapped(data: Any, text: Callable[[str], str]) -> Any:
    if isinstance(data, dict):
        return {key: _mapped(value, text) for key, value in data.items()}
    if isinstance(data, list):
        return [_mapped(value, text) for value in data]
    return text(data) if isinstance(data, str) else data


# -- what is not rewritten stays -----------------------------------------------------------------------------------------


def the_rest_is_untouched(case: Case, rng: Random) -> None:
    """Bit for bit: initializers that stay, nodes that stay, metadata, opsets; in the order in which they were."""
    before, after = case.model, case.result.model
    assert_interface_kept(before, after) if case.form is Form.PORTABLE else None
    assert [p.SerializeToString() for p in after.metadata_props] == [
        p.SerializeToString() for p in before.metadata_props
    ]
    assert list(after.opset_import)[: len(before.opset_import)] == list(before.opset_import), case.label
    weights = {tensor.name: tensor.SerializeToString() for tensor in before.graph.initializer}
    kept = [tensor.name for tensor in after.graph.initializer if tensor.name in weights]
    for tensor in after.graph.initializer:
        assert weights.get(tensor.name) in (None, tensor.SerializeToString()), (case.label, tensor.name)
    assert kept == [name for name in weights if name in set(kept)], (case.label, "initializers in another order")
    nodes = {node.output[0]: node.SerializeToString() for node in before.graph.node}
    for node in after.graph.node:
        if not any(entry.key == "msconv.rule" for entry in node.metadata_props):
            assert nodes.get(node.output[0]) == node.SerializeToString(), (case.label, node.name)


# -- again, and in other forms -------------------------------------------------------------------------------------------


def a_second_run_changes_nothing(case: Case, rng: Random) -> None:
    """In bytes, and nothing is reported as rewritten."""
    again = case.optimize(case.result.model)
    assert not again.changed, (case.label, [site for site in again.sites if site.decision == "rewritten"])
    assert serialized(again.model) == serialized(case.result.model), case.label


def forms_convert_without_loss(case: Case, rng: Random) -> None:
    """Fused to plugin and back is the same file in bytes, portable the same numbers; a copy in its own form is the file."""
    fused = case.optimize_to(case.model, Form.FUSED).model
    assert serialized(convert_form(fused, form_of(fused))) == serialized(fused), case.label
    if form_of(fused) is Form.PORTABLE:
        return
    plugin = convert_form(fused, Form.PLUGIN)
    assert form_of(plugin) is Form.PLUGIN
    assert not [f for f in plugin.functions if f.domain == "msconv"], case.label
    assert len(msconv_nodes(plugin)) == len(msconv_nodes(fused)), case.label
    assert serialized(convert_form(plugin, Form.FUSED)) == serialized(fused), (case.label, "lost on the way")
    case.agrees(fused, "fused")
    for other in (fused, plugin):
        case.agrees(convert_form(other, Form.PORTABLE), "inlined")


def the_same_bytes_twice(case: Case, rng: Random) -> None:
    """Graph and report, in the form in which most is made."""
    first, second = (case.optimize_to(case.model, Form.FUSED) for _ in "ab")
    assert serialized(first.model) == serialized(second.model), case.label
    assert report_of(first) == report_of(second), case.label


def the_result_agrees(case: Case, rng: Random) -> None:
    """As it is, and with what ONNX Runtime makes of it by default."""
    case.agrees(case.result.model, "optimized")
    case.agrees(case.result.model, "optimized, in ONNX Runtime's own optimization", optimize=True)


# -- the order of rules --------------------------------------------------------------------------------------------------

STEPS = ("contractions", "unfolds", "merges", "distances", "broadcasts")


def the_order_of_rules_keeps_the_meaning(case: Case, rng: Random) -> None:
    """In any order the outputs agree, and a second round finds nothing.

    The contractions, windows and pairs that are rewritten are the same ones with the same multiply-accumulates. What differs
    is who moves the operators on copies: `tile-concat-conv` follows a copy through them and takes its core, after which they
    are gone; where `sink-broadcast` and `drop-expand` come first, they have rewritten them already, and report sites of
    their own. Shapes of what they made may not be known, and a site behind is not estimated then.
    """
    order = list(STEPS)
    rng.shuffle(order)
    found = in_order(case, case.model, order)
    case.agrees(found.model, " ".join(order))
    again = in_order(case, found.model, order)
    assert not again.changed, (case.label, order)
    wanted, got = _without_broadcasts(case.result), _without_broadcasts(found)
    assert got.keys() == wanted.keys(), (case.label, order)
    for site, macs in got.items():
        assert macs is None or wanted[site] is None or macs == wanted[site], (case.label, order, site)


def _without_broadcasts(result: Result) -> dict[tuple[str, str], int | None]:
    """Rewritten sites of the other rules, with their multiply-accumulates."""
    done = [site for site in result.sites if site.decision == "rewritten"]
    return {(s.rule, s.output): s.macs_after for s in done if s.rule not in (sink_broadcast.ID, drop_expand.ID)}


def in_order(case: Case, model: onnx.ModelProto, order: Sequence[str]) -> Result:
    """``optimize_model`` with its steps in another order, until none of them finds anything."""
    chooser = partial(choose, when=case.when, shapes={})
    decide = faster if case.when == "faster" else always
    passes = {
        "unfolds": unfold_pass,
        "merges": merge_pass,
        "distances": partial(distance_pass, allowed=bool(case.allow)),
        "broadcasts": broadcast_pass,
    }
    if case.form is not Form.PORTABLE:
        register_schema()
    result = Result(model)
    while True:
        before = result.model
        for step in order:
            if step == "contractions":
                result = surgery._contractions(result, Path(), chooser, case.form)
                continue
            found = passes[step](result.model, Path(), decide, {})
            result.model = found.model
            result.sites += found.sites
        if result.model is before:
            break
    return Result(convert_form(result.model, case.form) if msconv_nodes(result.model) else result.model, result.sites)
