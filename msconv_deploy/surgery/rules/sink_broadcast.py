"""`sink-broadcast`: an operator on copies runs on what was copied, and the copies are made of its result.

    f(tile(v)) = tile(f(v))

for elementwise operators and activations, Cast, BatchNormalization and permutations, where the result is uniform along some
axes. `tile-concat-conv` does this by itself on the way to a contraction; this rule is for copies that are used elsewhere.

Valid wherever the result's extents are known as numbers or found in a graph input, so that the Expand behind the core
gives exactly the shape of before. Costs the operator on the core and one Expand; saves the operator's pass over the copies,
and the copies in front of it where nothing else reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.cores import CoreEmitter
from msconv_deploy.surgery.engine.decomposition import ELEMENTWISE, Decomposer, Segment
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.operators import UNARY
from msconv_deploy.surgery.engine.symbols import Dims, Symbols, operator

ID = "sink-broadcast"

_SINKS = {*UNARY, *ELEMENTWISE, "BatchNormalization", "Transpose"} - {"Identity", "Dropout"}
"""Operators that are worth computing on a core: those that only pass their operand on are not."""


@dataclass(frozen=True, eq=False)
class Match:
    """A node whose result is uniform.

    Attributes:
        node: the node.
        segment: all of its result, with the core.
        dims: extents of the result.
    """

    node: gs.Node
    segment: Segment
    dims: Dims


def match(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Match | Refusal | None:
    """The last of the operators on copies, why it is left, or None if nothing is copied."""
    found = _uniform_result(node, symbols, decomposer)
    if found is None:
        return None
    readers = node.outputs[0].outputs
    if readers and all(_uniform_result(reader, symbols, decomposer) is not None for reader in readers):
        return None  # the operators behind it are computed from the core as well
    dims = symbols.dims(node.outputs[0])
    assert dims is not None
    return Match(node, found, dims)


def _uniform_result(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Segment | None:
    """The result of a node as one uniform segment, where an operand is a tensor of copies already."""
    if operator(node) not in _SINKS or not node.outputs or any(o.name for o in node.outputs[1:]):
        return None
    if all(isinstance(t, gs.Constant) for t in node.inputs):
        return None
    output = node.outputs[0]
    for axis in (None, 1):
        segments = decomposer.segments(output, axis) if _has(symbols.dims(output), axis) else None
        if segments is None or len(segments) != 1 or not segments[0].uniform:
            continue
        if copied_inputs(node, symbols, decomposer):
            return segments[0]
    return None


def is_uniform(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> bool:
    """Does a node compute copies of what it would compute from the cores of its operands?"""
    return _uniform_result(node, symbols, decomposer) is not None


def copied_inputs(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> list[gs.Tensor]:
    """The operands of a node that are copies."""
    return [t for t in node.inputs if not isinstance(t, gs.Constant) and _copied(t, symbols, decomposer)]


def _has(dims: Dims | None, axis: int | None) -> bool:
    return dims is not None and (axis is None or (len(dims) > axis and isinstance(dims[axis], int)))


def _copied(tensor: gs.Tensor, symbols: Symbols, decomposer: Decomposer) -> bool:
    segments = decomposer.segments(tensor, None) if tensor.name and symbols.dims(tensor) is not None else None
    return segments is not None and any(s.uniform for s in segments)


def rewrite(editable: EditableModel, symbols: Symbols, found: Match, prefix: str) -> GraphBuilder | Refusal:
    """The operator on the core and an Expand to the shape of before; the graph is not changed yet."""
    builder = GraphBuilder(prefix, editable.opset)
    core = CoreEmitter(builder).emit(found.segment.core)
    parts = []
    for axis, dim in enumerate(found.dims):
        if isinstance(dim, int):
            parts.append(builder.ints([dim]))
        elif axis not in found.segment.uniform and found.segment.core.dims[axis] == dim:
            parts.append(builder.ints([1]))  # the core has it
        else:
            holder = _holder(editable.graph, symbols, dim)
            if holder is None:
                return Refusal(f"extent {dim} of its result is known to the copies only", (str(found.node.name),))
            parts.append(builder.unsqueeze(builder.extent(*holder), 0))
    shape = builder.add("Concat", *parts, axis=0, hint="shape") if len(parts) > 1 else parts[0]
    builder.add("Expand", core, shape, output=str(found.node.outputs[0].name))
    return builder


def _holder(graph: gs.Graph, symbols: Symbols, dim: str) -> tuple[str, int] | None:
    """A graph input that has an extent, and its axis."""
    for tensor in graph.inputs:
        dims = symbols.dims(tensor)
        if dims is not None and dim in dims:
            return str(tensor.name), dims.index(dim)
    return None
