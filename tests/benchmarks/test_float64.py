"""The evaluation in float64 agrees with ONNX Runtime on every operator that it computes itself, and is indeed in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="the evaluation takes PyTorch's convolutions: pip install 'msconv-deploy[torch]'")

from benchmarks import float64, speed

CASES = {
    "conv": ("Conv", (5, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    "conv without attributes": ("Conv", (5, 4, 3, 2), {}),
    "grouped": ("Conv", (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "same upper": ("Conv", (5, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ("Conv", (5, 4, 4, 3), {"auto_pad": "SAME_LOWER"}),
    "valid": ("Conv", (5, 4, 2, 2), {"auto_pad": "VALID"}),
    "transposed": ("ConvTranspose", (4, 5, 4, 3), {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]}),
    "transposed grouped": ("ConvTranspose", (4, 3, 3, 3), {"group": 2, "dilations": [2, 1]}),
    "pooled": ("MaxPool", None, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}),
    "pooled same": ("MaxPool", None, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
}


def model_of(nodes, weights=(), opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 9, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


FEEDS = {"x": random(2, 4, 9, 8)}


def agree(model: onnx.ModelProto) -> None:
    expected, found = speed.outputs(model, Path(), FEEDS), float64.evaluate(model, FEEDS)
    assert [y.dtype for y in found] == [np.float64]
    error = speed.difference(found, expected)
    assert error < 2e-6
    assert [y.shape for y in found] == [y.shape for y in expected]


@pytest.mark.parametrize("case", CASES)
def test_operators(case):
    op, shape, attributes = CASES[case]
    weights = []
    if shape is not None:
        outputs = shape[0] if op == "Conv" else shape[1] * attributes.get("group", 1)
        weights = [("w", random(*shape)), ("b", random(outputs))]
    agree(model_of([helper.make_node(op, ["x", *(name for name, _ in weights)], ["y"], **attributes)], weights))


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_batch_normalization_is_that_of_inference(opset):
    weights = [(name, np.abs(random(4)) + i) for i, name in enumerate(("scale", "bias", "mean", "variance"))]
    names = [name for name, _ in weights]
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=1e-3, momentum=0.9)
    agree(model_of([node], weights, opset))


def test_what_stays_float32_and_what_becomes_double():
    """Scales of a Resize, casts to float, constants in every spelling."""
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["third"], value_float=1 / 3),
        helper.make_node("Constant", [], ["more"], value_floats=[0.5]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Mul", ["c", "third"], ["m"]),
        helper.make_node("Sum", ["m", "more", "zeros"], ["y"]),
    ]  # fmt: skip
    agree(model_of(nodes, [("scales", np.array([1, 1, 2, 3], np.float32)), ("shape", np.array([1], np.int64))]))


def test_double_is_closer_than_float32():
    """A sum that float32 loses: it is there in float64."""
    nodes = [
        helper.make_node("Add", ["x", "large"], ["a"]),
        helper.make_node("Sub", ["a", "large"], ["y"]),
    ]
    model = model_of(nodes, [("large", np.array([2.0**24], np.float32))])
    (found,) = float64.evaluate(model, FEEDS)
    assert np.allclose(found, FEEDS["x"], rtol=0, atol=1e-8)
    assert speed.difference([found], speed.outputs(model, Path(), FEEDS)) > 0.1


def test_retyped_to_half_rounds_weights_and_runs():
    weights = [("w", random(5, 4, 3, 3)), ("b", random(5))]
    model = model_of([helper.make_node("Conv", ["x", "w", "b"], ["y"])], weights)
    half = float64.retyped(model, TensorProto.FLOAT16)
    assert {w.data_type for w in half.graph.initializer} == {TensorProto.FLOAT16}
    assert {w.data_type for w in model.graph.initializer} == {TensorProto.FLOAT}, "the given model stays"
    feeds = {"x": FEEDS["x"].astype(np.float16)}
    (rounded,) = speed.outputs(half, Path(), feeds)
    assert rounded.dtype == np.float16
    assert 1e-5 < speed.difference(float64.evaluate(half, feeds), [rounded]) < 5e-3


def test_what_is_not_covered_is_refused():
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    with pytest.raises(NotImplementedError, match="ceil_mode"):
        float64.evaluate(model_of([node]), FEEDS)
