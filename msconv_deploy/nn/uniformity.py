"""Which values of a traced network are tiles, and how to compute their cores without the tile.

A forward analysis over the `torch.fx` graph. Every operation that is known has a `Rule`, which answers three questions:

* ``fact``: along which dimensions is the result uniform, given the operands?
* ``core``: how is the result computed with some uniform dimensions kept at extent 1?
* ``split``: does the operation act on every channel alone, so that it may be applied to the operands of a
  concatenation one by one?

An operation without a rule is opaque: nothing is known of its result. The rules prove uniformity from the structure
of the network (what was expanded, pooled to 1, viewed with a literal 1), never from extents at example inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from msconv_deploy.nn.facts import BATCH, CHANNELS, HEIGHT, WIDTH, Fact, broadcast
from msconv_deploy.nn.tiling import tile_and_concatenate
from msconv_deploy.nn.tracing import Examples, example, example_shape, shape_owner

Axes = frozenset[int]
_SPACE = frozenset((HEIGHT, WIDTH))
_AXIS_WORDS = {BATCH: "batch", CHANNELS: "channels", HEIGHT: "height", WIDTH: "width"}


@dataclass(frozen=True)
class Core:
    """A node that computes a value with some of its uniform dimensions at extent 1.

    ``full_batch`` is False where a copy over the batch was dropped too, so that its batch may be 1 instead of N.
    """

    node: fx.Node
    full_batch: bool = True


class Rule:
    """What one kind of operation does to uniform tensors. The base class knows nothing."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        return Fact()

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        """Compute the node with ``axes`` at extent 1. Always right, but builds the tile: cut it off afterwards."""
        return Core(graph.first_slice(node, axes))

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        """The operand, and its dimension, whose parts along that dimension are treated one by one; None: not so."""
        return None

    def on_part(self, graph: TileGraph, node: fx.Node, whole: fx.Node, part: fx.Node, dim: int) -> fx.Node:
        """The operation on one part of its operand ``whole``, at the insertion point."""
        return graph.copy(node, {whole: part})


# -- reading fx nodes --------------------------------------------------------------------------------------------


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operand(node: fx.Node) -> fx.Node | None:
    """The first argument, if it is a node."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None


def describe(node: fx.Node) -> str:
    """The node in words for a reason: its name and what it calls."""
    if node.op == "call_module":
        return f"{node.name} (module {node.target!r})"
    if node.op in ("call_function", "call_method"):
        return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
    return node.name


def has_hooks(module: nn.Module) -> bool:
    """Do forward or backward hooks observe or change the module's calls?"""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


@dataclass(frozen=True)
class Extent:
    """A dimension of a tensor in the graph, as an entry in a list of sizes; ``dim`` may be counted from either end."""

    tensor: fx.Node
    dim: int


Entry = int | fx.Node | Extent


def extent_of(value: Any) -> Extent | None:
    """The dimension that a node reads: ``x.size(2)``, ``x.shape[2]``, ``x.shape[-2:][0]``."""
    if not isinstance(value, fx.Node):
        return value if isinstance(value, Extent) else None
    if value.op == "call_method" and value.target == "size":
        dim = argument(value, 1, "dim")
        return Extent(value.args[0], dim) if isinstance(dim, int) and isinstance(value.args[0], fx.Node) else None
    if value.op != "call_function" or value.target is not operator.getitem:
        return None
    shape: Any
    index: Any
    shape, index = value.args
    start: Any = 0
    if isinstance(shape, fx.Node) and shape.target is operator.getitem and isinstance(shape.args[1], slice):
        bounds = shape.args[1]
        start = None if bounds.step is not None else bounds.start or 0
        shape = shape.args[0]
        index = index if isinstance(index, int) and index >= 0 else None
    owner = shape_owner(shape)
    known = owner is not None and isinstance(start, int) and isinstance(index, int)
    return Extent(owner, start + index) if owner is not None and known else None


# -- the graph ---------------------------------------------------------------------------------------------------


