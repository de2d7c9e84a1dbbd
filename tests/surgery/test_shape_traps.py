"""Numbers that look like extents and are not, and copies of copies: each was once rewritten into something else."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from msconv_deploy.ops.forms import Form
from msconv_deploy.surgery.engine.symbols import name_in_file
from msconv_deploy.surgery.optimize import Result, optimize_model
from tests.surgery.graphs import Net, compare, feeds, optimized, reasons, rewritten, session

ODD = [{"N": 1, "H": 7, "W": 5}, {"N": 2, "H": 3, "W": 5}, {"N": 3, "H": 6, "W": 4}]


def checked(net: Net, sizes) -> Result:
    """The result, which agrees with the original at every size, whether anything was rewritten or not."""
    result = optimized(net.model(), sizes)
    assert not result.changed or result.ran == len(sizes)
    return result


def convolved(net: Net, x: str, channels: int = 4) -> None:
    net.output(net.node("Conv", x, net.random(5, channels, 3, 3), pads=[1, 1, 1, 1]))


def test_copies_of_a_batch_of_copies():
    """Expand to the shape of one image, then to that of another with another batch: the larger of both batches."""
    net = Net()
    first, second = net.input("N", 4, "H", "W"), net.input("M", 4, "H", "W")
    once = net.node("Expand", net.input(1, 4, 1, 1), net.node("Shape", first))
    convolved(net, net.node("Expand", once, net.node("Shape", second)))
    sizes = [{"N": n, "M": m, "H": 5, "W": 6} for n, m in ((2, 2), (1, 3), (3, 1))]
    checked(net, sizes)


@pytest.mark.parametrize("whole", ["Floor", "Cast"])
@pytest.mark.parametrize("cut", ["Floor", "Cast", "Ceil"])
def test_half_of_an_extent_rounded_up_and_down(whole, cut):
    """ceil(H/2) rows of which floor(H/2) are kept: the Slice cuts where H is odd."""
    net = Net()
    net.input("N", 4, "H", "W")
    half = net.node("Div", net.node("Cast", net.extent("H"), to=1), net.constant(np.array([2], np.float32)))
    rounded = {"Floor": lambda: net.node("Floor", half), "Ceil": lambda: net.node("Ceil", half), "Cast": lambda: half}
    up = net.node("Cast", net.node("Ceil", half), to=7)
    down = net.node("Cast", rounded[cut](), to=7)
    other = net.node("Cast", rounded[whole](), to=7)
    tall = net.node("Expand", net.input("N", 4, 1, 1), net.node("Concat", net.ints(1, 1), up, net.ints(6), axis=0))
    convolved(net, net.node("Slice", tall, net.ints(0), down, net.ints(2)))
    short = net.node("Expand", net.input("N", 4, 1, 1), net.node("Concat", net.ints(1, 1), other, net.ints(6), axis=0))
    convolved(net, net.node("Slice", short, net.ints(0), up, net.ints(2)))
    checked(net, ODD)


def matrix_by_columns(net: Net) -> str:
    """[1, 1, 3, W], joined as columns of a matrix and flattened."""
    left = net.node("Concat", net.ints(1), net.ints(3), axis=0)
    right = net.node("Concat", net.ints(1), net.extent("W"), axis=0)
    columns = [net.node("Unsqueeze", part, net.ints(1)) for part in (left, right)]
    return net.node("Reshape", net.node("Concat", *columns, axis=1), net.ints(-1))


def matrix_by_rows(net: Net) -> str:
    """[1, 4, H, W], the second row of the shape as a matrix behind two numbers."""
    rows = net.node("Reshape", net.node("Shape", net.symbols["H"][0]), net.ints(2, 2))
    row = net.node("Reshape", net.node("Gather", rows, net.ints(1)), net.ints(-1))
    return net.node("Concat", net.ints(1, 4), row, axis=0)


@pytest.mark.parametrize("spelling", [matrix_by_columns, matrix_by_rows])
def test_shapes_that_were_matrices_on_the_way(spelling):
    net = Net()
    net.input("N", 4, "H", "W")
    convolved(net, net.node("Expand", net.input("N", 4, 1, 1), spelling(net)))
    checked(net, ODD)


@pytest.mark.parametrize("axes", [None, []])
@pytest.mark.parametrize("noop", [0, 1])
def test_a_reduction_without_axes(axes, noop):
    """All axes or none, by an attribute."""
    net = Net()
    x = net.input("N", 4, "H", "W")
    inputs = [x] if axes is None else [x, net.constant(np.array(axes, np.int64))]
    total = net.node("ReduceSum", *inputs, keepdims=1, noop_with_empty_axes=noop)
    convolved(net, net.node("Expand", total, net.node("Shape", x)))
    result = checked(net, ODD)
    assert rewritten(result) == (noop == 0)


def test_scales_of_a_resize_are_no_extents():
    """Pooled extents as floats scale another tensor; an extent is wanted for the border."""
    net = Net()
    image = net.input("N", 4, "H", "W")
    shape = net.node("Shape", net.node("MaxPool", image, kernel_shape=[2, 2], strides=[2, 2]))
    copies = net.node("Relu", net.node("Expand", net.input("N", 4, 1, 1), shape))
    spatial = net.node("Slice", shape, net.ints(2), net.ints(4))
    scales = net.node("Cast", net.node("Concat", net.ints(1, 1), spatial, axis=0), to=1)
    grown = net.node("Resize", net.input("N", 4, 1, 1), "", scales, mode="nearest")
    convolved(net, net.node("Concat", copies, grown, axis=1), 8)
    sizes = [{"N": n, "H": 9, "W": 8} for n in (1, 2)]
    checked(net, sizes)


def test_an_identity_of_another_domain_is_a_function_of_somebody():
    net = Net()
    twice = helper.make_function(
        "my", "Identity", ["X"], ["Y"], [helper.make_node("Add", ["X", "X"], ["Y"])], [helper.make_opsetid("", 17)]
    )
    net.functions.append(twice)
    weight = net.node("Identity", net.random(5, 4, 3, 3), domain="my")
    copies = net.node("Expand", net.input("N", 4, 1, 1), net.ints(1, 4, 6, 7))
    net.output(net.node("Conv", copies, weight, kernel_shape=[3, 3]))
    result = checked(net, [{"N": 2}])
    assert not rewritten(result)


@pytest.mark.parametrize("exponent", [(), (1,), (1, 1, 1, 1)])
def test_a_distance_whose_exponent_adds_an_axis(exponent):
    net = Net()
    difference = net.node(
        "Sub",
        net.node("Unsqueeze", net.input(20, 8), net.ints(1)),
        net.node("Unsqueeze", net.input(30, 8), net.ints(0)),
    )
    square = net.node("Pow", difference, net.constant(np.full(exponent, 2, np.float32)))
    net.output(net.node("ReduceSum", square, net.ints(-1), keepdims=0), rank=max(2, len(exponent) - 1))
    model = net.model()
    result = optimize_model(model, Path(), "always", allow=("tiled-distance",))
    assert rewritten(result, "tiled-distance") == (len(exponent) < 4)
    given = feeds(model, {})
    compare(session(model).run(None, given), session(result.model).run(None, given), exponent, 1e-4)


def test_an_extent_less_a_number_may_be_negative():
    """Add of -2 is a difference as well: -1 in a Reshape stands for what is left."""
    net = Net()
    net.input("N", 2, "H", "W")
    less = net.node("Add", net.extent("N"), net.ints(-2))
    guard = net.node("Where", net.node("Equal", less, net.ints(-1)), net.ints(3), less)
    wide = net.node("Expand", net.input(1, 4, 1), net.node("Concat", guard, net.ints(4, 7), axis=0))
    net.output(net.node("Conv", wide, net.random(5, 4, 3), pads=[1, 1]), rank=3)
    checked(net, [{"N": n, "H": 3, "W": 3} for n in (1, 3, 4)])


@pytest.mark.parametrize("placeholder", ["?", "None", "-1", "*"])
def test_names_that_say_nothing_are_no_names(placeholder):
    """Height and width are both "?": they are not the same for that."""
    net = Net()
    image = net.input("N", 4, "H", "W")
    spatial = net.node("Slice", net.node("Shape", image), net.ints(2), net.ints(4))
    shape = net.node("Concat", net.ints(1, 4), spatial, axis=0)
    convolved(net, net.node("Expand", net.input("N", 4, 1, 1), shape))
    model = net.model()
    given = feeds(model, {"N": 2, "H": 3, "W": 5})
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = placeholder
    result = optimize_model(model, Path(), "always")
    compare(session(model).run(None, given), session(result.model).run(None, given), placeholder)


@pytest.mark.parametrize(("kernel", "stride", "count"), [(16, 8, "rewritten"), (64, 32, "135,200 rows")])
def test_tables_of_dynamic_extents_have_a_limit(kernel, stride, count):
    """A transposed convolution as vocoders have them: a row for every phase and pair of borders."""
    net = Net()
    label = net.node("Expand", net.input("N", 4, 1), net.node("Shape", net.input("N", 4, "T")))
    net.output(net.node("ConvTranspose", label, net.random(4, 2, kernel), strides=[stride]), rank=3)
    result = checked(net, [{"N": 1, "T": 5}, {"N": 2, "T": 1}])
    assert count in reasons(result) or (count == "rewritten" and rewritten(result) == 1)


def test_depthwise_groups_that_are_copies_and_not_in_turn():
    """Every second channel of a depthwise convolution is a copy: each run of groups reads its own weights only."""
    net = Net()
    channels = 12
    parts = []
    for _ in range(channels // 2):
        full = net.input("N", 1, "H", "W")
        parts += [full, net.node("Expand", net.input("N", 1, 1, 1), net.node("Shape", full))]
    joined = net.node("Concat", *parts, axis=1)
    net.output(net.node("Conv", joined, net.random(channels, 1, 3, 3), net.random(channels), group=channels))
    result = checked(net, [{"N": 2, "H": 5, "W": 6}, {"N": 1, "H": 3, "W": 3}])
    assert rewritten(result) == 1


def test_models_are_left_as_onnx_wants_them():
    """The module above would prove nothing if none of its models were rewritten."""
    net = Net()
    convolved(net, net.node("Expand", net.input("N", 4, 1, 1), net.node("Shape", net.input("N", 4, "H", "W"))))
    model = net.model()
    onnx.checker.check_model(model, full_check=True)
    assert rewritten(optimized(model, ODD)) == 1


def test_nothing_is_printed_about_types_that_numpy_lacks(capfd):
    """onnx-graphsurgeon warns of bfloat16 on standard output, where a program's results are."""
    net = Net(22, ml_dtypes.bfloat16)
    copies = net.node("Expand", net.input("N", 4, 1, 1), net.ints(1, 4, 6, 7))
    convolved(net, net.node("Mul", copies, net.random(1, 4, 1, 1)))
    optimize_model(net.model(), Path(), "always")
    assert capfd.readouterr() == ("", "")


