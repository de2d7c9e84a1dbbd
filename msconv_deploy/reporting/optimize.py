"""The reports of ``msconv inspect`` and ``msconv optimize``: sites, near-misses, verification, and what was written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.export import FormName
from msconv_deploy.reporting.report import Model, Report, Verdict
from msconv_deploy.reporting.validation import Case, Comparison, Divergence, RefusedCase


class SegmentReport(Model):
    """A range of input channels of a site."""

    start: int
    size: int
    uniform: list[int] = Field(description="axes of the contraction's input along which it is uniform")
    found: list[str] = Field(description="operators and nodes that make the copies, outermost first")


class SiteReport(Model):
    """A contraction that reads copies, and what was done to it."""

    node: str
    op: str
    output: str
    geometry: str
    segments: list[SegmentReport]
    rule: str
    decision: Literal["rewritten", "left"]
    reason: str = ""
    lowering: str = ""
    macs_before: int | None = Field(default=None, description="multiply-accumulates, estimated; null: not known")
    macs_after: int | None = None
    bytes_before: int | None = Field(default=None, description="read and written by the site and what only it needs")
    bytes_after: int | None = None
    estimated_gain: float | None = Field(default=None, description="estimated time before / after")

    @property
    def uniform_channels(self) -> int:
        return sum(segment.size for segment in self.segments if segment.uniform)

    @property
    def channels(self) -> int:
        return sum(segment.size for segment in self.segments)


class NearMissReport(Model):
    """A contraction below copies that is no site."""

    node: str
    op: str
    reason: str
    nodes: list[str] = Field(default_factory=list, description="the nodes that are the reason")


class ModelFacts(Model):
    """Counts of one model."""

    nodes: int
    bytes: int | None = Field(description="of the ONNX file and its external data; null: not written")
    macs: int | None = Field(default=None, description="over run-time shapes; null: not counted")
    opset: int
    ir_version: int


class Measurement(Model):
    """Time of the original and of the rewritten model in ONNX Runtime, one thread."""

    seconds_before: float
    seconds_after: float
    ratio: float = Field(description="time before / after, geometric mean over pairs of sessions")
    half_width: float = Field(description="of its 95% interval, as a factor minus 1")


class Verification(Model):
    """How the rewritten model was compared with the original."""

    verdict: Verdict
    reason: str = ""
    interface_changes: list[str] = Field(default_factory=list, description="inputs, outputs, order, types, dims, opset")
    cases: list[Case] = Field(default_factory=list)
    refused: list[RefusedCase] = Field(
        default_factory=list, description="sizes that the original refuses, or where it is not defined"
    )
    sites: list[Comparison] = Field(
        default_factory=list, description="output of every rewritten contraction, optimizations of the runtime off"
    )
    outputs: list[Comparison] = Field(default_factory=list, description="graph outputs, optimizations on")
    insensitive_sites: list[str] = Field(
        default_factory=list,
        description="site outputs that their tiled operand does not move: agreement proves nothing",
    )
    insensitive_inputs: list[str] = Field(default_factory=list, description="inputs that move no output")
    not_computed: list[str] = Field(
        default_factory=list, description="site outputs that no node needs after the rewrite: nothing to compare"
    )
    divergence: Divergence | None = None

    @property
    def comparisons(self) -> list[Comparison]:
        return [*self.sites, *self.outputs]

    @property
    def largest_difference(self) -> float | None:
        """Over all comparisons of floats; None if there is none, or one is infinite."""
        rows = [row for row in self.comparisons if not row.exact]
        if any(row.difference is None and row.verdict == "differ" for row in rows):
            return None
        return max((row.difference for row in rows if row.difference is not None), default=None)


class ViewNode(Model):
    """A node of a drawn neighbourhood."""

    key: str
    label: str = Field(description="operator, or the name of an input or output")
    name: str = ""
    detail: str = Field(default="", description="shape of what it computes, and of its weight, where they are known")
    kind: Literal["node", "input", "output", "weight", "site", "copy", "new"] = "node"


class View(Model):
    """A part of a graph to draw: nodes, and edges (from, to)."""

    nodes: list[ViewNode]
    edges: list[tuple[str, str]]
    cut: bool = Field(default=False, description="nodes further up or down are left out")


class SiteView(Model):
    """The neighbourhood of a site before and after."""

    node: str
    before: View
    after: View | None = None


class InspectReport(Report):
    """Result of ``msconv inspect``."""

    verb: Literal["inspect"] = "inspect"
    model: str
    model_sha256: str
    facts: ModelFacts
    input_shapes: dict[str, list[int]] = Field(default_factory=dict)
    sites: list[SiteReport]
    near_misses: list[NearMissReport]


class OptimizeReport(Report):
    """Result of ``msconv optimize``, and the sidecar of its output."""

    verb: Literal["optimize"] = "optimize"
    model: str
    model_sha256: str
    form: FormName
    when: Literal["faster", "always"]
    allowed: list[str] = Field(default_factory=list, description="rules that are applied only where they are allowed")
    tuned: bool = False
    input_shapes: dict[str, list[int]] = Field(default_factory=dict)
    input_ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    input_files: list[str] = Field(default_factory=list)
    verdict: Verdict
    reason: str = ""
    written: list[str] = Field(default_factory=list, description="files, the ONNX file first; empty: none")
    unchanged: bool = Field(description="nothing was rewritten: what was written is the input, byte for byte")
    output_sha256: str | None = None
    before: ModelFacts
    after: ModelFacts
    macs_size: dict[str, list[int]] = Field(
        default_factory=dict, description="input -> shape at which MACs were counted"
    )
    measured: Measurement | None = Field(default=None, description="null: not measured")
    rules: list[str] = Field(description="ids of the rules that rewrote something")
    sites: list[SiteReport]
    near_misses: list[NearMissReport]
    verification: Verification | None = Field(default=None, description="null: not asked for, or nothing to verify")
    notes: list[str] = Field(default_factory=list)

    @property
    def rewritten(self) -> list[SiteReport]:
        return [site for site in self.sites if site.decision == "rewritten"]
