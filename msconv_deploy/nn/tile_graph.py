"""A traced network in which tiles are known, and the making of their cores."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from msconv_deploy.nn.facts import CHANNELS, Fact
from msconv_deploy.nn.fx_nodes import Entry, Extent, describe, extent_of, mutated, operand
from msconv_deploy.nn.tile_rules.base import Axes, Core, Rule
from msconv_deploy.nn.tile_rules.table import obstacle_of, rule_of
from msconv_deploy.nn.tracing import Examples, example, example_shape, shape_owner


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

    def rule(self, node: fx.Node) -> Rule:
        return rule_of(self, node)

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
        obstacle = obstacle_of(self, node)
        fact = Fact() if obstacle else self.rule(node).fact(self, node)
        if not (fact.is_tile or fact.lost):
            fact = replace(fact, lost=self._lost(node, fact, obstacle))
        return fact

    def _lost(self, node: fx.Node, fact: Fact, obstacle: str) -> str:
        """Why a tile among the operands is no tile in the result."""
        tiles = [n for n in node.all_input_nodes if self.fact(n).is_tile]
        if not tiles or fact.rank == 0 or self.rule(node).joins or extent_of(node) or shape_owner(node):
            return ""
        return f"{tiles[0].name} is a tile, but {obstacle or f'{describe(node)} is not known to keep it uniform'}"

    def _example_rank(self, node: fx.Node, fact: Fact) -> Fact:
        shape = example_shape(node)
        return fact if shape is None else fact.with_rank(len(shape))

    def refine_rank(self, node: Any, rank: int) -> None:
        """Record a rank that a reader of the node requires, also for what it was computed from elementwise."""
        if isinstance(node, fx.Node) and self.fact(node).rank is None:
            self._facts[node] = self._facts[node].with_rank(rank)
            found = self.rule(node).operand_of_rank(self, node, rank)
            if found is not None:
                self.refine_rank(*found)
                self._facts[node] = self._rule_fact(node).with_rank(rank)  # with what the operand's rank adds

    def force_one(self, node: fx.Node, dim: int) -> None:
        """Record that every run that does not fail has extent 1 there."""
        if not self.fact(node).is_one(dim):
            self._forced.setdefault(node, set()).add(dim)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """Operands that are not Python numbers."""
        return [n for n in node.all_input_nodes if self.fact(n).rank != 0]

    def size(self, node: fx.Node, dim: int) -> int | None:
        """The extent from the structure, for channels also from the example; None if unknown."""
        known, shape = self.fact(node).sizes.get(dim), example_shape(node)
        by_example = known is None and dim == CHANNELS and shape is not None and len(shape) >= -dim
        return shape[dim] if by_example and shape is not None else known

    def origin(self, entry: Entry) -> Extent | None:
        """The dimension upstream from which an extent comes unchanged; None if the entry is no extent."""
        extent = extent_of(entry)
        if extent is None:
            return None
        node, dim = extent.tensor, self.fact(extent.tensor).dim(extent.dim)
        while dim < 0 and not obstacle_of(self, node):
            inside = self.rule(node).split(self, node, dim)
            if inside is None:
                break
            node, dim = inside
        return Extent(node, dim) if dim < 0 else None

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
            self._cores[key] = self.rule(node).core(self, node, axes, drop_batch)
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
        if obstacle_of(self, node):
            return [node]
        rule = self.rule(node)
        own = rule.parts(self, node, dim)
        if own is not None:
            return own
        inside = rule.split(self, node, dim)
        parts = [] if inside is None else self.parts(*inside)
        if inside is None or len(parts) < 2:
            return [node]
        with self.behind(node):
            return [rule.on_part(self, node, inside[0], part, dim) for part in parts]
