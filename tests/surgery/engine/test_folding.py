"""Folding of what reads constants only: equal to ONNX Runtime in value and type, and only where it is small."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from msconv_deploy.surgery.engine import folding
from msconv_deploy.surgery.engine.editing import GraphBuilder
from tests.surgery.graphs import Net, optimized, session


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


CASES = {
    "Conv": (
        (random(2, 4, 5, 3), random(6, 2, 3, 2), random(6)),
        {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]},
    ),
    "ConvTranspose": ((random(1, 4, 3, 3), random(4, 2, 3, 3)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MatMul": ((random(2, 3, 4), random(4, 5)), {}),
    "Gemm": ((random(3, 4), random(5, 4), random(5)), {"transB": 1, "alpha": 0.5}),
    "Add": ((random(2, 3), random(3)), {}),
    "Div": ((random(2, 3), random(3)), {}),
    "Transpose": ((random(2, 3, 4, dtype=np.float16),), {"perm": [2, 0, 1]}),
    "Concat": ((np.arange(3), np.arange(2)), {"axis": 0}),
    "Gather": ((random(3, 4), np.asarray([2, 0])), {"axis": 1}),
    "Slice": ((random(3, 4), np.asarray([1]), np.asarray([2**63 - 1]), np.asarray([1])), {}),
}


def folded(op: str, arrays: tuple[np.ndarray, ...], attributes: dict, opset: int = 17):
    builder = GraphBuilder("p", opset)
    names = [builder.constant(array, "operand") for array in arrays]
    builder.add(op, *names, output="y", **attributes)
    nodes = folding.fold(builder.nodes, builder.constants, lambda _: None, (), opset)
    return nodes, builder.constants


def by_runtime(op: str, arrays: tuple[np.ndarray, ...], attributes: dict, opset: int = 17) -> np.ndarray:
    names = [f"x{i}" for i in range(len(arrays))]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)],
        "g",
        [],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return session(onnx.shape_inference.infer_shapes(model)).run(None, {})[0]


@pytest.mark.parametrize("op", CASES)
def test_equal_to_the_runtime(op: str) -> None:
    arrays, attributes = CASES[op]
    nodes, constants = folded(op, arrays, attributes)
    assert (nodes, list(constants)) == ([], ["y"])
    expected = by_runtime(op, arrays, attributes)
    assert (constants["y"].dtype, constants["y"].shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(constants["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("Div", (np.asarray([-3]), np.asarray([2])), {}),
        ("MatMul", (random(2, 3, dtype=np.float16), random(3, 2, dtype=np.float16)), {}),
        ("Sigmoid", (random(2, 3),), {}),
        ("Neg", (random(folding.LIMIT // 8 + 1),), {}),
        ("Expand", (random(1), np.asarray([folding.LIMIT])), {}),
    ],
)
def test_what_is_large_or_not_exact_stays(op: str, arrays: tuple[np.ndarray, ...], attributes: dict) -> None:
    nodes, constants = folded(op, arrays, attributes)
    assert [node.op_type for node in nodes] == [op]
    assert len(constants) == len(arrays)


def test_the_contraction_of_a_constant_core_is_a_constant() -> None:
    net = Net()
    copies = net.node("Expand", net.random(1, 3, 1, 1), net.ints(1, 3, 8, 8))
    x = net.node("Concat", net.input(1, 2, 8, 8), copies, axis=1)
    net.output(net.node("Conv", x, net.random(4, 5, 3, 3), net.random(4)))
    ops = [node.op_type for node in optimized(net.model()).model.graph.node]
    assert ops.count("Conv") == 1
    assert not {"MatMul", "Gemm"} & set(ops)
