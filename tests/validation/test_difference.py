"""The difference between two tensors."""

import math

import numpy as np
import pytest

from msconv_deploy.validation.difference import border_width_of, difference


def image(value: float = 1.0, size: int = 8) -> np.ndarray:
    return np.full((1, 2, size, size), value)


def test_is_the_largest_error_over_the_largest_reference_value():
    b = np.array([1.0, -4.0, 2.0])
    assert difference(b + np.array([0.1, 0.0, -0.2]), b).value == pytest.approx(0.2 / 4)


def test_border_and_interior_are_told_apart():
    b = image(2.0)
    a = b.copy()
    a[0, 1, 0, 3] += 0.5
    a[0, 0, 4, 4] += 0.25
    found = difference(a, b, border_reach=1)
    assert found.value == found.border == 0.25
    assert found.interior == 0.125
    assert found.border_width == 1


@pytest.mark.parametrize(
    ("shape", "reach", "width"),
    [
        ((1, 1, 32, 32), 3, 3),
        ((1, 1, 32, 16), 40, 4),
        ((1, 1, 9, 9), 0, 1),
        ((1, 1, 1, 1), 5, 1),
        ((2, 3), 5, None),
    ],
)
def test_border_width(shape, reach, width):
    assert border_width_of(shape, reach) == width


@pytest.mark.parametrize("size", [1, 2])
def test_an_image_below_three_pixels_has_no_interior(size):
    found = difference(image(size=size) + 1e-3, image(size=size), 1)
    assert found.interior is None
    assert found.border == found.value == pytest.approx(1e-3)


def test_three_pixels_have_one():
    assert difference(image(size=3), image(size=3), 5).interior == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_differs_whatever_the_tolerance(bad):
    b = image()
    a = b.copy()
    a[0, 0, 0, 0] = bad
    found = difference(a, b)
    assert found.problem
    assert not found.within(math.inf)


def test_equal_infinities_agree_and_opposite_ones_do_not():
    b = np.array([1.0, np.inf, -np.inf])
    assert difference(b.copy(), b).value == 0.0
    assert difference(np.array([1.0, -np.inf, -np.inf]), b).problem
    assert difference(np.array([1.0, 5.0, -np.inf]), b).problem
    assert difference(np.array([1.5, np.inf, -np.inf]), b).value == 0.5  # the finite part still counts


def test_a_reference_that_is_nan_judges_nothing():
    b = np.array([1.0, np.nan])
    found = difference(b.copy(), b)
    assert found.unusable
    assert not found.within(math.inf)


def test_shapes_and_kinds_must_match():
    assert "shape" in difference(np.zeros((1, 2)), np.zeros((2, 1))).problem
    assert "type" in difference(np.zeros(2), np.zeros(2, np.int64)).problem
    assert "type" in difference(np.zeros(2, np.int32), np.zeros(2, np.int64)).problem


def test_integers_and_booleans_are_compared_exactly():
    b = np.array([1, 2, 3])
    assert difference(b.copy(), b).within(0.0)
    off = difference(np.array([1, 2, 4]), b)
    assert off.exact
    assert not off.within(math.inf)
    assert difference(np.array([True, False]), np.array([True, True])).problem


def test_widths_of_float_may_differ():
    b = np.linspace(0, 1, 7)
    assert difference(b.astype(np.float16), b).value < 2**-11


def test_a_reference_of_zeros_agrees_with_zeros_only():
    assert difference(np.zeros(3), np.zeros(3)).value == 0.0
    assert difference(np.array([0.0, 1e-30, 0.0]), np.zeros(3)).value == math.inf


def test_empty_tensors_agree():
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))).value == 0.0
