"""What the program prints: names come out of files from strangers, so no control character of theirs reaches the terminal.

A terminal obeys escape sequences: one in the name of a node could hide text, forge a verdict or write to the clipboard.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult

_WIDTH = 160
"""Where output goes to a file: wide enough for tables."""

_CELL = 400
"""Characters of a cell."""

_WORD = re.compile(r"\S+")
_LONGEST_WORD = 4096
"""As the longest path of a file; what is longer is a name that nobody gave to be read."""

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
    return printable(_WORD.sub(_shortened, text))


def _shortened(word: re.Match[str]) -> str:
    text, half = word[0], _LONGEST_WORD // 2
    return text if len(text) <= _LONGEST_WORD else f"{text[: half - 3]}...{text[-half:]}"


def say(text: str, err: bool = False) -> None:
    """Print a line of plain text."""
    typer.echo(line(text), err=err)


class PrintableFormatter(logging.Formatter):
    """Log lines, which hold names as well."""

    def format(self, record: logging.LogRecord) -> str:
        return line(super().format(record))


STYLES = {"passed": "green", "differ": "bold red", "unverified": "yellow"}
"""Colour of a verdict."""


def verdict_text(verdict: str, reason: str = "") -> str:
    """A verdict in its colour, as rich's markup, and why."""
    return f"[{STYLES[verdict]}]{verdict}[/]" + (f": {cell(reason)}" if reason else "")


def say_on(console: Console, text: str) -> None:
    """Print a line of plain text on a console, however long it is."""
    console.print(line(text), markup=False, soft_wrap=True)


def make_console(stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for tables where there is none, that prints :func:`printable` text."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, emoji=False)  # a name may hold :ok:
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


class _Tolerant(io.FileIO):
    """A stream of the process that goes on when nobody takes what is written.

    The reader of a pipe may have gone (``msconv ... | head -1``), or a disk be full. What was computed is right all the same,
    and so the exit code is the verb's own: what is left to print goes nowhere.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return int(super().write(data) or 0)
        except BrokenPipeError:
            pass  # nothing to tell it
        except OSError as error:
            self.failure = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return len(memoryview(data).cast("B"))


class Streams:
    """The two output streams of the process, made fit for whatever is printed, and what became of them."""

    def __init__(self) -> None:
        self._files: dict[str, _Tolerant] = {}
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not isinstance(stream, io.TextIOWrapper):
                continue
            stream.flush()
            try:
                file = _Tolerant(stream.fileno(), "w", closefd=False)
            except OSError:  # closed
                continue
            self._files[name] = file
            text = io.TextIOWrapper(
                io.BufferedWriter(file),
                encoding=stream.encoding,
                errors="backslashreplace",  # names of any script, on terminals that know only one
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, text)

    def failure(self) -> OSError | None:
        """Flush, and say what kept standard output from being written: not that its reader is gone."""
        for name in self._files:
            getattr(sys, name).flush()
        file = self._files.get("stdout")
        return None if file is None else file.failure
