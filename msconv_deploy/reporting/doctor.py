"""The report of ``msconv doctor``: what is installed, what is not, and what to do about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.report import Model, Report

Status = Literal["found", "missing", "problem"]


class Finding(Model):
    """One thing that was looked for."""

    group: str
    name: str
    status: Status
    required: bool = Field(default=False, description="without it nothing works")
    version: str | None = None
    where: str = ""
    advice: str = Field(default="", description="what to do; empty if nothing needs doing")


class DoctorReport(Report):
    """All findings."""

    verb: Literal["doctor"] = "doctor"
    findings: list[Finding]

    @property
    def usable(self) -> bool:
        """Is everything there that the core needs?"""
        return all(f.status == "found" for f in self.findings if f.required)
