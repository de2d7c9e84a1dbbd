"""Model folders of a Triton repository: which model one holds, and putting a new one in its place.

A folder is built beside the repository, never inside: Triton takes every folder in a repository for a model, hidden ones
too, and does not start if one of them is none. It then takes its place in one step, so that whoever looks sees the old
folder or the new one. The files beside the folders follow one by one, each whole: what is killed in between has the new
model and some older files, and the same command again completes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from msconv_deploy.errors import BadInputError
from msconv_deploy.reporting.package import Backend, ModelSidecar, PackagedTensor, PackagedVersion

logger = logging.getLogger(__name__)

SIDECAR = "msconv.json"
CONFIG = "config.pbtxt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # as network file systems say it

Action = Literal["created", "updated", "version added", "replaced"]


def check_name(name: str) -> str:
    """A model's name is a folder's and a part of URLs.

    Raises:
        BadInputError: it is not fit for that.
    """
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"model name {name!r}: letters, digits, '_', '-' and '.', the first a letter or a digit; give one with --name"
        )
    return name


@dataclass(frozen=True)
class Placement:
    """Where a model goes.

    Attributes:
        before: the sidecar of the folder that is there; None if there is none, or it is replaced.
        kept: versions of it that stay.
    """

    folder: Path
    version: int
    action: Action
    before: ModelSidecar | None = None
    kept: Mapping[str, PackagedVersion] | None = None

    def check_interface(self, inputs: Sequence[PackagedTensor], outputs: Sequence[PackagedTensor]) -> None:
        """All versions in a folder share one configuration, so they have the same inputs and outputs.

        Raises:
            BadInputError: they have not.
        """
        if not self.kept or self.before is None:
            return
        if (list(inputs), list(outputs)) != (self.before.inputs, self.before.outputs):
            raise BadInputError(
                f"{self.folder}: its version{'s' if len(self.kept) > 1 else ''} {', '.join(self.kept)} has other inputs or "
                "outputs, and all versions of a model share one configuration; choose another --name, or replace the "
                "folder with --force"
            )


def find_place(
    repository: Path, name: str, version: int | None, model_sha256: str, backend: Backend, force: bool
) -> Placement:
    """Which version folder a model goes to, and what happens to what is there.

    A folder holds one model. The same file again updates its version; another file is another version of the model only
    where the user says so by its number.

    Args:
        version: None: that of the same file if it is there, else 1.
        force: replace a folder that holds another model, all versions of it.

    Raises:
        BadInputError: the folder holds another model, or no model of this program.
    """
    folder = repository / check_name(name)
    if repository.exists() and not repository.is_dir():
        raise BadInputError(f"{repository}: is a file; name a folder for the repository")
    if not folder.exists():
        return Placement(folder, version or 1, "created")
    before = read_sidecar(folder)
    if before is None:
        _check_replaceable(folder, force)
        return Placement(folder, version or 1, "replaced")
    same = [int(number) for number, held in before.versions.items() if held.model_sha256 == model_sha256]
    number = version or max(same, default=1)
    held = before.versions.get(str(number))
    kept = {other: entry for other, entry in before.versions.items() if other != str(number)}
    if held is not None and held.model_sha256 != model_sha256:
        problem = f"version {number} is another model ({held.model}, SHA-256 {held.model_sha256[:12]})"
        advice = f"--version {max(map(int, before.versions)) + 1} if this is a newer version of it"
    elif held is None and version is None:
        problem = f"it holds another model ({', '.join(entry.model for entry in kept.values())})"
        advice = f"--version {max(map(int, before.versions)) + 1} if this is a newer version of it"
    elif kept and before.backend != backend:
        problem = f"its version {', '.join(kept)} runs on the {before.backend} backend, and this one on {backend}"
        advice = "another --name"
    else:
        return Placement(folder, number, "version added" if held is None else "updated", before, kept)
    if not force:
        raise BadInputError(f"{folder}: {problem}. Choose {advice}, another --name, or replace the folder with --force")
    return Placement(folder, version or 1, "replaced")


def _check_replaceable(folder: Path, force: bool) -> None:
    """Only what looks like a model folder is ever replaced, whatever the user says."""
    content = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else [folder.name]
    if content and CONFIG not in content:
        raise BadInputError(f"{folder}: is there, and is no model folder (no {CONFIG}); choose another --name")
    if content and not force:
        raise BadInputError(
            f"{folder}: holds a model that msconv did not package (no {SIDECAR}); choose another --name, or replace it with "
            "--force"
        )


def read_sidecar(folder: Path) -> ModelSidecar | None:
    """The sidecar of a model folder, or None if it has none.

    Raises:
        BadInputError: it is there, but is not one.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        return ModelSidecar.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInputError(
            f"{path}: is not a sidecar, or of another version of this program ({error.error_count()} fields are wrong); "
            f"remove the folder {folder} and package the model again"
        ) from None