class TileGraph:
    """The traced network with facts about its nodes; makes the nodes of cores on demand.

    New nodes stand directly behind the node that they replace, so that they read every tensor when the original did.
    Unused ones are removed in the end.
    """

    def __init__(self, traced: fx.GraphModule, examples: Examples) -> None:
        self.traced = traced
        self.examples = examples
        self.created: list[fx.Node] = []
        self._facts: dict[fx.Node, Fact] = {}
        self._forced: dict[fx.Node, set[int]] = {}
        self._cores: dict[tuple[fx.Node, Axes, bool], Core] = {}
        self._parts: dict[tuple[fx.Node, int], list[fx.Node]] = {}
        self._analyse()

    def _analyse(self) -> None:
        """Facts of all nodes, repeated while a concatenation forces extents upstream to be 1 (`Concatenate`)."""
        known = -1
        while known != sum(map(len, self._forced.values())):
            known = sum(map(len, self._forced.values()))
            self._facts.clear()
            for node in self.traced.graph.nodes:
                self.fact(node)

    def module(self, node: fx.Node) -> nn.Module:
        return self.traced.get_submodule(str(node.target))

    def fact(self, value: Any) -> Fact:
        """The fact of a node; a Python value is a number that broadcasts."""
        if not isinstance(value, fx.Node):
            return Fact(rank=0)
        if value not in self._facts:
            fact = self._example_rank(value, self._rule_fact(value))
            self._facts[value] = fact.with_sizes(dict.fromkeys(self._forced.get(value, ()), 1))
        return self._facts[value]

    def _rule_fact(self, node: fx.Node) -> Fact:
        if node.op == "placeholder":
            return Fact()
        if isinstance(example(node), (bool, int, float)) or extent_of(node) is not None:
            return Fact(rank=0)
        obstacle = _obstacle(self, node)
        fact = Fact() if obstacle else rule_of(self, node).fact(self, node)
        if not (fact.is_tile or fact.lost):
            fact = replace(fact, lost=self._lost(node, fact, obstacle))
        return fact

    def _lost(self, node: fx.Node, fact: Fact, obstacle: str) -> str:
        """Why a tile among the operands is no tile in the result."""
        tiles = [n for n in node.all_input_nodes if self.fact(n).is_tile]
        if not tiles or fact.rank == 0 or extent_of(node) or shape_owner(node):
            return ""
        return f"{tiles[0].name} is a tile, but {obstacle or f'{describe(node)} is not known to keep it uniform'}"

    def _example_rank(self, node: fx.Node, fact: Fact) -> Fact:
        shape = example_shape(node)
        return fact if shape is None else fact.with_rank(len(shape))

    def refine_rank(self, node: Any, rank: int) -> None:
        """Record a rank that a reader of the node requires, also for what it was computed from elementwise."""
        if isinstance(node, fx.Node) and self.fact(node).rank is None:
            self._facts[node] = self._facts[node].with_rank(rank)
            rule = rule_of(self, node)
            if isinstance(rule, (Elementwise, PerChannel, Cast)) and len(self.tensors(node)) == 1:
                self.refine_rank(self.tensors(node)[0], rank)
            elif isinstance(rule, Index) and operand(node) is not None:
                self.refine_rank(operand(node), rank - rule.added_dims(self, node))

    def force_one(self, node: fx.Node, dim: int) -> None:
        """Record that every run that does not fail has extent 1 there."""
        if not self.fact(node).is_one(dim):
            self._forced.setdefault(node, set()).add(dim)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """Operands that are not Python numbers."""
        return [n for n in node.all_input_nodes if self.fact(n).rank != 0]

    def size(self, node: fx.Node, dim: int) -> int | None:
        """Extent along batch or channels, from the structure or else from the example; None if unknown."""
        known = self.fact(node).sizes.get(dim)
        shape = example_shape(node)
        return shape[dim] if known is None and shape is not None and len(shape) >= -dim else known

    def constant(self, node: fx.Node) -> Tensor | None:
        """The value of a buffer, or of a literal slice of one. Parameters are trained: they have no value."""
        if node.op == "get_attr":
            value: Any = self.traced
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value.detach() if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else None
        if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            items: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            if node.args[0].op == "get_attr" and all(i is Ellipsis or isinstance(i, slice) for i in items):
                base = self.constant(node.args[0])
                return None if base is None or len(node.all_input_nodes) > 1 else base[items]
        return None

    # -- new nodes

    def behind(self, node: fx.Node) -> AbstractContextManager[Any]:
        """Insert new nodes directly behind this one (behind the last placeholder, if it is one)."""
        while node.op == "placeholder" and node.next.op == "placeholder":
            node = node.next
        return self.traced.graph.inserting_before(node.next)

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> fx.Node:
        """A new call of a function, or of a method if the target is a string, at the insertion point."""
        create = self.traced.graph.call_method if isinstance(target, str) else self.traced.graph.call_function
        return self._made(create(target, args, kwargs))  # type: ignore[arg-type]

    def copy(self, node: fx.Node, replaced: dict[fx.Node, fx.Node]) -> fx.Node:
        """The same operation on other operands. An operation in place works on a copy, to leave those alone."""
        if mutated(self.traced, node) is not None:
            first = operand(node)
            if first in replaced:
                replaced = {**replaced, first: self.call("clone", replaced[first])}
        return self._made(self.traced.graph.node_copy(node, lambda n: replaced.get(n, n)))

    def _made(self, node: fx.Node) -> fx.Node:
        self.examples.evaluate(node)
        self.created.append(node)
        return node

    def first_slice(self, node: fx.Node, axes: Axes) -> fx.Node:
        """The first slice along the axes: ``node[..., :1, :1]``."""
        axes = frozenset(d for d in axes if not self.fact(node).lacks(d) and not self.fact(node).is_one(d))
        if not axes:
            return node
        items = [slice(0, 1) if d in axes else slice(None) for d in range(min(axes), 0)]
        with self.behind(node):
            return self.call(operator.getitem, node, (Ellipsis, *items))

    def entry(self, entry: Entry) -> Any:
        """A size as an argument of a new node."""
        return self.call("size", entry.tensor, entry.dim) if isinstance(entry, Extent) else entry

    def succeed(self, old: fx.Node, new: fx.Node) -> None:
        """A new node has the value of an old one: what is known of that holds for it."""
        new.meta = dict(old.meta)
        self._facts[new] = self.fact(old)

    # -- what the rules answer

    def core(self, node: fx.Node, axes: Axes, drop_batch: bool = False) -> Core:
        """The node with the given uniform axes at extent 1; its rank stays.

        Args:
            axes: dimensions along which the node is uniform.
            drop_batch: copies over the batch may be dropped as well.
        """
        fact = self.fact(node)
        axes = frozenset(d for d in axes if not fact.is_one(d) and not fact.lacks(d))
        if not axes:
            return Core(node)
        key = (node, axes, drop_batch)
        if key not in self._cores:
            self._cores[key] = rule_of(self, node).core(self, node, axes, drop_batch)
        return self._cores[key]

    def on_cores(self, node: fx.Node, operands: Iterable[fx.Node], axes: Axes, drop_batch: bool) -> Core:
        """The same operation on the cores of its operands, which are aligned with it by broadcasting."""
        cores = {n: self.core(n, axes, drop_batch) for n in operands}
        with self.behind(node):
            copied = self.copy(node, {n: core.node for n, core in cores.items()})
        return Core(copied, all(core.full_batch for core in cores.values()))

    def parts(self, node: fx.Node, dim: int) -> list[fx.Node]:
        """The tensors whose concatenation along the dimension is this node: itself, if it is not a concatenation.

        Operations that act on every channel alone, between a concatenation and here, are repeated on each part.
        """
        key = (node, dim)
        if key not in self._parts:
            self._parts[key] = self._find_parts(node, dim)
        return self._parts[key]

    def _find_parts(self, node: fx.Node, dim: int) -> list[fx.Node]:
        if _obstacle(self, node):
            return [node]
        rule = rule_of(self, node)
        if isinstance(rule, (Concatenate, Stack, TileAndConcatenate, Constant)):
            return rule.parts(self, node, dim)
        inside = rule.split(self, node, dim)
        parts = [] if inside is None else self.parts(*inside)
        if inside is None or len(parts) < 2:
            return [node]
        with self.behind(node):
            return [rule.on_part(self, node, inside[0], part, dim) for part in parts]


