"""`msconv package`, killed before every step that it takes in the file system: run as a program, with an empty folder.

Writes ``found.json`` there: for an empty folder and for one that holds a repository, what was found after each kill. It
forks, which a process that has run ONNX Runtime should not do; so it is not part of a test process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 9
_STEPS = {"os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp"}

State = dict[str, bytes]


def state(folder: Path) -> State:
    """Files below, and their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def in_child(work: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def package(folder: Path, *options: str) -> int:
    from msconv_deploy.cli.main import main

    return main(["package", str(folder.parent / "m.onnx"), "--triton", str(folder / "repository"), "-q", *options])


def killed_before(step: int, folder: Path, *options: str) -> int:
    """Ends at once before that step; the exit code of the command if it takes fewer."""
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        exchanged = event == "ctypes.dlsym" and arguments[1] == "renameat2"
        if exchanged or (event in _STEPS and str(folder) in str(arguments)):
            left -= 1
            if left < 0:
                os._exit(KILLED)

    sys.addaudithook(hook)
    return package(folder, *options)


def every_kill(folder: Path, old: Path, new: State) -> list[dict[str, Any]]:
    """Kill it before each step, look, and run it again."""
    found: list[dict[str, Any]] = []
    before = state(old)
    seen: tuple[State, int] = {}, 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)
        code = in_child(lambda: killed_before(len(found), folder, "--max-batch", "2"))
        if code != KILLED:
            assert code == 0
            return found
        after = state(folder / "repository") if (folder / "repository").exists() else {}
        model = {name: content for name, content in after.items() if name.startswith("m/")}
        files = {name: content for name, content in after.items() if not name.startswith("m/")}
        was = {name.removeprefix("repository/"): content for name, content in before.items()}
        left = sorted(entry.name for entry in folder.iterdir() if entry.name != "repository")
        if found and (after, len(left)) == seen:
            found.append(found[-1])  # what a second run makes of it is known
            continue
        seen = after, len(left)
        again = in_child(lambda: package(folder, "--max-batch", "2"))
        found.append(
            {
                "left": len(left),
                "model": [
                    which
                    for which, whole in (("old", was), ("new", new))
                    if model == {n: c for n, c in whole.items() if n.startswith("m/")}
                ],
                "torn files": [n for n, c in files.items() if c not in (was.get(n), new.get(n))],
                "again": again,
                "healed": state(folder / "repository") == new,
                "left over": sorted(entry.name for entry in folder.iterdir() if entry.name != "repository"),
            }
        )


def main(folder: Path) -> None:
    import msconv_deploy.cli.package
    import msconv_deploy.serving.triton.package  # noqa: F401
    from tests.serving.networks import four_sources

    four_sources(folder / "m.onnx")
    work, empty, one = folder / "work", folder / "empty", folder / "one"
    empty.mkdir()
    work.mkdir()
    assert in_child(lambda: package(work)) == 0
    shutil.move(work, one)
    shutil.copytree(one, work)
    assert in_child(lambda: package(work, "--max-batch", "2")) == 0
    updated = state(work / "repository")
    shutil.rmtree(work)
    work.mkdir()
    assert in_child(lambda: package(work, "--max-batch", "2")) == 0
    created = state(work / "repository")
    found = {"empty": every_kill(work, empty, created), "one": every_kill(work, one, updated)}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
