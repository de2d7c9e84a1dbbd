"""Reading the nodes of a `torch.fx` graph: arguments, names of operations, sizes, operations in place."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from msconv_deploy.nn.tracing import shape_owner

# Kept from before any test or trace can replace them.
_TORCH_FUNCTIONS = {
    getattr(place, name)
    for place in (torch, F, operator)
    for name in dir(place)
    if callable(getattr(place, name)) and not isinstance(getattr(place, name), type)
}


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


def operation(node: fx.Node) -> str | None:
    """The name of a PyTorch function or method, without the underscore of an operation in place; None for others."""
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function" and node.target in _TORCH_FUNCTIONS:
        name = str(node.target.__name__)  # type: ignore[union-attr]
    else:
        return None
    return name.rstrip("_") if not name.startswith("_") else name


def has_hooks(module: nn.Module) -> bool:
    """Do forward or backward hooks observe or change the module's calls?"""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


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