# -- operations in place -------------------------------------------------------------------------------------------

_IN_PLACE_OPERATORS = frozenset(("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "setitem"))


def mutated(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The operand that the node changes in place, or None."""
    name = str(getattr(node.target, "__name__", node.target))
    in_place = (
        (node.op == "call_module" and getattr(traced.get_submodule(str(node.target)), "inplace", False))
        or (node.op in ("call_function", "call_method") and bool(node.kwargs.get("inplace")))
        or (node.op == "call_function" and name in _IN_PLACE_OPERATORS)
        or (node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__"))
    )
    return operand(node) if in_place else None


# -- obstacles: operations with a rule that does not hold here ------------------------------------------------------


def _obstacle(graph: TileGraph, node: fx.Node) -> str:
    """Why the operation's rule must not be used at this node; empty if it may."""
    if "out" in node.kwargs:
        return f"{describe(node)} writes to an out= tensor"
    if node.op == "call_module":
        module = graph.module(node)
        if has_hooks(module):
            return f"{describe(node)} has hooks, which would see the core"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training:
                return f"{describe(node)} is a BatchNorm in training mode: its statistics would differ; call eval()"
            if module.running_mean is None:
                return f"{describe(node)} is a BatchNorm that uses batch statistics (track_running_stats=False)"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training:
            return f"{describe(node)} is a Dropout in training mode: it differs from pixel to pixel; call eval()"
    if operation(graph, node) in ("dropout", "dropout2d", "feature_dropout", "alpha_dropout"):
        default = node.target is F.dropout or node.target is F.dropout2d
        if argument(node, 2, "training", default) is not False:
            return f"{describe(node)} is a Dropout in training mode: it differs from pixel to pixel; call eval()"
    return ""


# -- rules -----------------------------------------------------------------------------------------------------------


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
            others = [n.name for n in self.operands(graph, node) if not any(map(graph.fact(n).is_uniform, _SPACE))]
            lost = f"{tiles[0].name} is a tile, but {describe(node)} combines it with {', '.join(others)}, which is not"
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
        return operation(graph, node) == "mul" and 0 in numbers and len(self.operands(graph, node)) == 1


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
    """Linear and Embedding-like modules: the last dimension is mixed, all others are kept."""

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
        sizes = {d: 1 for d in _SPACE if fact.is_one(d)} | channels
        return Fact(fact.rank, max(3, fact.min_rank), sizes, frozenset(fact.uniform & _SPACE), fact.lost)

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
        sizes = {d: n for d, n in fact.sizes.items() if d not in _SPACE} | given
        return Fact(fact.rank, max(3, fact.min_rank), sizes, fact.uniform - _SPACE)


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

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        fact = graph.fact(operand(node))
        dims = argument(node, 1, "dim")
        dims = (dims,) if isinstance(dims, int) else dims
        if not isinstance(dims, (tuple, list)) or not all(isinstance(d, int) for d in dims):
            return Fact()
        # `std` and `var` have another argument in second place.
        place = 2 if operation(graph, node) not in ("std", "var") else len(node.args)
        if argument(node, place, "keepdim", False) is not True:
            return Fact(None if fact.rank is None else fact.rank - len(dims))
        least = max(d + 1 if d >= 0 else -d for d in dims)
        kept = Fact(fact.rank, max(least, fact.min_rank))
        return kept.with_sizes(dict.fromkeys(dims, 1))


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
        if operation(graph, node) == "unsqueeze":
            dim = argument(node, 1, "dim")
            if not isinstance(dim, int):
                return None
            return [slice(None)] * dim + [None] if dim >= 0 else [Ellipsis, None, *[slice(None)] * (-dim - 1)]
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if not all(i is None or i is Ellipsis or (isinstance(i, (slice, int)) and not isinstance(i, bool)) for i in index):
            return None
        if fact.rank is None and not all(i is None or i is Ellipsis or i == slice(None) for i in index):
            return None
        return list(index) if sum(i is Ellipsis for i in index) <= 1 else None

    def added_dims(self, graph: TileGraph, node: fx.Node) -> int:
        items = self.items(graph, node) or []
        return sum(i is None for i in items) - sum(isinstance(i, int) for i in items)

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
        if operation(graph, first) == "meshgrid":
            return _meshgrid_fact(node)
        constant = graph.constant(node)
        if constant is not None:
            return _constant_fact(constant)
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
        if operation(graph, first) == "meshgrid":
            return Core(_meshgrid_core(graph, node, axes))
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
        if operation(graph, node) == "permute":
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


# -- sizes


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


class Expand(Rule):
    """``expand``, ``expand_as``, ``broadcast_to``: an extent of 1 becomes any; -1 keeps it."""

    def entries(self, graph: TileGraph, node: fx.Node) -> list[Entry] | None:
        if operation(graph, node) != "expand_as":
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
        expanded = [d for d in _SPACE if len(entries) >= -d and entries[d] not in (-1, 1) and d not in uniform]
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
        if entry == -1 or (isinstance(entry, int) and graph.fact(first).sizes.get(dim) == entry):
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
        if counts is None or operation(graph, node) == "repeat":
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
        name = operation(graph, node) or ""
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
        rest = node.args[position + 1 :] if (operation(graph, node) or "").endswith("full") else ()
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
        uniform = frozenset(d for d in fact.uniform | _SPACE if fact.is_uniform(d)) if fact.rank == 4 else frozenset()
        if pair is None and not uniform >= _SPACE:
            uniform -= _SPACE  # along one axis alone the other size is needed to compute the core
        sizes = {d: n for d, n in fact.sizes.items() if d not in _SPACE}
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


_PAD_MODES = ("reflection", "replication", "circular", "zero", "constant")


class Concatenate(Rule):
    """``torch.cat``: a list of segments."""

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
            rule, source = rule_of(graph, repeated), operand(repeated)
            if not isinstance(rule, Repeat) or source is None:
                continue
            counts, rank = rule.counts(graph, repeated) or [], graph.fact(repeated).rank or 0
            for d in _SPACE - {dim}:
                wanted = extent_of(counts[d]) if len(counts) >= -d else None
                others = [(n, d) for n in operands if n is not repeated]
                if wanted is not None and _same_extent(graph, wanted, others, rank) and not graph.fact(source).lacks(d):
                    graph.force_one(source, d)

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        operands = self.operands(node) or []
        cores = {n: graph.core(n, axes).node for n in operands}
        with graph.behind(node):
            return Core(graph.copy(node, cores))

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node]:
        operands = self.operands(node)
        if operands is None or self.dim(graph, node) != dim:
            return [node]
        # A batch of 1 is broadcast by `tile_and_concatenate` but not by `cat`: that one is not taken apart in here.
        nested = [n for n in operands if isinstance(rule_of(graph, n), TileAndConcatenate)]
        return [part for n in operands for part in ([n] if n in nested else graph.parts(n, dim))]


def _same_extent(graph: TileGraph, wanted: Extent, tensors: Iterable[tuple[fx.Node, int]], rank: int) -> bool:
    """Is one of the tensors' dimensions the wanted one, as it is or after elementwise operations on it?"""
    dim = wanted.dim if wanted.dim < 0 else wanted.dim - (graph.fact(wanted.tensor).rank or rank)
    for node, d in tensors:
        current: fx.Node | None = node
        while current is not None and dim == d:
            if current is wanted.tensor:
                return True
            unary = isinstance(rule_of(graph, current), Cast) and len(graph.tensors(current)) == 1
            current = graph.tensors(current)[0] if unary else None
    return False


class Stack(Rule):
    """``torch.stack``: a concatenation along a new dimension."""

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

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node]:
        if self.dim(graph, node) != dim:
            return [node]
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
        return _constant_fact(constant)

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node]:
        """A buffer of coordinates: runs of channels that are uniform along the same axes."""
        value = graph.constant(node)
        if value is None or value.ndim < -dim:
            return [node]
        kinds = [frozenset(_uniform_dims(channel)) & _SPACE for channel in value.split(1, dim)]
        if len(set(kinds)) < 2:
            return [node]
        starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
        full = [slice(None)] * (-dim - 1)
        with graph.behind(node):
            return [
                graph.call(operator.getitem, node, (Ellipsis, slice(a, b), *full))
                for a, b in zip(starts, [*starts[1:], len(kinds)], strict=True)
            ]


