"""Border classes against their definition: which taps, counted one by one, read a position inside the input?"""

import itertools

import numpy as np
import pytest

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis, axis_classes, grid_index, membership, range_grid

EXTENTS = range(1, 8)
AXES = [
    Axis(*numbers) for numbers in itertools.product((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, 5), (0, 1, 2, 5))
]


def inside(axis, index, extent):
    """The taps of an output index that read the input, as a list of 0 and 1."""
    positions = [index * axis.stride - axis.pad_before + tap * axis.dilation for tap in range(axis.kernel)]
    return [int(0 <= position < extent) for position in positions]


def outputs(axis, extent):
    """The output indices, counted: windows that end inside the padded input."""
    padded = axis.pad_before + extent + axis.pad_after
    starts = range(0, padded, axis.stride)
    return [j for j, start in enumerate(starts) if start + axis.dilation * (axis.kernel - 1) < padded]


def cases():
    return ((axis, extent, outputs(axis, extent)) for axis in AXES for extent in EXTENTS)


def test_extents_and_tap_ranges_are_as_counted():
    for axis, extent, indices in cases():
        if not indices:
            with pytest.raises(BadInputError, match=r"extent of \d+ .* use a larger input or more padding$"):
                axis.output_extent(extent)
            continue
        assert axis.output_extent(extent) == len(indices)
        assert axis.padded == (axis.pad_before + axis.pad_after > 0)
        for j in indices:
            taps = inside(axis, j, extent)
            first, last = axis.tap_range(j, extent)
            assert all(type(n) is int for n in (first, last))
            assert [int(first <= tap < last) for tap in range(axis.kernel)] == taps, (axis, extent, j)
            assert any(taps) or (first, last) == (0, 0)  # one range for "no tap at all", so one class


def test_classes_are_the_distinct_ranges_that_occur():
    for axis, extent, indices in cases():
        if not indices:
            continue
        classes = axis_classes(axis, extent)
        rows = classes.membership()
        assert rows.dtype == np.float64
        assert rows[list(classes.index)].tolist() == [inside(axis, j, extent) for j in indices]
        assert len({tuple(row) for row in rows}) == len(classes.ranges) == len(rows)
        appearance = list(dict.fromkeys(classes.index))
        assert appearance == list(range(len(classes.ranges)))


def test_the_grid_covers_every_extent_and_its_index_finds_the_range():
    for axis, extent, indices in cases():
        if not indices:
            continue
        grid = range_grid(axis)
        rows = grid_index(grid, np.array(indices), extent)
        assert rows.dtype.kind == "i"
        assert ((rows >= 0) & (rows < len(grid.ranges))).all()
        assert grid.membership()[rows].tolist() == [inside(axis, j, extent) for j in indices], (axis, extent)


def test_the_grid_is_no_larger_than_some_extent_needs():
    for axis in AXES:
        grid = range_grid(axis)
        ranges = [axis.tap_range(j, extent) for extent in range(1, 30) for j in outputs(axis, extent)]
        filled = [taps for taps in ranges if taps != (0, 0)]
        if filled and grid.first_max < axis.kernel:
            starts = {-((j * axis.stride - axis.pad_before) // axis.dilation) for j in (0,)}
            assert grid.first_max == max(0, *starts)
            assert grid.last_min <= min(last for _, last in filled)
        assert len(grid.ranges) == (grid.first_max + 1) * grid.last_count


def test_a_tap_is_called_always_inside_only_if_it_is():
    found = 0
    for axis in AXES:
        counted = [inside(axis, j, extent) for extent in range(1, 25) for j in outputs(axis, extent)]
        everywhere = [tap for tap in range(axis.kernel) if all(taps[tap] for taps in counted)]
        tap = axis.always_inside_tap()
        if tap is not None:
            assert tap in everywhere, axis
            found += 1
        elif axis.stride == 1:  # nothing is skipped: what is counted is then all there is
            assert not everywhere, axis
    assert found > 50


def test_membership_of_no_ranges_keeps_its_shape():
    assert membership((), 3).shape == (0, 3)
    assert membership(((1, 3), (0, 0)), 3).tolist() == [[0, 1, 1], [0, 0, 0]]
