"""What a contraction sums, against float64; a site whose sum cancels is judged by it, and a wrong one is not excused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.runtimes import Settings
from msconv_deploy.runtimes.onnx_runtime import make_session
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.magnitudes import movable, summed_magnitudes
from msconv_deploy.validation.options import ValidationOptions
from msconv_deploy.validation.rewrite import SITES, verify_rewrite
from msconv_deploy.validation.site_sensitivity import CheckedSite


def model_of(nodes, inputs: dict, outputs: dict, weights: dict, dtype=np.float32) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value, dtype), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def pytorch():
    return pytest.importorskip("torch", reason="the oracle is PyTorch's: pip install 'msconv-deploy[torch]'")


def conv(rng):
    torch = pytorch()
    w, b = rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[3, 3], pads=[1, 0, 1, 2], strides=[1, 2])
    x = rng.standard_normal((2, 3, 5, 6))
    padded = torch.nn.functional.pad(torch.tensor(np.abs(x)), (0, 2, 1, 1))
    wanted = torch.nn.functional.conv2d(padded, torch.tensor(np.abs(w)), torch.tensor(np.abs(b)), (1, 2))
    return node, x, {"w": w, "b": b}, wanted.numpy()


def transposed(rng):
    torch = pytorch()
    w = rng.standard_normal((3, 2, 2, 2))
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    x = rng.standard_normal((1, 3, 3, 4))
    wanted = torch.nn.functional.conv_transpose2d(torch.tensor(np.abs(x)), torch.tensor(np.abs(w)), stride=2)
    return node, x, {"w": w}, wanted.numpy()


def gemm(rng):
    w, b = rng.standard_normal((4, 5)), rng.standard_normal(4)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=-2.0, beta=-0.5, transB=1)
    x = rng.standard_normal((3, 5))
    return node, x, {"w": w, "b": b}, 2 * np.abs(x) @ np.abs(w).T + 0.5 * np.abs(b)


def matmul(rng):
    w = rng.standard_normal((5, 4))
    x = rng.standard_normal((2, 3, 5))
    return helper.make_node("MatMul", ["x", "w"], ["y"]), x, {"w": w}, np.abs(x) @ np.abs(w)


@pytest.mark.parametrize("kind", [conv, transposed, gemm, matmul])
def test_magnitudes_are_those_of_float64(tmp_path, kind):
    node, x, weights, wanted = kind(np.random.default_rng(1))
    model = model_of([node], {"x": list(x.shape)}, {"y": [None] * wanted.ndim}, weights)
    before = model.SerializeToString(deterministic=True)
    found = summed_magnitudes(
        tmp_path / "m.onnx", model, ["y", "no such"], Inputs("a", {}, {"x": x.astype(np.float32)})
    )
    assert set(found) == {"y"}
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-5)
    assert model.SerializeToString(deterministic=True) == before


def test_other_operators_sum_nothing(tmp_path):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, {})
    assert summed_magnitudes(tmp_path / "m.onnx", model, ["y"], Inputs("a", {}, {"x": np.ones(2, np.float32)})) == {}


def test_a_sum_moves_by_its_rounding(tmp_path):
    """What is read behind the sum moves with it, and afterwards the model is as before."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    model = model_of(nodes, {"x": [1, 2]}, {"y": [1, 1], "z": [1, 1]}, {"w": [[3.0], [-3.0]]})
    before = model.SerializeToString(deterministic=True)
    x = np.ones((1, 2), np.float32)
    magnitudes = summed_magnitudes(tmp_path / "m.onnx", model, ["y"], Inputs("a", {}, {"x": x}))
    assert magnitudes["y"] == 6
    with movable(model, magnitudes) as moves:
        session = make_session(tmp_path / "m.onnx", Settings(optimization="none"), model)
    assert model.SerializeToString(deterministic=True) == before
    ((name, amount),) = moves.items()
    assert amount == 6 * 2.0**-24
    y, z = session.run(["y", "z"], {"x": x, name: amount})
    assert (y, z) == (amount, -amount)