# -- which operand gives a broadcast its extent --------------------------------------------------------------------------------


def agree(model: onnx.ModelProto, result: onnx.ModelProto, sizes) -> None:
    for number, size in enumerate(sizes):
        given = feeds(model, size, number)
        compare(session(model).run(None, given), session(result).run(None, given), size)


def along(net: Net, axis: str):
    """Copies of scalars over the image, and a vector along one axis whose own extent has another name."""
    image = net.input("N", 4, "H", "W")
    copies = net.node("Expand", net.input(1, 4, 1, 1), net.node("Shape", image))
    shape = {"N": ("M", 4, 1, 1), "H": (1, 4, "M", 1), "W": (1, 4, 1, "M")}[axis]
    return image, copies, net.input(*shape)


@pytest.mark.parametrize("axis", ["N", "H", "W"])
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("form", ["portable", "fused"])
def test_copies_that_give_a_vector_of_one_its_extent(axis, beside, form):
    """The vector has the image's extent, or 1: then only the copies know how many rows there are."""
    net = Net()
    image, copies, vector = along(net, axis)
    mixed = net.node("Add", copies, vector)
    joined = net.node("Concat", image, mixed, axis=1) if beside else mixed
    convolved(net, joined, 8 if beside else 4)
    size = {"N": 3, "H": 5, "W": 6}
    sizes = [{**size, "M": m} for m in (size[axis], 1)]
    model = net.model()
    result = optimize_model(model, Path(), "always", form=Form(form))
    agree(model, result.model, sizes)
    assert not [site for site in result.sites if site.decision == "rewritten" and site.rule == "tile-concat-conv"]


