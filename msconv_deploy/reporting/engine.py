"""The reports of ``msconv engine``. That of ``engine build`` is also the sidecar of the plan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.export import FormName
from msconv_deploy.reporting.report import Model, Report, Verdict


class EngineLayer(Model):
    """A layer of an engine, as the engine inspector tells it."""

    name: str
    type: str
    precision: str | None = Field(
        default=None, description="fp32, tf32, fp16, bf16, ...; null: the inspector does not say"
    )
    inputs: list[str] = Field(default_factory=list, description="data type and memory format")
    outputs: list[str] = Field(default_factory=list)
    tactic: str = ""
    nodes: list[str] = Field(default_factory=list, description="ONNX nodes that it computes")
    plugin: bool = False


class PrecisionCheck(Model):
    """Does every contraction (Conv, ConvTranspose, Gemm, MatMul, MSConv2d) compute in the type that the graph gives it?"""

    verdict: Verdict
    reason: str = ""
    asked: dict[str, int] = Field(default_factory=dict, description="type -> contractions of the graph")
    found: dict[str, int] = Field(default_factory=dict, description="type -> contractions, as the engine computes them")
    differing: list[str] = Field(default_factory=list, description="node, layer, what was asked, what was found")
    unaccounted: list[str] = Field(default_factory=list, description="contractions that no layer names")
    plugin_nodes: int = Field(default=0, description="msconv::MSConv2d nodes of the graph")
    plugin_layers: int = Field(default=0, description="layers of the engine that the plugin computes")


class EnginePlugin(Model):
    """A plugin library that an engine was built with."""

    path: str
    sha256: str


class EngineReport(Report):
    """How a plan was made."""

    verb: Literal["engine build"] = "engine build"
    model: str
    model_sha256: str = Field(description="over the file and its external data")
    model_form: FormName = Field(description="of the file")
    form: FormName = Field(description="that TensorRT got")
    plan: str
    plan_sha256: str
    plan_bytes: int
    key: dict[str, str] = Field(description="what the plan depends on")
    source: Literal["built", "cache", "up to date"] = "built"
    tensorrt_version: str
    gpu: str
    compute_capability: str
    plugins: list[EnginePlugin] = Field(default_factory=list)
    precision: str = Field(description="narrowest floating type of the graph")
    profile: dict[str, list[list[int]]] = Field(default_factory=dict, description="dynamic input -> [min, opt, max]")
    layers: list[EngineLayer] = Field(default_factory=list)
    precision_check: PrecisionCheck
    timing_cache: str = ""
    warnings: list[str] = Field(default_factory=list, description="of TensorRT")


class EngineInspectReport(Report):
    """What a plan holds."""

    verb: Literal["engine inspect"] = "engine inspect"
    plan: str
    plan_sha256: str
    plan_bytes: int
    tensorrt_version: str
    gpu: str
    compute_capability: str
    inputs: dict[str, str] = Field(default_factory=dict, description="name -> type and shape")
    outputs: dict[str, str] = Field(default_factory=dict)
    layers: list[EngineLayer] = Field(default_factory=list)
    precisions: dict[str, int] = Field(default_factory=dict, description="type -> layers")
    model: str | None = Field(default=None, description="the ONNX file that precision was compared with")
    precision_check: PrecisionCheck | None = None
