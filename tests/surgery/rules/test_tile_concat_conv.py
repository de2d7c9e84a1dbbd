"""`tile-concat-conv`: what is a site and computes the same, and what is refused, for which reason."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.surgery.graphs import Net, optimized, reasons, rewritten, session
from tests.surgery.random_graphs import OPSETS

SIZES = [{"N": 2, "H": 5, "W": 6}, {"N": 1, "H": 1, "W": 3}, {"N": 3, "H": 7, "W": 1}, {"N": 1, "H": 1, "W": 1}]


def image(net: Net, channels: int = 3) -> str:
    return net.input("N", channels, "H", "W")


def tile(net: Net, channels: int = 2, core=None) -> str:
    if "H" not in net.symbols:
        image(net)  # an input that has the extents
    return net.node("Expand", core or net.input("N", channels, 1, 1), net.shape(["N", channels, "H", "W"]))


def conv(net: Net, x: str, channels: int, outputs: int = 4, kernel: int = 3, bias: bool = True, **attributes) -> str:
    attributes.setdefault("pads", [kernel // 2] * 4)
    weight = net.random(outputs, channels // attributes.get("group", 1), kernel, kernel)
    y = net.node("Conv", x, weight, *([net.random(outputs)] if bias else []), **attributes)
    net.output(y)
    return y


def concat(net: Net, *parts: str, axis: int = 1) -> str:
    return net.node("Concat", *parts, axis=axis)


def assert_site(net: Net, sites: int = 1, sizes=SIZES, **kwargs):
    result = optimized(net.model(), sizes, **kwargs)
    assert rewritten(result) == sites, reasons(result)
    assert result.ran, "the original ran at none of the sizes"
    return result


def assert_left(net_or_model, reason: str | None, sizes=SIZES):
    """Not rewritten; with this in the reason, or without any word (None) where nothing suggests a site."""
    model = net_or_model.model() if isinstance(net_or_model, Net) else net_or_model
    result = optimized(model, sizes)
    assert rewritten(result) == 0
    assert result.model is model
    assert (reason in reasons(result)) if reason is not None else (reasons(result) == ""), reasons(result)


# -- sites -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("order", ["first", "middle", "last", "all"])
def test_place_of_the_tile(opset, order):
    net = Net(opset)
    parts = {
        "first": lambda: [tile(net), image(net)],
        "middle": lambda: [image(net), tile(net), image(net)],
        "last": lambda: [image(net), tile(net)],
        "all": lambda: [tile(net), tile(net, 1)],
    }[order]()
    conv(net, concat(net, *parts), {"first": 5, "middle": 8, "last": 5, "all": 3}[order])
    assert_site(net)


GEOMETRIES = {
    "stride": {"strides": [2, 3]},
    "dilation": {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "asymmetric": {"pads": [0, 0, 1, 1], "strides": [2, 2]},
    "wide": {"pads": [4, 5, 4, 3]},
    "valid": {"auto_pad": "VALID", "pads": []},
    "same_upper": {"auto_pad": "SAME_UPPER", "pads": []},
    "same_lower": {"auto_pad": "SAME_LOWER", "pads": []},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_geometry(geometry, dtype):
    net = Net(dtype=dtype)
    attributes = {k: v for k, v in GEOMETRIES[geometry].items() if v}
    if "auto_pad" in attributes:
        weight = net.random(4, 5, 3, 3)
        net.output(net.node("Conv", concat(net, image(net), tile(net)), weight, **attributes))
    else:
        conv(net, concat(net, image(net), tile(net)), 5, **attributes)
    assert_site(net)


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_groups_that_cut_across_the_concat(group, op):
    net = Net()
    x = concat(net, image(net, 3), tile(net, 2), image(net, 2), tile(net, 1))
    shape = (8, 8 // group, 3, 3) if op == "Conv" else (8, 2, 3, 3)
    net.output(
        net.node(op, x, net.random(*shape), net.random(8 if op == "Conv" else 2 * group), group=group, pads=[1] * 4)
    )
    assert_site(net)


def test_a_group_of_batch_uniform_channels_gets_the_batch_of_the_others():
    """One group reads only what is equal for all samples: its part of the output has the batch all the same."""
    net = Net()
    image(net)
    x = concat(net, tile(net, 2, net.input(1, 2, 1, 1)), tile(net, 2))
    conv(net, x, 4, group=2)
    assert_site(net)


@pytest.mark.parametrize("zero", ["all", "batch"])
def test_zero_weights(zero):
    """A layer that starts at zero keeps its output's shape, also where only the zero weights see the batch."""
    net = Net()
    image(net)
    x = concat(net, tile(net, 2), tile(net, 2, net.input(1, 2, 1, 1)))
    weight = net.values.standard_normal((4, 4, 3, 3)).astype(np.float32)
    weight[:, : 2 if zero == "batch" else 4] = 0
    net.output(net.node("Conv", x, net.constant(weight), net.random(4), pads=[1] * 4))
    assert_site(net)


