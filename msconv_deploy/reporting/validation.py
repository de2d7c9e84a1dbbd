"""The report of a validation: every comparison that was made, and those that could not be made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.errors import OutputsDifferError, UnverifiedError
from msconv_deploy.reporting.report import Model, Report, Verdict

Size = dict[str, int]
"""Extent by symbolic dimension, such as ``{"N": 4, "H": 17, "W": 23}``; empty for a model of static shapes."""


class Case(Model):
    """One set of inputs."""

    name: str
    size: Size
    origin: Literal["generated", "file"] = "generated"
    shapes: dict[str, list[int]] = Field(description="input -> shape")


class RefusedCase(Model):
    """Inputs that the reference itself does not run on, or for which what it computes is empty or not defined.

    They say nothing about the model under test.
    """

    size: Size
    reason: str


class Comparison(Model):
    """One output of one runtime at one size. All differences are ``max|a-b| / max|b|``, b the reference."""

    runtime: str
    case: str
    size: Size
    output: str
    dtype: str
    shape: list[int] | None = None
    difference: float | None = Field(default=None, description="null: not comparable, or infinite; see reason")
    border: float | None = Field(default=None, description="largest difference over border pixels, same denominator")
    interior: float | None = Field(default=None, description="null: not an image, or no interior at this size")
    border_width: int | None = None
    exact: bool = Field(default=False, description="integers and booleans are compared for equality")
    tolerance: float
    policy_tolerance: float = Field(description="tolerance from dtype, depth and reduction sizes alone")
    noise: float | None = Field(default=None, description="the reference's own rounding noise, as a difference")
    verdict: Verdict
    reason: str = ""


def largest_differences(comparisons: list[Comparison], runtimes: list[str]) -> dict[str, float | None]:
    """Largest difference by runtime over all float outputs and sizes; None if there is none or it is infinite."""
    out: dict[str, float | None] = {}
    for runtime in runtimes:
        rows = [c for c in comparisons if c.runtime == runtime and not c.exact]
        infinite = any(c.difference is None and c.verdict == "differ" for c in rows)
        out[runtime] = None if infinite else max((c.difference for c in rows if c.difference is not None), default=None)
    return out


class Divergence(Model):
    """Where two models part: the first tensor, in order of execution, that leaves its tolerance."""

    found: bool
    runtime: str = "ort"
    size: Size = Field(default_factory=dict)
    tensor: str | None = None
    reference_tensor: str | None = None
    node: str | None = None
    op_type: str | None = None
    module: str | None = Field(default=None, description="path of the PyTorch submodule, e.g. blocks.0.conv")
    difference: float | None = Field(default=None, description="also the tolerance that would have been needed")
    tolerance: float | None = None
    last_agreeing: str | None = Field(default=None, description="last tensor before it that agrees")
    last_agreeing_module: str | None = None
    tensors_compared: int = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """One sentence for people."""
        if not self.found:
            return f"first diverging tensor: not found: {self.reason}"
        place = f"output of module {self.module}, " if self.module else ""
        node = f" ({self.op_type} {self.node})" if self.op_type else ""
        amount = self.reason if self.difference is None else f"difference {self.difference:.2e}"
        before = self.last_agreeing_module or self.last_agreeing
        last = f"; {before} before it agrees" if before else "; nothing before it was compared"
        return f"first diverging tensor: {place}{self.tensor}{node}: {amount}, tolerance {self.tolerance:.2e}{last}"


class BuildCheck(Model):
    """Whether a TensorRT-family parser and builder take the file. No values are compared."""

    runtime: str
    status: Literal["passed", "failed", "not available"]
    version: str | None = None
    parsed: bool = False
    built: bool = False
    engine_bytes: int | None = None
    seconds: float | None = None
    shapes: dict[str, list[list[int]]] = Field(default_factory=dict, description="input -> [min, opt, max]")
    messages: list[str] = Field(default_factory=list)
    reason: str = ""


class ValidationReport(Report):
    """Result of ``msconv validate`` and of the validation inside other verbs."""

    verb: Literal["validate"] = "validate"
    model: str
    model_sha256: str | None = None
    reference: str
    reference_runtime: str
    runtimes: list[str]
    runtime_versions: dict[str, str] = Field(default_factory=dict)
    verdict: Verdict
    reason: str = ""
    cases: list[Case] = Field(default_factory=list)
    refused: list[RefusedCase] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    largest_difference: dict[str, float | None] = Field(
        default_factory=dict, description="runtime -> over all float outputs and sizes; null: none, or infinite"
    )
    insensitive_inputs: list[str] = Field(
        default_factory=list, description="inputs whose change moves no output: nothing was learned about their use"
    )
    notes: list[str] = Field(default_factory=list)
    divergence: Divergence | None = None
    build_checks: list[BuildCheck] = Field(default_factory=list)
    saved_to: str | None = None
    polygraphy_commands: list[str] = Field(default_factory=list, description="one line per case")
    trtexec_command: str | None = None

    @property
    def needed_tolerance(self) -> float | None:
        """The tolerance with which every comparison would have passed; None if no tolerance would do."""
        differing = [c for c in self.comparisons if c.verdict == "differ"]
        if any(c.difference is None or c.exact for c in differing):
            return None
        return max((c.difference for c in self.comparisons if c.difference is not None), default=None)

    def raise_for_verdict(self) -> None:
        """Raise unless everything was verified and agrees.

        Raises:
            OutputsDifferError: the outputs differ.
            UnverifiedError: no verdict was possible.
        """
        if self.verdict == "differ":
            raise OutputsDifferError(f"{self.model}: {self.reason}")
        if self.verdict == "unverified":
            raise UnverifiedError(f"{self.model}: not verified: {self.reason}")
