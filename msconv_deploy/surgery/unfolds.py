"""The pass of `unfold-matmul`, `unfold-channel-sum` and `unfold-max`: windows that are written out, computed without.

By default a site is rewritten where its estimated time before is at least ``MARGIN`` times its time after. Sites that
read the same windows are judged together, as `tile-concat-conv` judges sites that share a concatenation: as long as one of
them falls short it is left, and the others are judged again, since the windows have to stay then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.ops.forms import default_opset
from msconv_deploy.surgery.candidates import Candidate, settle
from msconv_deploy.surgery.choice.estimates import Estimator
from msconv_deploy.surgery.choice.extents import InputShapes
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.engine.windows import WindowFinder
from msconv_deploy.surgery.passes import Decider, PassResult
from msconv_deploy.surgery.rules import unfold_channel_sum, unfold_matmul, unfold_max
from msconv_deploy.surgery.sites import NearMiss, SegmentInfo, Site, geometry_text, node_name, rewritten_names

_READERS = {"MatMul", "Gemm", "Einsum", "ReduceSum", "ReduceMax", "ReduceMean"}
_MAKERS = {"Gather", "Slice", "Split", "Reshape"}
"""Operators without one of which nothing slides."""

Match = unfold_matmul.Match | unfold_channel_sum.Match | unfold_max.Match
_RULES: dict[type, Any] = {
    unfold_matmul.Match: unfold_matmul,
    unfold_channel_sum.Match: unfold_channel_sum,
    unfold_max.Match: unfold_max,
}


def unfold_pass(model: onnx.ModelProto, folder: Path, decide: Decider, shapes: InputShapes) -> PassResult:
    """Apply the rules once at every node."""
    result = PassResult(model)
    operators = {node.op_type for node in model.graph.node}
    if not operators & _READERS or not operators & _MAKERS:
        return result
    editable = EditableModel(model, folder, default_opset(model))
    symbols = Symbols(editable.inferred)
    finder = WindowFinder(editable.graph, symbols)
    made = rewritten_names(model)
    candidates: list[Candidate] = []
    for node in editable.graph.nodes:
        found = None if node.name in made else _match(node, finder, editable.opset)
        if isinstance(found, Refusal):
            result.near_misses.append(NearMiss(node_name(node), node.op, found.reason, list(found.nodes)))
        elif found is not None:
            candidates.append(_candidate(editable, found))
    _estimate(editable, symbols, candidates, shapes)
    settle(candidates, decide, editable, result)
    return result


def _match(node: gs.Node, finder: WindowFinder, opset: int) -> Match | Refusal | None:
    if not node.outputs or node.op not in _READERS:
        return None
    return (
        unfold_channel_sum.match(node, finder)
        or unfold_matmul.match(node, finder)
        or unfold_max.match(node, finder, opset)
    )


def _candidate(editable: EditableModel, found: Match) -> Candidate:
    windows, node = found.windows, found.node
    rule = _RULES[type(found)]
    channels = 1 if windows.channel is None else windows.dims[windows.channel]
    segment = SegmentInfo(0, channels if isinstance(channels, int) else 0, [], windows.found())
    output = str(windows.last.outputs[0].name)
    site = Site(node_name(node), node.op, output, geometry_text(windows.axes), [segment], rule.ID)
    site.lowering, site.spellings = rule.LOWERING, [rule.LOWERING]
    if windows.behind:
        site.taken_over, site.contracted = [node_name(n) for n in windows.behind], str(node.outputs[0].name)
    builder = GraphBuilder(editable.new_prefix(f"{site.node}/msconv"), editable.opset)
    rule.rewrite(builder, found)
    return Candidate(windows.last, site, builder, (site.node, *site.taken_over))


def _estimate(editable: EditableModel, symbols: Symbols, candidates: Sequence[Candidate], shapes: InputShapes) -> None:
    """Costs of the candidates, with those left out whose gain is too small to drop windows that others read too."""
    if not candidates:
        return
    estimator = Estimator(editable, symbols, shapes)
    for candidate in candidates:
        candidate.make_plan(estimator)
    rewritten = list(candidates)
    while True:
        nodes = [c.last for c in rewritten]
        needed = {name for c in rewritten if c.plan is not None for name in c.plan.needed}
        for candidate in rewritten:
            candidate.estimate(estimator, nodes, needed)
        left = [c for c in rewritten if not c.objection]
        if len(left) == len(rewritten):
            return
        rewritten = left
