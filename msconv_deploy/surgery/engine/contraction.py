"""Contractions: Conv, ConvTranspose, Gemm and MatMul under one description, with weights in one layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.surgery.engine.decomposition import reshape_groups
from msconv_deploy.surgery.engine.editing import constant_values
from msconv_deploy.surgery.engine.symbols import Dims, Symbols, operator, pad_amounts

CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Refusal:
    """Why a node is not rewritten, and which nodes are the reason."""

    reason: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant weight, read when it is asked for: a model's weights together may not fit in memory.

    Attributes:
        constant: the tensor.
        transposed: a matrix that is stored the other way round.
        scale: factor that the operator applies to it (alpha of Gemm).
    """

    constant: gs.Constant
    transposed: bool = False
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(int(n) for n in self.constant.shape)
        return shape[::-1] if self.transposed else shape

    def read(self) -> NDArray[Any]:
        """Its values."""
        array = constant_values(self.constant)
        array = array.T if self.transposed else array
        return array if self.scale == 1.0 else (array.astype(np.float64) * self.scale).astype(array.dtype)


@dataclass(frozen=True, eq=False)
class Contraction:
    """One node that sums over channels.

    Attributes:
        node: the node.
        source: the tensor whose channels are summed, with any zero Pad or merging Reshape before the node looked through.
        dims: extents of ``source``.
        channel_axis: of ``source``.
        stored: the weight: [O, C/group, *kernel] for Conv; [C, O/group, *kernel] for ConvTranspose; [C, O] for Gemm and
            MatMul.
        bias: tensor [O] (or what broadcasts to it), or None.
        axes: geometry of the spatial axes, with static padding; empty for Gemm and MatMul.
        group: of Conv and ConvTranspose.
        output_padding: of ConvTranspose, one per spatial axis.
        merged: the Reshape that was looked through: it merges the axes before the channels.
        factors: the extents that an axis of ``source`` was taken apart into, where copies hide in a factor of it
            (``split_views``); ``dims`` and ``channel_axis`` are those of the view then. Of a convolution it is the batch.
        split_axis: that axis.
    """

    node: gs.Node
    source: gs.Tensor
    dims: Dims
    channel_axis: int
    stored: Weight
    bias: gs.Tensor | None
    axes: tuple[Axis, ...] = ()
    group: int = 1
    output_padding: tuple[int, ...] = ()
    merged: gs.Node | None = None
    factors: Dims = ()
    split_axis: int = 0

    @property
    def first_spatial(self) -> int:
        """Axis of ``dims`` that is the first spatial one of a convolution; 0 for Gemm and MatMul, which sum along the last."""
        return self.channel_axis + 1 if self.axes else 0

    @property
    def transposed(self) -> bool:
        return str(self.node.op) == "ConvTranspose"

    @property
    def out_channels(self) -> int:
        if not self.axes:
            return self.stored.shape[1]
        return self.stored.shape[1] * self.group if self.transposed else self.stored.shape[0]

    @property
    def weight(self) -> NDArray[Any]:
        """The stored weight's values, read anew each time."""
        return self.stored.read()

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
        weight = self.weight
        dense = np.zeros((outputs * len(groups), len(channels), *weight.shape[2:]), weight.dtype)
        for position, channel in enumerate(channels):
            group, within = divmod(channel, per_group)
            if group not in groups:
                continue
            rows = slice((group - groups.start) * outputs, (group - groups.start + 1) * outputs)
            if self.transposed:
                dense[rows, position] = weight[channel]
            else:
                dense[rows, position] = weight[group * outputs : (group + 1) * outputs, within]
        return dense


def constant_of(tensor: gs.Tensor) -> gs.Constant | None:
    """The constant behind a tensor, through Identity; None if it is not constant."""
    for _ in range(16):
        if isinstance(tensor, gs.Constant):
            return tensor
        if not tensor.inputs or operator(tensor.inputs[0]) != "Identity":
            return None
        tensor = tensor.inputs[0].inputs[0]
    return None


def constant_array(tensor: gs.Tensor) -> NDArray[Any] | None:
    """The value of a constant tensor, through Identity; None if it is not constant."""
    constant = constant_of(tensor)
    return None if constant is None else constant_values(constant)


def describe_contraction(node: gs.Node, symbols: Symbols) -> Contraction | Refusal:
    """A node as a contraction, or why it cannot be treated as one."""
    if any(t.inputs and operator(t.inputs[0]) in ("DequantizeLinear", "QuantizeLinear") for t in node.inputs[:2]):
        return Refusal("its operands are quantized (Q/DQ): a rewrite would change the arithmetic", (str(node.name),))
    constant = constant_of(node.inputs[1])
    if constant is None:
        return Refusal("its weights are not constant", (str(node.name),))
    weight = Weight(constant)
    if node.op in ("Gemm", "MatMul"):
        return _product(node, symbols, weight)
    return _convolution(node, symbols, weight)


def _product(node: gs.Node, symbols: Symbols, weight: Weight) -> Contraction | Refusal:
    source, bias = node.inputs[0], None
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return Refusal("its input is transposed (transA)")
        if node.attrs.get("transB", 0):
            weight = replace(weight, transposed=True)
        alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
        weight = replace(weight, scale=float(alpha))
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = node.inputs[2]
            shape = symbols.dims(bias)
            if beta != 1.0 or shape is None or (len(shape) > 1 and any(d != 1 for d in shape[:-1])):
                return Refusal("its bias is scaled or not one value per output")
    if len(weight.shape) != 2:
        return Refusal("its right operand is not a matrix")
    merged = None
    dims = symbols.dims(source)
    if source.inputs and operator(source.inputs[0]) in ("Reshape", "Flatten"):
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


_MOST_POSITIONS = 1 << 24
"""Along one axis: border classes are found position by position."""


def _convolution(node: gs.Node, symbols: Symbols, weight: Weight) -> Contraction | Refusal:
    source = node.inputs[0]
    dims = symbols.dims(source)
    if dims is None:
        return Refusal("the rank of its input is not known")
    spatial = len(weight.shape) - 2
    if len(dims) != spatial + 2 or spatial < 1:
        return Refusal("its weights do not fit its input")
    transposed = node.op == "ConvTranspose"
    group = int(node.attrs.get("group", 1))
    channels = weight.shape[0] if transposed else weight.shape[1] * group
    if dims[1] != channels:
        dims = (dims[0], channels, *dims[2:])  # the weights know it
    strides = [int(s) for s in node.attrs.get("strides", [1] * spatial)]
    dilations = [int(d) for d in node.attrs.get("dilations", [1] * spatial)]
    if (
        min(weight.shape) < 1
        or group < 1
        or weight.shape[0] % group
        or len(strides) != spatial
        or len(dilations) != spatial
    ):
        return Refusal("its weights do not fit its attributes")
    if not all(1 <= number <= _MOST_POSITIONS for number in (*strides, *dilations)):
        return Refusal("its strides or dilations are impossible")
    pads = _static_pads(node, dims, weight.shape[2:], strides, dilations)
    if isinstance(pads, Refusal):
        return pads
    if len(pads) != 2 * spatial:
        return Refusal("its padding does not fit its weights")
    if max(abs(number) for number in (*pads, *(d for d in dims[2:] if isinstance(d, int)))) > _MOST_POSITIONS:
        return Refusal(f"it has more than {_MOST_POSITIONS} positions along one axis")
    if transposed and node.attrs.get("output_shape"):
        return Refusal("it asks for an output shape, which moves its padding")
    if not transposed and source.inputs and operator(source.inputs[0]) == "Pad":
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
