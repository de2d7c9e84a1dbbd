"""The reports of ``msconv plugin``. That of ``plugin build`` is also the sidecar of the library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.report import Model, Report


class PluginBuildReport(Report):
    """What was compiled, with what, for what."""

    verb: Literal["plugin build"] = "plugin build"
    library: str
    library_sha256: str
    library_bytes: int
    sources: str = Field(description="folder of the sources")
    sources_sha256: str = Field(description="over the names and contents of all source files")
    tensorrt_version: str = Field(description="of the headers")
    tensorrt_headers: str
    architectures: list[str] = Field(description="compute capabilities with machine code; PTX of the last")
    nvcc: str
    nvcc_version: str
    cmake_version: str
    log: str = Field(description="what the compiler said, registers and spills of every kernel included")


class PluginField(Model):
    """An attribute that a creator takes."""

    name: str
    type: str = Field(description="int32, float32, ...")
    length: int | None = Field(default=None, description="null: the bindings do not say")


class PluginCreator(Model):
    """A creator that a library registered."""

    name: str
    version: str
    namespace: str
    interface: str = Field(description="such as IPluginCreatorV3One")
    fields: list[PluginField] = Field(default_factory=list)


class PluginLibrary(Model):
    """A library in a registry."""

    library: str
    registry: str = Field(description="the package, and its version")
    creators: list[PluginCreator]


class PluginCheckReport(Report):
    """What the libraries hold."""

    verb: Literal["plugin check"] = "plugin check"
    libraries: list[PluginLibrary]
