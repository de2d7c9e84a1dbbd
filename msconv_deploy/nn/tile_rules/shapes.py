"""Views: reshaping, indexing, moving dimensions, and lists of sizes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from msconv_deploy.nn.facts import HEIGHT, WIDTH, Fact
from msconv_deploy.nn.fx_nodes import Entry, Extent, argument, operand, operation
from msconv_deploy.nn.tile_rules.base import Axes, Core, Rule
from msconv_deploy.nn.tracing import shape_owner

if TYPE_CHECKING:
    from msconv_deploy.nn.tile_graph import TileGraph


def entries_of(graph: TileGraph, value: Any) -> list[Entry] | None:
    """A list of sizes, entry by entry: a tuple, ``x.shape``, ``x.shape[2:]``, a sum of such; None if not understood."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if not isinstance(value, fx.Node):
        return None
    owner = shape_owner(value)
    if owner is not None:
        rank = graph.fact(owner).rank
        return None if rank is None else [Extent(owner, d) for d in range(-rank, 0)]
    if value.op == "call_function" and value.target is operator.add:
        left, right = (entries_of(graph, a) for a in value.args)
        return None if left is None or right is None else left + right
    if value.op == "call_function" and value.target is operator.getitem and isinstance(value.args[1], slice):
        return _entries_of_slice(graph, value.args[0], value.args[1])
    return None


def _entries_of_slice(graph: TileGraph, sizes: Any, index: slice) -> list[Entry] | None:
    """Entries of a slice; one from the end of a shape can be read without its rank."""
    if any(isinstance(b, fx.Node) for b in (index.start, index.stop, index.step)):
        return None
    entries, owner = entries_of(graph, sizes), shape_owner(sizes)
    if entries is not None:
        return entries[index]
    if owner is not None and (index.start or 0) < 0 and index.stop is None:
        from_right: list[Entry] = [Extent(owner, d) for d in range(index.start, 0)]
        return from_right[:: index.step]
    return None


def sizes_argument(graph: TileGraph, node: fx.Node, position: int) -> list[Entry] | None:
    """Sizes given as separate arguments, or as one tuple or size."""
    given = node.args[position:]
    if not given:
        value = next((node.kwargs[k] for k in ("size", "shape", "dims", "repeats") if k in node.kwargs), None)
        return entries_of(graph, value)
    if len(given) == 1 and not isinstance(given[0], int):
        entries = entries_of(graph, given[0])
        is_number = isinstance(given[0], fx.Node) and graph.fact(given[0]).rank == 0
        return [given[0]] if entries is None and is_number else entries  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


class View(Rule):
    """``x.view(n, c, 1, 1)``: literal sizes are facts."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        entries = sizes_argument(graph, node, 1)
        if entries is None:
            return Fact()
        k = len(entries)
        return Fact(k, sizes={i - k: n for i, n in enumerate(entries) if isinstance(n, int) and n > 0})


class Flatten(Rule):
    """``flatten(1)``: only the rank is a fact."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        module = graph.module(node) if node.op == "call_module" else None
        start = getattr(module, "start_dim", 0) if module is not None else argument(node, 1, "start_dim", 0)
        end = getattr(module, "end_dim", -1) if module is not None else argument(node, 2, "end_dim", -1)
        return Fact(start + 1) if end == -1 and isinstance(start, int) and start >= 0 else Fact()


