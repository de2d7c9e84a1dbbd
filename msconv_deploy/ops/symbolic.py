"""Symbolic dimensions: names of extents, and arithmetic over names (``2*H``), as the dynamo exporter writes them."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from msconv_deploy.errors import BadInputError

Dim = int | str
"""A static extent, or the name (or arithmetic expression over names) of a dynamic one."""

Size = dict[str, int]
"""Extent by symbol."""

_LONGEST = 300
"""Characters of an expression: no exporter writes longer ones, and Python's parser is not made for those of strangers."""


_MOST = 1 << 62
"""Extents are 64-bit integers."""


class NotAnExtentError(BadInputError):
    """A dimension has no value under some size, though it may have one under another."""


def names_in(dim: Dim) -> list[str]:
    """The symbols that a dimension is computed from, in order of appearance; none for a static extent."""
    if isinstance(dim, int):
        return []
    tree = _parse(dim)
    if tree is None:
        return [dim]
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]


def _parse(dim: str) -> ast.expr | None:
    """The expression, or None if the text is to be taken as one name (such as ``x[2]`` or ``unk__7``)."""
    if len(dim) > _LONGEST:
        return None
    try:
        tree = ast.parse(dim, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a zero byte, nesting: a name and nothing else
        return None
    allowed = (ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.operator, ast.unaryop, ast.expr_context)
    return tree if all(isinstance(n, allowed) for n in ast.walk(tree)) else None


def extent(dim: Dim, size: Mapping[str, int]) -> int:
    """Value of a dimension under a size.

    Raises:
        BadInputError: a symbol has no value.
        NotAnExtentError: the expression has no whole value of at least 0, or cannot be computed.
    """
    if isinstance(dim, int):
        return dim
    tree = _parse(dim)
    try:
        value = size[dim] if tree is None else _evaluate(tree, size)
    except KeyError as error:
        raise BadInputError(f"dimension {dim}: no extent is given for {error.args[0]}") from None
    except (ArithmeticError, TypeError, ValueError, RecursionError):
        raise NotAnExtentError(
            f"dimension {dim}: cannot be computed for {size_text(size)}; give the inputs as a file"
        ) from None
    if not 0 <= value < _MOST or value != int(value):  # NaN compares with nothing
        what = value if -_MOST < value < _MOST else "out of range"
        raise NotAnExtentError(f"dimension {dim} is {what} for {size_text(size)}: not an extent")
    return int(value)


def _evaluate(node: ast.expr, size: Mapping[str, int]) -> float:
    if isinstance(node, ast.Name):
        return size[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, size)
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, size), _evaluate(node.right, size)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.FloorDiv():
                return left // right
            case ast.Mod():
                return left % right
            case ast.Div():
                return left / right
    raise TypeError(ast.dump(node))


def size_text(size: Mapping[str, int]) -> str:
    """``N=4,H=17,W=23``; ``static`` where nothing is free."""
    return ",".join(f"{name}={value}" for name, value in size.items()) or "static"
