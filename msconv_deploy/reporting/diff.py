"""The report of ``msconv diff``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msconv_deploy.reporting.report import Model, Report


class NodeEntry(Model):
    """A node that only one of the two models has."""

    output: str = Field(description="its first output, by which nodes are told apart")
    name: str
    op: str


class TensorEntry(Model):
    """A weight that only one of the two models has."""

    name: str
    dtype: str
    shape: list[int]


class Change(Model):
    """What differs in a node or weight that both models have."""

    name: str = Field(description="a node's first output, or a weight's name")
    op: str = ""
    what: list[str]


class DiffReport(Report):
    """What model b has that a has not, and the other way round."""

    verb: Literal["diff"] = "diff"
    a: str
    b: str
    equal: bool
    interface: list[str] = Field(description="inputs, outputs, opset, IR version, functions, metadata")
    nodes_added: list[NodeEntry]
    nodes_removed: list[NodeEntry]
    nodes_changed: list[Change]
    tensors_added: list[TensorEntry]
    tensors_removed: list[TensorEntry]
    tensors_changed: list[Change]
