"""Tables along one spatial axis: which taps a uniform input contributes, at every output index, and how to look it up.

For Conv these are the border classes of ``ops.border_classes``. For ConvTranspose, output ``j`` sums the taps ``t`` with

    (j + p - t*d) divisible by s,   0 <= (j + p - t*d) / s < L

so the class of an output is its phase ``(j + p) mod s`` together with the range of taps that the borders leave: at
least ``floor((j + p - L*s) / d) + 1`` and at most ``floor((j + p) / d)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis, axis_classes, range_grid
from msconv_deploy.ops.lowerings.border_gather import emit_grid_index
from msconv_deploy.ops.node_builder import NodeBuilder


class TableTooLargeError(BadInputError):
    """A table of border classes would be larger than what it saves."""


@dataclass(frozen=True, eq=False)
class AxisTable:
    """The table of one axis.

    Attributes:
        axis: its geometry.
        membership: [rows, kernel] of 0 and 1.
        index: row of every output index where the extent is known, else None: :meth:`emit_index` works it out.
        transposed: of a ConvTranspose.
    """

    axis: Axis
    membership: NDArray[np.float64]
    index: tuple[int, ...] | None
    transposed: bool = False

    @property
    def rows(self) -> int:
        return len(self.membership)

    def interior(self) -> tuple[int, int, int] | None:
        """The row of all taps, and how many outputs before and after it may have another row.

        None for a ConvTranspose, whose rows alternate, and where the extent is known and no output has all taps.
        """
        rows = np.flatnonzero(self.membership.all(axis=1))
        if self.transposed or not len(rows) or (self.index is not None and rows[0] not in self.index):
            return None
        axis = self.axis
        return int(rows[0]), -(-axis.pad_before // axis.stride), -(-axis.pad_after // axis.stride)

    def emit_index(self, builder: NodeBuilder, outputs: str, extent: str) -> str:
        """Row of the table at each output index, as an int64 tensor; ``outputs`` and ``extent`` are int64 scalars."""
        if self.index is not None:
            return builder.ints(list(self.index), "rows")
        if not self.transposed:
            return emit_grid_index(builder, range_grid(self.axis), outputs, extent)
        return _emit_transposed_index(builder, self.axis, outputs, extent)


def axis_table(axis: Axis, extent: int | None, transposed: bool, output_padding: int = 0) -> AxisTable | None:
    """The table of an axis along which the input is uniform; None where every output has all taps.

    Args:
        axis: its geometry; for a ConvTranspose ``pad_before`` and ``pad_after`` crop the output.
        extent: of the input, None where it is not known before run time.
    """
    if transposed:
        return _transposed_table(axis, extent, output_padding)
    if not axis.padded:
        return None
    if extent is not None:
        classes = axis_classes(axis, extent)
        if classes.ranges == ((0, axis.kernel),):
            return None
        return AxisTable(axis, classes.membership(), classes.index)
    grid = range_grid(axis)
    _check_rows(grid.rows)
    return AxisTable(axis, grid.membership(), None)


_MOST_ROWS = 8192
"""Of the table of a dynamic extent. It has a row for every pair of borders that the kernel allows, most of which no size has:
beyond this it would be larger than what it replaces."""


def _check_rows(rows: int) -> None:
    if rows > _MOST_ROWS:
        raise TableTooLargeError(f"the border table of a dynamic extent would have {rows:,} rows")


def transposed_extent(axis: Axis, extent: int, output_padding: int) -> int:
    """Output extent of a ConvTranspose along one axis."""
    return (extent - 1) * axis.stride + axis.reach + output_padding - axis.pad_before - axis.pad_after


def _taps(axis: Axis, position: int, low: int, high: int) -> tuple[bool, ...]:
    """Taps between ``low`` and ``high`` that meet an input at padded output ``position``."""
    return tuple(low <= t <= high and (position - t * axis.dilation) % axis.stride == 0 for t in range(axis.kernel))


def _transposed_table(axis: Axis, extent: int | None, output_padding: int) -> AxisTable | None:
    if axis.kernel == 1 and axis.stride == 1 and not axis.padded and not output_padding:
        return None
    if extent is not None:
        outputs = transposed_extent(axis, extent, output_padding)
        if outputs < 1:
            raise BadInputError(f"its padding crops all of the {extent} positions of an extent")
        rows: dict[tuple[bool, ...], int] = {}
        index = []
        for j in range(outputs):
            position = j + axis.pad_before
            low = (position - extent * axis.stride) // axis.dilation + 1
            taps = _taps(axis, position, max(0, low), min(axis.kernel - 1, position // axis.dilation))
            index.append(rows.setdefault(taps, len(rows)))
        return AxisTable(axis, np.array(list(rows), np.float64).reshape(-1, axis.kernel), tuple(index), True)
    _check_rows(axis.stride * (axis.kernel + 1) ** 2)
    return AxisTable(axis, _every_row(axis), None, True)


def _every_row(axis: Axis) -> NDArray[np.float64]:
    """[phases * (k+1) * (k+1), k]: the taps of every phase from every first one to every last one (-1: none)."""
    phase, low, high, taps = np.ogrid[: axis.stride, : axis.kernel + 1, -1 : axis.kernel, : axis.kernel]
    table = ((phase - taps * axis.dilation) % axis.stride == 0) & (low <= taps) & (taps <= high)
    rows: NDArray[np.float64] = table.reshape(-1, axis.kernel).astype(np.float64)
    return rows


def _emit_transposed_index(builder: NodeBuilder, axis: Axis, outputs: str, extent: str) -> str:
    """((phase * (k+1)) + low) * (k+1) + high + 1 with the numerators clipped at 0, since integer division truncates."""
    zero, one, k = builder.ints(0), builder.ints(1), builder.ints(axis.kernel)
    stride, dilation, size = builder.ints(axis.stride), builder.ints(axis.dilation), builder.ints(axis.kernel + 1)
    position = builder.add("Range", zero, outputs, one)
    if axis.pad_before:
        position = builder.add("Add", position, builder.ints(axis.pad_before))
    phase = builder.add("Sub", position, builder.add("Mul", builder.add("Div", position, stride), stride))
    high = builder.minimum(builder.add("Add", builder.add("Div", position, dilation), one), k)  # high + 1
    # low = floor((position - L*s) / d) + 1, at least 0: with m = position - L*s + d it is max(0, m) / d
    beyond = builder.add("Sub", position, builder.add("Mul", extent, stride))
    beyond = builder.maximum(builder.add("Add", beyond, dilation), zero)
    low = builder.minimum(builder.add("Div", beyond, dilation), k)
    return builder.add("Add", builder.add("Mul", builder.add("Add", builder.add("Mul", phase, size), low), size), high)
