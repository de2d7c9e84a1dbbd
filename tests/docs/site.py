"""The site, built once for all tests of a process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDER = tempfile.TemporaryDirectory(prefix="msconv-site-")


@dataclass(frozen=True)
class Site:
    """A built site.

    Attributes:
        seconds: the processor was busy with it.
    """

    folder: Path
    seconds: float

    def rglob(self, pattern: str) -> Iterator[Path]:
        return self.folder.rglob(pattern)

    def text(self, uri: str) -> str:
        return (self.folder / uri).read_text(encoding="utf-8")


@functools.cache
def built_site() -> Site:
    """Build it strictly: a warning fails."""
    before = os.times()
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", _FOLDER.name],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr, done.stderr[-4000:]
    return Site(Path(_FOLDER.name).resolve(), min(busy, time.perf_counter() - started))
