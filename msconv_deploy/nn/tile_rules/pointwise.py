"""Operations that treat every pixel alone, and reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from msconv_deploy.nn.facts import CHANNELS, HEIGHT, SPACE, WIDTH, Fact, broadcast
from msconv_deploy.nn.fx_nodes import argument, describe, extent_of, operand, operation
from msconv_deploy.nn.tile_rules.base import Axes, Core, Rule
from msconv_deploy.nn.tile_rules.shapes import entries_of

if TYPE_CHECKING:
    from msconv_deploy.nn.tile_graph import TileGraph


class Cast(Rule):
    """The values of the first operand, in another dtype, layout or place: ``.to(other)``, ``.contiguous()``."""

    def operands(self, graph: TileGraph, node: fx.Node) -> list[fx.Node]:
        first = operand(node)
        return [] if first is None else [first]

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        return broadcast(graph.fact(n) for n in self.operands(graph, node))

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        return graph.on_cores(node, self.operands(graph, node), axes, drop_batch)

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        operands = self.operands(graph, node)
        return (operands[0], dim) if len(operands) == 1 and graph.fact(operands[0]).rank is not None else None

    def operand_of_rank(self, graph: TileGraph, node: fx.Node, rank: int) -> tuple[fx.Node, int] | None:
        operands = self.operands(graph, node)
        return (operands[0], rank) if len(operands) == 1 else None


class Elementwise(Cast):
    """Every output element from the operands' elements at its place, with broadcasting."""

    def operands(self, graph: TileGraph, node: fx.Node) -> list[fx.Node]:
        return graph.tensors(node)

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        fact = super().fact(graph, node)
        if self._is_zero(graph, node) and fact.rank:
            return Fact(fact.rank, sizes=fact.sizes, uniform=frozenset(range(-fact.rank, 0)))
        tiles = [n for n in self.operands(graph, node) if graph.fact(n).is_tile]
        if tiles and not fact.is_tile:
            others = ", ".join(n.name for n in self.operands(graph, node) if n is not tiles[0])
            lost = f"{tiles[0].name} is a tile, but {describe(node)} combines it with {others}, which is not"
            return replace(fact, lost=lost)
        return fact

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        if not self._is_zero(graph, node):
            return super().core(graph, node, axes, drop_batch)
        (only,) = self.operands(graph, node)
        part = graph.first_slice(only, axes)
        with graph.behind(node):
            return Core(graph.copy(node, {only: part}))

    def _is_zero(self, graph: TileGraph, node: fx.Node) -> bool:
        """``x * 0``: a constant whatever the finite x (a spelling of a zero tensor of x's shape)."""
        numbers = [a for a in node.args if isinstance(a, (int, float))]
        return operation(node) == "mul" and 0 in numbers and len(self.operands(graph, node)) == 1


class PerChannel(Elementwise):
    """An elementwise module with parameters by channel: BatchNorm in eval mode, PReLU."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        if isinstance(graph.module(node), nn.BatchNorm2d):
            graph.refine_rank(operand(node), 4)
        fact = super().fact(graph, node)
        kept = fact.uniform - {CHANNELS} if fact.rank == 4 else frozenset()
        return replace(fact, uniform=frozenset(kept))

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        return None


class AlongLastDim(Rule):
    """Linear: the last dimension is mixed, all others are kept."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        fact = graph.fact(operand(node))
        kept = frozenset(d for d in fact.uniform if d != WIDTH)
        sizes = {d: n for d, n in fact.sizes.items() if d != WIDTH}
        module = graph.module(node)
        assert isinstance(module, nn.Linear)
        return Fact(fact.rank, max(1, fact.min_rank), {**sizes, WIDTH: module.out_features}, kept)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        return graph.on_cores(node, graph.tensors(node), axes, drop_batch)