def test_zero_weights_behind_a_merging_reshape():
    net = Net()
    x = net.node("Expand", net.input(1, 4), net.shape([6, 4]))
    x = net.node("Concat", x, net.input(6, 2), axis=1)
    weight = net.values.standard_normal((6, 3)).astype(np.float32)
    weight[:4] = 0
    net.output(net.node("Gemm", x, net.constant(weight)))
    assert_site(net)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_spatial_ranks(rank, dynamic, op):
    net = Net()
    spatial = ["H", "W", "D"][:rank] if dynamic else [4, 5, 6][:rank]
    dense = net.input("N", 2, *spatial)
    copies = net.node("Expand", net.input("N", 3, *[1] * rank), net.shape(["N", 3, *spatial]))
    extra = {"output_padding": [1] * rank, "strides": [2] * rank} if op == "ConvTranspose" else {}
    weight = net.random(*((4, 5) if op == "Conv" else (5, 4)), *[3] * rank)
    net.output(net.node(op, concat(net, dense, copies), weight, net.random(4), pads=[1] * (2 * rank), **extra))
    assert_site(net, sizes=[{"N": 2, "H": 4, "W": 5, "D": 3}, {"N": 1, "H": 1, "W": 1, "D": 2}])


@pytest.mark.parametrize("axes", [(2,), (3,), (0,), (0, 2), (2, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3)])
def test_uniform_axes(axes):
    net = Net()
    full = ["N", 2, "H", "W"]
    x = image(net)
    core = net.input(*(1 if i in axes else d for i, d in enumerate(full)))
    result_of = concat(net, x, net.node("Expand", core, net.shape(full)))
    conv(net, result_of, 5)
    result = assert_site(net)
    assert result.sites[0].segments[-1].uniform == list(axes)


def test_a_batch_that_may_be_copied_or_not():
    """Expand from batch B to batch N: B is N or 1, which only the run shows; the output has batch N in both cases."""
    net = Net()
    image(net)
    conv(net, tile(net, 2, net.input("B", 2, 1, 1)), 2)
    assert_site(net, sizes=[{"N": 3, "B": 1, "H": 4, "W": 5}, {"N": 3, "B": 3, "H": 4, "W": 5}])


def test_a_batch_that_may_be_copied_is_joined_along_another_axis():
    net = Net()
    image(net)
    first = net.node("Expand", net.input("B", 2, "H", 1), net.shape(["N", 2, "H", "W"]))
    second = net.node("Expand", net.input("N", 2, "H", 1), net.shape(["N", 2, "H", "W"]))
    conv(net, concat(net, first, second, axis=2), 2)
    optimized(net.model(), [{"N": 3, "B": 1, "H": 4, "W": 5}, {"N": 3, "B": 3, "H": 4, "W": 5}])


def test_slope_with_more_extents_than_the_core():
    """PRelu's slope broadcasts to the tensor, not the other way round; the core may lack what the slope has."""
    net = Net()
    copies = tile(net, 3, net.input("N", 1, 1, 1))
    conv(net, concat(net, image(net), net.node("PRelu", copies, net.random(3, 1, 1))), 6)
    result = assert_site(net)
    assert not any(n.op_type == "PRelu" for n in result.model.graph.node)


def test_concat_is_a_graph_output_too():
    net = Net()
    x = concat(net, image(net), tile(net))
    net.output(x)
    conv(net, x, 5)
    assert_site(net)


def test_every_intermediate_is_used_elsewhere():
    net = Net()
    copies = tile(net)
    active = net.node("Relu", copies)
    x = concat(net, image(net), active)
    conv(net, x, 5)
    for tensor in (copies, active, x):
        net.output(net.node("Neg", tensor))
    assert_site(net)


def test_several_contractions_and_shared_tiles():
    net = Net()
    copies = tile(net)
    first, second = concat(net, image(net), copies), concat(net, copies, image(net, 1))
    conv(net, first, 5)
    conv(net, first, 5, kernel=1)
    conv(net, second, 3)
    assert_site(net, 3)


