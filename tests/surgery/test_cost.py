"""Shapes with numbers, and the cost of operators at them."""

from __future__ import annotations

import numpy as np
import pytest

from msconv_deploy.errors import BadInputError
from msconv_deploy.surgery.choice.constants import BYTES, CONTRACTIONS, NODE, PIECE
from msconv_deploy.surgery.choice.cost import Op, Surroundings, UnknownShapeError, estimate, macs_of, takes_blocks
from msconv_deploy.surgery.choice.extents import DEFAULT_BATCH, DEFAULT_EXTENT, Numbers, Tensor, check_input_shapes
from tests.surgery.graphs import Net


def tiled_net(batch="n", rows="h", columns="w", opset=17):
    """image [n,3,h,w] and vector [n,4] expanded, concatenated and convolved."""
    net = Net(opset)
    image, vector = net.input(batch, 3, rows, columns, name="image"), net.input(batch, 4, name="vector")
    expanded = net.node("Expand", net.with_axes("Unsqueeze", vector, 2, 3), net.shape((batch, 4, rows, columns)))
    both = net.node("Concat", image, expanded, axis=1, outputs="both")
    y = net.node("Conv", both, net.random(8, 7, 3, 3), net.random(8), pads=[1, 1, 1, 1], outputs="y")
    net.output(y)
    return net.model()


def test_shapes_follow_run_time_arithmetic() -> None:
    found = Numbers(tiled_net(), {"image": [2, 3, 20, 30], "vector": [2, 4]}).tensors
    assert found["both"].shape == (2, 7, 20, 30)
    assert found["y"].shape == (2, 8, 20, 30)


def test_defaults_stand_in_for_dynamic_extents_and_names_agree() -> None:
    found = Numbers(tiled_net(), {}).tensors
    assert found["y"].shape == (DEFAULT_BATCH, 8, DEFAULT_EXTENT, DEFAULT_EXTENT)
    found = Numbers(tiled_net(), {"image": [5, 3, 8, 9]}).tensors
    assert found["vector"].shape == (5, 4)  # the same name as the image's first axis


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"nothing": [1]}, "no input 'nothing'"),
        ({"image": [1, 3, 8]}, "4 dimensions, not 3"),
        ({"image": [1, 4, 8, 8]}, "extent 3 along axis 1, not 4"),
        ({"image": [0, 3, 8, 8]}, "at least 1"),
    ],
)
def test_wrong_input_shapes_are_refused(shapes, message) -> None:
    with pytest.raises(BadInputError, match=message):
        check_input_shapes(tiled_net(), shapes)


