"""`sink-broadcast` and `drop-expand`, each applied by itself wherever it matches."""

from pathlib import Path

import onnx
import pytest

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.rules import drop_expand, sink_broadcast
from tests.surgery.graphs import Net, assert_interface_kept, compare, feeds, session

SIZES = [{"N": 2, "H": 5, "W": 6}, {"N": 1, "H": 1, "W": 3}, {"N": 3, "H": 1, "W": 1}]


def applied(rule, net: Net, expected: int, sizes=SIZES) -> onnx.ModelProto:
    """Apply a rule at every node, check the result against the original, and that nothing is left to do."""
    model = net.model()
    result, count = _apply(rule, model)
    assert count == expected
    assert _apply(rule, result)[1] == 0
    onnx.checker.check_model(result)
    assert_interface_kept(model, result)
    before, after = session(model), session(result)
    for number, assignment in enumerate(sizes):
        given = feeds(model, assignment, number)
        compare(before.run(None, given), after.run(None, given), assignment)
    return result


def _apply(rule, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    editable = EditableModel(model, Path(), model.opset_import[0].version)
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, editable.opset)
    count = 0
    for node in list(editable.graph.nodes):
        found = rule.match(node, symbols, decomposer)
        if found is None or isinstance(found, Refusal):
            continue
        built = rule.rewrite(editable, symbols, found, editable.new_prefix(f"{node.name}/msconv"))
        if isinstance(built, GraphBuilder):
            node.outputs.clear()
            editable.insert(built, {"msconv.rule": rule.ID})
            count += 1
    return (editable.export() if count else model), count


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def tile(net: Net, small=("N", 2, 1, 1)) -> str:
    if "H" not in net.symbols:
        net.output(net.node("Neg", net.input("N", 3, "H", "W")))
    return net.node("Expand", net.input(*small), net.shape(["N", 2, "H", "W"]))


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_a_chain_runs_on_the_core(opset):
    net = Net(opset)
    x = net.node("Mul", net.node("Relu", tile(net)), net.random(2, 1, 1))
    net.output(net.node("Transpose", net.node("Sigmoid", x), perm=[0, 2, 3, 1]))
    result = applied(sink_broadcast, net, 1)
    assert ops(result)[-1] == "Expand"
    assert ops(result).count("Expand") == 1


def test_batch_normalization_runs_on_the_core():
    net = Net()
    parameters = [net.random(2) for _ in range(3)]
    variance = net.constant(abs(net.values.standard_normal(2)).astype("float32") + 1)
    x = net.node("BatchNormalization", tile(net, ("N", 2, "H", 1)), *parameters, variance)
    net.output(x)
    applied(sink_broadcast, net, 1)


def test_a_result_in_the_middle_is_kept():
    net = Net()
    x = net.node("Relu", tile(net))
    net.output(x, net.node("ReduceMean", x, axes=[2]))
    net.output(net.node("Tanh", x))
    applied(sink_broadcast, net, 2)


@pytest.mark.parametrize("form", ["dense", "softmax", "made by broadcasting", "may be 1"])
def test_what_is_not_uniform_stays(form):
    net = Net()
    if form == "dense":
        net.output(net.node("Add", tile(net), net.input("N", 2, "H", "W")))
    elif form == "softmax":
        net.output(net.node("Softmax", tile(net), axis=1))
    elif form == "made by broadcasting":
        net.output(net.node("Add", net.input("N", 2, 1, 1), net.input("N", 2, "H", 1)))
    else:
        net.output(net.node("Relu", tile(net, ("N", 2, "P", "Q"))))
    applied(sink_broadcast, net, 0, [])


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Max", "Pow"])
@pytest.mark.parametrize("first", [True, False])
def test_copies_beside_a_full_tensor_are_not_made(op, first):
    net = Net()
    pair = [tile(net), net.node("Sigmoid", net.input("N", 2, "H", "W"))]
    pair[0] = net.node("Expand", net.node("Sigmoid", net.input("N", 2, 1, 1)), net.shape(["N", 2, "H", "W"]))
    net.output(net.node(op, *(pair if first else pair[::-1])))
    assert "Expand" not in ops(applied(drop_expand, net, 1))


def test_a_tile_of_extent_one_is_not_made():
    net = Net()
    copies = net.node("Tile", net.input("N", 1, 1, 4), net.ints(1, 2, 3, 1))
    net.output(net.node("Mul", copies, net.input("N", 2, 3, 4)))
    assert "Tile" not in ops(applied(drop_expand, net, 1))


@pytest.mark.parametrize("form", ["periodic", "other is small", "other has another name", "two copies"])
def test_copies_that_give_the_result_its_shape_stay(form):
    net = Net()
    if form == "periodic":
        copies = net.node("Tile", net.input("N", 1, 2, 1), net.ints(1, 2, 2, 4))
        net.output(net.node("Mul", copies, net.input("N", 2, 4, 4)))
    elif form == "other is small":
        net.output(net.node("Add", tile(net), net.input("N", 2, 1, 1)))
    elif form == "other has another name":
        net.output(net.node("Add", tile(net), net.input("N", 2, "P", "Q")))
    else:  # one of the two has to stay
        net.output(net.node("Add", tile(net), tile(net)))
        assert ops(applied(drop_expand, net, 1)).count("Expand") == 1
        return
    applied(drop_expand, net, 0, [])
