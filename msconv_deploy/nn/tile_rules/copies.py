"""Where tiles come from: expand, repeat, constants, resizing from extent 1, padding that keeps them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import fx

from msconv_deploy.nn.facts import BATCH, CHANNELS, HEIGHT, SPACE, WIDTH, Fact
from msconv_deploy.nn.fx_nodes import Entry, Extent, argument, describe, operand, operation
from msconv_deploy.nn.tile_rules.base import Axes, Core, Rule
from msconv_deploy.nn.tile_rules.shapes import entries_of, sizes_argument
from msconv_deploy.nn.tracing import example_shape

if TYPE_CHECKING:
    from msconv_deploy.nn.tile_graph import TileGraph

_AXIS_WORDS = {HEIGHT: "height", WIDTH: "width"}


class Expand(Rule):
    """``expand``, ``expand_as``, ``broadcast_to``: an extent of 1 becomes any; -1 keeps it."""

    def entries(self, graph: TileGraph, node: fx.Node) -> list[Entry] | None:
        if operation(node) != "expand_as":
            return sizes_argument(graph, node, 1)
        other = argument(node, 1, "other")
        rank = graph.fact(other).rank
        return None if rank is None else [Extent(other, d) for d in range(-rank, 0)]

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        entries, first = self.entries(graph, node), operand(node)
        if entries is None or first is None:
            return Fact(lost=f"the sizes of {describe(node)} are not known without example_inputs")
        k = len(entries)
        if graph.fact(first).min_rank == k or (entries and entries[0] == -1):
            graph.refine_rank(first, k)
        fact = graph.fact(first)
        sizes: dict[int, int] = {}
        uniform = set()
        for dim, entry in zip(range(-k, 0), entries, strict=True):
            if isinstance(entry, int) and entry > 0:
                sizes[dim] = entry
            elif entry == -1 and dim in fact.sizes:
                sizes[dim] = fact.sizes[dim]
            if fact.is_uniform(dim):
                uniform.add(dim)
        return Fact(k, 0, sizes, frozenset(uniform), fact.lost or self._lost(node, entries, uniform))

    @staticmethod
    def _lost(node: fx.Node, entries: Sequence[Entry], uniform: Iterable[int]) -> str:
        expanded = [d for d in SPACE if len(entries) >= -d and entries[d] not in (-1, 1) and d not in uniform]
        if not expanded:
            return ""
        words = " and ".join(_AXIS_WORDS[d] for d in sorted(expanded))
        return (
            f"{describe(node)} expands along {words}, where the extent of {operand(node)} is not 1 by structure: it may "
            "be 1 by accident. Reshape it with view(n, c, 1, 1) first"
        )

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        entries, first = self.entries(graph, node), operand(node)
        assert entries is not None
        assert first is not None
        fact, dims = graph.fact(first), range(-len(entries), 0)
        # What is still to be expanded: -1 where nothing is.
        kept = {d: -1 if d in axes else self._kept(graph, node, d, entries[d]) for d in dims}
        dropped = drop_batch and len(entries) == -BATCH and kept[BATCH] != -1 and fact.rank is not None
        if dropped:
            kept[BATCH] = -1
        inside = graph.core(first, axes, drop_batch)
        full = inside.full_batch and not dropped
        missing = 0 if fact.rank is None else len(entries) - fact.rank
        with graph.behind(node):
            if any(entry != -1 for entry in kept.values()) or fact.rank is None:
                # Extent 1 is spelled out where the operand may lack the dimension.
                sizes = [1 if d in axes or (n == -1 and fact.lacks(d)) else graph.entry(n) for d, n in kept.items()]
                return Core(graph.call("expand", inside.node, *sizes), full)
            if missing:
                return Core(graph.call(operator.getitem, inside.node, (None,) * missing + (Ellipsis,)), full)
        return Core(inside.node, full)

    @staticmethod
    def _kept(graph: TileGraph, node: fx.Node, dim: int, entry: Entry) -> Entry:
        """The entry of a dimension that stays; -1 where the operand is known to have that extent already."""
        first = operand(node)
        assert first is not None
        fact = graph.fact(first)
        if entry == -1 or (entry == 1 and fact.lacks(dim)) or (isinstance(entry, int) and fact.sizes.get(dim) == entry):
            return -1
        origin = graph.origin(entry)
        if origin is not None and origin == graph.origin(Extent(first, dim)):
            return -1
        before, after = example_shape(first), example_shape(node)
        # Only a channel count may be read from the example: the weight of the convolution fixes it.
        if (
            dim == CHANNELS
            and before is not None
            and after is not None
            and before[dim : dim + 1] == after[dim : dim + 1]
        ):
            return -1
        return entry

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        entries, first = self.entries(graph, node), operand(node)
        if entries is None or first is None or len(entries) < -dim or graph.fact(first).lacks(dim):
            return None
        return (first, dim) if entries[dim] in (-1, graph.size(first, dim)) else None

    def on_part(self, graph: TileGraph, node: fx.Node, whole: fx.Node, part: fx.Node, dim: int) -> fx.Node:
        entries = self.entries(graph, node) or []
        sizes = [-1 if d == dim else graph.entry(n) for d, n in zip(range(-len(entries), 0), entries, strict=True)]
        return graph.call("expand", part, *sizes)


class Repeat(Rule):
    """``repeat``, ``tile``: an extent is multiplied."""

    def counts(self, graph: TileGraph, node: fx.Node) -> list[Entry] | None:
        counts = sizes_argument(graph, node, 1)
        if counts is None or operation(node) == "repeat":
            return counts
        rank = graph.fact(operand(node)).rank  # `tile` puts ones in front
        return None if rank is None else [1] * (rank - len(counts)) + counts

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        counts, first = self.counts(graph, node), operand(node)
        if counts is None or first is None:
            return Fact(lost=f"the counts of {describe(node)} are not known without example_inputs")
        k = len(counts)
        if graph.fact(first).min_rank == k:
            graph.refine_rank(first, k)
        fact = graph.fact(first)
        sizes: dict[int, int] = {}
        for dim, count in zip(range(-k, 0), counts, strict=True):
            own = 1 if fact.lacks(dim) else fact.sizes.get(dim)
            if own is not None and isinstance(count, int):
                sizes[dim] = own * count
        uniform = frozenset(d for d in range(-k, 0) if fact.is_uniform(d))
        return Fact(k, 0, sizes, uniform, fact.lost or self._lost(node, counts, uniform))

    @staticmethod
    def _lost(node: fx.Node, counts: Sequence[Entry], uniform: Iterable[int]) -> str:
        lost = Expand._lost(node, counts, uniform)
        return lost.replace("expands", "repeats")

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        counts, first = self.counts(graph, node), operand(node)
        assert counts is not None
        assert first is not None
        fact, k = graph.fact(first), len(counts)
        kept: list[Entry] = [1 if d in axes else counts[d] for d in range(-k, 0)]
        single = fact.lacks(BATCH) or fact.is_one(BATCH)
        dropped = drop_batch and k == -BATCH and kept[0] != 1 and single
        if dropped:
            kept[0] = 1
        inside = graph.core(first, axes, drop_batch and kept[0] == 1)
        full = inside.full_batch and not dropped
        with graph.behind(node):
            if any(count != 1 for count in kept) or fact.rank is None:
                return Core(graph.call("repeat", inside.node, *map(graph.entry, kept)), full)
            if fact.rank < k:
                return Core(graph.call(operator.getitem, inside.node, (None,) * (k - fact.rank) + (Ellipsis,)), full)
        return Core(inside.node, full)

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        counts, first = self.counts(graph, node), operand(node)
        if counts is None or first is None or len(counts) < -dim or graph.fact(first).lacks(dim):
            return None
        return (first, dim) if counts[dim] == 1 else None


class Create(Rule):
    """``torch.zeros(sizes)``, ``x.new_full(sizes, v)``: uniform along every dimension."""

    def entries(self, graph: TileGraph, node: fx.Node) -> tuple[int, list[Entry] | None]:
        """Position of the sizes among the arguments, and the sizes."""
        name = operation(node) or ""
        position = 1 if name.startswith("new_") else 0
        if name.endswith("full"):
            return position, entries_of(graph, argument(node, position, "size"))
        return position, sizes_argument(graph, node, position)

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        _, entries = self.entries(graph, node)
        if entries is None:
            return Fact()
        dims = range(-len(entries), 0)
        sizes = {d: n for d, n in zip(dims, entries, strict=True) if isinstance(n, int)}
        return Fact(len(entries), 0, sizes, frozenset(dims))

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        position, entries = self.entries(graph, node)
        assert entries is not None
        dropped = drop_batch and len(entries) == -BATCH and entries[0] != 1
        dims = range(-len(entries), 0)
        with graph.behind(node):
            sizes = [
                1 if d in axes or (dropped and d == BATCH) else graph.entry(n)
                for d, n in zip(dims, entries, strict=True)
            ]
            new = graph.copy(node, {})
        rest = node.args[position + 1 :] if (operation(node) or "").endswith("full") else ()
        new.args = (*node.args[:position], sizes, *rest)
        new.kwargs = {name: value for name, value in node.kwargs.items() if name != "size"}
        graph.examples.evaluate(new)
        return Core(new, not dropped)


class CreateLike(Rule):
    """``torch.zeros_like(x)``: uniform along every dimension of x."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        fact = graph.fact(operand(node))
        return Fact() if fact.rank is None else Fact(fact.rank, 0, fact.sizes, frozenset(range(-fact.rank, 0)))

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        first = operand(node)
        assert first is not None
        part = graph.first_slice(first, axes)
        with graph.behind(node):
            return Core(graph.copy(node, {first: part}))