def test_shared_weights():
    net = Net()
    weight, bias = net.random(4, 5, 3, 3), net.random(4)
    for _ in range(2):
        x = concat(net, image(net), tile(net))
        net.output(net.node("Conv", x, weight, bias, pads=[1] * 4))
    net.output(net.node("Conv", image(net, 5), weight, bias))
    assert_site(net, 2)


def test_a_chain_of_uniform_layers_is_followed_to_its_end():
    """Each rewritten layer makes a site of the next one, however many there are: a second run finds nothing."""
    net = Net()
    image(net)
    x = tile(net, 2)
    for _ in range(14):
        x = net.node("Relu", net.node("Conv", x, net.random(2, 2, 1, 1), net.random(2)))
    net.output(x)
    result = optimized(net.model(), SIZES)
    assert rewritten(result) >= 14


def test_merging_reshape_before_gemm():
    net = Net()
    dense = net.input("N", "T", 3)
    samples = net.node("Expand", net.input("N", 1, 4), net.shape(["N", "T", 4]))
    x = net.node("Reshape", net.node("Concat", dense, samples, axis=-1), net.ints(-1, 7))
    net.output(net.node("Gemm", x, net.random(7, 5), net.random(5), alpha=0.5), rank=2)
    assert_site(net, sizes=[{"N": 2, "T": 4}, {"N": 1, "T": 1}, {"N": 3, "T": 1}])


def test_explicit_zero_padding():
    net = Net()
    x = net.node("Pad", concat(net, image(net), tile(net)), net.ints(0, 0, 1, 2, 0, 0, 2, 1))
    conv(net, x, 5, pads=[0, 1, 1, 0])
    assert_site(net)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_that_continues_the_copies(mode):
    net = Net()
    x = net.node("Pad", concat(net, image(net), tile(net)), net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode=mode)
    conv(net, x, 5, pads=[0] * 4)
    assert_site(net, sizes=[{"N": 2, "H": 5, "W": 6}, {"N": 1, "H": 2, "W": 3}])


def test_weights_behind_identity_and_constant_nodes():
    net = Net()
    weight = net.node("Constant", value=numpy_helper.from_array(net.values.random((4, 5, 1, 1)).astype(np.float32)))
    x = concat(net, image(net), tile(net))
    net.output(net.node("Conv", x, net.node("Identity", weight)))
    assert_site(net)


def test_shapes_from_constants_of_every_kind():
    """``value_ints`` is a constant like ``value``."""
    net = Net()
    shape = net.node("Constant", value_ints=[1, 1, 4, 5])
    copies = net.node("Expand", net.input(1, 2, 1, 1), shape)
    conv(net, concat(net, net.input(1, 3, 4, 5), copies), 5)
    assert_site(net)


# -- no sites --------------------------------------------------------------------------------------------------------


def test_an_extent_that_happens_to_be_one():
    """Dynamic extents that are 1 in every example are not copies: here nothing is known to be copied."""
    net = Net()
    image(net)
    copies = net.node("Expand", net.input("N", 2, "P", 1), net.shape(["N", 2, "H", 1]))
    conv(net, copies, 2)
    assert_left(net, "does not follow", [{"N": 2, "H": 5, "W": 6, "P": 1}, {"N": 2, "H": 5, "W": 6, "P": 5}])


def test_stale_extents_of_intermediate_tensors():
    """A file made dynamic by hand still says that the batch was 1: that is no copy along the batch."""
    net = Net()
    core = net.node("Relu", net.input("N", 2, 1, 1))
    conv(net, concat(net, image(net), tile(net, 2, core), tile(net, 1, net.input(1, 1, 1, 1))), 6)
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(core, TensorProto.FLOAT, [1, 2, 1, 1]))
    result = optimized(model, SIZES)
    assert [s.uniform for s in result.sites[0].segments] == [[], [2, 3], [0, 2, 3]]


