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
from msconv_deploy.validation.macs import count_macs
from msconv_deploy.validation.rewrite import OUTPUTS, SITES, verify_rewrite
from msconv_deploy.validation.site_sensitivity import CheckedSite
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
    assert len(report.sites) == len(report.cases) == 6
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
