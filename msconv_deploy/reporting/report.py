"""What every report has: the schema version, who made it with what, when, and how to read and write it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError

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


def _encodable(value: Any) -> Any:
    """The value with every text such that UTF-8 can hold it: what it cannot becomes a replacement character."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, (list, tuple)) else value


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
        try:
            return self.model_dump_json(indent=2) + "\n"
        except PydanticSerializationError:  # a name of a file that is no UTF-8: Python has surrogates for its bytes
            return json.dumps(_encodable(self.model_dump()), indent=2, ensure_ascii=False) + "\n"

    def write(self, path: Path | str, force: bool = False) -> None:
        """Write the JSON atomically.

        Raises:
            BadInputError: the file exists and ``force`` is not given, or the place cannot be written to.
        """
        write_text(path, self.to_json(), force)