BLOCKERS = {
    "InstanceNormalization": lambda net, x: net.node("InstanceNormalization", x, net.random(5), net.random(5)),
    "Softmax": lambda net, x: net.node("Softmax", x, axis=1),
    "LayerNormalization": lambda net, x: net.node("LayerNormalization", x, net.random(5, 6), axis=2),
    "GroupNormalization": lambda net, x: net.node(
        "GroupNormalization", x, net.random(5), net.random(5), num_groups=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", BLOCKERS)
def test_normalization_across_what_is_joined(op):
    net = Net(21)
    copies = net.node("Expand", net.input(2, 2, 1, 1), net.ints(2, 2, 5, 6))
    x = BLOCKERS[op](net, concat(net, net.input(2, 3, 5, 6), copies))
    conv(net, x, 5)
    assert_left(net, f"{op} between")


def test_quantization_around_the_site():
    net = Net(13)
    scale, zero = net.scalar(0.05), net.constant(np.array(0, np.int8))
    x = concat(net, image(net), tile(net))
    quantized = net.node("DequantizeLinear", net.node("QuantizeLinear", x, scale, zero), scale, zero)
    conv(net, quantized, 5)
    assert_left(net, "quantized")


def test_quantized_weights():
    net = Net(13)
    weight = net.constant(net.values.integers(-9, 9, (4, 5, 1, 1)).astype(np.int8))
    weight = net.node("DequantizeLinear", weight, net.scalar(0.1), net.constant(np.array(0, np.int8)))
    net.output(net.node("Conv", concat(net, image(net), tile(net)), weight))
    assert_left(net, "quantized")


def test_quantization_between_tile_and_concat():
    net = Net(13)
    scale, zero = net.scalar(0.05), net.constant(np.array(0, np.int8))
    copies = net.node("DequantizeLinear", net.node("QuantizeLinear", tile(net), scale, zero), scale, zero)
    conv(net, concat(net, image(net), copies), 5)
    assert_left(net, "Linear between")


def test_weights_that_are_computed():
    net = Net()
    weight = net.node("Mul", net.random(4, 5, 1, 1), net.input(1, 1, 1, 1))
    net.output(net.node("Conv", concat(net, image(net), tile(net)), weight))
    assert_left(net, "not constant")


def test_weights_that_the_caller_may_override():
    """An initializer that is a graph input too is a default, not a constant."""
    net = Net()
    weight = net.random(4, 5, 1, 1, name="weight")
    net.output(net.node("Conv", concat(net, image(net), tile(net)), weight))
    model = net.model()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [4, 5, 1, 1]))
    assert_left(model, "not constant")


def test_a_shape_that_the_caller_may_override():
    net = Net()
    net.constant(np.array([2, 2, 5, 6], np.int64), name="shape")
    copies = net.node("Expand", net.input("N", 2, "P", 1), "shape")
    conv(net, concat(net, image(net), copies), 5)
    model = net.model()
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [4]))
    for output in model.graph.output:
        output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["a", "b", "c", "d"]))
    result = optimized(model, [{"N": 2, "H": 5, "W": 6, "P": 1}, {"N": 2, "H": 5, "W": 6, "P": 5}])
    assert not any(2 in s.uniform for site in result.sites for s in site.segments)


@pytest.mark.parametrize("source", [2, 3, 6])
def test_pooling_pyramid_bins(source):
    net = Net()
    bins = net.node("Resize", net.input(1, 2, source, source), "", "", net.ints(1, 2, 12, 12), mode="linear")
    conv(net, concat(net, net.input(1, 3, 12, 12), bins), 5)
    assert_left(net, None)


def test_resize_that_crops_beyond_the_image():
    net = Net()
    roi = net.constant(np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32))
    sizes = net.ints(1, 2, 6, 6)
    mode = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    conv(net, concat(net, net.input(1, 3, 6, 6), net.node("Resize", net.input(1, 2, 1, 1), roi, "", sizes, **mode)), 5)
    assert_left(net, None)


def test_resize_by_a_scale_that_keeps_the_extent_moves_the_samples():
    net = Net()
    scales = net.constant(np.array([1, 1, 1.1, 6], np.float32))
    copies = net.node("Resize", net.input(1, 2, 4, 1), "", scales, mode="linear")
    conv(net, concat(net, net.input(1, 3, 4, 6), copies), 5)
    assert_left(net, None)


def test_resize_of_channels_last():
    """The first two extents are not always batch and channels."""
    net = Net()
    x = net.node(
        "Resize", net.input("N", "H", 1, 2), "", net.constant(np.array([1, 2, 6, 1], np.float32)), mode="nearest"
    )
    doubled = net.node("Resize", net.input("N", "H", 6, 2), "", net.constant(np.array([1, 2, 1, 1], np.float32)))
    x = net.node("Transpose", net.node("Concat", x, doubled, axis=3), perm=[0, 3, 1, 2])
    conv(net, x, 4)
    optimized(net.model(), [{"N": 2, "H": 3}, {"N": 1, "H": 1}])


