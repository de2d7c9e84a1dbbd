"""The NumPy reference against tile-concat-conv in float64, border and interior apart."""

import numpy as np
import pytest
from hypothesis import given, settings

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops import reference
from msconv_deploy.ops.configuration import MSConv2dConfig
from tests.oracle import border_and_interior, difference, extents, source_oracle, tile_concat_conv
from tests.strategies import cases


@settings(max_examples=400, deadline=None)
@given(cases())
def test_reference_equals_the_oracle(case):
    oracle = tile_concat_conv if case.config.tiled else source_oracle
    expected = oracle(case.config, case.sources, case.weights, case.bias)
    actual = reference.msconv2d(case.config, case.sources, case.weights, case.bias)
    scale = np.abs(expected).max()
    border = np.broadcast_to(border_and_interior(case.config, *extents(case.sources)), expected.shape)
    for part in (border, ~border):
        assert np.abs(actual - expected)[part].max(initial=0) <= 1e-12 * scale
    assert difference(actual, expected) <= 1e-12


def test_the_two_semantics_differ_at_the_border_only():
    """The popular claim that both are the same is false with zero padding; a test that cannot tell them is no test."""
    rng = np.random.default_rng(0)
    config = MSConv2dConfig((1, 0, 0, 1), (3, 3), has_bias=0, pads=(1, 1, 1, 1), padding_semantics=1)
    sources = {"nchw": rng.standard_normal((1, 2, 6, 7)), "nc": rng.standard_normal((1, 3))}
    weights = {"nchw": rng.standard_normal((4, 2, 3, 3)), "nc": rng.standard_normal((4, 3, 3, 3))}
    tiled = reference.msconv2d(config, sources, weights)
    summed = weights | {"nc": weights["nc"].sum((2, 3))}
    source = reference.msconv2d(MSConv2dConfig((1, 0, 0, 1), (3, 3), has_bias=0, pads=(1, 1, 1, 1)), sources, summed)
    assert difference(tiled[:, :, 1:-1, 1:-1], source[:, :, 1:-1, 1:-1]) < 1e-14
    assert np.abs(tiled - source)[:, :, 0].max() > 0.1


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"nchw": (1, 2, 5, 5)}, "source nch .* is missing"),
        ({"nchw": (1, 2, 5, 5), "nch": (1, 3, 6)}, "nch has height 6 but nchw has height 5"),
        ({"nchw": (1, 2, 5, 5), "nch": (3, 5)}, "must have 3 dimensions"),
        ({"nchw": (2, 2, 5, 5), "nch": (3, 3, 5)}, "batch 3 but nchw has batch 2"),
        ({"nchw": (1, 2, 1, 5), "nch": (1, 3, 1)}, "smaller than the kernel"),
    ],
)
def test_wrong_tensors_are_refused_with_the_reason(sources, message):
    config = MSConv2dConfig((1, 1, 0, 0), (3, 3), has_bias=0)
    weights = {"nchw": np.zeros((4, 2, 3, 3)), "nch": np.zeros((4, 3, 3))}
    with pytest.raises(BadInputError, match=message):
        reference.msconv2d(config, {k: np.zeros(s) for k, s in sources.items()}, weights)


def test_a_batch_of_none_is_not_a_batch_of_one():
    config = MSConv2dConfig((1, 0, 0, 1), (1, 1), has_bias=0)
    y = reference.msconv2d(
        config,
        {"nchw": np.ones((0, 2, 3, 4)), "nc": np.ones((1, 5))},
        {"nchw": np.ones((6, 2, 1, 1)), "nc": np.ones((6, 5))},
    )
    assert y.shape == (0, 6, 3, 4)
