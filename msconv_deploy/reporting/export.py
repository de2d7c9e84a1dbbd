"""The reports of ``msconv export``: one sidecar per artefact, and the table over all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.report import Model, Report, Verdict
from msconv_deploy.reporting.validation import RefusedCase, Size

FormName = Literal["portable", "fused", "plugin"]


class Artefact(Model):
    """One ONNX file that was written."""

    recipe: str
    form: FormName
    precision: Literal["fp32", "fp16"]
    files: list[str] = Field(description="names; the ONNX file first, then its external data")
    bytes: int
    sha256: str = Field(description="of the ONNX file")
    exporter: str
    opset: int
    ir_version: int
    nodes: int = Field(description="of the main graph")
    parameters: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]


class Sidecar(Report):
    """What lies beside an artefact as ``<same name>.json``: where it comes from and what was verified of it."""

    verb: Literal["export"] = "export"
    artefact: Artefact
    recipe: str = Field(description="path of the recipe, relative to the sidecar")
    recipe_sha256: str
    checkpoint_sha256: str
    verdict: Verdict
    reason: str = ""
    validated_as: FormName | None = Field(default=None, description="the form that was run: fused for a plugin form")
    largest_difference: dict[str, float | None] = Field(description="runtime -> largest difference from PyTorch")
    tolerance: float | None = None
    sizes: list[Size] = Field(default_factory=list, description="sizes that were compared")
    refused: list[RefusedCase] = Field(default_factory=list, description="sizes that the PyTorch module itself refuses")
    build_checks: dict[str, str] = Field(default_factory=dict, description="runtime -> passed, failed or not available")


class ExportReport(Report):
    """All artefacts of one run."""

    verb: Literal["export"] = "export"
    artefacts: list[Sidecar]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all artefacts."""
        verdicts = {sidecar.verdict for sidecar in self.artefacts}
        if "differ" in verdicts:
            return "differ"
        return "unverified" if "unverified" in verdicts or not verdicts else "passed"
