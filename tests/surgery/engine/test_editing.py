"""Editing: what is not rewritten stays as it was, whatever the file contains, and large graphs take linear time."""

import copy
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.surgery.engine.editing import EditableModel, skeleton_of
from msconv_deploy.surgery.optimize import optimize_model
from tests.surgery.graphs import Net, optimized, reasons, rewritten
from tests.surgery.rules.test_tile_concat_conv import SIZES, concat, conv, image, tile


def site(opset: int = 17) -> tuple[Net, str, str, str]:
    """A net with one site: (net, the tile, the concat, the output)."""
    net = Net(opset)
    copies = tile(net)
    x = concat(net, image(net), copies)
    return net, copies, x, conv(net, x, 5)


def assert_rewritten(model, sizes=SIZES, sites: int = 1, **kwargs):
    result = optimized(model, sizes, **kwargs)
    assert rewritten(result) == sites, reasons(result)
    assert result.ran
    return result


# -- names -----------------------------------------------------------------------------------------------------------


def test_names_that_are_taken():
    """Tensors, nodes, inputs and names inside subgraphs that look like those that a rewrite makes."""
    net, *_ = site()
    net.nodes[-1].name = "conv"
    taken = net.input("N", name="conv/msconv_dense")
    net.output(net.node("Neg", taken, outputs="conv/msconv_term", name="conv/msconv_sum"))
    condition = net.input(dtype=bool)
    inner = [
        helper.make_graph(
            [helper.make_node("Neg", [taken], [f"conv/msconv1_{word}"], name="conv/msconv1_dense")],
            word,
            [],
            [helper.make_tensor_value_info(f"conv/msconv1_{word}", TensorProto.FLOAT, None)],
        )
        for word in ("term", "ints")
    ]
    net.output(net.node("If", condition, then_branch=inner[0], else_branch=inner[1]), rank=1)
    assert_rewritten(net.model())


@pytest.mark.parametrize("name", ["", "same"])
def test_nodes_without_names_and_with_equal_names(name):
    """ONNX Runtime refuses equal names, the ONNX checker does not; ours are unique all the same."""
    net = Net()
    for _ in range(3):
        conv(net, concat(net, image(net), tile(net)), 5)
    for node in net.nodes:
        node.name = name
    model = net.model()
    result = optimize_model(model, Path(), "always")
    assert rewritten(result) == 3
    made = [n.name for n in result.model.graph.node if n.metadata_props]
    assert len(set(made)) == len(made)
    if not name:
        assert_rewritten(model, sites=3)


# -- subgraphs and functions -----------------------------------------------------------------------------------------


def _if(net: Net, captured: str, nodes=None) -> str:
    """An If whose branches read an outer tensor."""
    branches = []
    for word in ("then", "else"):
        op = helper.make_node("Relu" if word == "then" else "Identity", [captured], [f"{captured}_{word}"])
        value = helper.make_tensor_value_info(f"{captured}_{word}", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([op], word, [], [value]))
    return net.node("If", net.input(dtype=bool), then_branch=branches[0], else_branch=branches[1])


@pytest.mark.parametrize("op", ["Mul", "Add", "Identity"])
def test_what_follows_in_a_body_is_not_taken_over(op):
    """The only reader of the site is in a body: its operator does not become part of the weights."""
    net = Net()
    copies, scale = tile(net), net.random(1, 3, 1, 1)
    y = net.node("Conv", concat(net, image(net), copies), net.random(3, 5, 3, 3), pads=[1, 1, 1, 1])
    branches = []
    for word, inner_op, read in (("then", op, [y] if op == "Identity" else [y, scale]), ("else", "Identity", [copies])):
        value = helper.make_tensor_value_info(f"{word}_result", TensorProto.FLOAT, None)
        inner = helper.make_node(inner_op, read, [f"{word}_result"])
        branches.append(helper.make_graph([inner], word, [], [value]))
    net.output(net.node("If", net.input(dtype=bool), then_branch=branches[0], else_branch=branches[1]))
    result = assert_rewritten(net.model())
    (done,) = [s for s in result.sites if s.decision == "rewritten"]
    assert (done.output, done.taken_over) == (y, [])


@pytest.mark.parametrize("which", ["tile", "concat", "output"])
def test_captured_tensors_stay_alive(which):
    net, copies, x, y = site()
    net.output(_if(net, {"tile": copies, "concat": x, "output": y}[which]))
    assert_rewritten(net.model())


