"""The report of ``msconv package``, and the sidecar of a model in a Triton model repository."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.export import FormName
from msconv_deploy.reporting.report import SCHEMA_VERSION, Model, Report

Backend = Literal["onnxruntime", "tensorrt"]


class PackagedTensor(Model):
    """An input or output as Triton's clients see it, batch dimension included."""

    name: str
    datatype: str = Field(description="of the Open Inference Protocol, such as FP32")
    shape: list[int] = Field(description="-1 where it is dynamic")


class PackagedPlugin(Model):
    """A plugin library beside a plan."""

    file: str = Field(description="relative to the repository")
    sha256: str


class PackagedVersion(Model):
    """What a version folder holds."""

    model: str = Field(description="the ONNX file that it was made from")
    model_sha256: str = Field(description="over the file and its external data")
    model_form: FormName
    plan_sha256: str | None = None
    tensorrt_version: str | None = None
    compute_capability: str | None = None
    plugins: list[PackagedPlugin] = Field(default_factory=list)


class ModelSidecar(Model):
    """What lies beside ``config.pbtxt``: which model the folder holds. By it a later run tells one model from another."""

    schema_version: int = SCHEMA_VERSION
    name: str
    backend: Backend
    inputs: list[PackagedTensor]
    outputs: list[PackagedTensor]
    versions: dict[str, PackagedVersion]
    image: str | None = Field(default=None, description="tag of the Triton image that it needs; null: any recent one")


class PackageReport(Report):
    """What was written."""

    verb: Literal["package"] = "package"
    action: Literal["created", "updated", "version added", "replaced"]
    repository: str
    name: str
    version: int
    backend: Backend
    model: str
    model_sha256: str
    model_form: FormName
    plan: str | None = None
    plan_sha256: str | None = None
    plugins: list[PackagedPlugin] = Field(default_factory=list)
    inputs: list[PackagedTensor]
    outputs: list[PackagedTensor]
    max_batch_size: int = Field(description="0: Triton joins no requests of this model")
    preferred_batch_sizes: list[int] = Field(default_factory=list)
    max_queue_delay_us: int | None = None
    instances: int
    warmup: dict[str, list[int]] = Field(description="input -> shape of the sample, batch included")
    checks: list[str] = Field(description="what was verified before anything was put in its place")
    notes: list[str] = Field(default_factory=list)
    files: list[str] = Field(description="of this model, relative to the repository")
    image: str
    launch: list[str] = Field(description="arguments of the server's command line")
