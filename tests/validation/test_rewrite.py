"""Verification of rewritten models: what it catches, what it does not blame, and what it leaves alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.model_files import read_model
from msconv_deploy.surgery.optimize import optimize_model
from msconv_deploy.validation import InputOptions, ValidationOptions
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.joins import Join
from msconv_deploy.validation.macs import count_macs
from msconv_deploy.validation.rewrite import OUTPUTS, SITES, verify_rewrite
from msconv_deploy.validation.site_sensitivity import CheckedSite
from tests.surgery.graphs import Net
from tests.tile_models import tiled_conv

SITE = CheckedSite("first", "t1", 19, [(3, 16)])
SMALL = ValidationOptions(inputs=InputOptions(sizes=[{"N": 2, "H": 6, "W": 5}, {"N": 1, "H": 1, "W": 2}]))


def optimized(path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    original = read_model(path)
    result = optimize_model(original, path.parent, "always")
    assert result.changed
    return original, result.model


def spoilt(model: onnx.ModelProto, amount: float, name: str | None = None) -> onnx.ModelProto:
    """A copy with one weight changed, by default of the first new one."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wanted = [t for t in copy.graph.initializer if t.data_type == TensorProto.FLOAT]
    tensor = next(t for t in wanted if t.name == name) if name else next(t for t in wanted if "/msconv" in t.name)
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[0] += amount
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return copy


@pytest.mark.parametrize("external", [False, True])
def test_a_right_rewrite_passes_and_models_stay_as_they_are(tmp_path, external):
    path = tiled_conv(tmp_path / "m.onnx", external=external)
    original, rewritten = optimized(path)
    before = original.SerializeToString(), rewritten.SerializeToString(), path.read_bytes()
    check = verify_rewrite(path, original, rewritten, [SITE])
    assert (original.SerializeToString(), rewritten.SerializeToString(), path.read_bytes()) == before
    report = check.report
    assert (report.verdict, report.reason) == ("passed", "")
    assert {row.runtime for row in report.sites} == {SITES}
    assert {row.runtime for row in report.outputs} == {OUTPUTS}
    assert len(report.sites) == len(report.cases) == 8
    assert report.insensitive_sites == []
    assert all(row.border is not None for row in report.sites)
    assert min(min(case.shapes["x"][2:]) for case in report.cases) == 1


def test_a_wrong_rewrite_is_found_at_its_site(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    report = verify_rewrite(path, original, spoilt(rewritten, 0.05), [SITE], SMALL).report
    assert report.verdict == "differ"
    assert any(row.verdict == "differ" for row in report.sites)
    assert report.divergence.tensor == "t1"


def test_a_normalization_cannot_hide_a_wrong_rewrite(tmp_path):
    """An InstanceNorm after the site removes a wrong constant from the graph's output; the site's own output has it."""
    path = tiled_conv(tmp_path / "m.onnx", relu=False)
    model = onnx.load(path)
    second = model.graph.node[-1]
    second.CopyFrom(helper.make_node("InstanceNormalization", ["t1", "ones", "zeros"], ["y"], "norm"))
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in (("ones", np.ones(24)), ("zeros", np.zeros(24)))
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 24
    onnx.save(model, path)
    original, rewritten = optimized(path)
    one_size = ValidationOptions(inputs=InputOptions(sizes=[{"N": 1, "H": 24, "W": 24}]))
    wrong = spoilt(rewritten, 0.5, "b1")
    report = verify_rewrite(path, original, wrong, [SITE], one_size).report
    assert [row.verdict for row in report.outputs] == ["passed"]
    assert [row.verdict for row in report.sites] == ["differ"]
    assert report.verdict == "differ"


def test_tolerances_do_not_depend_on_the_rewritten_graph(tmp_path):
    """Nodes that round many times cannot loosen what the rewrite is measured by."""
    path = tiled_conv(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    first = verify_rewrite(path, original, rewritten, [SITE], SMALL).report
    padded = onnx.ModelProto()
    padded.CopyFrom(rewritten)
    last = padded.graph.node[-1]
    last.output[0] = "y0"
    for index in range(40):
        output = "y" if index == 39 else f"y{index + 1}"
        padded.graph.node.append(helper.make_node("Mul", [f"y{index}", "unit"], [output], f"unit{index}"))
    padded.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "unit"))
    second = verify_rewrite(path, original, padded, [SITE], SMALL).report
    assert [r.policy_tolerance for r in first.comparisons] == [r.policy_tolerance for r in second.comparisons]


