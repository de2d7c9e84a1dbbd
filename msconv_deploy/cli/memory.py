"""Bounding the memory of a verb: a small file can ask for tensors that no machine has.

ONNX Runtime takes what a graph asks for, and Linux promises memory that it does not have, until it ends some process. With a
limit the request fails where it is made, and becomes a message.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARE = 0.9  # of what is free; the rest is for others
_GROUP = Path("/sys/fs/cgroup")  # of a container, version 2


def bound_memory() -> None:
    """Let this process take no more data than is free now. Does nothing where the system cannot tell or limit it."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    free, used = _available(), _own_data()
    if free is None or used is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + int(free * _SHARE)
    for given in (soft, hard):
        if given != resource.RLIM_INFINITY:
            wanted = min(wanted, given)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


@contextmanager
def limits_kept() -> Iterator[None]:
    """Afterwards this process may take what it might before: other work may follow in it."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _available() -> int | None:
    """Bytes that can be had without swapping, by the kernel's own estimate and the container's limit."""
    fields = _fields(Path("/proc/meminfo"))
    free = fields.get("MemAvailable")
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        if limit != "max":
            room = int(limit) - int((_GROUP / "memory.current").read_text())
            free = room if free is None else min(free, max(0, room))
    except (OSError, ValueError):
        pass
    return free


def _own_data() -> int | None:
    """Bytes that count against the limit already."""
    return _fields(Path("/proc/self/status")).get("VmData")


def _fields(file: Path) -> dict[str, int]:
    """Lines such as ``VmData:  1234 kB`` as bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {word[0]: int(word[1]) << 10 for word in words if len(word) == 3 and word[2] == "kB" and word[1].isdecimal()}