class Index(Rule):
    """Indexing with None, slices, an ellipsis and integers, and ``unsqueeze``."""

    def items(self, graph: TileGraph, node: fx.Node) -> list[Any] | None:
        """The index, one item for each dimension of the operand or new dimension; None if it is not understood."""
        fact = graph.fact(operand(node))
        if operation(node) == "unsqueeze":
            dim = argument(node, 1, "dim")
            if not isinstance(dim, int):
                return None
            return [slice(None)] * dim + [None] if dim >= 0 else [Ellipsis, None, *[slice(None)] * (-dim - 1)]
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(
            i is None or i is Ellipsis or (isinstance(i, (slice, int)) and not isinstance(i, bool)) for i in index
        ):
            return None
        if fact.rank is None and not all(i is None or i is Ellipsis or i == slice(None) for i in index):
            return None
        return list(index) if sum(i is Ellipsis for i in index) <= 1 else None

    def operand_of_rank(self, graph: TileGraph, node: fx.Node, rank: int) -> tuple[fx.Node, int] | None:
        items, first = self.items(graph, node), operand(node)
        if items is None or first is None:
            return None
        return first, rank - sum(i is None for i in items) + sum(isinstance(i, int) for i in items)

    def layout(self, graph: TileGraph, node: fx.Node) -> list[tuple[Any, int | None, int | None]] | None:
        """(item, operand dimension, own dimension) of every item, dimensions from the right; needs the rank."""
        items, rank = self.items(graph, node), graph.fact(operand(node)).rank
        if items is None or rank is None:
            return None
        place = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
        given = sum(item is not None and item is not Ellipsis for item in items)
        full = items[:place] + [slice(None)] * (rank - given) + items[place + 1 :]
        consumed, produced = -rank, -sum(not isinstance(item, int) for item in full)
        out: list[tuple[Any, int | None, int | None]] = []
        for item in full:
            out.append((item, None if item is None else consumed, None if isinstance(item, int) else produced))
            consumed += item is not None
            produced += not isinstance(item, int)
        return out

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        first = operand(node)
        if first is None:
            return Fact()
        if operation(first) == "meshgrid":
            return _meshgrid_fact(node)
        if operation(first) in ("chunk", "split"):
            return _chunk_fact(graph, first)
        constant = graph.constant(node)
        if constant is not None:
            return constant_fact(constant)
        items, fact = self.items(graph, node), graph.fact(first)
        if items is None:
            return Fact()
        if fact.rank is None:
            return self._fact_of_unknown_rank(items, fact)
        layout = self.layout(graph, node)
        assert layout is not None
        sizes, uniform = {}, set()
        for item, source, own in layout:
            if own is None:
                continue
            if source is None:
                sizes[own] = 1
            elif item == slice(None) and source in fact.sizes:
                sizes[own] = fact.sizes[source]
            if source is None or fact.is_uniform(source):
                uniform.add(own)
        return Fact(sum(own is not None for _, _, own in layout), 0, sizes, frozenset(uniform), fact.lost)

    @staticmethod
    def _fact_of_unknown_rank(items: list[Any], fact: Fact) -> Fact:
        new = sum(item is None for item in items)
        least = max(fact.min_rank + new, sum(item is not Ellipsis for item in items))
        if Ellipsis not in items:
            # Dimensions counted from the left: an old one moves behind the new ones in front of it.
            old = [i for i, item in enumerate(items) if item is not None]
            moved = {old[d] if d < len(old) else d + new: n for d, n in fact.sizes.items() if d >= 0}
            return Fact(None, least, moved | {i: 1 for i, item in enumerate(items) if item is None})
        if items[0] is not Ellipsis:
            return Fact(None, least)
        behind = items[:0:-1]
        old = [-1 - i for i, item in enumerate(behind) if item is not None]
        moved = {old[-1 - d] if -d <= len(old) else d - new: n for d, n in fact.sizes.items() if d < 0}
        return Fact(None, least, moved | {-1 - i: 1 for i, item in enumerate(behind) if item is None})

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        first, layout = operand(node), self.layout(graph, node)
        assert first is not None
        if operation(first) == "meshgrid":
            return Core(_meshgrid_core(graph, node, axes))
        if operation(first) in ("chunk", "split"):
            chunks = graph.on_cores(first, graph.tensors(first)[:1], axes, drop_batch)
            with graph.behind(node):
                return Core(graph.copy(node, {first: chunks.node}), chunks.full_batch)
        if layout is None or graph.constant(node) is not None:
            return super().core(graph, node, axes, drop_batch)
        inside = graph.core(first, frozenset(s for _, s, own in layout if own in axes and s is not None), drop_batch)
        index = tuple(slice(None) if own in axes and s is not None else item for item, s, own in layout)
        with graph.behind(node):
            return Core(graph.call(operator.getitem, inside.node, index), inside.full_batch)

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        layout, first = self.layout(graph, node), operand(node)
        found = [s for item, s, own in layout or [] if own == dim and item == slice(None)]
        return (first, found[0]) if found and first is not None else None  # type: ignore[return-value]