def test_the_output_of_a_branch_may_be_an_outer_tensor():
    net, copies, _, _ = site()
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    same = helper.make_graph([helper.make_node("Identity", [copies], ["inner"])], "same", [], [value])
    other = helper.make_graph([helper.make_node("Neg", [copies], ["inner2"])], "other", [], [
        helper.make_tensor_value_info("inner2", TensorProto.FLOAT, None)
    ])  # fmt: skip
    net.output(net.node("If", net.input(dtype=bool), then_branch=same, else_branch=other))
    assert_rewritten(net.model())


def test_a_loop_that_captures_the_concat():
    net, _, x, _ = site()
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", x], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    count = net.constant(np.array(3, np.int64))
    net.output(net.node("Loop", count, net.constant(np.array(True)), x, body=body))
    assert_rewritten(net.model())


def test_sites_inside_subgraphs_are_left_as_they_are():
    net = Net()
    copies = tile(net)
    x = image(net)
    weight = net.random(4, 5, 1, 1)
    branches = []
    for word in ("then", "else"):
        nodes = [
            helper.make_node("Concat", [x, copies], [f"{word}_joined"], axis=1),
            helper.make_node("Conv", [f"{word}_joined", weight], [f"{word}_out"]),
        ]
        value = helper.make_tensor_value_info(f"{word}_out", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, word, [], [value]))
    net.output(net.node("If", net.input(dtype=bool), then_branch=branches[0], else_branch=branches[1]))
    model = net.model()
    assert optimized(model, SIZES).model is model
    conv(net, concat(net, x, copies), 5)
    assert_rewritten(net.model())


def test_functions_and_their_overloads_stay():
    net, _, _, y = site()
    for overload, op in (("", "Neg"), ("smooth", "Sigmoid")):
        net.functions.append(
            helper.make_function("mine", "act", ["a"], ["b"], [helper.make_node(op, ["a"], ["b"])],
                                 [helper.make_opsetid("", 17)], overload=overload)
        )  # fmt: skip
        made = net.node("act", y, domain="mine")
        net.nodes[-1].overload = overload
        net.output(made)
    result = optimized(net.model(ir_version=10), SIZES)
    assert rewritten(result) == 1
    assert [n.overload for n in result.model.graph.node if n.domain == "mine"] == ["", "smooth"]


# -- weights ---------------------------------------------------------------------------------------------------------


def test_sparse_initializers_stay():
    net, _, _, y = site()
    indices = numpy_helper.from_array(np.array([0, 2], np.int64))
    values = numpy_helper.from_array(np.array([1.5, -2], np.float32), "sparse")
    net.output(net.node("Mul", y, "sparse"))
    model = net.model()
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1, 4, 1, 1][1:2]))
    result = optimize_model(model, Path(), "always")
    assert rewritten(result) == 1
    assert list(result.model.graph.sparse_initializer) == list(model.graph.sparse_initializer)
    assert [t.name for t in result.model.graph.initializer].count("sparse") == 0


def test_defaults_of_inputs_stay_defaults():
    net, _, _, y = site()
    net.constant(np.ones((1, 4, 1, 1), np.float32), name="gain")
    net.output(net.node("Mul", y, "gain"))
    net.constant(np.ones(7, np.float32), name="unused")
    model = net.model()
    for name, shape in (("gain", [1, 4, 1, 1]), ("unused", [7])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    result = assert_rewritten(model)
    assert {"gain", "unused"} <= {t.name for t in result.model.graph.initializer}


def test_every_initializer_of_an_old_file_is_an_input():
    """IR version 3 wants that; new weights are Constant nodes then, so that the inputs stay what they are."""
    net, _, _, y = site()
    net.output(y)
    model = net.model()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for node in [n for n in model.graph.node if n.op_type == "Conv"]:  # the weights of the site are constant
        for name in node.input[1:]:
            (given,) = [v for v in model.graph.input if v.name == name]
            (tensor,) = [t for t in model.graph.initializer if t.name == name]
            constant = helper.make_node("Constant", [], [name], value=tensor)
            model.graph.input.remove(given)
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, constant)
    result = assert_rewritten(model)
    known = {value.name for value in result.model.graph.input}
    assert {t.name for t in result.model.graph.initializer} <= known


