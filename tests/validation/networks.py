"""Small ONNX files and PyTorch modules for the tests of validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def two_convs(
    path: Path,
    dtype: str = "float32",
    change: dict[str, tuple[tuple[int, ...], float]] | None = None,
    dims: tuple[Any, ...] = ("N", 3, "H", "W"),
    extra: list[onnx.NodeProto] | None = None,
    outputs: tuple[str, ...] = ("y",),
    functions: bool = False,
    external: bool = False,
) -> Path:
    """y = conv2(relu(conv1(x)) + linear(s)) with x [N,3,H,W], s [N,4]; all weights seeded.

    Args:
        change: weight -> (index, amount added there).
        extra: nodes put before the second convolution's output; ``y`` is computed from ``t4``.
        functions: the first convolution is a call of a model-local function.
        external: weights go to a file beside the model.
    """
    rng = np.random.default_rng(5)
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)) / 5,
        "b1": rng.standard_normal(8),
        "w2": rng.standard_normal((2, 8, 3, 3)) / 8,
        "ws": rng.standard_normal((4, 8)) / 2,
    }
    for name, (index, amount) in (change or {}).items():
        weights[name][index] += amount
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    first = helper.make_node("Conv", ["x", "w1", "b1"], ["t1"], "first", **conv)
    body = []
    if functions:
        inner = helper.make_node("Conv", ["F_x", "F_w", "F_b"], ["F_t"], "inner", **conv)
        scale = helper.make_node("Identity", ["F_t"], ["F_y"], "inner_identity")
        opset = [helper.make_opsetid("", 18)]
        body = [helper.make_function("msconv", "F", ["F_x", "F_w", "F_b"], ["F_y"], [inner, scale], opset)]
        first = helper.make_node("F", ["x", "w1", "b1"], ["t1"], "first", domain="msconv")
    nodes = [
        first,
        helper.make_node("Relu", ["t1"], ["t2"], "relu"),
        helper.make_node("MatMul", ["s", "ws"], ["s1"], "linear"),
        helper.make_node("Unsqueeze", ["s1", "axes"], ["s2"], "unsqueeze"),
        helper.make_node("Add", ["t2", "s2"], ["t3"], "add"),
        *(extra or []),
        helper.make_node("Conv", ["t4" if extra else "t3", "w2"], ["y"], "second", **conv),
    ]
    initializers = [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    element = ELEMENT[dtype]
    graph = helper.make_graph(
        nodes,
        "two_convs",
        [
            helper.make_tensor_value_info("x", element, dims),
            helper.make_tensor_value_info("s", element, [dims[0], 4]),
        ],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("msconv", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=body, ir_version=8)
    if external:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=path.name + ".data",
            size_threshold=64,
            all_tensors_to_one_file=True,
        )
    else:
        onnx.save(model, path)
    return path


def single_op(
    path: Path, op_type: str, inputs: dict[str, tuple[int, list[Any]]], output_type: int, **attributes: Any
) -> Path:
    """A file of one node: inputs name -> (element type, dims), output ``y``."""
    node = helper.make_node(op_type, list(inputs), ["y"], op_type, **attributes)
    graph = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info(name, element, dims) for name, (element, dims) in inputs.items()],
        [helper.make_tensor_value_info("y", output_type, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path
