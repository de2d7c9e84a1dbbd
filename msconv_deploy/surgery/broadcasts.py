"""The pass of `sink-broadcast` and `drop-expand`: what `tile-concat-conv` leaves of copies, moved or not made.

By default a match is applied where it cannot be slower by structure: the tensor that is not computed any more is larger
than its core, holds at least ``LEAST_ELEMENTS`` (a dynamic extent counts as large), and is read by nothing that keeps it
there. Copies that are added to a convolution's result stay by default too: with both operands of full size ONNX Runtime
makes the addition part of the convolution.

Tensors of rank below 2 are left in either mode: they are the arithmetic of shapes.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.ops.forms import default_opset
from msconv_deploy.surgery.choice.extents import InputShapes
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Dims, Symbols, operator
from msconv_deploy.surgery.passes import Decider, PassResult
from msconv_deploy.surgery.rules import drop_expand, sink_broadcast
from msconv_deploy.surgery.sites import SegmentInfo, Site, node_name, rewritten_names

LEAST_ELEMENTS = 4096
"""Elements of a result below which a node costs about as much as its tensors, so that nothing is gained for certain."""

ON_CORE, WITHOUT_COPIES = "on-core", "without-copies"

Match = sink_broadcast.Match | drop_expand.Match


def broadcast_pass(model: onnx.ModelProto, folder: Path, decide: Decider, shapes: InputShapes) -> PassResult:
    """Apply both rules once at every node; no shapes are needed."""
    editable = EditableModel(model, folder, default_opset(model))
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, editable.opset)
    made = rewritten_names(model)
    candidates = [node for node in editable.graph.nodes if node.name not in made]
    # A rewrite changes the readers that others are judged by: judge first.
    judged = [
        (found, _objection(editable, symbols, decomposer, found))
        for found in (_match(node, symbols, decomposer) for node in candidates)
        if found is not None
    ]
    sites = []
    for found, objection in judged:
        site = _site(symbols, found)
        apply, reason = decide(site.output, objection)
        site.reason = reason or "less work on large tensors"
        if apply:
            _rewrite(editable, symbols, found, site)
        sites.append(site)
    changed = any(site.decision == "rewritten" for site in sites)
    return PassResult(editable.export() if changed else model, sites)


def _match(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Match | None:
    dims = symbols.dims(node.outputs[0]) if node.outputs else None
    if dims is None or len(dims) < 2 or 0 in dims:
        return None  # of a result without elements nothing is gained
    sunk = sink_broadcast.match(node, symbols, decomposer)
    if isinstance(sunk, sink_broadcast.Match):
        return sunk if any(sunk.dims[axis] != 1 for axis in sunk.segment.uniform) else None
    dropped = drop_expand.match(node, symbols, decomposer)
    return dropped if isinstance(dropped, drop_expand.Match) else None


def _objection(editable: EditableModel, symbols: Symbols, decomposer: Decomposer, found: Match) -> str:
    """Why it is not certain that a match saves time; empty if it is."""
    dims = symbols.dims(found.node.outputs[0])
    assert dims is not None
    if not _large(dims):
        return f"its result has fewer than {LEAST_ELEMENTS} elements"
    results = {id(tensor) for tensor in editable.graph.outputs}
    if isinstance(found, drop_expand.Match):
        copies = list(found.copies)
        kept = [t for t in copies if id(t) in results or any(reader is not found.node for reader in t.outputs)]
        if not kept and found.node.op == "Add" and any(_by_convolution(t) for t in found.inputs):
            return "ONNX Runtime can make the addition part of the convolution before it"
    else:
        copies = sink_broadcast.copied_inputs(found.node, symbols, decomposer)
        kept = [
            t
            for t in copies
            if id(t) in results or not all(sink_broadcast.is_uniform(r, symbols, decomposer) for r in t.outputs)
        ]
    return f"the copies in {kept[0].name} are read elsewhere too" if kept else ""


def _large(dims: Dims) -> bool:
    count = 1
    for dim in dims:
        if not isinstance(dim, int):
            return True
        count *= dim
    return count >= LEAST_ELEMENTS


def _by_convolution(tensor: gs.Tensor) -> bool:
    return bool(tensor.inputs) and operator(tensor.inputs[0]) == "Conv"


def _rewrite(editable: EditableModel, symbols: Symbols, found: Match, site: Site) -> None:
    prefix = editable.new_prefix(f"{site.node}/msconv")
    if isinstance(found, drop_expand.Match):
        builder = drop_expand.rewrite(editable, symbols, found, prefix)
    else:
        builder = sink_broadcast.rewrite(editable, symbols, found, prefix)
    if isinstance(builder, Refusal):
        site.reason = builder.reason
        return
    found.node.outputs.clear()
    editable.insert(builder, {"msconv.rule": site.rule, "msconv.replaces": site.node})
    site.decision = "rewritten"


def _site(symbols: Symbols, found: Match) -> Site:
    """The match as data: its one segment is the result of `sink-broadcast`, the dropped copies of `drop-expand`."""
    node, dims = found.node, symbols.dims(found.node.outputs[0])
    assert dims is not None
    channels = dims[1] if isinstance(dims[1], int) else 0
    if isinstance(found, drop_expand.Match):
        rule, lowering = drop_expand.ID, WITHOUT_COPIES
        nodes = [f"{t.inputs[0].op} {node_name(t.inputs[0])}" for t in found.copies]
        segment = SegmentInfo(0, channels, list(found.axes), nodes)
    else:
        rule, lowering = sink_broadcast.ID, ON_CORE
        segment = SegmentInfo(0, channels, sorted(found.segment.uniform), list(found.segment.found))
    site = Site(node_name(node), node.op, str(node.outputs[0].name), "", [segment], rule)
    site.lowering, site.spellings = lowering, [lowering]
    return site
