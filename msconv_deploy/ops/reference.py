"""The operator in NumPy, in float64 by default: what every other implementation is compared with.

It follows the definition in ``docs/spec.md`` term by term and is written to be read, not to be fast:

    y[n,o,i,j] = conv2d(nchw, W1)[n,o,i,j] + b[o]
               + R[n,o,i,cj(j)]      conv1d of nch along H, W2 summed over the taps of column class cj
               + K[n,o,ci(i),j]      conv1d of ncw along W, W3 summed over the taps of row class ci
               + S[n,o,ci(i),cj(j)]  linear of nc, W4 summed over the taps of both classes

The tests hold it to an independent oracle that really tiles and concatenates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike, NDArray

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis, axis_classes
from msconv_deploy.ops.configuration import Activation, MSConv2dConfig, PaddingMode
from msconv_deploy.ops.shapes import (
    HEIGHT_AXIS,
    WIDTH_AXIS,
    check_sources,
    check_weights,
    output_shape,
    source_extent,
)

Array = NDArray[np.floating]

_NUMPY_PAD_MODE = {PaddingMode.REFLECT: "reflect", PaddingMode.REPLICATE: "edge", PaddingMode.CIRCULAR: "wrap"}


def msconv2d(
    config: MSConv2dConfig,
    sources: Mapping[str, Array],
    weights: Mapping[str, Array],
    bias: Array | None = None,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Evaluate the operator.

    Args:
        config: the attributes.
        sources: ``nchw`` [N,C1,H,W], ``nch`` [N,C2,H], ``ncw`` [N,C3,W], ``nc`` [N,C4]; those that are present. A
            batch of 1 is broadcast.
        weights: one array per source, shaped as :func:`msconv_deploy.ops.shapes.weight_shape` says.
        bias: [O], if ``config.has_bias``.
        dtype: of the computation and the result.

    Returns:
        [N, O, H', W'].

    Raises:
        BadInputError: a tensor is missing or has a wrong shape.
    """
    sources = {name: np.asarray(sources[name], dtype) for name in sources}
    weights = {name: np.asarray(weights[name], dtype) for name in weights}
    out_channels = _check(config, sources, weights, bias)
    shapes = {name: array.shape for name, array in sources.items()}
    height = source_extent(shapes, HEIGHT_AXIS, "height")
    width = source_extent(shapes, WIDTH_AXIS, "width")
    y = np.zeros(output_shape(config, shapes, out_channels), dtype)

    rows, row_index = _class_table(config, config.rows, height)
    columns, column_index = _class_table(config, config.columns, width)
    if "nchw" in sources:
        y += _correlate(config, sources["nchw"], weights["nchw"])
    if "nch" in sources:
        w = weights["nch"] @ columns.T if config.tiled else weights["nch"][..., None]  # [O, C, kh, column classes]
        table = _correlate_along(config, sources["nch"], w, config.rows)  # [N, O, H', column classes]
        y += table[:, :, :, column_index]
    if "ncw" in sources:
        w = (rows @ weights["ncw"]).swapaxes(2, 3) if config.tiled else weights["ncw"][..., None]
        table = _correlate_along(config, sources["ncw"], w, config.columns)  # [N, O, W', row classes]
        y += table.swapaxes(2, 3)[:, :, row_index, :]
    if "nc" in sources:
        w = rows @ weights["nc"] @ columns.T if config.tiled else weights["nc"][..., None, None]
        table = np.einsum("nc,ocij->noij", sources["nc"], w)
        y += table[:, :, row_index][:, :, :, column_index]
    if bias is not None:
        y += np.asarray(bias, dtype)[:, None, None]
    return activate(config, y)


