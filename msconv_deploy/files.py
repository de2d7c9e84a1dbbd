"""Output files appear complete or not at all: written beside their place, then renamed onto it."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msconv_deploy.errors import BadInputError


def check_writable(path: Path | str, force: bool = False) -> Path:
    """Refuse an output path before any work is done for it; creates missing folders above it.

    A symbolic link counts as a file that exists, wherever it leads: with ``force`` the link is replaced, not its target.

    Raises:
        BadInputError: the path is a folder, a device or a pipe, exists and ``force`` is not given, or its folder cannot be
            written to.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder; name the output file")
    if path.exists() and not path.is_file():
        raise BadInputError(f"{path}: is not an ordinary file, and is not replaced; name the output file")
    if os.path.lexists(path) and not force:
        raise BadInputError(f"{path}: exists already; choose another name, or replace it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{path}: cannot create its folder: {error.strerror or error}") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInputError(f"{path}: the folder {path.parent} is not writable; choose another, or change its rights")
    return path


def sidecar_path(path: Path | str) -> Path:
    """``<same name>.json``, where the report of an output file lies.

    Raises:
        BadInputError: the path ends in no name.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise BadInputError(f"{path}: is a folder; name the output file")
    return path.with_suffix(".json")


def check_outputs(
    inputs: Iterable[Path],
    outputs: Iterable[Path | None],
    force: bool = False,
    *,
    original: Path | None = None,
    possible: Iterable[Path] = (),
) -> None:
    """Refuse, before any work is done, places that cannot be written to, that hold an input, or that two outputs share.

    Args:
        inputs: what is read. No output replaces one of them, with or without ``force``.
        outputs: what will be written; None is left out.
        force: replace files that exist.
        original: the input that the first output may replace with ``force``, because the user names it for both.
        possible: places that may be written to as well, such as external data, which are only looked at for collisions.

    Raises:
        BadInputError: naming the place. No folder has been made then, unless only :func:`check_writable` refuses.
    """
    places = [place for place in outputs if place is not None]
    check_distinct(inputs, places, force, original=original, possible=possible)
    for place in places:
        check_writable(place, force)


def check_distinct(
    inputs: Iterable[Path],
    outputs: Iterable[Path | None],
    force: bool = False,
    *,
    original: Path | None = None,
    possible: Iterable[Path] = (),
) -> None:
    """The half of :func:`check_outputs` that looks for collisions; it leaves the file system alone.

    Raises:
        BadInputError: naming the place.
    """
    places = [place for place in outputs if place is not None]
    read = {_resolved(path) for path in inputs}
    in_place = original is not None and bool(places) and _resolved(places[0]) == _resolved(original)
    if in_place and not force:
        raise BadInputError(f"{places[0]}: is the input; it is replaced only with --force")
    if in_place:
        read.discard(_resolved(places[0]))
    seen: set[Path] = set()
    for place in (*places, *(() if in_place else possible)):
        resolved = _resolved(place)
        if resolved in read:
            raise BadInputError(f"{place}: belongs to the input; choose another name for the output")
        if resolved in seen:
            raise BadInputError(f"{place}: is named for two outputs; choose another name")
        seen.add(resolved)
    for place in places:
        if inside := seen & set(_resolved(place).parents):
            raise BadInputError(
                f"{place}: {inside.pop()} is named for an output file, so it cannot be the folder of this one"
            )


def _resolved(path: Path) -> Path:
    """The file that a path leads to; the path itself where links go round in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


@contextmanager
def atomic_write(path: Path | str, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is renamed to ``path``, on any error removed.

    The temporary name ends like ``path``, because some writers look at the suffix. The body must create the file.

    Args:
        path: where the file shall appear.
        force: replace a file that exists.

    Raises:
        BadInputError: see :func:`check_writable`; or writing failed (disk full, no rights).
    """
    path = check_writable(path, force)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        try:
            yield temporary
            if os.path.lexists(path) and not force:
                raise BadInputError(f"{path}: appeared while it was being written; nothing was replaced")
            temporary.replace(path)
        except OSError as error:
            if error.filename is not None and Path(error.filename) not in (temporary, path):
                raise  # another file's trouble: its own message says more
            raise BadInputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str, force: bool = False) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        BadInputError: see :func:`atomic_write`.
    """
    with atomic_write(path, force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path | str, content: bytes, force: bool = False) -> None:
    """Write a binary file atomically.

    Raises:
        BadInputError: see :func:`atomic_write`.
    """
    with atomic_write(path, force) as temporary:
        temporary.write_bytes(content)


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
