"""Each relation is able to fail: a mistake is planted into the optimizer, and the relation finds it."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from msconv_deploy.ops import forms
from msconv_deploy.surgery import optimize as surgery
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.rules import tile_concat_conv
from tests.metamorphic import relations
from tests.metamorphic.cases import random_cases
from tests.surgery.random_graphs import defined_by_onnxruntime

pytestmark = defined_by_onnxruntime


def names_decide(patch: pytest.MonkeyPatch) -> None:
    """A site is taken where the letters of its node's name say so."""
    match = tile_concat_conv.match

    def matched(node, *others):
        odd = sum(map(ord, str(node.name))) % 2
        return Refusal("for its name") if odd else match(node, *others)

    patch.setattr(tile_concat_conv, "match", matched)


def order_decides(patch: pytest.MonkeyPatch) -> None:
    """A site is taken where an even number of nodes stands in front of it."""
    match, optimize, position = tile_concat_conv.match, surgery.optimize_model, dict[str, int]()

    def optimized(model, *arguments, **options):
        position.clear()
        position.update({node.output[0]: i for i, node in enumerate(model.graph.node)})
        return optimize(model, *arguments, **options)

    def matched(node, *others):
        odd = position.get(node.outputs[0].name, 0) % 2
        return Refusal("for its place") if odd else match(node, *others)

    patch.setattr(surgery, "optimize_model", optimized)
    patch.setattr(tile_concat_conv, "match", matched)


def first_initializer_decides(patch: pytest.MonkeyPatch) -> None:
    """As if the first initializer was a weight."""
    _refusing(
        patch,
        lambda model: not model.graph.initializer or model.graph.initializer[0].data_type == onnx.TensorProto.INT64,
    )


def value_infos_decide(patch: pytest.MonkeyPatch) -> None:
    _refusing(patch, lambda model: bool(model.graph.value_info))


def _refusing(patch: pytest.MonkeyPatch, refuses) -> None:
    optimize = surgery.optimize_model

    def optimized(model, *arguments, **options):
        return surgery.Result(model) if refuses(model) else optimize(model, *arguments, **options)

    patch.setattr(surgery, "optimize_model", optimized)


def _exporting(patch: pytest.MonkeyPatch, edit) -> None:
    """Every exported model is edited."""
    export = EditableModel.export

    def exported(self):
        model = export(self)
        edit(model, {t.name for t in self.model.graph.initializer})
        return model

    patch.setattr(EditableModel, "export", exported)


def annotations_are_lost(patch: pytest.MonkeyPatch) -> None:
    def edit(model, _):
        for node in model.graph.node:
            for entry in [e for e in node.metadata_props if e.key == "annotated"]:
                node.metadata_props.remove(entry)

    _exporting(patch, edit)


def one_bit_of_a_weight_flips(patch: pytest.MonkeyPatch) -> None:
    def edit(model, known):
        for tensor in model.graph.initializer:
            if tensor.name in known and tensor.raw_data:
                tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

    _exporting(patch, edit)


def new_weights_are_scaled(patch: pytest.MonkeyPatch) -> None:
    """Every float that a rewrite computes is one percent too large."""

    def edit(model, known):
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if tensor.name not in known and array.dtype.kind == "f":
                tensor.CopyFrom(numpy_helper.from_array((array * 1.01).astype(array.dtype), tensor.name))

    _exporting(patch, edit)


def sites_are_taken_at_second_sight(patch: pytest.MonkeyPatch) -> None:
    match, seen = tile_concat_conv.match, dict[str, object]()
    optimize = surgery.optimize_model

    def optimized(model, *arguments, **options):
        seen["run"] = object()
        return optimize(model, *arguments, **options)

    def matched(node, *others):
        if seen.setdefault(f"node {node.outputs[0].name}", seen["run"]) is seen["run"]:
            return Refusal("not seen before")
        return match(node, *others)

    patch.setattr(surgery, "optimize_model", optimized)
    patch.setattr(tile_concat_conv, "match", matched)


def prefixes_count_on(patch: pytest.MonkeyPatch) -> None:
    new_prefix, count = EditableModel.new_prefix, iter(range(10**6))
    patch.setattr(EditableModel, "new_prefix", lambda self, wanted: new_prefix(self, f"{wanted}{next(count)}"))


def stamps_are_lost_in_plugin_form(patch: pytest.MonkeyPatch) -> None:
    to_plugin = forms._to_plugin

    def converted(model):
        plugin = to_plugin(model)
        for node in plugin.graph.node:
            del node.metadata_props[:]
        return plugin

    patch.setattr(forms, "_to_plugin", converted)


def merges_are_wrong(patch: pytest.MonkeyPatch) -> None:
    """The passes behind the contractions double a weight: as a rule would that trusts what another one has changed."""
    passed = relations.broadcast_pass

    def doubled(model, *others):
        found = passed(model, *others)
        made = {name for node in found.model.graph.node if node.metadata_props for name in node.input}
        if found.model is not model:
            for tensor in found.model.graph.initializer:
                array = numpy_helper.to_array(tensor)
                if tensor.name in made and array.dtype.kind == "f":
                    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array * 2, array.dtype), tensor.name))
        return found

    patch.setattr(relations, "broadcast_pass", doubled)


PLANTED = [
    (relations.odd_names_change_nothing, names_decide),
    (relations.shuffled_names_change_nothing, names_decide),
    (relations.numbered_names_change_nothing, names_decide),
    (relations.names_of_nodes_change_nothing, names_decide),
    (relations.order_of_nodes_changes_nothing, order_decides),
    (relations.order_of_initializers_changes_nothing, first_initializer_decides),
    (relations.constants_may_be_nodes, first_initializer_decides),
    (relations.annotations_change_nothing_and_stay, annotations_are_lost),
    (relations.value_infos_change_nothing, value_infos_decide),
    (relations.the_rest_is_untouched, one_bit_of_a_weight_flips),
    (relations.the_result_agrees, new_weights_are_scaled),
    (relations.a_second_run_changes_nothing, sites_are_taken_at_second_sight),
    (relations.the_same_bytes_twice, prefixes_count_on),
    (relations.forms_convert_without_loss, stamps_are_lost_in_plugin_form),
    (relations.the_order_of_rules_keeps_the_meaning, merges_are_wrong),
]


@pytest.mark.parametrize(("relation", "fault"), PLANTED, ids=[relation.__name__ for relation, _ in PLANTED])
def test_a_planted_fault_is_found(relation, fault, monkeypatch):
    cases = random_cases(200, 32)
    _hold(relation, cases[:3])  # without it
    fault(monkeypatch)
    cases = random_cases(200, 32)  # nothing that was computed before
    with pytest.raises(AssertionError):
        _hold(relation, cases)


def _hold(relation: relations.Relation, cases: list[relations.Case]) -> None:
    for number, case in enumerate(cases):
        relation(case, Random(number))
