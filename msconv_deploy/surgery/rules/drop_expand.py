"""`drop-expand`: copies that feed an operator which broadcasts anyway are not made.

    f(expand(v), x) = f(v, x)

for elementwise operators, where the extents of ``x`` alone, or with ``v``, give the result's extents.

Valid only where this is so by structure: every extent of the result is the same number or the same name without the Expand
(or the Tile, of axes of extent 1). Costs nothing; saves writing and reading the copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.operators import BROADCASTING
from msconv_deploy.surgery.engine.symbols import Dim, Symbols, broadcast, operator

ID = "drop-expand"


@dataclass(frozen=True, eq=False)
class Match:
    """A node that broadcasts.

    Attributes:
        node: the node.
        inputs: what it reads instead, in order.
        copies: the inputs that are dropped.
        axes: of the result, along which those are copies.
    """

    node: gs.Node
    inputs: tuple[gs.Tensor, ...]
    copies: tuple[gs.Tensor, ...]
    axes: tuple[int, ...]


def match(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Match | Refusal | None:
    """The node with as many copies dropped as its result's extents allow, or why none can be, or None without copies."""
    if operator(node) not in BROADCASTING:
        return None
    wanted = symbols.dims(node.outputs[0])
    inputs = list(node.inputs)
    copies = [i for i, t in enumerate(inputs) if t.inputs and operator(t.inputs[0]) in ("Expand", "Tile")]
    if not copies or wanted is None:
        return None
    dropped: list[gs.Tensor] = []
    axes = set[int]()
    for position in copies:
        source = inputs[position].inputs[0].inputs[0]
        if not _only_copies(symbols, source, inputs[position]):
            continue
        shapes = [symbols.dims(source if i == position else t) for i, t in enumerate(inputs)]
        known = [s for s in shapes if s is not None]
        if len(known) == len(shapes) and broadcast(known) == list(wanted):
            dropped.append(inputs[position])
            inputs[position] = source
            axes.update(_copied_axes(symbols, source, list(wanted)))
    if dropped:
        return Match(node, tuple(inputs), tuple(dropped), tuple(sorted(axes)))
    return Refusal("its result's extents come from the copies", (str(node.name),))


def _only_copies(symbols: Symbols, source: gs.Tensor, result: gs.Tensor) -> bool:
    """Does every extent stay or come from extent 1? (A Tile of anything else is periodic.)"""
    before, after = symbols.dims(source), symbols.dims(result)
    if before is None or after is None or len(before) > len(after):
        return False
    shift = len(after) - len(before)
    return all(extent in (1, after[i + shift]) for i, extent in enumerate(before))


def _copied_axes(symbols: Symbols, source: gs.Tensor, wanted: list[Dim]) -> list[int]:
    """Axes of the result along which a source has extent 1, or that it lacks."""
    dims = symbols.dims(source) or ()
    shift = len(wanted) - len(dims)
    return [axis for axis, dim in enumerate(wanted) if dim != 1 and (axis < shift or dims[axis - shift] == 1)]


def rewrite(editable: EditableModel, symbols: Symbols, found: Match, prefix: str) -> GraphBuilder | Refusal:
    """The same operator without the copies; the graph is not changed yet."""
    builder = GraphBuilder(prefix, editable.opset)
    names = [str(t.name) for t in found.inputs]
    builder.add(found.node.op, *names, output=str(found.node.outputs[0].name), **dict(found.node.attrs))
    return builder
