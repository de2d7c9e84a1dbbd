"""The matrix of a convolution in NumPy alone, against the direct convolution of the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import PaddingMode
from msconv_deploy.ops.conv_matrix import conv_entries, conv_matrix
from tests.oracle import PAD_MODE, conv_valid, difference
from tests.strategies import cases


@settings(max_examples=200, deadline=None)
@given(cases(semantics=1), st.integers(1, 2), st.integers(0, 2**20))
def test_times_the_image_is_the_convolution(case, outputs, seed):
    config, random = case.config, np.random.default_rng(seed)
    group, (top, left, bottom, right) = config.group, config.pads
    x = random.standard_normal((2, 2 * group, case.height, case.width))
    weight = random.standard_normal((outputs * group, 2, *config.kernel_shape))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), mode=PAD_MODE[int(config.padding_mode)])
    expected = conv_valid(padded, weight, config.strides, config.dilations, group)
    matrix = conv_matrix(weight, x.shape[1:], (config.rows, config.columns), group, config.padding_mode)
    assert difference((x.reshape(2, -1) @ matrix.T).reshape(expected.shape), expected) < 1e-12


def test_entries_name_each_product_once():
    entries = conv_entries((2, 3, 3), (3, 5), (Axis(3, 1, 1, 1, 1),))
    assert entries.shape == (2 * 5, 3 * 5)
    assert len(entries.rows) == 2 * 3 * (5 * 3 - 2)
    assert len(set(zip(entries.rows.tolist(), entries.columns.tolist(), strict=True))) == len(entries.rows)


def test_the_dtype_is_the_weights():
    assert conv_matrix(np.ones((1, 1, 2), np.float32), (1, 4), (Axis(2),)).dtype == np.float32


@pytest.mark.parametrize(
    ("weight", "shape", "axes", "arguments", "message"),
    [
        ((4, 2, 3), (2, 5, 5), (Axis(3),), {}, "1 spatial dimensions, input_shape .* has 2"),
        ((4, 2, 3), (2, 5), (Axis(3), Axis(3)), {}, "weight must be"),
        ((4, 2, 3), (3, 5), (Axis(3),), {}, "needs an input of 2 channels"),
        ((4, 2, 3), (6, 5), (Axis(3),), {"group": 3}, "outputs in multiples of 3"),
        ((4, 2, 3), (2, 2), (Axis(3),), {}, "smaller than the kernel"),
        ((4, 2, 3), (2, 2), (Axis(3, 1, 1, 2, 0),), {"mode": PaddingMode.REFLECT}, "reflect with padding 2 needs at least 3"),
    ],
)  # fmt: skip
def test_refusals(weight, shape, axes, arguments, message):
    with pytest.raises(BadInputError, match=message):
        conv_entries(weight, shape, axes, **arguments)