@pytest.mark.parametrize("extent", ["H", 5])
def test_a_vector_that_has_the_extent_of_the_copies_is_still_rewritten(extent):
    net = Net()
    image = net.input("N", 4, extent, "W")
    copies = net.node("Expand", net.input(1, 4, 1, 1), net.node("Shape", image))
    mixed = net.node("Add", copies, net.input(1, 4, extent, 1))
    convolved(net, net.node("Concat", image, mixed, axis=1), 8)
    result = checked(net, [{"N": 2, "H": 5, "W": 6}, {"N": 1, "H": 1, "W": 4}])
    assert rewritten(result)


def test_a_static_extent_beside_a_vector_that_may_be_one():
    net = Net()
    copies = net.node("Expand", net.input(1, 4, 1, 1), net.ints(2, 4, 8, 8))
    convolved(net, net.node("Mul", copies, net.input(1, 4, "M", 1)))
    checked(net, [{"M": 8}, {"M": 1}])


def test_three_operands_of_which_one_is_lost():
    """Of two vectors of other names either may be 1, or both."""
    net = Net()
    image, copies, vector = along(net, "H")
    mixed = net.node("Sum", copies, vector, net.input(1, 4, "K", 1))
    convolved(net, net.node("Concat", image, mixed, axis=1), 8)
    checked(net, [{"N": 1, "H": 5, "W": 6, "M": m, "K": k} for m in (1, 5) for k in (1, 5)])


