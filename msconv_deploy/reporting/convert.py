"""The report of ``msconv convert``, which is also the sidecar of its output."""

from __future__ import annotations

from typing import Literal

from msconv_deploy.reporting.export import FormName
from msconv_deploy.reporting.report import Report


class ConvertReport(Report):
    """What was converted into what."""

    verb: Literal["convert"] = "convert"
    model: str
    model_sha256: str
    files: list[str]
    from_form: FormName
    to_form: FormName
    layers: int
    nodes_before: int
    nodes_after: int
    ir_version_before: int
    ir_version_after: int
