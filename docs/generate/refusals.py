"""The reasons that rules give for leaving a graph alone, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

GAP = "…"
"""Stands for what a reason is filled with when it is given."""


def reasons(path: Path, functions: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> list[str]:
    """Every reason in a module, in order of appearance: what ``Refusal`` is made of.

    A reason that is a name is looked up: in the function around, in the module, and in the functions of the module whose
    result it is. What another module made is not found here.

    Args:
        functions: of the module, which return reasons.
        without: functions of the module that are left out.
    """
    module = _Module(ast.parse(path.read_text(encoding="utf-8")))
    found = [text for call, around in module.refusals(without) for text in module.texts(call.args[0], around)]
    found += [text for name in functions for text in module.returned(name)]
    return list(dict.fromkeys(text for text in found if text.strip(GAP + " ")))


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.visited = set[str]()

    def refusals(self, without: tuple[str, ...]) -> Iterator[tuple[ast.Call, ast.AST]]:
        """Calls of Refusal with the function around each."""
        kept = [function for name, function in self.functions.items() if name not in without]
        for around in (*kept, self.tree):
            for node in _own_nodes(around):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
                    yield node, around

    def texts(self, value: ast.expr | None, around: ast.AST) -> list[str]:
        """The texts that an expression may be."""
        if isinstance(value, ast.Constant):
            return [value.value] if isinstance(value.value, str) else []
        if isinstance(value, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else GAP for v in value.values]
            return ["".join(parts)]
        if isinstance(value, ast.IfExp):
            return [*self.texts(value.body, around), *self.texts(value.orelse, around)]
        if isinstance(value, ast.BoolOp):
            return [text for each in value.values for text in self.texts(each, around)]
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in self.functions:
            return self.returned(value.func.id)
        if isinstance(value, ast.Name):
            return [
                text
                for place in (around, self.tree)
                for node in _own_nodes(place)
                if isinstance(node, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == value.id for t in node.targets)
                for text in self.texts(node.value, place)
            ]
        return []

    def returned(self, name: str) -> list[str]:
        """The texts that a function may return."""
        if name in self.visited:
            return []
        self.visited.add(name)
        function = self.functions[name]
        values = [node.value for node in _own_nodes(function) if isinstance(node, ast.Return)]
        return [text for value in values for text in self.texts(value, function)]


def _own_nodes(around: ast.AST) -> Iterator[ast.AST]:
    """What is inside a function or a module, but not inside a function in it, in order."""
    for node in ast.iter_child_nodes(around):
        if not isinstance(node, ast.FunctionDef):
            yield node
            yield from _own_nodes(node)
