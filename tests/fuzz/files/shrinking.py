"""A failing file made smaller while it fails: fewer fields, shorter contents, nothing beside it."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.files import wire
from tests.fuzz.files.mutations import Case

BUDGET = 60
"""Most attempts for one file."""


def shrunken(case: Case, fails: Callable[[Case], bool], budget: int = BUDGET) -> Case:
    """The smallest case found that still fails.

    Args:
        fails: does a case fail in the same way?
        budget: attempts.
    """
    left = [budget]

    def still(smaller: Case) -> bool:
        left[0] -= 1
        return left[0] >= 0 and fails(smaller)

    for name in list(case.beside):
        smaller = Case(case.data, {key: value for key, value in case.beside.items() if key != name})
        if still(smaller):
            case = smaller
    try:
        tree = wire.parse(case.data)
    except (ValueError, IndexError):
        return _shortened(case, still, left)
    _without_fields(tree, lambda: still(Case(wire.serialized(tree), case.beside)), left)
    smaller = Case(wire.serialized(tree), case.beside)
    return smaller if len(smaller.data) <= len(case.data) else case


def _without_fields(fields: list[wire.Field], still: Callable[[], bool], left: list[int]) -> None:
    """Take fields out, halves of them first, then single ones, then those within them."""
    size = len(fields)
    while size and left[0] > 0:
        start = 0
        while start < len(fields) and left[0] > 0:
            taken = fields[start : start + size]
            del fields[start : start + size]
            if not still():
                fields[start:start] = taken
                start += size
        size //= 2
    for item in fields:
        if isinstance(item.content, list):
            _without_fields(item.content, still, left)


def _shortened(case: Case, still: Callable[[Case], bool], left: list[int]) -> Case:
    """Bytes that are no message: cut from the end."""
    size = len(case.data) // 2
    while size and left[0] > 0:
        smaller = Case(case.data[:-size], case.beside)
        if still(smaller):
            case = smaller
        else:
            size //= 2
    return case
