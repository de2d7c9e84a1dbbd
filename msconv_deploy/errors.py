"""The errors that this project raises, and the exit code that the command line gives each of them.

A message says what is wrong, where (file, node, tensor, key), and what to do about it. Library code raises these;
only `msconv_deploy.cli` prints them and exits. The table of exit codes is normative: see ``docs/spec.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit codes of every verb."""

    OK = 0
    OUTPUTS_DIFFER = 1
    BAD_INPUT = 2
    NOT_AVAILABLE = 3
    BUILD_FAILED = 4


class MsconvError(Exception):
    """Base of all errors with a message that is meant for the user."""

    exit_code = ExitCode.BAD_INPUT


class BadInputError(MsconvError, ValueError):
    """A file, an argument or a tensor is not what was asked for."""


class OutputsDifferError(MsconvError):
    """Two runtimes or two models computed different values."""

    exit_code = ExitCode.OUTPUTS_DIFFER


class NotAvailableError(MsconvError):
    """Something needed is not installed or not present (a package, a GPU, a plugin)."""

    exit_code = ExitCode.NOT_AVAILABLE


class UnverifiedError(MsconvError):
    """A result was made but could not be verified."""

    exit_code = ExitCode.NOT_AVAILABLE


class BuildFailedError(MsconvError):
    """An exporter, a compiler or a TensorRT builder failed on valid input."""

    exit_code = ExitCode.BUILD_FAILED


@contextmanager
def about(path: Path | str) -> Iterator[None]:
    """Name the file in the message of an error that does not name it."""
    try:
        yield
    except MsconvError as error:
        if str(error).startswith(f"{path}:"):
            raise
        raise type(error)(f"{path}: {error}") from error