def test_an_insensitive_site_is_not_passed(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx", tiled_weight=0.0)
    original, rewritten = optimized(path)
    report = verify_rewrite(path, original, rewritten, [SITE], SMALL).report
    assert report.insensitive_sites == ["t1"]
    assert report.verdict == "unverified"
    assert "insensitive" in report.reason


def test_an_interface_that_changed_differs(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    for change, words in (
        (lambda m: m.graph.output[0].type.tensor_type.shape.dim[2].ClearField("value"), "output y: float Nx2xHxW"),
        (lambda m: m.graph.input.reverse(), "inputs: x, s became s, x"),
        (lambda m: setattr(m.opset_import[0], "version", 18), "opset of ai.onnx: 17 became 18"),
        (lambda m: m.metadata_props.pop(), "metadata 'author' is lost"),
    ):
        other = onnx.ModelProto()
        other.CopyFrom(rewritten)
        change(other)
        report = verify_rewrite(path, original, other, [SITE], SMALL).report
        assert report.verdict == "differ"
        assert words in report.reason


def test_a_rewrite_that_does_not_run_differs(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    broken = onnx.ModelProto()
    broken.CopyFrom(rewritten)
    shape = next(t for t in broken.graph.initializer if t.name == "w2")
    shape.CopyFrom(numpy_helper.from_array(np.zeros((2, 23, 3, 3), np.float32), "w2"))
    report = verify_rewrite(path, original, broken, [SITE], SMALL).report
    assert report.verdict == "differ"
    assert "does not run at this size, but the reference does" in report.reason


def test_no_usable_size_is_unverified(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    np.savez(tmp_path / "in.npz", x=np.full((1, 3, 4, 4), np.nan, np.float32))
    options = ValidationOptions(inputs=InputOptions(files=[tmp_path / "in.npz"]))
    report = verify_rewrite(path, original, rewritten, [SITE], options).report
    assert report.verdict == "unverified"
    assert "the reference is NaN" in report.reason


def test_an_extent_that_only_a_constant_tells_is_found(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "y0"
    model.graph.node.append(helper.make_node("Concat", ["y0", "grid"], ["y"], "with_grid", axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 20, 20), np.float32), "grid"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, path)
    original, rewritten = optimized(path)
    report = verify_rewrite(path, original, rewritten, [SITE]).report
    assert report.verdict == "passed"
    assert [case.size for case in report.cases] == [{"N": 1, "H": 20, "W": 20}]
    assert len(report.refused) > 5


# -- counting ------------------------------------------------------------------------------------------------------


def count(tmp_path, node: onnx.NodeProto, shapes: dict[str, list[int]], functions=()) -> int:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(s)) for n, s in shapes.items()]
    output = onnx.ValueInfoProto(name="y")
    output.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph([node], "g", inputs, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return count_macs(tmp_path / "m.onnx", model, Inputs("case0", {}, arrays))


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "macs"),
    [
        ("Conv", {"x": [2, 6, 9, 8], "w": [4, 3, 3, 3]}, {"group": 2}, 2 * 4 * 7 * 6 * 3 * 9),
        ("ConvTranspose", {"x": [2, 6, 5, 4], "w": [6, 2, 3, 3]}, {"group": 2}, 2 * 6 * 5 * 4 * 2 * 9),
        ("Gemm", {"x": [5, 7], "w": [5, 3]}, {"transA": 1}, 7 * 3 * 5),
        ("MatMul", {"x": [4, 2, 3], "w": [3, 5]}, {}, 4 * 2 * 3 * 5),
        ("Einsum", {"x": [2, 4, 3], "w": [2, 3, 5]}, {"equation": "bij,bjk->bik"}, 2 * 4 * 3 * 5),
        ("Einsum", {"x": [6, 2, 4, 3], "w": [3, 5]}, {"equation": "...ij,jk->...ik"}, 6 * 2 * 4 * 3 * 5),
        ("Relu", {"x": [6, 2]}, {}, 0),
    ],
)
def test_macs(tmp_path, op, shapes, attributes, macs):
    assert count(tmp_path, helper.make_node(op, list(shapes), ["y"], **attributes), shapes) == macs


def test_macs_in_function_bodies(tmp_path):
    body = helper.make_node("MatMul", ["a", "b"], ["c"])
    function = helper.make_function("own", "Product", ["a", "b"], ["c"], [body], [helper.make_opsetid("", 17)])
    node = helper.make_node("Product", ["x", "w"], ["y"], domain="own")
    assert count(tmp_path, node, {"x": [2, 3], "w": [3, 4]}, [function]) == 24


# -- sizes at which the original is not defined --------------------------------------------------------------------------

UNDEFINED = {"N": 1, "H": 1, "W": 1}


def pooled(path: Path, channels: int = 4) -> Path:
    """A convolution of an image at half the size and a tile whose extents are computed, as exporters do, as H / 2 and W / 2.

    Of an extent of 1 the pooling makes 1 in ONNX Runtime and the division 0: the tile is empty there, and its channels of
    the joined tensor are memory that nobody wrote.
    """
    net = Net(opset=18)
    image = net.node(
        "AveragePool", net.input("N", 3, "H", "W", name="x"), kernel_shape=[2, 2], strides=[2, 2], name="pool"
    )
    halves = [net.node("Div", net.extent(dim), net.ints(2)) for dim in "HW"]
    extents = net.node("Concat", net.extent("N"), net.ints(channels), *halves, axis=0)
    tile = net.node("Expand", net.input("N", channels, 1, 1, name="s"), extents, outputs="tile")
    joined = net.node("Concat", image, tile, axis=1, name="join")
    weight = net.random(5, 3 + channels, 3, 3, name="w")
    net.output(net.node("Conv", joined, weight, outputs="t1", name="first", pads=[1, 1, 1, 1]))
    onnx.save(net.model(), path)
    return path


POOLED = CheckedSite("first", "t1", 7, [(3, 4)])


def test_a_size_at_which_the_original_is_not_defined_condemns_no_right_rewrite(tmp_path):
    path = pooled(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    report = verify_rewrite(path, original, rewritten, [POOLED]).report
    assert (report.verdict, report.reason) == ("passed", "")
    (left_out,) = [case for case in report.refused if case.size == UNDEFINED]
    assert "not defined: Concat join joins" in left_out.reason
    assert "[1, 4, 0, 0]" in left_out.reason
    assert all(row.size != UNDEFINED for row in report.comparisons)
    assert len(report.sites) == len(report.outputs) == len(report.cases) == 5


def test_nor_does_it_hide_a_wrong_one(tmp_path):
    """Whichever of the new weights is wrong, and whether the sizes that are defined are given or the default ones."""
    path = pooled(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    new = {t.name for t in rewritten.graph.initializer if t.data_type == TensorProto.FLOAT and "/msconv" in t.name}
    assert len(new) > 1
    for name in new:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(rewritten)
        tensor = next(t for t in wrong.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), name))
        for sizes in ([], [UNDEFINED, {"N": 1, "H": 12, "W": 10}]):
            report = verify_rewrite(
                path, original, wrong, [POOLED], ValidationOptions(InputOptions(sizes=sizes))
            ).report
            assert report.verdict == "differ", name
            assert "differ" in {row.verdict for row in report.sites}
            assert "differ" in {row.verdict for row in report.outputs}


def test_where_no_size_is_defined_nothing_is_verified(tmp_path):
    path = pooled(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    options = ValidationOptions(inputs=InputOptions(sizes=[UNDEFINED]))
    for model in (rewritten, spoilt(rewritten, 0.05)):
        report = verify_rewrite(path, original, model, [POOLED], options).report
        assert (report.verdict, report.comparisons) == ("unverified", [])
        assert "Concat join" in report.reason


def test_original_and_rewritten_stay_as_they_are_where_concats_are_looked_at(tmp_path):
    path = pooled(tmp_path / "m.onnx")
    original, rewritten = optimized(path)
    before = original.SerializeToString(), rewritten.SerializeToString()
    verify_rewrite(path, original, rewritten, [POOLED], SMALL)
    assert (original.SerializeToString(), rewritten.SerializeToString()) == before


@pytest.mark.parametrize(
    ("axis", "shapes", "defined"),
    [
        (1, [(1, 3, 4, 4), (1, 2, 4, 4)], True),
        (1, [(1, 3, 1, 1), (1, 2, 0, 0)], False),
        (-3, [(1, 2, 0, 1), (1, 3, 1, 1)], False),
        (1, [(1, 3, 4, 4), (1, 0, 4, 4)], True),  # adds nothing
        (1, [(1, 3, 4, 4), (0,)], True),  # what PyTorch calls an empty tensor: passed over
        (1, [(1, 3, 0, 4), (1, 2, 0, 4)], True),  # the result is empty too
        (1, [(0, 3, 4, 4), (1, 2, 4, 4)], False),
        (1, [(2, 3, 0, 4), (1, 2, 0, 4)], False),  # all are empty, and do not fit
        (-3, [(2, 3, 0, 4), (0,), (2, 2, 0, 4), (2, 0, 0, 5)], True),  # the last one adds nothing
    ],
)
def test_what_a_concat_does_not_define(axis, shapes, defined):
    names = [f"t{index}" for index in range(len(shapes))]
    reason = Join("join", axis, names).undefined(dict(zip(names, shapes, strict=True)))
    assert (reason == "") == defined
