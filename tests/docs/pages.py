"""Pages of Markdown whose snippets are run: what a fenced block means, and one shell and one Python for each page.

A block is run or written in the order of the page:

* ``bash``: in one shell for the page; a command that fails, fails the block;
* ``python``: in one process and one namespace for the page;
* a block with a title (```` ```toml title="net.toml" ````) is the content of that file;
* ``text`` after one of the first two is what it printed. Numbers and runs of spaces may differ, a line ``...`` stands for any
  lines and ``…`` for any part of a line; lines before the first one may be missing.

``<!-- not executed: reason -->`` on the line before a block says that it is only shown. Every other kind of block is an error,
so that nothing on a page is untested by mistake.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"^(?:<!-- not executed: (?P<reason>.+?) -->\n\n?)?"
    r"(?P<fence>```+)(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^```+", re.MULTILINE)
_NUMBER = re.compile(r"(?:(?<![\w.])[-+]?|(?<=\bx))\d[\d,]*(?:\.\d+)*(?:e[-+]?\d+)?")
"""A number of its own or behind an x; those in names (conv2d, expand_1, 3x3) are compared."""
_HASH = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b")
_SECONDS = 300
"""A snippet that takes longer is ended."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the page, counted from 1.
        language: after the fence.
        text: between the fences.
        title: name of a file, empty if there is none.
        reason: why it is only shown, empty if it is run.
    """

    line: int
    language: str
    text: str
    title: str = ""
    reason: str = ""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page.

    Raises:
        AssertionError: a fence is none of a block, such as one without a language.
    """
    text = page.read_text(encoding="utf-8")
    found, fences = [], 0
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        parts = match.groupdict(default="")
        found.append(Block(line, parts["language"], parts["text"], parts["title"], parts["reason"]))
        fences += 2 + len(_FENCE.findall(parts["text"]))
    assert fences == len(_FENCE.findall(text)), f"{page}: a fence without a language, or one that is not closed"
    return found


def not_executed(page: Path) -> list[Block]:
    """The blocks that are only shown."""
    return [block for block in blocks(page) if block.reason]


def run_page(page: Path, folder: Path) -> None:
    """Run the snippets of a page in a folder that looks like the repository.

    Raises:
        AssertionError: a snippet fails, or prints something else than the page says; the message names page and line.
    """
    printed: Output | None = None
    with Shell(folder) as shell, Python(folder) as python:
        for block in blocks(page):
            where = f"{page.name}, line {block.line}"
            if block.reason:
                printed = None
            elif block.title:
                file = folder / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text, encoding="utf-8")
            elif block.language in ("bash", "python"):
                printed = (shell if block.language == "bash" else python).run(block.text, where)
                assert not printed.failed, f"{where}: {printed.failed}\n{printed.stderr}{printed.stdout}"
            elif block.language == "text":
                assert printed is not None, f"{where}: there is nothing before it that prints"
                printed.check(block.text, where)
            else:
                raise AssertionError(
                    f"{where}: a block of {block.language} needs a title or the reason why it is not run"
                )


@dataclass(frozen=True)
class Output:
    """What a snippet printed; ``failed`` says what failed, empty if nothing did."""

    stdout: str
    stderr: str = ""
    failed: str = ""

    def check(self, expected: str, where: str) -> None:
        """Compare with what a page says that it prints."""
        pattern = _pattern(expected)
        # Errors go to standard error, after the lines that say what is done.
        for text in (self.stdout, self.stderr + self.stdout):
            if re.fullmatch(pattern, _masked(text), re.DOTALL):
                return
        raise AssertionError(
            f"{where}: the page says\n{_masked(expected)}\nprinted was\n{_masked(self.stderr + self.stdout)}"
        )


def _pattern(expected: str) -> str:
    lines = ["(?:[^\n]*\n)*?"]
    for line in _masked(expected).splitlines():
        whole = line.strip() == "..."
        lines.append("(?:[^\n]*\n)*?" if whole else r"[^\n]*".join(map(re.escape, line.split("…"))) + "\n")
    return "".join(lines)


def _masked(text: str) -> str:
    """The text without what differs from run to run and from machine to machine."""
    lines = []
    for line in text.strip("\n").splitlines():
        line = _NUMBER.sub("#", _HASH.sub("#", line))
        line = re.sub(r"([─━═])\1+", r"\1", line)
        line = re.sub(r"[ \t]+", " ", line)
        lines.append(re.sub(r" ?… ?", "…", line).strip(" "))
    return "".join(f"{line}\n" for line in lines)


_OF_THE_TEST_RUN = ("MSCONV_INSTALLED", "PYTHONSAFEPATH", "PYTEST_ADDOPTS")
"""Variables that ask for the installed package, or for other options of pytest, in the run that this test is part of."""


def environment(folder: Path) -> dict[str, str]:
    """The environment of the snippets: `msconv` and `python` of this installation, the package of the folder."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_THE_TEST_RUN}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}


class _Process:
    """A process that runs one snippet after another."""

    command: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        if self._started is None:
            self._started = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment(self.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        return self._started

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        if self._started is not None:
            assert self._started.stdin is not None
            self._started.stdin.close()
            try:
                self._started.wait(10)
            except subprocess.TimeoutExpired:
                self._started.kill()
                self._started.wait()
            assert self._started.stdout is not None
            self._started.stdout.close()

    def ask(self, request: str, marker: str, where: str) -> str:
        """Send a line; returns the rest of the line that starts with the marker."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request + "\n")
        process.stdin.flush()
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith(marker):
                    return line[len(marker) :].rstrip("\n")
        finally:
            timer.cancel()
        process.wait()
        raise AssertionError(f"{where}: the process ended")


class Shell(_Process):
    """bash. Each snippet is sourced, so that variables and background jobs are there for the next one."""

    command = ("bash", "--noprofile", "--norc")
    _MARKER = "=== snippet done "

    def run(self, snippet: str, where: str) -> Output:
        scratch = self.folder / ".snippet"
        scratch.mkdir(exist_ok=True)
        script, out, err, failed = (scratch / name for name in ("snippet.sh", "stdout", "stderr", "failed"))
        failed.write_text("")
        trap = f"""trap 'echo "exit code $?: $BASH_COMMAND" >> "{failed}"' ERR\n"""
        script.write_text(trap + snippet + "trap - ERR\n", encoding="utf-8")
        self.ask(f'source "{script}" > "{out}" 2> "{err}" < /dev/null; echo "{self._MARKER}"', self._MARKER, where)
        return Output(out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"), failed.read_text())

    def __exit__(self, *error: object) -> None:
        if self._started is not None and self._started.poll() is None:
            self.ask(f'kill $(jobs -p) 2> /dev/null; wait; echo "{self._MARKER}"', self._MARKER, "the end")
        super().__exit__(*error)


class Python(_Process):
    """Python, one namespace."""

    command = (sys.executable, "-u", str(Path(__file__).with_name("page_python.py")))

    def run(self, snippet: str, where: str) -> Output:
        answer = json.loads(self.ask(json.dumps({"code": snippet, "where": where}), "=== snippet done ", where))
        return Output(answer["stdout"], "", answer["failed"])