def _constant_fact(value: Tensor) -> Fact:
    sizes = {d: value.shape[d] for d in range(-value.ndim, 0)}
    return Fact(value.ndim, 0, sizes, frozenset(_uniform_dims(value)))


def _uniform_dims(value: Tensor) -> set[int]:
    """Dimensions along which all slices of the value are equal."""
    if value.numel() == 0:
        return set()
    return {d for d in range(-value.ndim, 0) if bool((value == value.narrow(d, 0, 1)).all())}


def tiled_source(source: Tensor, name: str) -> Tensor:
    """Marks a source of `tile_and_concatenate` as a part of it: the source with its missing axes at extent 1.

    It stands for the tile only while sites are looked for and is never left in a converted network.
    """
    return source[_SOURCE_INDEX[name]]


_SOURCE_INDEX: dict[str, tuple[Any, ...]] = {
    "nchw": (slice(None),) * 4,
    "nch": (slice(None), slice(None), slice(None), None),
    "ncw": (slice(None), slice(None), None),
    "nc": (slice(None), slice(None), None, None),
}
_SOURCE_MISSING: dict[str, Axes] = {
    "nchw": frozenset(),
    "nch": frozenset((WIDTH,)),
    "ncw": frozenset((HEIGHT,)),
    "nc": _SPACE,
}


