"""Lists of segments: concatenations, stacks, buffers of coordinates, `tile_and_concatenate`."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from msconv_deploy.nn.facts import CHANNELS, HEIGHT, SPACE, WIDTH, Fact
from msconv_deploy.nn.fx_nodes import Extent, argument, describe, operand
from msconv_deploy.nn.tile_rules.base import Axes, Core, Rule
from msconv_deploy.nn.tile_rules.copies import Repeat
from msconv_deploy.nn.tile_rules.shapes import constant_fact, uniform_dims

if TYPE_CHECKING:
    from msconv_deploy.nn.tile_graph import TileGraph


class Concatenate(Rule):
    """``torch.cat``: a list of segments."""

    joins = True

    def operands(self, node: fx.Node) -> list[fx.Node] | None:
        tensors = argument(node, 0, "tensors")
        if not isinstance(tensors, (tuple, list)) or not all(isinstance(t, fx.Node) for t in tensors):
            return None
        return list(tensors)

    def dim(self, graph: TileGraph, node: fx.Node) -> int | None:
        """The dimension of the concatenation, counted from the right; None if it is not known."""
        dim, operands = argument(node, 1, "dim", 0), self.operands(node)
        if not isinstance(dim, int) or not operands:
            return None
        rank = next((r for n in operands if (r := graph.fact(n).rank) is not None), None)
        return dim if dim < 0 else None if rank is None else dim - rank

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        operands = self.operands(node)
        if not operands:
            return Fact()
        rank = next((r for n in operands if (r := graph.fact(n).rank) is not None), None)
        if rank is None:
            return Fact(lost=f"the rank of {describe(node)} is not known without example_inputs")
        for operand_node in operands:
            graph.refine_rank(operand_node, rank)
        dim = self.dim(graph, node)
        if dim is None:
            return Fact(rank)
        self._force_extents(graph, operands, dim)
        facts = [graph.fact(n) for n in operands]
        sizes = {d: n for d in range(-rank, 0) for f in facts if d != dim and (n := f.sizes.get(d)) is not None}
        along = [f.sizes.get(dim) for f in facts]
        if None not in along:
            sizes[dim] = sum(n for n in along if n is not None)
        uniform = frozenset(d for d in range(-rank, 0) if d != dim and all(f.is_uniform(d) for f in facts))
        return Fact(rank, 0, sizes, uniform)

    @staticmethod
    def _force_extents(graph: TileGraph, operands: list[fx.Node], dim: int) -> None:
        """``cat([x, s.repeat(1, 1, x.size(2), x.size(3))])`` runs only if s has extent 1 where it is repeated."""
        for repeated in operands:
            rule, source = graph.rule(repeated), operand(repeated)
            if not isinstance(rule, Repeat) or source is None:
                continue
            counts = rule.counts(graph, repeated) or []
            for d in SPACE - {dim}:
                wanted = graph.origin(counts[d]) if len(counts) >= -d else None
                others = (graph.origin(Extent(n, d)) for n in operands if n is not repeated)
                if wanted is not None and wanted in others and not graph.fact(source).lacks(d):
                    graph.force_one(source, d)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        operands = self.operands(node) or []
        cores = {n: graph.core(n, axes).node for n in operands}
        with graph.behind(node):
            return Core(graph.copy(node, cores))

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node] | None:
        operands = self.operands(node)
        if operands is None or self.dim(graph, node) != dim:
            return None
        # A batch of 1 is broadcast by `tile_and_concatenate` but not by `cat`: that one is not taken apart in here.
        nested = [n for n in operands if isinstance(graph.rule(n), TileAndConcatenate)]
        return [part for n in operands for part in ([n] if n in nested else graph.parts(n, dim))]


class Stack(Rule):
    """``torch.stack``: a concatenation along a new dimension."""

    joins = True

    def dim(self, graph: TileGraph, node: fx.Node) -> int | None:
        dim, rank = argument(node, 1, "dim", 0), None
        operands = Concatenate().operands(node) or []
        rank = next((r for n in operands if (r := graph.fact(n).rank) is not None), None)
        if not isinstance(dim, int):
            return None
        return dim if dim < 0 else None if rank is None else dim - rank - 1

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        operands, own = Concatenate().operands(node), self.dim(graph, node)
        if not operands or own is None:
            return Fact()
        facts = [graph.fact(n) for n in operands]
        if facts[0].rank is None:
            return Fact()
        moved = {d: d if d > own else d - 1 for d in range(-facts[0].rank, 0)}
        uniform = frozenset(moved[d] for d in moved if all(f.is_uniform(d) for f in facts))
        return Fact(facts[0].rank + 1, 0, {own: len(operands)}, uniform)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        own, operands = self.dim(graph, node), Concatenate().operands(node) or []
        assert own is not None
        inside = frozenset(d if d > own else d + 1 for d in axes)
        cores = {n: graph.core(n, inside).node for n in operands}
        with graph.behind(node):
            return Core(graph.copy(node, cores))

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node] | None:
        if self.dim(graph, node) != dim:
            return None
        with graph.behind(node):
            return [graph.call("unsqueeze", n, dim) for n in Concatenate().operands(node) or []]


class Constant(Rule):
    """A parameter: its extents are facts. A buffer: its values are facts too, channel by channel."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        value: Any = graph.traced
        for name in str(node.target).split("."):
            value = getattr(value, name)
        if not isinstance(value, Tensor):
            return Fact()
        constant = graph.constant(node)
        if constant is None:
            return Fact(value.ndim, 0, {d: value.shape[d] for d in range(-value.ndim, 0)})
        return constant_fact(constant)

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node] | None:
        """A buffer of coordinates: runs of channels that are uniform along the same axes."""
        value = graph.constant(node)
        if value is None or value.ndim < -dim:
            return None
        kinds = [frozenset(uniform_dims(channel)) & SPACE for channel in value.split(1, dim)]
        if len(set(kinds)) < 2:
            return None
        starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
        full = [slice(None)] * (-dim - 1)
        with graph.behind(node):
            return [
                graph.call(operator.getitem, node, (Ellipsis, slice(a, b), *full))
                for a, b in zip(starts, [*starts[1:], len(kinds)], strict=True)
            ]


