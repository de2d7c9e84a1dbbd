"""Sliding windows over images: their arguments as `nn.Conv2d` writes them, padding, and the taps as shifted slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import PaddingMode

Mode = Literal["zeros", "reflect", "replicate", "circular"]
Numbers = int | Sequence[int]
Padding = Numbers | str
"""``"same"``, ``"valid"``, one number, one per axis, or all befores and then all afters: top, left, bottom, right."""


def window_axes(
    operator: str, kernel_shape: Sequence[int], stride: Numbers, padding: Padding, dilation: Numbers
) -> tuple[Axis, ...]:
    """The geometry of each spatial axis.

    Args:
        operator: name for messages.
        kernel_shape: kernel extents, one per axis.
        stride, dilation: a number, or one per axis.
        padding: see :data:`Padding`. ``"same"`` puts the odd one at the end, as `nn.Conv2d` does.

    Raises:
        BadInputError: naming the argument.
    """
    rank = len(kernel_shape)
    kernel = _per_axis(operator, "kernel_size", kernel_shape, rank, 1)
    strides = _per_axis(operator, "stride", stride, rank, 1)
    dilations = _per_axis(operator, "dilation", dilation, rank, 1)
    pads = window_pads(operator, padding, kernel, strides, dilations)
    return tuple(map(Axis, kernel, strides, dilations, pads[:rank], pads[rank:]))


def pair(operator: str, name: str, value: Numbers, least: int = 1) -> tuple[int, int]:
    """An argument's values for height and width.

    Args:
        operator, name: whose argument and which, for messages.
        least: what they may be.

    Raises:
        BadInputError: it is neither an integer nor a pair of integers, each of at least that.
    """
    height, width = _per_axis(operator, name, value, 2, least)
    return height, width


def _per_axis(operator: str, name: str, value: Numbers, rank: int, least: int) -> tuple[int, ...]:
    numbers = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(numbers) != rank or not all(isinstance(n, int) and n >= least for n in numbers):
        raise BadInputError(
            f"{operator}: {name} must be an integer or {rank} integers, each at least {least}, but is {value!r}"
        )
    return numbers


def window_pads(
    operator: str, padding: Padding, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """All befores, then all afters; arguments as those of :func:`window_axes`, one number per axis.

    Raises:
        BadInputError: the padding is not of that form, or is ``"same"`` with a stride.
    """
    rank = len(kernel)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise BadInputError(f'{operator}: padding is {padding!r}; known words are "same" and "valid"')
        if padding == "valid":
            return (0,) * 2 * rank
        if any(s != 1 for s in strides):
            raise BadInputError(f'{operator}: padding "same" needs stride 1, but the stride is {tuple(strides)}')
        total = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return (*(n // 2 for n in total), *(n - n // 2 for n in total))
    if not isinstance(padding, int) and len(padding) == 2 * rank:
        return _per_axis(operator, "padding", padding, 2 * rank, 0)
    try:
        return _per_axis(operator, "padding", padding, rank, 0) * 2
    except BadInputError:
        raise BadInputError(
            f'{operator}: padding must be "same", "valid", an integer, {rank} integers, or {2 * rank} (all befores, then '
            f"all afters), each at least 0, but is {padding!r}"
        ) from None


def checked_mode(operator: str, padding_mode: Mode) -> PaddingMode:
    """The padding mode by its name.

    Raises:
        BadInputError: there is none of that name.
    """
    try:
        return PaddingMode[padding_mode.upper()]
    except (KeyError, AttributeError):
        known = ", ".join(mode.name.lower() for mode in PaddingMode)
        raise BadInputError(f"{operator}: padding_mode is {padding_mode!r}; known are {known}") from None


def check_image(operator: str, x: Tensor, channels: int, dtype: torch.dtype | None = None) -> None:
    """Is this an image ``[N, C, H, W]`` of so many channels, in the weights' dtype?

    Raises:
        BadInputError: saying what it is.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise BadInputError(f"{operator}: the input must be [N, {channels}, H, W], but is {list(x.shape)}")
    if dtype is not None and x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise BadInputError(f"{operator}: the input is {x.dtype}, but the weights are {dtype}")


def padded(x: Tensor, axes: Sequence[Axis], mode: PaddingMode) -> Tensor:
    """The input with its padding in place; itself where there is none."""
    if not any(axis.padded for axis in axes):
        return x
    widths = [n for axis in reversed(axes) for n in (axis.pad_before, axis.pad_after)]
    return F.pad(x, widths) if mode == PaddingMode.ZEROS else F.pad(x, widths, mode=mode.name.lower())


def tap_slices(rows: Axis, columns: Axis) -> list[tuple[slice, slice]]:
    """Where each of the kh*kw taps reads in the padded input at all outputs, row by row of the kernel.

    The ends of the slices count from the end of the input, so that they hold for every extent: an output index ``j``
    exists as long as ``j*stride + reach <= extent``.
    """
    return [(_every(rows, u), _every(columns, v)) for u in range(rows.kernel) for v in range(columns.kernel)]


def _every(axis: Axis, tap: int) -> slice:
    begin = tap * axis.dilation
    behind = begin - (axis.reach - 1)
    return slice(begin, behind or None, axis.stride)


def patches(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """The windows of the padded input, ``[N, H', W', C*kh*kw]``, channels first as in `F.unfold`."""
    taps = [x[:, :, h, w] for h, w in tap_slices(rows, columns)]
    return torch.stack(taps, -1).permute(0, 2, 3, 1, 4).flatten(3)


def describe(rows: Axis, columns: Axis, mode: PaddingMode) -> str:
    """The geometry as it stands in a module's ``repr``: what differs from the defaults of `nn.Conv2d`."""
    parts = [f"kernel_size={(rows.kernel, columns.kernel)}", f"stride={(rows.stride, columns.stride)}"]
    if rows.padded or columns.padded:
        parts.append(f"pads={(rows.pad_before, columns.pad_before, rows.pad_after, columns.pad_after)}")
    if (rows.dilation, columns.dilation) != (1, 1):
        parts.append(f"dilation={(rows.dilation, columns.dilation)}")
    if mode != PaddingMode.ZEROS:
        parts.append(f"padding_mode={mode.name.lower()!r}")
    return ", ".join(parts)
