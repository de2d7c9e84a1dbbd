"""Border classes: which kernel taps fall inside the input, at every output index of one axis.

A tensor that is uniform along an axis contributes the same value at every output index of that axis, except where
zero padding pushes some kernel taps outside. For an axis of extent ``L`` with kernel ``k``, stride ``s``, dilation
``d`` and ``p`` zeros in front, the taps inside at output index ``j`` are the range ``[first, last)`` with

    first = max(0, ceil((p - j*s) / d))          last = min(k, ceil((L + p - j*s) / d))

(tap ``t`` reads input position ``j*s - p + t*d``, which must lie in ``[0, L)``). The distinct ranges are the *border
classes* of the axis. A range may be empty, and there may be no interior class: in a small image, or with a large
stride, no output sees the whole kernel.

Two tables serve two situations. With a known extent, :func:`axis_classes` lists exactly the ranges that occur. With
an extent that is known only at run time, :func:`range_grid` lists every range that any extent could give, and
:func:`grid_index` is the arithmetic that picks the row of that table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msconv_deploy.errors import BadInputError

TapRange = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """Geometry of a convolution along one axis, its extent left open.

    ``pad_before`` and ``pad_after`` count padding positions; all values are in input positions.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    pad_before: int = 0
    pad_after: int = 0

    @property
    def reach(self) -> int:
        """Positions that the dilated kernel spans: ``dilation * (kernel - 1) + 1``."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def padded(self) -> bool:
        return self.pad_before > 0 or self.pad_after > 0

    def output_extent(self, extent: int) -> int:
        """Number of output indices for an input extent.

        Raises:
            BadInputError: the padded input is shorter than the dilated kernel.
        """
        room = extent + self.pad_before + self.pad_after - self.reach
        if room < 0:
            raise BadInputError(
                f"an extent of {extent} with padding {self.pad_before}+{self.pad_after} is smaller than the kernel, "
                f"which spans {self.reach} positions (kernel {self.kernel}, dilation {self.dilation}): "
                "use a larger input or more padding"
            )
        return room // self.stride + 1

    def tap_range(self, index: int, extent: int) -> TapRange:
        """The taps ``[first, last)`` that lie inside the input at one output index; (0, 0) where none does."""
        first = max(0, -((index * self.stride - self.pad_before) // self.dilation))
        last = min(self.kernel, -((index * self.stride - self.pad_before - extent) // self.dilation))
        return (first, last) if first < last else (0, 0)

    def always_inside_tap(self) -> int | None:
        """A tap that lies inside the input at every output index whatever the extent, or None.

        Tap ``t`` reads position ``j*stride - pad_before + t*dilation``. At output 0 that is inside from
        ``t = ceil(pad_before / dilation)`` on. The last output has ``j*stride <= extent + pad_before + pad_after - reach``,
        so there it is inside where ``t*dilation + pad_after <= reach - 1``.
        """
        tap = -(-self.pad_before // self.dilation)
        return tap if tap * self.dilation + self.pad_after <= self.reach - 1 else None


@dataclass(frozen=True)
class AxisClasses:
    """The distinct tap ranges of one axis and, per output index, which of them applies."""

    kernel: int
    ranges: tuple[TapRange, ...]
    index: tuple[int, ...]

    def membership(self) -> NDArray[np.float64]:
        """``[classes, kernel]`` of 0 and 1: is the tap inside the input in this class?"""
        return membership(self.ranges, self.kernel)


def membership(ranges: tuple[TapRange, ...], kernel: int) -> NDArray[np.float64]:
    """``[len(ranges), kernel]`` of 0 and 1. Weights times its transpose are the tap sums per class."""
    taps = np.arange(kernel)
    return np.array([(taps >= first) & (taps < last) for first, last in ranges], dtype=np.float64).reshape(-1, kernel)


def axis_classes(axis: Axis, extent: int) -> AxisClasses:
    """The border classes that occur at a known extent, in order of first appearance."""
    seen: dict[TapRange, int] = {}
    index = [seen.setdefault(axis.tap_range(j, extent), len(seen)) for j in range(axis.output_extent(extent))]
    return AxisClasses(axis.kernel, tuple(seen), tuple(index))


@dataclass(frozen=True)
class RangeGrid:
    """Every tap range that some extent can give, as the grid (first 0..first_max) x (last last_min..kernel).

    Row ``first * last_count + (last - last_min)`` of the table belongs to ``[first, last)``; rows with
    ``first >= last`` are empty ranges.
    """

    axis: Axis
    first_max: int
    last_min: int

    @property
    def last_count(self) -> int:
        return self.axis.kernel - self.last_min + 1

    @property
    def rows(self) -> int:
        """How many ``ranges`` there are, without making them."""
        return (self.first_max + 1) * self.last_count

    @property
    def ranges(self) -> tuple[TapRange, ...]:
        return tuple(
            (first, last) if first < last else (0, 0)
            for first in range(self.first_max + 1)
            for last in range(self.last_min, self.axis.kernel + 1)
        )

    def membership(self) -> NDArray[np.float64]:
        """``[rows, kernel]`` of 0 and 1."""
        return membership(self.ranges, self.axis.kernel)


def range_grid(axis: Axis) -> RangeGrid:
    """The table for an extent that is known only at run time.

    ``first`` is largest at output 0: ``ceil(pad_before / dilation)``. ``last`` is smallest at the last output, where
    ``extent + pad_before - j*stride >= reach - pad_after``: ``ceil((reach - pad_after) / dilation)``.
    """
    first_max = min(axis.kernel, -(-axis.pad_before // axis.dilation))
    last_min = min(axis.kernel, max(0, -(-(axis.reach - axis.pad_after) // axis.dilation)))
    return RangeGrid(axis, first_max, last_min)


def grid_index(grid: RangeGrid, outputs: Any, extent: Any) -> Any:
    """Row of the grid's table at each output index.

    Args:
        outputs: integer array of output indices ``j``: a NumPy array or a torch tensor.
        extent: input extent, an integer (or a symbolic one while PyTorch traces).

    Returns:
        Integer array of the same kind and shape. The numerators are clipped at 0 before the division, so the same
        arithmetic is right in ONNX, whose integer division truncates (``lowerings/indices.py`` spells it there).
    """
    axis = grid.axis
    before = (axis.pad_before - outputs * axis.stride).clip(0, None)
    after = (extent + axis.pad_before - outputs * axis.stride).clip(0, None)
    first = ((before + (axis.dilation - 1)) // axis.dilation).clip(None, grid.first_max)
    last = ((after + (axis.dilation - 1)) // axis.dilation).clip(None, axis.kernel)
    return first * grid.last_count + (last - grid.last_min)