def activate(config: MSConv2dConfig, x: Array) -> Array:
    """The activation, elementwise. Formulas are those of the ONNX operators of the same name."""
    first, second = config.activation_params
    if config.activation == Activation.NONE:
        return x
    if config.activation == Activation.RELU:
        return np.maximum(x, 0)
    if config.activation == Activation.LEAKY_RELU:
        return np.where(x < 0, first * x, x)
    if config.activation == Activation.TANH:
        return np.tanh(x)
    if config.activation == Activation.CLIP:
        return np.clip(x, first, second)
    decay = np.exp(-np.abs(x))  # never overflows
    sigmoid = np.where(x < 0, decay, 1) / (1 + decay)
    y: Array = sigmoid if config.activation == Activation.SIGMOID else x * sigmoid
    return y


def _check(
    config: MSConv2dConfig, sources: Mapping[str, Array], weights: Mapping[str, Array], bias: Array | None
) -> int:
    """All shapes against the configuration. Returns the number of output channels."""
    if (bias is not None) != bool(config.has_bias):
        given = "given" if bias is not None else "not given"
        raise BadInputError(f"MSConv2d: has_bias is {config.has_bias}, but a bias was {given}")
    channels, out_channels = check_weights(config, {name: array.shape for name, array in weights.items()})
    check_sources(config, {name: array.shape for name, array in sources.items()}, channels)
    return out_channels


def _class_table(config: MSConv2dConfig, axis: Axis, extent: int | None) -> tuple[Array, NDArray[np.intp]]:
    """``[classes, kernel]`` of 0 and 1, and the class of every output index, for a source that lacks the axis."""
    outputs = 1 if extent is None else axis.output_extent(extent)
    if extent is None or not config.has_border(axis):
        return np.ones((1, axis.kernel)), np.zeros(outputs, np.intp)
    classes = axis_classes(axis, extent)
    return classes.membership(), np.array(classes.index, np.intp)


def _pad(config: MSConv2dConfig, x: Array, pads: dict[int, tuple[int, int]]) -> Array:
    widths = [pads.get(i, (0, 0)) for i in range(x.ndim)]
    if config.padding_mode == PaddingMode.ZEROS:
        return np.pad(x, widths)
    padded: Array = np.pad(x, widths, mode=_NUMPY_PAD_MODE[config.padding_mode])  # type: ignore[call-overload]
    return padded


def _windows(config: MSConv2dConfig, x: Array, axes: dict[int, Axis]) -> Array:
    """Pad and cut: the taps that every output index sees, as trailing axes (one per key of ``axes``)."""
    x = _pad(config, x, {i: (axis.pad_before, axis.pad_after) for i, axis in axes.items()})
    x = np.lib.stride_tricks.sliding_window_view(x, [axis.reach for axis in axes.values()], tuple(axes))
    steps = [slice(None)] * x.ndim
    for position, (i, axis) in enumerate(axes.items()):
        steps[i] = slice(None, None, axis.stride)
        steps[x.ndim - len(axes) + position] = slice(None, None, axis.dilation)
    return x[tuple(steps)]


def _split_groups(x: Array, axis: int, group: int) -> Array:
    return x.reshape(*x.shape[:axis], group, x.shape[axis] // group, *x.shape[axis + 1 :])


def _correlate(config: MSConv2dConfig, x: Array, w: Array) -> Array:
    """[N, C, H, W] with [O, C/group, kh, kw] -> [N, O, H', W']."""
    taps = _split_groups(_windows(config, x, {2: config.rows, 3: config.columns}), 1, config.group)
    y: Array = np.einsum("ngcijuv,gocuv->ngoij", taps, _split_groups(w, 0, config.group), optimize=True)
    return y.reshape(y.shape[0], y.shape[1] * y.shape[2], *y.shape[3:])


def _correlate_along(config: MSConv2dConfig, x: Array, w: Array, axis: Axis) -> Array:
    """[N, C, L] with [O, C/group, k, T] -> [N, O, L', T]. Groups apply in source semantics only."""
    group = 1 if config.tiled else config.group
    taps = _split_groups(_windows(config, x, {2: axis}), 1, group)
    y: Array = np.einsum("ngclk,gockt->ngolt", taps, _split_groups(w, 0, group), optimize=True)
    return y.reshape(y.shape[0], y.shape[1] * y.shape[2], *y.shape[3:])
