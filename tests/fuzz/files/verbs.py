"""One file through one verb of the command line, as its user meets it, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import onnx
import typer

from msconv_deploy.cli import main as cli
from tests.fuzz.files.mutations import CANARY, OUTSIDE, Case

VERBS = ("inspect", "optimize", "optimize-always", "convert", "diff", "validate")
MEMORY_GROWTH = 3 << 30
"""Bytes by which a process may grow while it works on a file: a few tensors of what constants may be expanded to."""

RUN_SECONDS = "2"
"""What a run of a model may take: a Loop may have no end."""

_IMPORTED = (
    "torch",  # Polygraphy looks whether an array is one of its tensors
    "polygraphy.backend.onnxrt",
    "polygraphy.comparator",
    "msconv_deploy.optimizing",
    "msconv_deploy.validation",
    "msconv_deploy.validation.rewrite",
    "msconv_deploy.runtimes.onnx_runtime",
    "rich.console",
    "rich.table",
)
_MODEL, _OTHER, _OUT = "model.onnx", "other.onnx", "out.onnx"
_REPORT = "report.json"


@dataclass(frozen=True)
class Outcome:
    """What a verb did with a file.

    Attributes:
        code: the exit code; None if it did not end by itself.
        problem: what must not have happened; empty: nothing.
        said: what it printed.
    """

    code: int | None
    problem: str = ""
    said: str = ""


def warm_up() -> None:
    """Import what the verbs import when they run, once for all workers that are forked from here."""
    for name in _IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    _command()


@cache
def _command() -> Any:
    """The command line, put together once: Typer does it in every call, for a tenth of a second."""
    return typer.main.get_command(cli.app)


def arguments(verb: str, rng: Random) -> list[str]:
    """The command line; paths are relative to the folder of the case. ``-v`` says where an internal error comes from."""
    return [*_arguments(verb, rng), "-v"]


def _arguments(verb: str, rng: Random) -> list[str]:
    model, out = f"model/{_MODEL}", f"out/{_OUT}"
    if verb == "inspect":
        return ["inspect", model, "--json", f"out/{_REPORT}"]
    if verb == "optimize":
        return ["optimize", model, "-o", out]
    if verb == "optimize-always":
        form = rng.choice(("portable", "portable", "fused", "plugin"))
        return ["optimize", model, "-o", out, "--when", "always", "--form", form]
    if verb == "convert":
        return ["convert", model, "--form", rng.choice(("portable", "fused", "plugin")), "-o", out]
    other = f"other/{_OTHER}"
    if verb == "diff":
        return ["diff", *rng.choice(((model, other), (other, model))), "--json", f"out/{_REPORT}"]
    return ["validate", model, "--reference", rng.choice((other, other, model)), "--no-rtx"]


def attempt(case: Case, original: Case, line: list[str]) -> Outcome:
    """Run the verb on the case in a folder of its own, which is removed afterwards. Changes the working directory."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        _lay_out(folder, case, original)
        before = _hashes(folder)
        os.chdir(folder)
        code, said, escaped, opened = _run(line, folder)
        problem = escaped or _problem(folder, line, code, said, before, opened)
        return Outcome(code, problem, said)
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)


def _lay_out(folder: Path, case: Case, original: Case) -> None:
    (folder / OUTSIDE).write_bytes(CANARY * 2000)
    for place, name, content in (("model", _MODEL, case), ("other", _OTHER, original)):
        (folder / place).mkdir()
        (folder / place / name).write_bytes(content.data)
        for beside, data in content.beside.items():
            if isinstance(data, bytes):
                (folder / place / beside).write_bytes(data)
            else:
                data(folder / place / beside)
    for name in ("out", "tmp"):
        (folder / name).mkdir()


def _run(line: list[str], folder: Path) -> tuple[int | None, str, str, list[str]]:
    """Exit code, what was printed, the exception that escaped, and files outside that Python opened."""
    outside = str(folder / OUTSIDE)
    opened: list[str] = []
    _watch(outside, opened)
    code: int | None = None
    escaped = ""
    with _captured(folder / "printed") as printed:
        tempfile.tempdir = str(folder / "tmp")
        try:
            with mock.patch.object(cli, "app", _command()), mock.patch.dict(os.environ, MSCONV_RUN_SECONDS=RUN_SECONDS):
                code = cli.main(line)
        except BaseException as error:  # whatever escapes is what we look for
            import traceback

            escaped = f"{type(error).__name__} escaped: {_first_line(error)}"
            traceback.print_exc()
        finally:
            tempfile.tempdir = None
            _watch("", [])
    return code, printed.read_text(encoding="utf-8", errors="replace"), escaped, opened


