"""The report of ``msconv serve``, written when it answers requests: where it listens, and what it serves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.report import Report


class ServeReport(Report):
    """A server that has started."""

    verb: Literal["serve"] = "serve"
    model: str = Field(description="the file that was named")
    model_sha256: str
    optimized: str = Field(description="what --optimize did, in words; empty: it was not asked for")
    name: str = Field(description="what clients call the model")
    http: str = Field(description="host and port")
    grpc: str = Field(description="host and port")
    pid: int
    provider: str = Field(description="what computes: cpu or cuda (ONNX Runtime), or tensorrt")
    inputs: dict[str, str] = Field(description="name -> datatype and shape")
    outputs: dict[str, str]
    batching: str = Field(description="why requests are not joined; empty: they are")