class TileAndConcatenate(Rule):
    """Our own baseline, kept whole while tracing."""

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        return Fact(4)

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node]:
        if dim != CHANNELS:
            return [node]
        with graph.behind(node):
            sources = self.sources(node).items()
            return [source if name == "nchw" else graph.call(tiled_source, source, name) for name, source in sources]

    @staticmethod
    def sources(node: fx.Node) -> dict[str, fx.Node]:
        given = {name: argument(node, i, name) for i, name in enumerate(_SOURCE_INDEX)}
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
            return Core(graph.call(operator.getitem, source, _SOURCE_INDEX[str(name)]))


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


# -- which rule an operation has -----------------------------------------------------------------------------------

def _words(text: str) -> list[str]:
    return text.split()


_CASTS = _words("to type type_as float double half bfloat16 long int bool contiguous clone detach cpu cuda")
_ELEMENTWISE = _words("""
    add sub mul div truediv true_divide floordiv floor_divide neg pos pow abs absolute exp exp2 expm1 log log1p log2
    log10 sqrt rsqrt square reciprocal sin cos tan sinh cosh tanh asin acos atan atan2 sigmoid logit relu relu6
    leaky_relu elu selu celu silu mish gelu hardtanh hardsigmoid hardswish softplus softsign tanhshrink hardshrink
    softshrink logsigmoid threshold clamp clamp_min clamp_max clip maximum minimum where lerp erf floor ceil round sign
    eq ne lt le gt ge logical_not logical_and logical_or masked_fill rsub subtract multiply divide dropout dropout2d
    alpha_dropout iadd isub imul itruediv
    """)