def test_constants_of_every_type_are_copied_bit_by_bit():
    net, _, _, y = site()
    bf16 = helper.make_tensor("bf16", TensorProto.BFLOAT16, [2], [1.5, -3.0])
    int4 = helper.make_tensor("int4", TensorProto.INT4, [3], [1, -2, 3])
    text = helper.make_tensor("text", TensorProto.STRING, [2], [b"a\xff", b""])
    net.initializers += [bf16, int4, text]
    for name in ("bf16", "int4"):
        net.output(net.node("Mul", y, net.node("ReduceSum", net.node("Cast", name, to=1), keepdims=0)))
    net.node("Identity", "text", outputs="text_out")
    model = net.model(ir_version=10)
    model.graph.output.append(helper.make_tensor_value_info("text_out", TensorProto.STRING, [2]))
    result = optimize_model(model, Path(), "always")
    assert rewritten(result) == 1
    kept = {t.name: t for t in result.model.graph.initializer}
    assert [kept[t.name] for t in (bf16, int4, text)] == [bf16, int4, text]


def test_external_data(tmp_path):
    net, *_ = site()
    net.output(net.node("Conv", image(net, 5), net.random(40, 5, 3, 3)))
    model = net.model()
    onnx.save(
        copy.deepcopy(model), tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0
    )
    lazy = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    result = optimize_model(lazy, tmp_path, "always")
    assert rewritten(result) == 1
    onnx.save(result.model, tmp_path / "out.onnx")
    plain = optimize_model(model, tmp_path, "always").model
    loaded = onnx.load(tmp_path / "out.onnx")
    arrays = {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}
    assert arrays.keys() == {t.name for t in plain.graph.initializer}
    assert all(np.array_equal(arrays[t.name], numpy_helper.to_array(t)) for t in plain.graph.initializer)


def test_large_weights_stand_aside():
    net, _, _, y = site()
    net.output(net.node("Conv", y, net.random(40, 4, 3, 3)))
    model = net.model()
    light, weights = skeleton_of(model)
    assert weights
    assert light.ByteSize() < model.ByteSize() - sum(len(t.raw_data) for t in weights.values()) + 100
    assert EditableModel(model, Path(), 17).export().ByteSize() <= model.ByteSize()


def test_optional_inputs_and_unused_outputs():
    net, _, _, y = site()
    clipped = net.node("Clip", y, "", net.scalar(0.5))
    low, _ = net.node("TopK", net.node("Reshape", clipped, net.ints(-1)), net.ints(1), outputs=2)
    net.output(clipped, low, rank=4)
    assert_rewritten(net.model())


def test_quantization_annotations_keep_their_tensors():
    net, _, _, y = site()
    net.scalar(0.5)
    scale = net.initializers[-1].name
    model = net.model()
    annotation = model.graph.quantization_annotation.add(tensor_name=y)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    result = assert_rewritten(model)
    assert scale in {t.name for t in result.model.graph.initializer}
    assert list(result.model.graph.quantization_annotation) == list(model.graph.quantization_annotation)


def test_outputs_that_are_inputs_or_constants():
    net, *_ = site()
    model = net.model()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "fixed"))
    model.graph.output.append(helper.make_tensor_value_info("fixed", TensorProto.FLOAT, [3]))
    model.graph.output.append(model.graph.input[0])
    assert_rewritten(model)


# -- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["above", "between", "behind"])
def test_chains_longer_than_the_stack(place):
    net = Net()

    def chain(x: str) -> str:
        for _ in range(5000):
            x = net.node("Relu", x)
        return x

    dense, copies = image(net), tile(net)
    if place == "above":
        dense = chain(dense)
    elif place == "between":
        copies = chain(copies)
    y = net.node("Conv", concat(net, dense, copies), net.random(4, 5, 1, 1))
    net.output(chain(y) if place == "behind" else y)
    result = optimize_model(net.model(), Path(), "always")
    onnx.checker.check_model(result.model)
    assert sum(n.op_type == "Relu" for n in result.model.graph.node) == 5000
    # Only so many operators are followed at once; the copies move behind those first, and then the rest is followed.
    assert rewritten(result) == 1
    assert rewritten(result, "sink-broadcast") == (1 if place == "between" else 0)


def _blocks(count: int) -> onnx.ModelProto:
    """``count`` blocks of 10 nodes, one site in ten blocks."""
    net = Net()
    x = image(net, 4)
    copies = tile(net, 2)
    for block in range(count):
        if block % 10 == 0:
            x = net.node("Conv", concat(net, x, copies), net.random(4, 6, 1, 1))
        for _ in range(9):
            x = net.node("Relu", x)
        x = net.node("Add", x, net.random(1, 4, 1, 1))
    net.output(x)
    return net.model()


def test_time_is_near_linear_in_the_graph():
    folder = Path()
    seconds = []
    for count in (100, 800):
        model = _blocks(count)
        start = time.process_time()
        assert rewritten(optimize_model(model, folder, "always")) == count // 10
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * 3 * seconds[0], seconds  # quadratic time would be 64 times
