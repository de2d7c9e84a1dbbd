"""The errors and their exit codes, from the specification's table and from ``msconv_deploy.errors``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from docs.generate import ROOT
from docs.generate.markdown import code, section, table
from msconv_deploy import errors
from msconv_deploy.errors import MsconvError


def error_classes(base: type[MsconvError] = MsconvError) -> Iterator[type[MsconvError]]:
    """The base and every error below it that ``msconv_deploy.errors`` defines."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from error_classes(kind)


def page() -> str:
    """The page."""
    rows = [
        (code(kind.__name__), f"{int(kind.exit_code)}, `{kind.exit_code.name}`", inspect.getdoc(kind) or "")
        for kind in error_classes()
    ]
    return "\n\n".join(
        [
            "# Errors and exit codes",
            "Every verb ends with one of these codes, and says on standard error what is wrong, where, and what to do.",
            section(ROOT / "docs" / "spec.md", "Exit codes"),
            "## In Python",
            "Library code raises these, all from `msconv_deploy.errors`; the command line gives each its exit code. Other "
            "exceptions are programming errors.",
            table(["error", "exit code", "raised when"], rows),
        ]
    )