def cancelling(large: float) -> onnx.ModelProto:
    """``(1 + large - 1000) * x``: a sum of constants, of which a rounding of x shows nothing."""
    nodes = [helper.make_node("MatMul", ["terms", "w"], ["sum"]), helper.make_node("Mul", ["sum", "x"], ["y"])]
    weights = {"terms": [[1.0, 1.0, 1.0]], "w": [[1.0], [large], [-1000.0]]}
    return model_of(nodes, {"x": ["N", 1]}, {"y": ["N", 1]}, weights)


@pytest.mark.parametrize(
    ("rewritten", "verdict"),
    [(1000 * (1 + 2.0**-23), "passed"), (1000 * (1 + 1e-5), "differ"), (999.0, "differ")],
)
def test_a_site_that_cancels_is_judged_by_what_it_sums(tmp_path, rewritten, verdict):
    original = cancelling(1000.0)
    onnx.save(original, tmp_path / "m.onnx")
    site = CheckedSite("MatMul", "sum", 3, [])
    report = verify_rewrite(tmp_path / "m.onnx", original, cancelling(rewritten), [site]).report
    assert report.verdict == verdict
    at_site = [row for row in report.sites if row.runtime == SITES]
    assert at_site
    assert all(row.difference > row.policy_tolerance for row in at_site)  # what the policy alone would say
    if verdict == "passed":
        assert all(row.noise is not None and row.difference <= row.tolerance < 0.02 for row in at_site)


def test_the_users_own_tolerance_is_kept(tmp_path):
    original = cancelling(1000.0)
    onnx.save(original, tmp_path / "m.onnx")
    site = CheckedSite("MatMul", "sum", 3, [])
    rewritten = cancelling(1000 * (1 + 2.0**-23))
    options = ValidationOptions(tolerance=1e-6)
    assert verify_rewrite(tmp_path / "m.onnx", original, rewritten, [site], options).report.verdict == "differ"


def test_integers_have_no_magnitudes(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": [1, 2]}, {"y": [1, 1]}, {"w": [[1], [2]]}, np.int32)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.INT32
    found = summed_magnitudes(tmp_path / "m.onnx", model, ["y"], Inputs("a", {}, {"x": np.ones((1, 2), np.int32)}))
    assert found == {}


def test_a_forgotten_source_is_no_rounding_of_a_large_half_precision_sum(tmp_path):
    """Products of float16 are summed in float32: their number makes nothing of float16's roundoff."""
    channels, rng = 4095, np.random.default_rng(0)
    w = (rng.standard_normal((4, channels + 1)) / np.sqrt(channels)).astype(np.float16)
    joined = helper.make_node("Concat", ["x", "s"], ["all"], axis=1)
    whole = model_of(
        [joined, helper.make_node("Gemm", ["all", "w"], ["y"], transB=1)],
        {"x": ["N", channels], "s": ["N", 1]},
        {"y": ["N", 4]},
        {"w": w},
        np.float16,
    )
    without = model_of(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        {"x": ["N", channels], "s": ["N", 1]},
        {"y": ["N", 4]},
        {"w": w[:, :channels]},
        np.float16,
    )
    onnx.save(whole, tmp_path / "m.onnx")
    site = CheckedSite("Gemm", "y", channels + 1, [(channels, 1)])
    report = verify_rewrite(tmp_path / "m.onnx", whole, without, [site]).report
    assert report.verdict == "differ"
    assert all(row.tolerance < 0.02 for row in report.comparisons)


def test_a_runtime_that_fails_on_the_moved_sums_takes_no_verdict_away(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("msconv_deploy.validation.rewrite.summed_magnitudes", fail)
    original = cancelling(1000.0)
    onnx.save(original, tmp_path / "m.onnx")
    site = CheckedSite("MatMul", "sum", 3, [])
    assert verify_rewrite(tmp_path / "m.onnx", original, cancelling(999.0), [site]).report.verdict == "differ"
