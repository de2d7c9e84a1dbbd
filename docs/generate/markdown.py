"""Small pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_CODE = re.compile(r"(``.+?``|`[^`]*`|(?:^|(?<=\n\n)) {4}(?:.|\n)*?(?=\n\n? ?\S|\Z))")
_PRODUCT = re.compile(r"(?<=[\w)\]'])\*(?=[\w(\[])")
_LESS = re.compile(r"<(?!https?://)")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")


def cell(text: object) -> str:
    """Text inside a table: on one line, with its bars escaped, and without tags: see ``plain``."""
    return plain(re.sub(r"\s*\n\s*", " ", str(text))).replace("|", "\\|").strip()


def plain(text: str) -> str:
    """Markdown in which the sign < outside code stands for itself: ``<recipe>`` is no tag. Addresses in <> stay links."""
    parts = _CODE.split(text)
    return "".join(part if i % 2 else _LESS.sub("&lt;", part) for i, part in enumerate(parts))


def code(text: object) -> str:
    """Text in fixed width; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A table.

    Args:
        numbers: headings of columns that are set to the right.
    """
    rule = ["---:" if heading in numbers else "---" for heading in headings]
    lines = [headings, rule, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def prose(docstring: str) -> str:
    """A docstring as Markdown: roles of reStructuredText become fixed width, the signs in a*b*c and <name> are themselves."""
    parts = _CODE.split(plain(_ROLE.sub(r"`\1`", docstring)))
    return "".join(part if i % 2 else _PRODUCT.sub(r"\*", part) for i, part in enumerate(parts))


def section(page: Path, heading: str) -> str:
    """What stands under a heading of the second level in a Markdown file.

    Raises:
        ValueError: there is no such heading.
    """
    parts = re.split(r"^## +(.+?) *$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title == heading:
            return str(body).strip() + "\n"
    raise ValueError(f"{page}: no heading {heading!r}")