class Resize(Rule):
    """``F.interpolate``, ``nn.Upsample``: from extent 1 every mode only copies."""

    def parameters(self, graph: TileGraph, node: fx.Node) -> tuple[Any, Any, str]:
        """size, scale_factor, mode."""
        source = vars(graph.module(node)) if node.op == "call_module" else None
        if source is not None:
            return source.get("size"), source.get("scale_factor"), str(source.get("mode"))
        mode = str(argument(node, 3, "mode", "nearest"))
        return argument(node, 1, "size"), argument(node, 2, "scale_factor"), mode

    def pair(self, graph: TileGraph, node: fx.Node) -> tuple[str, list[Any]] | None:
        """("size" or "scale_factor", one value per spatial dimension), or None if it is not understood."""
        size, scale, _ = self.parameters(graph, node)
        name, value = ("size", size) if size is not None else ("scale_factor", scale)
        if isinstance(value, (int, float)) or (isinstance(value, fx.Node) and graph.fact(value).rank == 0):
            return name, [value, value]
        entries = entries_of(graph, value)
        return None if entries is None or len(entries) != 2 else (name, list(entries))

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        first = operand(node)
        size, scale, mode = self.parameters(graph, node)
        pair = self.pair(graph, node)
        if mode in ("bilinear", "bicubic") or (pair is not None and isinstance(size or scale, (tuple, list))):
            graph.refine_rank(first, 4)
        fact = graph.fact(first)
        uniform = frozenset(d for d in fact.uniform | SPACE if fact.is_uniform(d)) if fact.rank == 4 else frozenset()
        if pair is None and not uniform >= SPACE:
            uniform -= SPACE  # along one axis alone the other size is needed to compute the core
        sizes = {d: n for d, n in fact.sizes.items() if d not in SPACE}
        if pair is not None and pair[0] == "size":
            sizes |= {d: n for d, n in zip((HEIGHT, WIDTH), pair[1], strict=True) if isinstance(n, int)}
        return Fact(fact.rank, max(3, fact.min_rank), sizes, uniform, fact.lost or self._lost(node, fact))

    @staticmethod
    def _lost(node: fx.Node, fact: Fact) -> str:
        known = [fact.sizes.get(d) for d in (HEIGHT, WIDTH)]
        if None in known or 1 in known:
            return ""
        return f"{describe(node)} resizes from {known[0]}x{known[1]}: only from extent 1 all pixels become equal"

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        first = operand(node)
        assert first is not None
        inside = graph.core(first, axes, drop_batch)
        kept = [d for d in (HEIGHT, WIDTH) if d not in axes]
        if not kept:
            return inside
        pair = self.pair(graph, node)
        if pair is None:
            return super().core(graph, node, axes, drop_batch)
        name, values = pair
        align = argument(node, 4, "align_corners")
        if node.op == "call_module":
            align = getattr(graph.module(node), "align_corners", None)
        with graph.behind(node):
            sizes = [1 if d in axes else graph.entry(v) for d, v in zip((HEIGHT, WIDTH), values, strict=True)]
            options = {name: tuple(sizes), "mode": self.parameters(graph, node)[2], "align_corners": align}
            for option in ("recompute_scale_factor", "antialias"):
                value = (
                    getattr(graph.module(node), option, None) if node.op == "call_module" else node.kwargs.get(option)
                )
                options |= {} if value is None else {option: value}
            return Core(graph.call(F.interpolate, inside.node, **options), inside.full_batch)