class Convolution(Rule):
    """Conv2d with a 1x1 kernel and no padding acts on every pixel alone; any other keeps nothing but the channels."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        module, fact = graph.module(node), graph.fact(operand(node))
        assert isinstance(module, nn.Conv2d)
        channels = {CHANNELS: module.out_channels}
        if not _is_pointwise(module):
            return Fact(fact.rank, max(3, fact.min_rank), channels)
        sizes = {d: 1 for d in SPACE if fact.is_one(d)} | channels
        return Fact(fact.rank, max(3, fact.min_rank), sizes, frozenset(fact.uniform & SPACE), fact.lost)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        return graph.on_cores(node, graph.tensors(node), axes, drop_batch)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    padding = conv.padding in ("same", "valid") or tuple(conv.padding) == (0, 0)
    return tuple(conv.kernel_size) == (1, 1) and padding


class PoolToOutput(Rule):
    """Adaptive pooling: the output extents are given; a literal 1 is a fact."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        fact = graph.fact(operand(node))
        size: Any = graph.module(node).output_size if node.op == "call_module" else argument(node, 1, "output_size")
        pair = size if isinstance(size, (tuple, list)) else (size, size)
        given = {d: n for d, n in zip((HEIGHT, WIDTH), pair, strict=True) if isinstance(n, int)}
        sizes = {d: n for d, n in fact.sizes.items() if d not in SPACE} | given
        return Fact(fact.rank, max(3, fact.min_rank), sizes, fact.uniform - SPACE)


class WholePool(Rule):
    """``F.avg_pool2d(x, x.shape[2:])``: the kernel is the whole map, so that both output extents are 1."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        first, entries = operand(node), entries_of(graph, argument(node, 1, "kernel_size"))
        plain = len(node.args) <= 2 and set(node.kwargs) <= {"kernel_size", "input", "stride", "padding"}
        if not plain or node.kwargs.get("padding", 0) not in (0, (0, 0)) or entries is None or len(entries) != 2:
            return Fact()
        extents = [extent_of(e) for e in entries]
        if any(e is None or e.tensor is not first for e in extents):
            return Fact()
        graph.refine_rank(first, 4)
        fact = graph.fact(first)
        whole = [fact.dim(e.dim) for e in extents if e is not None] == [HEIGHT, WIDTH]
        return Fact(fact.rank, fact.min_rank, {HEIGHT: 1, WIDTH: 1} if whole else {})


class Reduction(Rule):
    """``x.mean((2, 3), keepdim=True)`` and the like: the reduced dimensions have extent 1."""

    def dims(self, node: fx.Node) -> tuple[int, ...] | None:
        """The reduced dimensions; None if they are not literal."""
        dims = argument(node, 1, "dim")
        dims = (dims,) if isinstance(dims, int) else dims
        literal = isinstance(dims, (tuple, list)) and len(dims) > 0 and all(isinstance(d, int) for d in dims)
        return tuple(dims) if literal else None

    def keeps(self, node: fx.Node) -> bool:
        """Is it called with ``keepdim=True``?"""
        # `std` and `var` have another argument in second place.
        place = 2 if operation(node) not in ("std", "var") else len(node.args)
        return argument(node, place, "keepdim", False) is True

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        fact, dims = graph.fact(operand(node)), self.dims(node)
        if dims is None:
            return Fact()
        if not self.keeps(node):
            return Fact(None if fact.rank is None else fact.rank - len(dims))
        least = max(d + 1 if d >= 0 else -d for d in dims)
        reduced = {fact.dim(d) for d in dims}
        uniform = frozenset(d for d in fact.uniform - reduced if fact.rank is not None)
        kept = Fact(fact.rank, max(least, fact.min_rank), {}, uniform, fact.lost)
        return kept.with_sizes(dict.fromkeys(dims, 1))

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        return graph.on_cores(node, graph.tensors(node), axes, drop_batch)

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        first, dims = operand(node), self.dims(node)
        if first is None or dims is None or not self.keeps(node) or graph.fact(first).rank is None:
            return None
        return None if dim in map(graph.fact(first).dim, dims) else (first, dim)