class Permute(Rule):
    """``permute``, ``transpose``: dimensions move."""

    def order(self, graph: TileGraph, node: fx.Node) -> list[int] | None:
        """For each own dimension, from the left, the operand's dimension counted from the right; None if unknown."""
        rank = graph.fact(operand(node)).rank
        if rank is None:
            return None
        order = list(range(rank))
        if operation(node) == "permute":
            given = sizes_argument(graph, node, 1)
            if given is None or not all(isinstance(d, int) for d in given):
                return None
            order = [d % rank for d in given]  # type: ignore[operator]
        else:
            a, b = argument(node, 1, "dim0"), argument(node, 2, "dim1")
            order[a], order[b] = order[b], order[a]
        return [d - rank for d in order]

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        order, fact = self.order(graph, node), graph.fact(operand(node))
        if order is None:
            return Fact()
        sizes = {i - len(order): fact.sizes[d] for i, d in enumerate(order) if d in fact.sizes}
        uniform = frozenset(i - len(order) for i, d in enumerate(order) if d in fact.uniform)
        return Fact(len(order), 0, sizes, uniform, fact.lost)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        order, first = self.order(graph, node), operand(node)
        assert order is not None
        assert first is not None
        inside = graph.core(first, frozenset(order[d] for d in axes), False)
        with graph.behind(node):
            return Core(graph.copy(node, {first: inside.node}))

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        order, first = self.order(graph, node), operand(node)
        return None if order is None or first is None else (first, order[dim])


def _chunk_fact(graph: TileGraph, chunks: fx.Node) -> Fact:
    """One result of ``x.chunk(2, 1)`` or ``x.split(8, 1)``: what holds for x, except along the dimension that is cut."""
    dim, first = argument(chunks, 2, "dim", 0), operand(chunks)
    fact = graph.fact(first)
    if not isinstance(dim, int) or fact.rank is None:
        return Fact()
    cut = fact.dim(dim)
    sizes = {d: n for d, n in fact.sizes.items() if d != cut}
    return Fact(fact.rank, 0, sizes, fact.uniform - {cut}, fact.lost)


def _meshgrid_axis(node: fx.Node) -> int | None:
    """The own axis of one output of a two-dimensional `torch.meshgrid`: -2 varies along rows, -1 along columns."""
    grid, index = node.args
    assert isinstance(grid, fx.Node)
    if len(_meshgrid_operands(grid)) != 2 or index not in (0, 1):
        return None
    return -1 - int(index == 0) if grid.kwargs.get("indexing", "ij") == "ij" else -1 - int(index == 1)


def _meshgrid_operands(grid: fx.Node) -> list[Any]:
    single = len(grid.args) == 1 and isinstance(grid.args[0], (tuple, list))
    return list(grid.args[0] if single else grid.args)  # type: ignore[arg-type]


def _meshgrid_fact(node: fx.Node) -> Fact:
    own = _meshgrid_axis(node)
    return Fact() if own is None else Fact(2, uniform=frozenset((WIDTH if own == HEIGHT else HEIGHT,)))


def _meshgrid_core(graph: TileGraph, node: fx.Node, axes: Axes) -> fx.Node:
    (axis,) = axes
    grid, index = node.args
    vector = _meshgrid_operands(grid)[index]  # type: ignore[arg-type,index]
    with graph.behind(node):
        return graph.call("unsqueeze", vector, axis)


def constant_fact(value: Tensor) -> Fact:
    sizes = {d: value.shape[d] for d in range(-value.ndim, 0)}
    return Fact(value.ndim, 0, sizes, frozenset(uniform_dims(value)))


def uniform_dims(value: Tensor) -> set[int]:
    """Dimensions along which all slices of the value are equal."""
    if value.numel() == 0:
        return set()
    return {d for d in range(-value.ndim, 0) if bool((value == value.narrow(d, 0, 1)).all())}
