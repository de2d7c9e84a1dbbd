"""Shapes of the operator: what is refused, and how it is said."""

import numpy as np
import pytest

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops import reference
from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.shapes import check_channels, check_sources, check_weights, output_shape


def padded(mode, height, width):
    config = MSConv2dConfig((1, 0, 0, 0), (5, 3), pads=(2, 0, 1, 1), padding_mode=mode)
    check_sources(config, {"nchw": (1, 2, height, width)}, {"nchw": 2})


@pytest.mark.parametrize(("mode", "height", "width"), [(PaddingMode.REFLECT, 3, 2), (PaddingMode.CIRCULAR, 2, 1)])
def test_padding_reads_inside_the_input(mode, height, width):
    """Reflection leaves the edge out, so it needs one more than it pads; both sides count."""
    padded(mode, height, width)
    said = f"^MSConv2d: {mode.name.lower()} padding of 2 and 1 needs a height of at least {height}, but it is {height - 1}$"
    with pytest.raises(BadInputError, match=said):
        padded(mode, height - 1, width)
    with pytest.raises(BadInputError, match=f"padding of 0 and 1 needs a width of at least {width}, but"):
        padded(mode, height, width - 1)


@pytest.mark.parametrize("mode", [PaddingMode.ZEROS, PaddingMode.REPLICATE])
def test_other_paddings_need_nothing(mode):
    padded(mode, 1, 1)


@pytest.mark.parametrize(("name", "shape", "what"), [("nch", (1, 2, 4), "height 4"), ("ncw", (1, 2, 4), "width 4")])
def test_sources_that_share_an_axis_agree_on_it(name, shape, what):
    sources = (1, int(name == "nch"), int(name == "ncw"), 0)
    config = MSConv2dConfig(sources, (1, 1))
    axis = what.split()[0]
    with pytest.raises(BadInputError, match=f"^MSConv2d: {name} has {what} but nchw has {axis} 5; they must be equal$"):
        output_shape(config, {"nchw": (1, 2, 5, 5), name: shape}, 3)


def test_the_reference_computes_in_the_type_that_it_is_told():
    config = MSConv2dConfig((1, 0, 0, 1), (1, 1), has_bias=1)
    third = np.float64(1) / 3
    sources = {"nchw": np.full((1, 1, 2, 2), third), "nc": np.full((1, 1), third)}
    weights = {"nchw": np.full((1, 1, 1, 1), third), "nc": np.full((1, 1), third)}
    wide = reference.msconv2d(config, sources, weights, np.full(1, third))
    narrow = reference.msconv2d(config, sources, weights, np.full(1, third), dtype=np.float32)
    assert (wide.dtype, narrow.dtype) == (np.float64, np.float32)
    assert wide[0, 0, 0, 0] == third * third + third + third * third
    single = np.float32(third)
    assert narrow[0, 0, 0, 0] == single * single + single + single * single
    integers = {name: np.ones(array.shape, np.int64) for name, array in sources.items()}
    assert reference.msconv2d(config, integers, weights, np.zeros(1, np.int64)).dtype == np.float64


def grouped(group: int, semantics: PaddingSemantics) -> MSConv2dConfig:
    return MSConv2dConfig((1, 1, 1, 1), (1, 1), group=group, padding_semantics=semantics)


EVEN = {"nchw": 4, "nch": 2, "ncw": 6, "nc": 3}


@pytest.mark.parametrize(
    ("group", "semantics", "odd", "outputs", "message"),
    [
        (2, PaddingSemantics.SOURCE, {}, 4, ""),
        (2, PaddingSemantics.SOURCE, {"nchw": 3}, 4, "nchw has 3 channels, which is not divisible by groups 2"),
        (2, PaddingSemantics.SOURCE, {"nch": 3}, 4, "nch has 3 channels, which is not divisible by groups 2"),
        (2, PaddingSemantics.SOURCE, {"ncw": 5}, 4, "ncw has 5 channels, which is not divisible by groups 2"),
        (2, PaddingSemantics.SOURCE, {}, 3, "out_channels 3 is not divisible by groups 2"),
        (2, PaddingSemantics.TILED, {"nch": 3, "ncw": 5}, 4, ""),  # dense there, zero outside of their group
        (2, PaddingSemantics.TILED, {"nchw": 3}, 4, "nchw has 3 channels, which is not divisible by groups 2"),
        (1, PaddingSemantics.SOURCE, {"nchw": 3, "nch": 5, "ncw": 1}, 7, ""),
        (3, PaddingSemantics.SOURCE, {"nchw": 3, "nch": 3}, 3, ""),
        (1, PaddingSemantics.SOURCE, {}, 0, "out_channels must be at least 1, but is 0"),
    ],
)
def test_channels_are_divisible_by_the_groups_that_apply_to_them(group, semantics, odd, outputs, message):
    arguments = grouped(group, semantics), EVEN | odd, outputs
    if not message:
        check_channels(*arguments)
        return
    with pytest.raises(BadInputError, match=f"^MSConv2d: {message}$"):
        check_channels(*arguments)


def test_weights_that_do_not_fit_are_named_with_what_was_expected():
    config = MSConv2dConfig((1, 1, 0, 0), (3, 5))
    assert check_weights(config, {"nchw": (4, 2, 3, 5), "nch": (4, 1, 3)}) == ({"nchw": 2, "nch": 1}, 4)
    with pytest.raises(
        BadInputError, match=r"^MSConv2d: weights are given for \['nchw'\], needed for \['nchw', 'nch'\]$"
    ):
        check_weights(config, {"nchw": (4, 2, 3, 5)})
    said = (
        r"^MSConv2d: the weight of nch has shape \(4, 1, 2\); in source semantics it must have 3 dimensions and, for 4 output "
        r"channels and the kernel \(3, 5\), shape \(4, 1, 3\)$"
    )
    with pytest.raises(BadInputError, match=said):
        check_weights(config, {"nchw": (4, 2, 3, 5), "nch": (4, 1, 2)})
    with pytest.raises(BadInputError, match=r"shape \(4, 3\); .* 3 dimensions .* shape \(4, 0, 3\)$"):
        check_weights(config, {"nchw": (4, 2, 3, 5), "nch": (4, 3)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"nchw": (2, 3, 5, 5)}, r"source nch \[N, C2, H\] is missing; this layer was built with 2 nch channels"),
        (
            {"nchw": (2, 3, 5, 5), "nch": (2, 2, 5), "nc": (2, 4)},
            "source nc was given, but this layer was built without nc channels",
        ),
        (
            {"nchw": (2, 3, 5, 5), "nch": (2, 4, 5)},
            r"source nch must have 2 channels, but has shape \[2, 4, 5\]",
        ),
        (
            {"nchw": (2, 3, 5, 5), "nch": (3, 2, 5)},
            "source nch has batch 3 but nchw has batch 2; batches must be equal or 1",
        ),
        ({"nchw": (2, 3, 5, 5), "nch": (1, 2, 5)}, ""),
        ({"nchw": (1, 3, 5, 5), "nch": (3, 2, 5)}, ""),
    ],
)
def test_sources_that_do_not_fit_are_named_with_what_they_are(shapes, message):
    arguments = MSConv2dConfig((1, 1, 0, 0), (1, 1)), shapes, {"nchw": 3, "nch": 2}
    if not message:
        check_sources(*arguments)
        return
    with pytest.raises(BadInputError, match=f"^MSConv2d: {message}$"):
        check_sources(*arguments)