_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.GELU, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardshrink,
    nn.Softshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip
_PADDING_MODULES = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d, nn.ConstantPad2d)
_REDUCTIONS = _words("mean sum amax amin std var logsumexp")

_MODULE_RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(_ELEMENTWISE_MODULES, Elementwise()),
    nn.BatchNorm2d: PerChannel(),
    nn.PReLU: PerChannel(),
    nn.Linear: AlongLastDim(),
    nn.Conv2d: Convolution(),
    nn.AdaptiveAvgPool2d: PoolToOutput(),
    nn.AdaptiveMaxPool2d: PoolToOutput(),
    nn.Flatten: Flatten(),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), Resize()),
    **dict.fromkeys(_PADDING_MODULES, Pad()),
}
_CALL_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CASTS, Cast()),
    **dict.fromkeys(_ELEMENTWISE, Elementwise()),
    **dict.fromkeys(_REDUCTIONS, Reduction()),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), PoolToOutput()),
    "avg_pool2d": WholePool(),
    **dict.fromkeys(("view", "reshape"), View()),
    "flatten": Flatten(),
    **dict.fromkeys(("getitem", "unsqueeze"), Index()),
    **dict.fromkeys(("permute", "transpose", "swapaxes"), Permute()),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), Expand()),
    **dict.fromkeys(("repeat", "tile"), Repeat()),
    **dict.fromkeys(("ones", "zeros", "full", "new_ones", "new_zeros", "new_full"), Create()),
    **dict.fromkeys(("ones_like", "zeros_like", "full_like"), CreateLike()),
    **dict.fromkeys(("interpolate", "upsample"), Resize()),
    "pad": Pad(),
    **dict.fromkeys(("cat", "concat", "concatenate"), Concatenate()),
    "stack": Stack(),
}
_OWN_RULES: dict[Any, Rule] = {tile_and_concatenate: TileAndConcatenate(), tiled_source: TiledSource()}
_OPAQUE = Rule()
_CONSTANT = Constant()
# Kept from before any test or trace can replace them.
_TORCH_FUNCTIONS = {
    getattr(place, name)
    for place in (torch, F, operator)
    for name in dir(place)
    if callable(getattr(place, name)) and not isinstance(getattr(place, name), type)
}


def operation(graph: TileGraph, node: fx.Node) -> str | None:
    """The name of a PyTorch function or method, without the underscore of an operation in place; None for others."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function" and node.target in _TORCH_FUNCTIONS:
        name = str(node.target.__name__)  # type: ignore[union-attr]
    else:
        return None
    return name.rstrip("_") if not name.startswith("_") else name


def rule_of(graph: TileGraph, node: fx.Node) -> Rule:
    """The rule of the node's operation; modules of a subclass are opaque, for their forward may be any."""
    if node.op == "get_attr":
        return _CONSTANT
    if node.op == "call_module":
        return _MODULE_RULES.get(type(graph.module(node)), _OPAQUE)
    if node.op == "call_function" and node.target in _OWN_RULES:
        return _OWN_RULES[node.target]
    return _CALL_RULES.get(operation(graph, node) or "", _OPAQUE)
