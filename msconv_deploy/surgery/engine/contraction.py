"""Contractions: Conv, ConvTranspose, Gemm and MatMul under one description, with weights in one layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.surgery.engine.decomposition import pad_amounts, reshape_groups
from msconv_deploy.surgery.engine.symbols import Dims, Symbols

CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Refusal:
    """Why a node is not rewritten, and which nodes are the reason."""

    reason: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Contraction:
    """One node that sums over channels.

    Attributes:
        node: the node.
        source: the tensor whose channels are summed, with any zero Pad or merging Reshape before the node looked through.
        dims: extents of ``source``.
        channel_axis: of ``source``.
        weight: [O, C/group, *kernel] for Conv; [C, O/group, *kernel] for ConvTranspose; [C, O] for Gemm and MatMul.
        bias: tensor [O] (or what broadcasts to it), or None.
        axes: geometry of the spatial axes, with static padding; empty for Gemm and MatMul.
        group: of Conv and ConvTranspose.
        output_padding: of ConvTranspose, one per spatial axis.
        merged: the Reshape that was looked through: it merges the axes before the channels.
        weight_tensor: where the weight comes from, for its name and type.
    """

    node: gs.Node
    source: gs.Tensor
    dims: Dims
    channel_axis: int
    weight: NDArray[Any]
    bias: gs.Tensor | None
    axes: tuple[Axis, ...] = ()
    group: int = 1
    output_padding: tuple[int, ...] = ()
    merged: gs.Node | None = None

    @property
    def transposed(self) -> bool:
        return str(self.node.op) == "ConvTranspose"

    @property
    def out_channels(self) -> int:
        if not self.axes:
            return int(self.weight.shape[1])
        return int(self.weight.shape[1] * self.group if self.transposed else self.weight.shape[0])

    def weight_of(self, channels: list[int], groups: range | None = None) -> NDArray[Any]:
        """Dense weights of some input channels as [O, channels, *kernel]; zero outside an output's own group.

        Args:
            channels: input channels, counted over all groups.
            groups: only the outputs of these groups.
        """
        if not self.axes:
            return self.weight[channels].T
        groups = range(self.group) if groups is None else groups
        outputs = self.out_channels // self.group
        per_group = self.dims[self.channel_axis] // self.group  # type: ignore[operator]
        kernel = self.weight.shape[2:]
        dense = np.zeros((outputs * len(groups), len(channels), *kernel), self.weight.dtype)
        for position, channel in enumerate(channels):
            group, within = divmod(channel, per_group)
            if group not in groups:
                continue
            rows = slice((group - groups.start) * outputs, (group - groups.start + 1) * outputs)
            if self.transposed:
                dense[rows, position] = self.weight[channel]
            else:
                dense[rows, position] = self.weight[group * outputs : (group + 1) * outputs, within]
        return dense


def constant_array(tensor: gs.Tensor) -> NDArray[Any] | None:
    """The value of a constant tensor, through Identity; None if it is not constant."""
    for _ in range(16):
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        if not tensor.inputs or tensor.inputs[0].op != "Identity":
            return None
        tensor = tensor.inputs[0].inputs[0]
    return None


def describe_contraction(node: gs.Node, symbols: Symbols) -> Contraction | Refusal:
    """A node as a contraction, or why it cannot be treated as one."""
    if any(t.inputs and t.inputs[0].op in ("DequantizeLinear", "QuantizeLinear") for t in node.inputs[:2]):
        return Refusal("its operands are quantized (Q/DQ): a rewrite would change the arithmetic", (str(node.name),))
    weight = constant_array(node.inputs[1])
    if weight is None:
        return Refusal("its weights are not constant", (str(node.name),))
    if node.op in ("Gemm", "MatMul"):
        return _product(node, symbols, weight)
    return _convolution(node, symbols, weight)


def _product(node: gs.Node, symbols: Symbols, weight: NDArray[Any]) -> Contraction | Refusal:
    source, bias = node.inputs[0], None
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return Refusal("its input is transposed (transA)")
        if node.attrs.get("transB", 0):
            weight = weight.T
        alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
        weight = weight if alpha == 1.0 else (weight.astype(np.float64) * alpha).astype(weight.dtype)
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = node.inputs[2]
            shape = symbols.dims(bias)
            if beta != 1.0 or shape is None or (len(shape) > 1 and any(d != 1 for d in shape[:-1])):
                return Refusal("its bias is scaled or not one value per output")
    if weight.ndim != 2:
        return Refusal("its right operand is not a matrix")
    merged = None
    dims = symbols.dims(source)
    if source.inputs and source.inputs[0].op in ("Reshape", "Flatten"):
        before = symbols.dims(source.inputs[0].inputs[0])
        if before is not None and dims is not None and _merges_leading(before, dims):
            merged, source, dims = source.inputs[0], source.inputs[0].inputs[0], before
    if dims is None or len(dims) < 2:
        return Refusal("the rank of its input is not known")
    if dims[-1] != weight.shape[0]:
        return Refusal("the number of its input channels is not known")
    return Contraction(node, source, dims, len(dims) - 1, weight, bias, merged=merged)


def _merges_leading(before: Dims, after: Dims) -> bool:
    """Does a reshape only merge axes before the last one?"""
    if len(before) <= len(after) or before[-1] != after[-1] or not isinstance(before[-1], int) or len(after) < 2:
        return False
    groups = reshape_groups(before[:-1], after[:-1])
    return groups is not None and all(len(g.outer) <= 1 for g in groups)


def _convolution(node: gs.Node, symbols: Symbols, weight: NDArray[Any]) -> Contraction | Refusal:
    source = node.inputs[0]
    dims = symbols.dims(source)
    if dims is None:
        return Refusal("the rank of its input is not known")
    spatial = weight.ndim - 2
    if len(dims) != spatial + 2 or spatial < 1:
        return Refusal("its weights do not fit its input")
    transposed = node.op == "ConvTranspose"
    group = int(node.attrs.get("group", 1))
    channels = weight.shape[0] if transposed else weight.shape[1] * group
    if dims[1] != channels:
        dims = (dims[0], channels, *dims[2:])  # the weights know it
    strides = [int(s) for s in node.attrs.get("strides", [1] * spatial)]
    dilations = [int(d) for d in node.attrs.get("dilations", [1] * spatial)]
    pads = _static_pads(node, dims, weight.shape[2:], strides, dilations)
    if isinstance(pads, Refusal):
        return pads
    if transposed and node.attrs.get("output_shape"):
        return Refusal("it asks for an output shape, which moves its padding")
    if not transposed and source.inputs and source.inputs[0].op == "Pad":
        looked = _through_pad(source.inputs[0], symbols, spatial)
        if looked is not None:
            extra, source = looked
            before = symbols.dims(source)
            if before is not None:
                dims = (before[0], channels, *before[2:])
                pads = [p + e for p, e in zip(pads, extra, strict=True)]
    axes = tuple(
        Axis(int(weight.shape[2 + i]), strides[i], dilations[i], pads[i], pads[i + spatial]) for i in range(spatial)
    )
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    padding = tuple(int(p) for p in node.attrs.get("output_padding", [0] * spatial)) if transposed else ()
    return Contraction(node, source, dims, 1, weight, bias, axes, group, padding)


def _static_pads(
    node: gs.Node, dims: Dims, kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[int] | Refusal:
    """Padding as numbers: begins, then ends. ``auto_pad`` is worked out where it does not depend on a dynamic extent."""
    spatial = len(kernel)
    mode = node.attrs.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else str(mode)
    if mode in ("NOTSET", ""):
        return [int(p) for p in node.attrs.get("pads", [0] * (2 * spatial))]
    if mode == "VALID":
        return [0] * (2 * spatial)
    if node.op == "ConvTranspose":
        return Refusal(f"auto_pad {mode} of a ConvTranspose")
    begins, ends = [], []
    for i in range(spatial):
        reach = dilations[i] * (kernel[i] - 1) + 1
        extent = dims[i + 2]
        if strides[i] == 1:
            total = reach - 1
        elif isinstance(extent, int):
            total = max(0, (-(-extent // strides[i]) - 1) * strides[i] + reach - extent)
        elif reach <= strides[i] and reach == 1:
            total = 0
        else:
            return Refusal(
                f"auto_pad {mode} with stride {strides[i]} on a dynamic extent: its padding depends on the size"
            )
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _through_pad(pad: gs.Node, symbols: Symbols, spatial: int) -> tuple[list[int], gs.Tensor] | None:
    """Zero padding by a Pad node is the convolution's own padding: (begins and ends, the unpadded tensor)."""
    amounts = pad_amounts(symbols, pad, spatial + 2)
    mode = pad.attrs.get("mode", "constant")
    if amounts is None or (mode.decode() if isinstance(mode, bytes) else mode) != "constant":
        return None
    value = float(pad.attrs.get("value", 0.0))
    if len(pad.inputs) > 2 and pad.inputs[2].name:
        given = constant_array(pad.inputs[2])
        if given is None:
            return None
        value = float(np.asarray(given, np.float64).reshape(-1)[0]) if given.size else 0.0
    begins = [amounts.get(i + 2, (0, 0))[0] for i in range(spatial)]
    ends = [amounts.get(i + 2, (0, 0))[1] for i in range(spatial)]
    if value != 0 or min(begins + ends) < 0 or any(amounts.get(i, (0, 0)) != (0, 0) for i in (0, 1)):
        return None
    return begins + ends, pad.inputs[0]
