"""What every report has: the schema version, who made it with what, when, and how to read and write it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from msconv_deploy import __version__
from msconv_deploy.files import write_text
from msconv_deploy.reporting.versions import installed_versions

SCHEMA_VERSION = 1
"""Raised when a field is removed or changes its meaning; a new field alone does not raise it."""

Verdict = Literal["passed", "differ", "unverified"]
"""``unverified``: the check could not be made. It is never to be read as passed."""


class Model(BaseModel):
    """Base of all parts of a report: unknown fields are an error, so that a typo cannot pass for a field."""

    model_config = ConfigDict(extra="forbid")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Report(Model):
    """Base of the reports of all verbs. Subclasses narrow ``verb`` to a literal, which tells them apart."""

    schema_version: int = SCHEMA_VERSION
    verb: str
    tool: str = "msconv-deploy"
    tool_version: str = __version__
    created: str = Field(default_factory=_now, description="UTC, ISO 8601")
    versions: dict[str, str] = Field(default_factory=installed_versions, description="library -> version")
    seed: int | None = Field(default=None, description="seed of all random numbers")
    timings: dict[str, float] = Field(default_factory=dict, description="step -> seconds")

    def to_json(self) -> str:
        """Indented JSON. Numbers that JSON does not know (NaN, infinity) never occur: fields hold null instead."""
        return self.model_dump_json(indent=2) + "\n"

    def write(self, path: Path | str, force: bool = False) -> None:
        """Write the JSON atomically.

        Raises:
            BadInputError: the file exists and ``force`` is not given, or the place cannot be written to.
        """
        write_text(path, self.to_json(), force)