def tensors(**shapes):
    return {name: Tensor(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("op", "shapes", "macs"),
    [
        (Op("Conv", ("x", "w"), ("y",)), {"x": (1, 4, 8, 8), "w": (6, 4, 3, 3), "y": (1, 6, 8, 8)}, 6 * 64 * 36),
        (Op("ConvTranspose", ("x", "w"), ("y",)), {"x": (1, 4, 8, 8), "w": (4, 6, 2, 2), "y": (1, 6, 16, 16)}, 6144),
        (Op("MatMul", ("x", "w"), ("y",)), {"x": (5, 7), "w": (7, 3), "y": (5, 3)}, 105),
        (Op("Gemm", ("x", "w"), ("y",), {"transA": 1}), {"x": (7, 5), "w": (7, 3), "y": (5, 3)}, 105),
        (Op("Relu", ("x",), ("y",)), {"x": (5, 7), "y": (5, 7)}, 0),
    ],
)
def test_multiply_accumulates(op, shapes, macs) -> None:
    assert macs_of(op, tensors(**shapes)) == macs


@pytest.mark.parametrize(("channels", "blocked"), [(3, True), (15, True), (16, True), (18, False), (20, True)])
def test_the_blocked_layout_needs_aligned_channels(channels, blocked) -> None:
    op = Op("Conv", ("x", "w"), ("y",))
    assert takes_blocks(op, tensors(w=(8, channels, 3, 3)), {"w"}) is blocked
    assert not takes_blocks(op, tensors(w=(8, channels, 3, 3)), set()), "its weights are not constant"


def test_data_movement_costs_its_bytes() -> None:
    cost = estimate([Op("Relu", ("x",), ("y",))], tensors(x=(2, 3), y=(2, 3)), Surroundings())
    assert cost.bytes == 48
    assert cost.seconds == pytest.approx(NODE + 48 * BYTES["elementwise"])


def test_gather_along_the_last_axis_costs_its_elements() -> None:
    shapes = {**tensors(x=(8, 4), y=(8, 100)), "i": Tensor((100,), 7)}
    last = estimate([Op("Gather", ("x", "i"), ("y",), {"axis": 1})], shapes, Surroundings(constants=frozenset("i")))
    assert last.seconds > 800 * PIECE["Gather"]


def test_what_constants_alone_decide_costs_nothing() -> None:
    shapes = tensors(x=(2, 3), y=(2, 3))
    assert estimate([Op("Relu", ("x",), ("y",))], shapes, Surroundings(constants=frozenset("x"))).seconds == 0


def test_an_activation_is_part_of_a_convolution_but_not_of_a_sum() -> None:
    shapes = tensors(x=(1, 18, 64, 64), w=(32, 18, 3, 3), y=(1, 32, 64, 64), t=(1, 32, 1, 1), z=(1, 32, 64, 64))
    conv, add = Op("Conv", ("x", "w"), ("y",)), Op("Add", ("y", "t"), ("z",))
    around = {"constants": frozenset("w")}

    def seconds(ops, activation):
        return estimate(ops, shapes, Surroundings(activation=activation, **around)).seconds

    assert seconds([conv], True) == seconds([conv], False)
    assert seconds([conv, add], True) > seconds([conv, add], False)


def test_scaling_is_part_of_a_convolution_only_if_its_weights_and_bias_are_constant() -> None:
    shapes = tensors(x=(1, 18, 64, 64), w=(32, 18, 3, 3), b=(32,), y=(1, 32, 64, 64))
    conv = [Op("Conv", ("x", "w", "b"), ("y",))]

    def seconds(constants, **around):
        return estimate(conv, shapes, Surroundings(constants=frozenset(constants), **around)).seconds

    one_pass = NODE + 2 * 4 * 32 * 64 * 64 * BYTES["elementwise"]
    assert seconds("wb", scaled=True, activation=True) == seconds("wb")
    assert seconds("w", scaled=True) == pytest.approx(seconds("w") + one_pass)
    assert seconds("b", scaled=True) == pytest.approx(seconds("b") + one_pass)
    both = seconds("w", scaled=True, activation=True)
    assert both == pytest.approx(seconds("w") + 2 * one_pass), (
        "an activation behind it is no neighbour of the convolution"
    )


def test_im2col_costs_by_its_elements() -> None:
    shapes = tensors(x=(1, 4, 64, 64), w=(32, 4, 3, 3), one=(32, 4, 1, 1), y=(1, 32, 64, 64))
    three, one = (estimate([Op("Conv", ("x", w), ("y",))], shapes, Surroundings()).seconds for w in ("w", "one"))
    rates = CONTRACTIONS["plain"], CONTRACTIONS["plain-1x1"]
    macs, moved = 64 * 64 * 32 * 4, 4 * (64 * 64 * 36 + 32 * 4)
    assert three == pytest.approx(NODE + 9 * macs * rates[0].mac + 9 * 4 * 64 * 64 * rates[0].column)
    assert one == pytest.approx(NODE + macs * rates[1].mac + moved * rates[1].byte)
    grouped = Op("Conv", ("x", "g"), ("y",), {"group": 2})
    shapes = {**shapes, **tensors(g=(32, 2, 3, 3))}
    cost = estimate([grouped], shapes, Surroundings()).seconds
    assert cost == pytest.approx(NODE + 9 * macs // 2 * rates[0].mac + 9 * 4 * 64 * 64 * rates[0].column)


def test_leaving_the_blocked_layout_costs_a_pass() -> None:
    shapes = tensors(x=(1, 16, 64, 64), w=(32, 16, 3, 3), y=(1, 32, 64, 64))
    conv = [Op("Conv", ("x", "w"), ("y",))]
    constants = frozenset("w")
    stays = estimate(conv, shapes, Surroundings(frozenset("x"), constants, wants_blocked=True, wants_plain=False))
    leaves = estimate(conv, shapes, Surroundings(frozenset("x"), constants))
    enters = estimate(conv, shapes, Surroundings(frozenset(), constants))
    assert stays.seconds < leaves.seconds < enters.seconds


def test_an_unknown_shape_is_said() -> None:
    with pytest.raises(UnknownShapeError, match="y"):
        estimate([Op("Relu", ("x",), ("y",))], tensors(x=(2, 3)), Surroundings())


def test_constants_are_those_that_were_measured() -> None:
    import json
    from pathlib import Path

    file = Path(__file__).parents[2] / "benchmarks" / "results" / "microbenchmarks.json"
    measured = json.loads(file.read_text())
    for kind, rate in CONTRACTIONS.items():
        found = measured["contractions"][kind]
        for sample in measured["samples"][kind]:
            amounts = (sample["macs"], sample["bytes"], sample.get("columns", 0))
            ours = np.dot(amounts, (rate.mac, rate.byte, rate.column))
            theirs = np.dot(amounts, (found["mac"], found["byte"], found.get("column", 0.0)))
            assert ours == pytest.approx(theirs, rel=0.4), kind
    for kind, seconds in BYTES.items():
        assert seconds == pytest.approx(measured["bytes"][kind]["byte"], rel=0.5), kind
    assert np.isclose(measured["piece"]["Gather"], PIECE["Gather"], rtol=0.5)
