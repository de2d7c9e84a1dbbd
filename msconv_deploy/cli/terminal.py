"""What the program prints: names come out of files from strangers, so no control character of theirs reaches the terminal.

A terminal obeys escape sequences: one in the name of a node could hide text, forge a verdict or write to the clipboard.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult

_WIDTH = 160
"""Where output goes to a file: wide enough for tables."""

_CELL = 400
"""Characters of a cell."""

_WORD = re.compile(r"(\S{2045})\S{4,}(\S{2048})")
"""A word longer than the longest path of a file, 4096: a name that nobody gave to be read."""

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_UNSHOWN = [
    *range(0x80, 0xA0),  # the second set of control characters: some terminals take 0x9b for ESC [
    *range(0x202A, 0x202F),  # these two turn the direction of writing, and so what a line seems to say
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),  # surrogates, of file names that are no UTF-8: they cannot be written
]
_TABLE = _PICTURES | dict.fromkeys(_UNSHOWN, 0xFFFD)


def printable(text: str) -> str:
    """The text with control characters as their pictures (ESC is ``␛``); line ends and tabs stay."""
    return text.translate(_TABLE)


def cell(text: str) -> str:
    """A text out of a file as a cell of a table: not as rich's markup, and not longer than anybody reads."""
    from rich.markup import escape

    return escape(text if len(text) <= _CELL else f"{text[: _CELL - 3]}...")


def line(text: str) -> str:
    """The printable text with the middle of endless words left out: a name may be as long as its file."""
    return printable(_WORD.sub(r"\1...\2", text))


def say(text: str, err: bool = False) -> None:
    """Print a line of plain text."""
    typer.echo(line(text), err=err)


class PrintableFormatter(logging.Formatter):
    """Log lines, which hold names as well."""

    def format(self, record: logging.LogRecord) -> str:
        return line(super().format(record))


def make_console(stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for tables where there is none, that prints :func:`printable` text."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.push_render_hook(cast("RenderHook", _Hook()))
    return console


class _Hook:
    """A `rich.console.RenderHook`; that class is not inherited, so that rich is imported only where something is printed."""

    def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Printable(renderable) for renderable in renderables]


class _Printable:
    """Whatever is printed, with its text made printable after rich has laid it out: its own colours are no text."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