_watched: tuple[str, list[str]] = ("", [])
_hooked = False


def _watch(path: str, opened: list[str]) -> None:
    global _watched, _hooked
    _watched = (path, opened)
    if not _hooked:
        _hooked = True
        sys.addaudithook(_on_event)


def _on_event(event: str, details: tuple[object, ...]) -> None:
    path, opened = _watched
    if path and event == "open" and isinstance(details[0], str) and os.path.realpath(details[0]) == path:
        opened.append(details[0])


@contextmanager
def _captured(path: Path) -> Iterator[Path]:
    """Let standard output and error go to a file, those of C++ code too."""
    with path.open("wb") as sink:
        sys.stdout.flush(), sys.stderr.flush()
        kept = [os.dup(number) for number in (1, 2)]
        streams = sys.stdout, sys.stderr
        try:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", encoding="utf-8", buffering=1) for n in (1, 2))
            yield path
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.close()
            sys.stdout, sys.stderr = streams
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^  File \".*\", line \d+", re.MULTILINE)


def _problem(
    folder: Path, line: list[str], code: int | None, said: str, before: dict[str, str], opened: list[str]
) -> str:
    """What must not have happened, or an empty text."""
    after = _hashes(folder)
    if any(after.get(name) != value for name, value in before.items()):
        return "an input file was changed"
    if opened:
        return "a file outside of the model's folder was opened"
    left = {name for name in after if name not in before and name != "printed"}
    # Weights that were made are kept in a file until the process ends, see wire_format.Spool.
    left = {name for name in left if not re.fullmatch(r"tmp/msconv-.*\.weights", name)}
    if code not in range(5):
        return f"exit code {code}"
    if fault := re.search(rf"{cli.INTERNAL_ERROR} \((.*)\)", said):
        frames = re.findall(r'msconv_deploy/(\S+)", line \d+, in (\w+)', said)
        where = ":".join(next((frame for frame in reversed(frames) if frame[0] != "cli/main.py"), ("?",)))
        return f"internal error: {fault[1][:200]} [{where}]"
    if _TRACEBACK.search(said):
        return "a traceback was printed"
    if code and not any(name in said for name in (_MODEL, _OTHER)):
        return "the message does not name the file"
    if code == 2 and not re.search(r"^msconv: .{20,}", said, re.MULTILINE):
        return "bad input without a message"
    if len(said) > 200_000:
        return f"{len(said)} characters were printed"
    if any(CANARY in (folder / name).read_bytes() for name in left) or CANARY.decode() in said:
        return "bytes from outside of the model's folder are in the output"
    if code and left:
        return f"exit code {code} left {sorted(left)}"
    stray = left - {f"out/{name}" for name in (_OUT, f"{_OUT}.data", _REPORT, "out.json")} - _copied(folder, line)
    if stray:
        return f"litter: {sorted(stray)}"
    return _incomplete(folder, line) if code == 0 else ""


def _copied(folder: Path, line: list[str]) -> set[str]:
    """External data beside an output that is a copy of its input."""
    if line[0] != "optimize":
        return set()
    return {f"out/{path.name}" for path in (folder / "model").iterdir() if path.name != _MODEL}


def _incomplete(folder: Path, line: list[str]) -> str:
    """What is missing from the output of a verb that says that all went well."""
    if line[0] in ("inspect", "diff"):
        try:
            json.loads((folder / "out" / _REPORT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"no report, or no JSON: {_first_line(error)}"
    if line[0] in ("optimize", "convert"):
        try:
            json.loads((folder / "out" / "out.json").read_text(encoding="utf-8"))
            model = onnx.load(folder / "out" / _OUT)
            for value in model.graph.output:  # the checker wants a shape of them, ONNX Runtime does not
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.shape.SetInParent()
            onnx.checker.check_model(model)
        except Exception as error:  # whatever it is, the output is not complete
            return f"the output is not complete: {type(error).__name__}: {_first_line(error)}"
    return ""
