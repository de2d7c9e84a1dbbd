"""`roi_conv2d`: a convolution that is evaluated only inside a region of interest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.geometry import Mode, Numbers, Padding, check_image, checked_mode, window_axes
from msconv_deploy.nn.recording import recording
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import PaddingMode
from msconv_deploy.ops.conv_matrix import check_extents, source_index

Box = Sequence[int] | Tensor


def roi_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Padding = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    box: Box | None = None,
    boxes: Sequence[Box] | Tensor | None = None,
    corners: Tensor | None = None,
    size: tuple[int, int] | None = None,
    mask: Tensor | None = None,
    fill: float | None = None,
    padding_mode: Mode = "zeros",
) -> Tensor | list[Tensor]:
    """The values of ``F.conv2d(x, weight, bias, ...)`` inside a region of its output, at the cost of the region.

    The region reads the input that it needs, its halo included; padding is where the halo leaves the image, and nowhere
    else. So the values are those of the full convolution, borders included. Give exactly one of ``box``, ``boxes``,
    ``corners`` (with ``size``) and ``mask``; all of them are in *output* positions, for all samples of the batch.

    Args:
        x: ``[N, C, H, W]``.
        weight, bias, stride, padding, dilation, groups: as in `F.conv2d`; ``padding`` also as (top, left, bottom, right).
        box: top, left, bottom, right; bottom and right are the first row and column behind it. Four integers, or an integer
            tensor [4].
        boxes: several of them, or an integer tensor [B, 4].
        corners: top and left of B boxes of one size: an integer tensor [B, 2].
        size: height and width of the boxes at the ``corners``.
        mask: bool tensor [H', W'].
        fill: with ``mask``: the value of a full output outside of the mask.
        padding_mode: as in `nn.Conv2d`.

    Returns:
        With ``box``: ``[N, O, bottom-top, right-left]``. With ``boxes``: a list of these. With ``corners``:
        ``[N, B, O, *size]``. With ``mask``: ``[N, O, P]``, the P values where it is true, row by row; with ``fill``
        too: ``[N, O, H', W']``.

    Cost: boxes are convolutions of crops. A mask gathers its P patches (C*kh*kw*P values) and multiplies matrices: the
    multiply-accumulates of the region, but several times slower per output than a box, so prefer boxes for compact
    regions (``benchmarks/results/operators.md``).

    Export: tensors of boxes, corners and masks may be inputs of the exported graph, which gathers the positions that the
    region reads. A graph cannot refuse: boxes and corners beyond the output give values without meaning there, while
    here they are errors.

    Raises:
        BadInputError: an argument is wrong, or a region leaves the output; the message says which.
    """
    regions = {"box": box, "boxes": boxes, "corners": corners, "mask": mask}
    given = [name for name, region in regions.items() if region is not None]
    if len(given) != 1:
        raise BadInputError(
            f"roi_conv2d: give exactly one of {', '.join(regions)}, but given are: {', '.join(given) or 'none'}"
        )
    if (size is not None) != (corners is not None):
        raise BadInputError(
            "roi_conv2d: corners and size go together: size is (height, width) of the boxes at the corners"
        )
    if fill is not None and mask is None:
        raise BadInputError("roi_conv2d: fill goes with mask: boxes give crops, which have nothing to fill")
    conv = _Convolution(x, weight, bias, stride, padding, dilation, groups, padding_mode)
    if mask is not None:
        return conv.in_mask(mask, fill)
    if corners is not None and size is not None:
        return conv.in_equal_boxes(corners, size)
    if box is not None:
        return conv.in_box(box, "box")
    assert boxes is not None
    return [conv.in_box(box, f"boxes[{i}]") for i, box in enumerate(boxes)]


class _Convolution:
    """A convolution with its input, of which regions can be asked."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Numbers,
        padding: Padding,
        dilation: Numbers,
        groups: int,
        padding_mode: Mode,
    ) -> None:
        if weight.ndim != 4:
            raise BadInputError(f"roi_conv2d: weight must be [O, C/groups, kh, kw], but is {list(weight.shape)}")
        self.x, self.weight, self.bias, self.groups = x, weight, bias, groups
        shape = [int(n) for n in weight.shape]  # constants also where a tracer would make tensors of them
        self.rows, self.columns = self.axes = window_axes("roi_conv2d", shape[2:], stride, padding, dilation)
        self.mode = checked_mode("roi_conv2d", padding_mode)
        if groups < 1 or weight.shape[0] % groups:
            raise BadInputError(
                f"roi_conv2d: groups is {groups}, which does not divide {weight.shape[0]} output channels"
            )
        if not recording():
            check_image("roi_conv2d", x, shape[1] * groups, weight.dtype)
            self.outputs = check_extents("roi_conv2d", x.shape[2:], self.axes, self.mode)

    # -- boxes -----------------------------------------------------------------------------------------------------

    def in_box(self, box: Box, name: str) -> Tensor:
        """[N, O, bottom-top, right-left]."""
        _check_integers(box, name, (4,), "top, left, bottom, right")
        if recording():
            top, left, bottom, right = box.long().unbind() if isinstance(box, Tensor) else box
            rows, columns = _span(self.rows, top, bottom, self.x), _span(self.columns, left, right, self.x)
            return self._convolved(self._gathered(rows[:, None], columns))
        top, left, bottom, right = box.tolist() if isinstance(box, Tensor) else box
        height, width = self.outputs
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise BadInputError(
                f"roi_conv2d: {name} is {[top, left, bottom, right]} (top, left, bottom, right), but must hold at least one "
                f"position and lie within the output of {height} x {width}"
            )
        return self._convolved(self._crop((top, bottom), (left, right)))

    def in_equal_boxes(self, corners: Tensor, size: tuple[int, int]) -> Tensor:
        """[N, B, O, *size]."""
        _check_integers(corners, "corners", (None, 2), "top, left of each box")
        if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
            raise BadInputError(f"roi_conv2d: size must be two integers of at least 1, but is {size!r}")
        if not recording():
            self._check_corners(corners, size)
        corner = corners.long().reshape(-1, 2, 1, 1)  # [B, 2, 1, 1]
        rows = corner[:, 0] * self.rows.stride - self.rows.pad_before + self._steps(self.rows, size[0])[:, None]
        columns = corner[:, 1] * self.columns.stride - self.columns.pad_before + self._steps(self.columns, size[1])
        crops = self._gathered(rows, columns).transpose(1, 2)  # [N, B, C, h, w]
        boxes: Tensor = self._convolved(crops.flatten(0, 1)).unflatten(0, (-1, corners.shape[0]))
        return boxes

    def _check_corners(self, corners: Tensor, size: tuple[int, int]) -> None:
        for i, (top, left) in enumerate(corners.tolist()):
            if not (0 <= top <= self.outputs[0] - size[0] and 0 <= left <= self.outputs[1] - size[1]):
                raise BadInputError(
                    f"roi_conv2d: corners[{i}] is {[top, left]}, but a box of {size[0]} x {size[1]} there must lie within the "
                    f"output of {self.outputs[0]} x {self.outputs[1]}"
                )

    def _steps(self, axis: Axis, outputs: int) -> Tensor:
        return torch.arange((outputs - 1) * axis.stride + axis.reach, device=self.x.device)

    def _crop(self, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """The padded input that a box of known place reads: slices, and padding where they leave the image."""
        slices: list[slice] = []
        spans: list[tuple[int, int]] = []
        widths: list[int] = []
        for axis, (begin, end), extent in zip(self.axes, (rows, columns), self.x.shape[2:], strict=True):
            first = begin * axis.stride - axis.pad_before
            behind = (end - 1) * axis.stride - axis.pad_before + axis.reach
            spans.append((first, behind))
            slices.append(slice(max(first, 0), max(behind, 0)))
            # A wide padding may be all that a box reads: no more of it than the box is long.
            widths = [max(0, min(behind, 0) - first), max(0, behind - max(first, extent)), *widths]
        if not any(widths):
            return self.x[:, :, slices[0], slices[1]]
        if self.mode == PaddingMode.ZEROS:
            return F.pad(self.x[:, :, slices[0], slices[1]], widths)
        height, width = (torch.arange(*span, device=self.x.device) for span in spans)
        return self._gathered(height[:, None], width)

    def _convolved(self, crop: Tensor) -> Tensor:
        strides, dilations = [a.stride for a in self.axes], [a.dilation for a in self.axes]
        return F.conv2d(crop, self.weight, self.bias, strides, 0, dilations, self.groups)

    # -- any positions ---------------------------------------------------------------------------------------------

    def in_mask(self, mask: Tensor, fill: float | None) -> Tensor:
        """[N, O, P], or [N, O, H', W'] with a fill."""
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise BadInputError(
                f"roi_conv2d: mask must be a bool tensor [H', W'] for all samples, but is {mask.dtype} {list(mask.shape)}"
            )
        if not recording() and tuple(mask.shape) != self.outputs:
            raise BadInputError(
                f"roi_conv2d: mask is {list(mask.shape)}, but the output, whose positions it names, is {list(self.outputs)}"
            )
        i, j = mask.nonzero().unbind(1)
        height, width = (torch.arange(a.kernel, device=self.x.device) * a.dilation for a in self.axes)
        rows = (i * self.rows.stride - self.rows.pad_before) + height[:, None, None]
        columns = (j * self.columns.stride - self.columns.pad_before) + width[:, None]
        weight = self.weight.reshape(self.groups, self.weight.shape[0] // self.groups, -1)
        patches = self._gathered(rows, columns)  # [N, C, kh, kw, P]
        y = torch.matmul(weight, patches.reshape(self.x.shape[0], self.groups, weight.shape[2], i.shape[0])).flatten(
            1, 2
        )
        if self.bias is not None:
            y = y + self.bias[:, None]
        if fill is None:
            return y
        full = y.new_full((*y.shape[:2], mask.shape[0] * mask.shape[1]), fill)
        full = full.scatter(2, (i * mask.shape[1] + j).expand(y.shape), y)
        return full.reshape(*y.shape[:2], *mask.shape)

    def _gathered(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The padded input at given positions, which broadcast to each other: [N, C, *their shape].

        Positions are gathered from the flattened image, so that what is read and written is the region alone.
        """
        height, width = self.x.shape[2:]
        places = source_index(rows, height, self.mode) * width + source_index(columns, width, self.mode)
        in_padding = None
        if self.mode == PaddingMode.ZEROS and any(axis.padded for axis in self.axes):
            in_padding = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
            places = places.masked_fill(in_padding, 0)
        # A matrix: PyTorch selects its columns several times faster than those of a tensor of three dimensions.
        values = self.x.flatten(2).flatten(0, 1).index_select(1, places.flatten())
        values = values.reshape(*self.x.shape[:2], *places.shape)
        if in_padding is None or not (recording() or in_padding.any()):
            return values
        return values.masked_fill_(in_padding, 0)


def _span(axis: Axis, begin: Any, end: Any, x: Tensor) -> Tensor:
    """The padded input positions that output positions from ``begin`` to ``end`` read, known only at run time."""
    length = (end - begin - 1) * axis.stride + axis.reach
    if torch.compiler.is_compiling() and isinstance(length, Tensor):
        length = length.item()
        torch._check(length >= axis.reach)
    positions: Tensor = begin * axis.stride - axis.pad_before + torch.arange(length, device=x.device)
    return positions


def _check_integers(value: Any, name: str, shape: tuple[int | None, ...], meaning: str) -> None:
    wanted = f"[{', '.join('B' if n is None else str(n) for n in shape)}] ({meaning})"
    if isinstance(value, Tensor):
        right = value.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
        if not right or value.is_floating_point() or value.dtype == torch.bool:
            raise BadInputError(
                f"roi_conv2d: {name} must be integers {wanted}, but is {value.dtype} {list(value.shape)}"
            )
    elif not isinstance(value, Sequence) or len(value) != shape[0] or not all(isinstance(n, int) for n in value):
        raise BadInputError(f"roi_conv2d: {name} must be integers {wanted}, but is {value!r}")