def tiled_source(source: Tensor, name: str) -> Tensor:
    """Marks a source of `tile_and_concatenate` as a part of it: the source with its missing axes at extent 1.

    It stands for the tile only while sites are looked for and is never left in a converted network.
    """
    return source[SOURCE_INDEX[name]]


SOURCE_INDEX: dict[str, tuple[Any, ...]] = {
    "nchw": (slice(None),) * 4,
    "nch": (slice(None), slice(None), slice(None), None),
    "ncw": (slice(None), slice(None), None),
    "nc": (slice(None), slice(None), None, None),
}
_SOURCE_MISSING: dict[str, Axes] = {
    "nchw": frozenset(),
    "nch": frozenset((WIDTH,)),
    "ncw": frozenset((HEIGHT,)),
    "nc": SPACE,
}


class TileAndConcatenate(Rule):
    """Our own baseline, kept whole while tracing."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        return Fact(4)

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node] | None:
        if dim != CHANNELS:
            return None
        with graph.behind(node):
            sources = self.sources(node).items()
            return [source if name == "nchw" else graph.call(tiled_source, source, name) for name, source in sources]

    @staticmethod
    def sources(node: fx.Node) -> dict[str, fx.Node]:
        given = {name: argument(node, i, name) for i, name in enumerate(SOURCE_INDEX)}
        return {name: s for name, s in given.items() if isinstance(s, fx.Node)}


class TiledSource(Rule):
    """One part of a `tile_and_concatenate`, whose core is the source itself."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        return Fact(4, uniform=_SOURCE_MISSING[str(node.args[1])])

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        source, name = node.args
        assert isinstance(source, fx.Node)
        if axes != _SOURCE_MISSING[str(name)]:
            return super().core(graph, node, axes, drop_batch)
        with graph.behind(node):
            return Core(graph.call(operator.getitem, source, SOURCE_INDEX[str(name)]))