_PAD_MODES = ("reflection", "replication", "circular", "zero", "constant")


class Pad(Rule):
    """Padding. Reflect, replicate and circular padding keep a uniform tensor uniform; constant padding does not."""

    def widths(self, graph: TileGraph, node: fx.Node) -> tuple[list[int], str, float] | None:
        """Widths in the order of `F.pad`, mode and fill value; None if they are not literal."""
        if node.op == "call_module":
            module: Any = graph.module(node)
            mode = next(m for m in _PAD_MODES if m in type(module).__name__.lower())
            widths, value = list(module.padding), getattr(module, "value", 0)
        else:
            widths, mode = argument(node, 1, "pad"), str(argument(node, 2, "mode", "constant"))
            value = argument(node, 3, "value", 0) or 0
        if not isinstance(widths, (tuple, list)) or not all(isinstance(w, int) for w in widths):
            return None
        mode = {"reflection": "reflect", "replication": "replicate", "zero": "constant"}.get(mode, mode)
        return (list(widths), mode, float(value)) if isinstance(value, (int, float)) else None

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        found, fact = self.widths(graph, node), graph.fact(operand(node))
        if found is None:
            return Fact()
        widths, mode, _ = found
        padded = {-1 - i // 2 for i, width in enumerate(widths) if width}
        sizes = {d: n for d, n in fact.sizes.items() if d not in padded}
        # Extent 1 is uniform as well, and is no longer 1 once it is padded.
        uniform = frozenset(d for d in fact.uniform | padded if fact.is_uniform(d))
        if mode == "constant" and padded:
            lost = f"{describe(node)} surrounds a tile with a constant: give the convolution itself zero padding"
            return Fact(fact.rank, fact.min_rank, sizes, uniform - padded, lost if fact.is_tile else fact.lost)
        return Fact(fact.rank, fact.min_rank, sizes, uniform, fact.lost)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        found, first = self.widths(graph, node), operand(node)
        assert found is not None
        assert first is not None
        widths, mode, value = found
        inside = graph.core(first, axes, drop_batch)
        kept = [0 if -1 - i // 2 in axes else width for i, width in enumerate(widths)]
        if not any(kept):
            return inside
        with graph.behind(node):
            return Core(
                graph.call(F.pad, inside.node, kept, mode, value if mode == "constant" else None), inside.full_batch
            )

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        found, first = self.widths(graph, node), operand(node)
        if found is None or first is None or len(found[0]) >= -2 * dim:
            return None
        return (first, dim)
