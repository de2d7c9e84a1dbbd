"""The convolution as a matrix: ``vec(conv(x)) = A vec(x)``, in NumPy and without a loop over positions.

``A`` is block-Toeplitz: one block per pair of output and input channel, each of which holds the kernel's taps along its
diagonals (Gray, Toeplitz and Circulant Matrices, 2006). The entry of output ``(o, j)``, input channel ``c`` and tap ``t``
is ``W[o, c, t]`` in the column of the input position ``j*s - p + t*d``; taps that fall into zero padding have no entry,
and taps that fall into reflected, replicated or circular padding have theirs at the position that is copied there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import PaddingMode

Indices = NDArray[np.int64]


def source_index(positions: Any, extent: Any, mode: PaddingMode) -> Any:
    """The input position whose value stands at a position of the padded input.

    Args:
        positions: integer array (NumPy or torch), negative and beyond ``extent`` in the padding.
        extent: input extent, an integer (or a symbolic one while PyTorch traces).
        mode: how padding is filled; reflected padding must be narrower than the input, circular no wider.

    Returns:
        Integer array of the same kind and shape. With zeros, positions of the padding are returned as they are: outside
        of ``[0, extent)``.
    """
    if mode == PaddingMode.REFLECT:
        return (extent - 1) - abs((extent - 1) - abs(positions))
    if mode == PaddingMode.REPLICATE:
        return (extent - 1) - ((extent - 1) - positions.clip(0, None)).clip(0, None)
    if mode == PaddingMode.CIRCULAR:  # a remainder, in operations that PyTorch's exporters write for symbolic extents
        return positions + extent * ((-positions).clip(0, 1) - (positions - (extent - 1)).clip(0, 1))
    return positions


def check_extents(
    operator: str, extents: Sequence[int], axes: Sequence[Axis], mode: PaddingMode = PaddingMode.ZEROS
) -> tuple[int, ...]:
    """The output extents of a sliding window.

    Raises:
        BadInputError: the padded input is smaller than the kernel, or too small for the padding mode.
    """
    out = []
    for number, (extent, axis) in enumerate(zip(extents, axes, strict=True)):
        where = f"{operator}: spatial dimension {number} of the input"
        widest = {PaddingMode.REFLECT: extent - 1, PaddingMode.CIRCULAR: extent}.get(mode)
        pad = max(axis.pad_before, axis.pad_after)
        if widest is not None and pad > widest:
            raise BadInputError(
                f"{where} has extent {extent}, but padding_mode {mode.name.lower()} with padding {pad} needs at least "
                f"{extent + pad - widest}: use a larger input or less padding"
            )
        if extent < 1:
            raise BadInputError(f"{where} has extent {extent}; it must be at least 1")
        try:
            out.append(axis.output_extent(extent))
        except BadInputError as error:
            raise BadInputError(f"{where}: {error}") from None
    return tuple(out)


@dataclass(frozen=True)
class ConvEntries:
    """Where the weights of a convolution stand in its matrix: coordinate triplets.

    Attributes:
        rows: [E] row of each entry: position in the flattened output ``[O, *output extents]``.
        columns: [E] column: position in the flattened input ``[C, *extents]``.
        weights: [E] position of its value in the flattened weight ``[O, C/group, *kernel]``.
        shape: of the matrix. Entries of one place are to be added; there are several only where padding copies values.
    """

    rows: Indices
    columns: Indices
    weights: Indices
    shape: tuple[int, int]


def conv_entries(
    weight_shape: Sequence[int],
    input_shape: Sequence[int],
    axes: Sequence[Axis],
    group: int = 1,
    mode: PaddingMode = PaddingMode.ZEROS,
) -> ConvEntries:
    """The entries of the matrix of a convolution with any number of spatial dimensions.

    Args:
        weight_shape: ``[O, C/group, *kernel]``.
        input_shape: ``[C, *extents]``, without a batch.
        axes: geometry of each spatial dimension.
        group: number of groups.
        mode: how padding is filled.

    Raises:
        BadInputError: the shapes do not fit each other, or the input is too small.
    """
    out_channels, group_channels, *kernel = weight_shape
    channels, *extents = input_shape
    if not kernel or len(extents) != len(kernel) or len(axes) != len(kernel):
        raise BadInputError(
            f"conv_matrix: weight {list(weight_shape)} has {len(kernel)} spatial dimensions, input_shape "
            f"{list(input_shape)} has {len(extents)}: weight must be [O, C/groups, *kernel] and input_shape "
            "[C, *extents], without a batch"
        )
    if group < 1 or out_channels % group or group_channels * group != channels:
        raise BadInputError(
            f"conv_matrix: weight {list(weight_shape)} with groups {group} needs an input of {group_channels * group} "
            f"channels and outputs in multiples of {group}, but input_shape is {list(input_shape)}"
        )
    outputs = check_extents("conv_matrix", extents, axes, mode)
    position, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)  # [output positions, taps], axis by axis
    for axis, extent, count in zip(axes, extents, outputs, strict=True):
        taps = np.arange(count)[:, None] * axis.stride - axis.pad_before + np.arange(axis.kernel) * axis.dilation
        taps = source_index(taps, extent, mode)
        position = _outer(np.add, position * extent, taps)
        inside = _outer(np.logical_and, inside, (taps >= 0) & (taps < extent))
    output, tap = np.nonzero(inside)
    o = np.arange(out_channels)[:, None, None]
    c = np.arange(group_channels)[:, None]
    first = o // (out_channels // group) * group_channels  # the first input channel of the output's group
    pixels, positions = math.prod(extents), math.prod(outputs)
    rows, columns, weights = np.broadcast_arrays(
        o * positions + output,
        (first + c) * pixels + position[output, tap],
        (o * group_channels + c) * math.prod(kernel) + tap,
    )
    return ConvEntries(rows.ravel(), columns.ravel(), weights.ravel(), (out_channels * positions, channels * pixels))


def _outer(combine: np.ufunc, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """[J, T] and [j, t] -> [J*j, T*t], the later axis fastest."""
    combined: NDArray[Any] = combine(a[:, None, :, None], b[:, None, :])
    return combined.reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


def conv_matrix(
    weight: NDArray[np.floating],
    input_shape: Sequence[int],
    axes: Sequence[Axis],
    group: int = 1,
    mode: PaddingMode = PaddingMode.ZEROS,
) -> NDArray[np.floating]:
    """The dense matrix ``[O*output positions, C*positions]`` of a convolution, in the weight's dtype.

    Arguments and errors are those of :func:`conv_entries`, with the weight itself.
    """
    entries = conv_entries(weight.shape, input_shape, axes, group, mode)
    matrix = np.zeros(entries.shape, weight.dtype)
    np.add.at(matrix, (entries.rows, entries.columns), weight.ravel()[entries.weights])
    return matrix
