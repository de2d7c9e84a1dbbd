"""Sites as data: what was found at each contraction, what was decided and why. Reports are made from these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import onnx
import onnx_graphsurgeon as gs

Decision = Literal["rewritten", "left"]


@dataclass
class SegmentInfo:
    """A range of input channels of a site.

    Attributes:
        start, size: channels.
        uniform: axes of the contraction's input along which it is uniform; empty for a dense segment.
        found: how the uniformity was found: operators and nodes that make the copies, outermost first.
    """

    start: int
    size: int
    uniform: list[int]
    found: list[str] = field(default_factory=list)


@dataclass
class Site:
    """A contraction that reads copies, or an operator on copies that `sink-broadcast` or `drop-expand` matches.

    Attributes:
        node, op: the contraction or operator.
        output: its output tensor, which keeps its name when it is rewritten.
        geometry: kernel, strides, dilations, pads, group in words; empty for Gemm and MatMul.
        segments: of its input.
        rule: id of the rule that matches.
        decision: what was done.
        reason: why it was left, or how it was rewritten.
        lowering: how it was spelled, or would be if it was left.
        spellings: the lowerings that it could have.
        macs_before, macs_after: multiply-accumulates at the estimated shapes, None where they are not known.
        bytes_before, bytes_after: bytes read and written by the site and what only it needs, likewise.
        estimated_gain: estimated time before / after for the site, likewise.
    """

    node: str
    op: str
    output: str
    geometry: str
    segments: list[SegmentInfo]
    rule: str
    decision: Decision = "left"
    reason: str = ""
    lowering: str = ""
    spellings: list[str] = field(default_factory=list)
    macs_before: int | None = None
    macs_after: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    estimated_gain: float | None = None


@dataclass
class NearMiss:
    """A contraction below copies that is not a site, with the reason and the nodes that are the reason."""

    node: str
    op: str
    reason: str
    nodes: list[str] = field(default_factory=list)


def node_name(node: gs.Node) -> str:
    """A node's name, or that of its first output where it has none."""
    return str(node.name or (node.outputs[0].name if node.outputs else node.op))


def rewritten_names(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that a rewrite made."""
    return {node.name for node in model.graph.node if any(p.key == "msconv.rule" for p in node.metadata_props)}