def other_models(repository: Path, name: str) -> list[ModelSidecar]:
    """Sidecars of all other models that were packaged into this repository, by name."""
    if not repository.is_dir():
        return []
    folders = sorted(folder for folder in repository.iterdir() if folder.is_dir() and folder.name != name)
    return [sidecar for folder in folders if (sidecar := read_sidecar(folder)) is not None]


def keep_versions(placement: Placement, staged: Path) -> None:
    """Put the versions that stay into the staged folder, without copying their content where links are possible."""
    for number in placement.kept or {}:
        shutil.copytree(placement.folder / number, staged / number, copy_function=_link)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


# -- taking the place ------------------------------------------------------------------------------------------------


@contextmanager
def locked(repository: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Nobody else of this program changes the repository, or another one beside it, meanwhile.

    The lock is on the folder that the repository is in, so nothing is left behind; a process that ends loses it. Folders
    above the repository are made, and removed again if they are empty afterwards.

    Args:
        waiting: is called if somebody else has the lock, before this waits for it.

    Raises:
        BadInputError: the folder cannot be made or read.
    """
    place = repository.absolute().parent
    created = _missing_parents(place)
    try:
        descriptor = _lock(place, waiting)
    except OSError as error:
        raise _cannot_write(repository, error) from error
    try:
        yield
    finally:
        for parent in created:
            with suppress(OSError):  # it holds something, or somebody else has removed it
                parent.rmdir()
        os.close(descriptor)


def _lock(folder: Path, waiting: Callable[[], None]) -> int:
    """A descriptor of the folder, which holds the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logger.warning("%s cannot be locked: package one model at a time (%s)", folder, error.strerror)
            if folder.is_dir() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever had the lock has removed the folder


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """An empty folder on the repository's file system; it is gone afterwards, whatever happens.

    Only under :func:`locked`. What a process that was killed has left is removed.

    Raises:
        BadInputError: nothing can be written there.
    """
    repository = repository.absolute()
    place = repository.parent
    prefix = f".{repository.name}.msconv-"
    try:
        if repository.is_dir() and repository.stat().st_dev != place.stat().st_dev:
            place = repository  # a mount point: the only place from which a rename works
        for left in place.iterdir():
            if left.name.startswith(prefix):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    except OSError as error:
        raise _cannot_write(repository, error) from error
    try:
        folder.chmod(0o755)
        yield folder
    except OSError as error:
        if error.filename is not None and not Path(error.filename).is_relative_to(folder):
            raise  # another file's trouble: its own message says more
        raise _cannot_write(repository, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _missing_parents(folder: Path) -> list[Path]:
    """Folders that have to be made for this one, the innermost first."""
    return [parent for parent in (folder, *folder.parents) if not parent.exists()]


def put_in_place(staged: Path, folder: Path, files: Mapping[Path, Path]) -> None:
    """Move a staged model folder to its place and the files of the repository to theirs.

    Args:
        staged: the model folder.
        folder: its place.
        files: staged file -> place.

    What was there is then where the new one was staged.

    Raises:
        BadInputError: it cannot be done; then everything is as it was.
    """
    repository = folder.parent
    new_repository = not repository.exists()
    done: list[tuple[Path, Path, bool]] = []  # staged, place, was something there?
    try:
        repository.mkdir(exist_ok=True)
        for source, place in ((staged, folder), *files.items()):
            there = place.exists()
            _swap(source, place, there)
            done.append((source, place, there))
    except BaseException as error:
        for source, place, there in reversed(done):
            _swap(place, source, there)
        if new_repository:
            with suppress(OSError):  # it was not made, or somebody else has put something there
                repository.rmdir()
        if isinstance(error, OSError):
            raise _cannot_write(folder, error) from error
        raise


def _swap(source: Path, place: Path, there: bool) -> None:
    """Move to a place; what is there comes back."""
    if there:
        exchange(source, place)
    else:
        source.rename(place)


def exchange(first: Path, second: Path) -> None:
    """Swap two folders or files of one file system, in one step where the system can do that.

    Raises:
        OSError: it is not possible.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        paths = (os.fsencode(first), os.fsencode(second))
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code), str(second))
    between = first.with_name(f".{uuid.uuid4().hex[:12]}")
    second.rename(between)
    try:
        first.rename(second)
    except OSError:
        between.rename(second)
        raise
    between.rename(first)


def _cannot_write(path: Path, error: OSError) -> BadInputError:
    return BadInputError(f"{path}: cannot be written: {error.strerror or error}; nothing was changed")
