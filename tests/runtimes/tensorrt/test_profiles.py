"""Shapes of dynamic inputs: given, derived and contradictory."""

import pytest

from msconv_deploy.errors import BadInputError
from msconv_deploy.runtimes.tensorrt.profiles import (
    DEFAULT_BATCH,
    DEFAULT_EXTENT,
    complete_profile,
    parse_all_shapes,
    parse_shapes,
    shapes_text,
    spanning,
)

INPUTS = {"nchw": ["N", 3, "H", "W"], "nch": ["N", 2, "H"], "ncw": ["N", 2, "W"], "nc": ["N", 4], "fixed": [1, 5]}


def test_text_and_back():
    assert parse_shapes("a:0:1x3:2x3:4x3") == ("a:0", ((1, 3), (2, 3), (4, 3)))
    assert shapes_text("a:0", ((1, 3), (2, 3), (4, 3))) == "a:0:1x3:2x3:4x3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "write NAME:MIN:OPT:MAX"),
        ("a:1x3:2x3", "write NAME:MIN:OPT:MAX"),
        (":1:2:3", "write NAME:MIN:OPT:MAX"),
        ("a:1x-3:2x3:4x3", "write NAME:MIN:OPT:MAX"),
        ("a:1:1x2:1x3", "different ranks"),
        ("a:4:2:8", "1 <= min <= opt <= max"),
        ("a:1:9:8", "1 <= min <= opt <= max"),
        ("a:0:1:2", "1 <= min <= opt <= max"),
    ],
)
def test_text_that_is_not_shapes(text, message):
    with pytest.raises(BadInputError, match=message):
        parse_shapes(text)


def test_an_input_twice():
    with pytest.raises(BadInputError, match="a is given twice"):
        parse_all_shapes(["a:1:1:1", "a:2:2:2"])


def test_equal_symbols_follow_what_is_given():
    profile = complete_profile(INPUTS, parse_all_shapes(["nchw:1x3x8x9:1x3x16x18:2x3x32x36"]))
    assert profile == {
        "nchw": ((1, 3, 8, 9), (1, 3, 16, 18), (2, 3, 32, 36)),
        "nch": ((1, 2, 8), (1, 2, 16), (2, 2, 32)),
        "ncw": ((1, 2, 9), (1, 2, 18), (2, 2, 36)),
        "nc": ((1, 4), (1, 4), (2, 4)),
    }


def test_defaults():
    batch, other = zip(DEFAULT_BATCH, DEFAULT_EXTENT, strict=True), DEFAULT_EXTENT
    low, best, high = batch
    profile = complete_profile(INPUTS, {})
    assert profile["nch"] == ((low[0], 2, low[1]), (best[0], 2, best[1]), (high[0], 2, high[1]))
    assert [shape[2] for shape in profile["nchw"]] == list(other)
    assert "fixed" not in profile
    assert complete_profile({"fixed": [1, 5]}, {}) == {}


def test_dimensions_that_are_arithmetic():
    inputs = {"x": ["N", "H"], "up": ["N", "2*H"]}
    profile = complete_profile(inputs, parse_all_shapes(["x:1x4:1x5:1x6"]))
    assert profile["up"] == ((1, 8), (1, 10), (1, 12))
    with pytest.raises(BadInputError, match=r"up:1x8:1x10:1x13: by the model's symbolic dimensions .*1x12"):
        complete_profile(inputs, parse_all_shapes(["x:1x4:1x5:1x6", "up:1x8:1x10:1x13"]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["image:1:1:1"], "no input image; known are nchw, nch, ncw, nc, fixed"),
        (["nch:1x8:1x8:1x8"], "rank 2, but input nch is Nx2xH"),
        (["nch:1x3x8:1x3x8:1x3x8"], "input nch is Nx2xH, which fixes 2, not 3"),
        (["nch:1x2x8:1x2x8:1x2x8", "nchw:1x3x9x9:1x3x9x9:1x3x9x9"], "input nchw: H is 9:9:9, but 8:8:8 in input nch"),
        (["fixed:2x5:2x5:2x5"], "input fixed is 1x5, which fixes 1, not 2"),
    ],
)
def test_errors_name_the_input(texts, message):
    with pytest.raises(BadInputError, match=message):
        complete_profile(INPUTS, parse_all_shapes(texts))


def test_an_expression_that_cannot_be_computed():
    with pytest.raises(BadInputError, match=r"input x: dimension H/3 .*--shapes x:MIN:OPT:MAX"):
        complete_profile({"x": ["N", "H/3"]}, {})


def test_spanning():
    sets = [{"x": (2, 5)}, {"x": (1, 9)}, {"x": (4, 1)}]
    assert spanning(sets) == {"x": ((1, 1), (2, 5), (4, 9))}