def test_periodic_tile():
    net = Net()
    periodic = net.node("Tile", net.input(1, 2, 2, 3), net.ints(1, 1, 3, 2))
    conv(net, concat(net, net.input(1, 3, 6, 6), periodic), 5)
    assert_left(net, "does not follow")


def test_constant_border_before_a_chain():
    """Behind Sigmoid the border holds 0.5: another value than the copies, and not zero."""
    net = Net()
    padded = net.node("Pad", concat(net, image(net), tile(net)), net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    conv(net, net.node("Sigmoid", padded), 5, pads=[0] * 4)
    assert_left(net, "Pad between the copies")


def test_same_padding_that_depends_on_the_size():
    net = Net()
    weight = net.random(4, 5, 3, 3)
    x = concat(net, image(net), tile(net))
    net.output(net.node("Conv", x, weight, auto_pad="SAME_UPPER", strides=[2, 2]))
    assert_left(net, "its padding depends on the size")


def test_normalization_in_training_mode():
    net = Net(15)
    x = concat(net, image(net), tile(net))
    parameters = [net.random(5), net.random(5), net.random(5), net.constant(np.ones(5, np.float32))]
    y, *_ = net.node("BatchNormalization", x, *parameters, outputs=3, training_mode=1)
    conv(net, y, 5)
    assert_left(net, "BatchNormalization between the copies", [])


def test_dropout_that_drops():
    net = Net(13)
    x = concat(net, image(net), tile(net))
    y = net.node("Dropout", x, net.constant(np.array(0.5, np.float32)), net.constant(np.array(True)))
    conv(net, y, 5)
    model = net.model()
    result = optimized(model, [])
    assert rewritten(result) == 0


def test_transposed_left_operand():
    net = Net()
    x = net.node("Concat", net.input(3, 6), net.node("Expand", net.input(2, 1), net.ints(2, 6)), axis=0)
    net.output(net.node("Gemm", x, net.random(5, 4), transA=1))
    assert_left(net, "transA")


def test_convtranspose_with_an_output_shape():
    net = Net()
    x = concat(net, net.input(1, 3, 4, 4), net.node("Expand", net.input(1, 2, 1, 1), net.ints(1, 2, 4, 4)))
    net.output(net.node("ConvTranspose", x, net.random(5, 2, 3, 3), strides=[2, 2], output_shape=[9, 9]))
    assert_left(net, "output shape")


@pytest.mark.parametrize("op", ["Expand", "Concat", "Conv", "Relu"])
def test_operators_of_other_domains_are_not_what_their_names_say(op):
    """A model-local function that is called like an ONNX operator does something else."""
    net = Net()
    wrap = dict.fromkeys(("Expand", "Concat", "Conv", "Relu"), "") | {op: "other"}
    copies = net.node(
        "Expand", net.input("N", 2, 1, 1), net.shape(["N", 2, "H", "W"]) if image(net) else "", domain=wrap["Expand"]
    )
    copies = net.node("Relu", copies, domain=wrap["Relu"])
    x = net.node("Concat", image(net), copies, axis=1, domain=wrap["Concat"])
    y = net.node("Conv", x, net.random(4, 5, 1, 1), domain=wrap["Conv"])
    net.output(y)
    bodies = {  # one that reads its inputs in another way
        "Expand": [helper.make_node("Expand", ["a", "b"], ["t"]), helper.make_node("CumSum", ["t", "i"], ["y"])],
        "Relu": [helper.make_node("CumSum", ["a", "i"], ["y"])],
        "Concat": [helper.make_node("Concat", ["b", "a"], ["y"], axis=1)],
        "Conv": [helper.make_node("Conv", ["a", "b"], ["t"]), helper.make_node("Neg", ["t"], ["y"])],
    }
    axis = helper.make_node("Constant", [], ["i"], value=numpy_helper.from_array(np.array(2, np.int64)))
    inputs = ["a"] if op == "Relu" else ["a", "b"]
    attributes = ["axis"] if op == "Concat" else []
    body = [axis, *bodies[op]]
    net.functions.append(
        helper.make_function("other", op, inputs, ["y"], body, [helper.make_opsetid("", 17)], attributes)
    )
    model = net.model()
    session(model)
    optimized(model, SIZES[:2])


def test_kernel_larger_than_the_input():
    net = Net()
    copies = net.node("Expand", net.input(1, 2, 1, 1), net.ints(1, 2, 2, 2))
    weight = net.random(4, 5, 5, 5)
    net.output(net.node("Conv", concat(net, net.input(1, 3, 2, 2), copies), weight, pads=[1] * 4), rank=4)
    model = net.model()
    result = optimized(model, [])
    assert rewritten(result) == 0
    assert "no output" in reasons(result)


def test_convtranspose_that_crops_everything():
    net = Net()
    copies = net.node("Expand", net.input(1, 2, 1, 1), net.ints(1, 2, 2, 2))
    x = concat(net, net.input(1, 3, 2, 2), copies)
    net.output(net.node("ConvTranspose", x, net.random(5, 4, 1, 1), pads=[1] * 4), rank=4)
    model = net.model()
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    assert "no output" in reasons(optimized(model, []))


def test_no_channels_and_no_pixels():
    net = Net()
    x = concat(net, image(net), tile(net, 2), net.input("N", 0, "H", "W"))
    conv(net, x, 5)
    assert_site(net)
    net = Net()
    conv(net, concat(net, image(net), tile(net)), 5)
    assert_site(net, sizes=[{"N": 0, "H": 4, "W": 5}, {"N": 2, "H": 4, "W": 5}])


def test_a_reshape_whose_extents_cannot_be_matched():
    """Extents that are 1 at run time, under names that do not say so."""
    for source, target in (([6, "K"], [6]), ([6], [6, "K"])):
        net = Net()
        net.input("K")
        copies = net.node("Expand", net.input(*[1 for _ in source]), net.shape(source))
        x = net.node("Reshape", copies, net.shape(target))
        x = net.node("Reshape", x, net.ints(1, 6))
        net.output(net.node("MatMul", x, net.random(6, 2)), rank=2)
        optimized(net.model(), [{"K": 1}])


def test_a_model_without_sites_is_returned_as_it_is():
    net = Net()
    conv(net, image(net), 3)
    assert_left(net, None)


def test_metadata_of_what_is_not_rewritten_survives():
    net = Net()
    x = net.node("Relu", concat(net, image(net), tile(net)), name="keep_me")
    conv(net, x, 5)
    net.output(x)
    model = net.model()
    for node in model.graph.node:
        node.metadata_props.add(key="origin", value=node.name)
        node.doc_string = "documented"
    result = optimized(model, SIZES)
    kept = {n.name: n for n in result.model.graph.node if not any(p.key == "msconv.rule" for p in n.metadata_props)}
    assert kept["keep_me"] == next(n for n in model.graph.node if n.name == "keep_me")
    made = [n for n in result.model.graph.node if n.name not in kept]
    assert made
    assert all({p.key: p.value for p in n.metadata_props}["msconv.replaces"] for n in made)
    assert onnx.checker.check_model(result.model) is None


@pytest.mark.parametrize("outside", [False, True], ids=["copies inside", "copies outside"])
def test_a_body_of_control_flow_is_left_and_reported(outside):
    net = Net()
    image = net.input("N", 2, "H", "W")
    shape = net.shape(["N", 3, "H", "W"])
    core = net.input("N", 3, 1, 1)
    tiled = net.node("Expand", core, shape, name="spread") if outside else "tiled"
    weight = net.random(4, 5, 1, 1)
    branch = [
        onnx.helper.make_node("Concat", [image, tiled], ["joined"], "join", axis=1),
        onnx.helper.make_node("Conv", ["joined", weight], ["then"], "inner"),
    ]
    if not outside:
        branch.insert(0, onnx.helper.make_node("Expand", [core, shape], ["tiled"], "spread"))
    other = [onnx.helper.make_node("Conv", [image, net.random(4, 2, 1, 1)], ["else"], "plain")]
    graphs = [
        onnx.helper.make_graph(
            nodes, name, [], [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)]
        )
        for nodes, name in ((branch, "then"), (other, "else"))
    ]
    flag = net.input(dtype=bool, name="flag")
    net.output(net.node("If", flag, name="choice", then_branch=graphs[0], else_branch=graphs[1]))
    result = optimized(net.model(), [{"N": 2, "H": 3, "W": 4}])
    assert not result.changed
    (miss,) = result.near_misses
    assert (miss.node, miss.op, miss.nodes) == ("choice", "If", ["inner", "spread"])
    assert miss.reason == "Conv inner is below copies inside the body of If, which is not rewritten"
