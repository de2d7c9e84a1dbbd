"""Sites as data: what was found at each contraction, what was decided and why. Reports are made from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.ops.border_classes import Axis

Decision = Literal["rewritten", "left"]


@dataclass
class SegmentInfo:
    """A range of input channels of a site.

    Attributes:
        start, size: channels.
        uniform: axes of the contraction's input along which it is uniform; empty for a dense segment and for windows.
        found: how the uniformity or the windows were found: operators and nodes that make the copies, outermost first.
    """

    start: int
    size: int
    uniform: list[int]
    found: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Distance:
    """What a pairwise distance is computed from, for a bound on its error: the norm of ``first - second + shift`` over an axis.

    Attributes:
        first, second: tensors, which are broadcast against each other.
        axis: that is summed, from the end: -1 is the last one.
        shift: number added to the difference.
        root: whether it is the distance, not its square.
    """

    first: str
    second: str
    axis: int
    shift: float
    root: bool


@dataclass
class Site:
    """A contraction that reads copies, an operator on copies that `sink-broadcast` or `drop-expand` matches, a node that reads
    windows which are written out, the second of two convolutions, or a pairwise distance.

    Attributes:
        node, op: the contraction or operator.
        output: its output tensor, which keeps its name when it is rewritten; that of the last of ``taken_over``.
        geometry: kernel, strides, dilations, pads, group in words; empty for Gemm and MatMul.
        segments: of its input.
        rule: id of the rule that matches.
        decision: what was done.
        reason: why it was left, or how it was rewritten.
        lowering: how it was spelled, or would be if it was left.
        spellings: the lowerings that it could have.
        taken_over: nodes behind it that become part of its weights when it is rewritten.
        contracted: the contraction's own output then, which is gone when it is rewritten.
        macs_before, macs_after: multiply-accumulates at the estimated shapes, None where they are not known.
        bytes_before, bytes_after: bytes read and written by the site and what only it needs, likewise.
        estimated_gain: estimated time before / after for the site, likewise.
        distance: of a pairwise distance, whose rewrite cancels otherwise.
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
    taken_over: list[str] = field(default_factory=list)
    contracted: str = ""
    macs_before: int | None = None
    macs_after: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    estimated_gain: float | None = None
    distance: Distance | None = None


@dataclass
class NearMiss:
    """A contraction below copies that is not a site, with the reason and the nodes that are the reason."""

    node: str
    op: str
    reason: str
    nodes: list[str] = field(default_factory=list)


def geometry_text(axes: Sequence[Axis], group: int = 1) -> str:
    """Kernel, strides, dilations, pads and groups in words; empty without axes."""
    if not axes:
        return ""
    parts = ["kernel " + "x".join(str(a.kernel) for a in axes)]
    if any(a.stride != 1 for a in axes):
        parts.append("stride " + "x".join(str(a.stride) for a in axes))
    if any(a.dilation != 1 for a in axes):
        parts.append("dilation " + "x".join(str(a.dilation) for a in axes))
    if any(a.padded for a in axes):
        parts.append("pad " + " ".join(f"{a.pad_before},{a.pad_after}" for a in axes))
    if group != 1:
        parts.append(f"group {group}")
    return ", ".join(parts)


def node_name(node: gs.Node) -> str:
    """A node's name, or that of its first output where it has none."""
    return str(node.name or (node.outputs[0].name if node.outputs else node.op))


def rewritten_names(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that a rewrite made."""
    return {node.name for node in model.graph.node if any(p.key == "msconv.rule" for p in node.metadata_props)}