# -- arithmetic of shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operands", [1, 2, 3])
def test_the_largest_of_several_extents(operands):
    net = Net()
    image = net.input("N", 4, "H", "W")
    extents = [net.ints(1), net.ints(2), net.extent("H")][3 - operands :]
    tall = net.node("Concat", net.ints(1, 4), net.node("Max", *extents), net.extent("W"), axis=0)
    copies = net.node("Expand", net.input(1, 4, 1, 1), tall)
    convolved(net, net.node("Concat", image, copies, axis=1), 8)
    checked(net, [{"N": 1, "H": 5, "W": 6}, {"N": 1, "H": 2, "W": 3}])


def test_arithmetic_on_no_number():
    net = Net()
    image = net.input("N", 4, "H", "W")
    none = net.node("Mul", net.node("Slice", net.node("Shape", image), net.ints(4), net.ints(5)), net.ints(2))
    target = net.node("Concat", net.ints(1, 4), none, net.extent("H"), net.extent("W"), axis=0)
    convolved(net, net.node("Concat", image, net.node("Expand", net.input(1, 4, 1, 1), target), axis=1), 8)
    assert rewritten(checked(net, [{"N": 1, "H": 5, "W": 6}]))


def test_a_squeeze_of_axes_that_are_known_at_run_time():
    """Of a rank that the file declares; which axes go depends on an input."""
    net = Net()
    axes = net.input(1, dtype=np.int64)
    copies = net.node("Expand", net.input(1, 1, 4, 1, 1), net.ints(1, 1, 4, 6, 6))
    convolved(net, net.node("Squeeze", copies, axes))
    model = net.model()
    result = optimize_model(model, Path(), "always")
    assert not result.changed
    assert session(model) is not None


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("place", ["behind", "before"])
def test_a_normalization_that_gives_its_mean_away(opset, place):
    """Before opset 14 further outputs mean training, and one of them is an output of the graph."""
    net = Net(opset=opset)
    image = net.input("N", 4, "H", "W")
    copies = net.node("Expand", net.input(1, 4, 1, 1), net.node("Shape", image))
    parameters = [net.constant(np.linspace(0.5, 1.5, 4, dtype=np.float32)) for _ in range(4)]

    def normalized(x: str) -> str:
        y, mean, *_ = net.node("BatchNormalization", x, *parameters, outputs=5)
        net.output(mean, rank=1)
        return y

    before = normalized(copies) if place == "before" else copies
    joined = net.node("Concat", image, before, axis=1)
    y = net.node("Conv", joined, net.random(4, 8, 3, 3), pads=[1, 1, 1, 1])
    net.output(net.node("Relu", normalized(y) if place == "behind" else y))
    model = net.model()
    result = optimize_model(model, Path(), "always")
    onnx.checker.check_model(result.model)
    agree(model, result.model, [{"N": 1, "H": 5, "W": 6}])


def test_a_name_in_the_file_that_is_like_one_of_ours():
    """``f:2`` is what the second extent of the tensor ``f`` is called where it has no name."""
    net = Net()
    image = net.input("N", 4, "f:2", "W")
    net.node("Conv", image, net.random(4, 4, 2, 1), outputs="f")
    shape = net.node("Slice", net.node("Shape", "f"), net.ints(2), net.ints(4))
    target = net.node("Concat", net.ints(1, 4), shape, axis=0)
    convolved(net, net.node("Expand", net.input(1, 4, 1, 1), target))
    checked(net, [{"N": 1, "f:2": 6, "W": 5}, {"N": 1, "f:2": 3, "W": 4}])
    assert name_in_file("2*H + 1") == "2*H + 1"
    assert len({name_in_file(name) for name in ("f:2", "f%3a2", "f[2", "f")}) == 4
