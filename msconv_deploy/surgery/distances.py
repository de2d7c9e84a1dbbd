"""The pass of `tiled-distance`. Its rounding differs by more than that of other rules, so it has to be allowed by name.

Where it is, a site is rewritten by default if its estimated time before is at least ``MARGIN`` times its time after. Where it
is not, in no mode.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.ops.forms import default_opset
from msconv_deploy.surgery.candidates import Candidate, settle
from msconv_deploy.surgery.choice.estimates import Estimator
from msconv_deploy.surgery.choice.extents import InputShapes
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.passes import Decider, PassResult
from msconv_deploy.surgery.rules import tiled_distance
from msconv_deploy.surgery.rules.tiled_distance import Match
from msconv_deploy.surgery.sites import Distance, NearMiss, SegmentInfo, Site, node_name, rewritten_names

NOT_ALLOWED = "it cancels otherwise than the original: only where it is allowed by name (--allow tiled-distance)"


def distance_pass(
    model: onnx.ModelProto, folder: Path, decide: Decider, shapes: InputShapes, *, allowed: bool
) -> PassResult:
    """Apply the rule once at every node, or say where it would match."""
    result = PassResult(model)
    operators = {node.op_type for node in model.graph.node}
    if "Sub" not in operators or not any(op.startswith("Reduce") for op in operators):
        return result
    editable = EditableModel(model, folder, default_opset(model))
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, editable.opset)
    made = rewritten_names(model)
    candidates = []
    for node in editable.graph.nodes:
        found = None if node.name in made else tiled_distance.match(node, symbols, decomposer)
        if isinstance(found, Match) and not allowed:
            found = Refusal(NOT_ALLOWED, (str(node.name),))
        if isinstance(found, Refusal):
            result.near_misses.append(NearMiss(node_name(node), node.op, found.reason, list(found.nodes)))
        elif found is not None:
            candidates.append(_candidate(editable, found))
    estimator = Estimator(editable, symbols, shapes) if candidates else None
    for candidate in candidates:
        assert estimator is not None
        candidate.estimate_alone(estimator)
    settle(candidates, decide, editable, result)
    return result


def _candidate(editable: EditableModel, found: Match) -> Candidate:
    node, output = found.node, str(found.node.outputs[0].name)
    segment = SegmentInfo(0, found.terms, [], [_maker(t) for t in (found.first, found.second)])
    site = Site(node_name(node), node.op, output, f"{found.terms} terms", [segment], tiled_distance.ID)
    site.lowering, site.spellings = tiled_distance.LOWERING, [tiled_distance.LOWERING]
    first, second = str(found.first.name), str(found.second.name)
    site.distance = Distance(first, second, found.axis - found.rank, found.shift, found.root)
    builder = GraphBuilder(editable.new_prefix(f"{site.node}/msconv"), editable.opset)
    tiled_distance.rewrite(builder, found)
    return Candidate(node, site, builder, (site.node,))


def _maker(tensor: gs.Tensor) -> str:
    """What makes an operand, in words."""
    return f"{tensor.inputs[0].op} {node_name(tensor.inputs[0])}" if tensor.inputs else str(tensor.name)
