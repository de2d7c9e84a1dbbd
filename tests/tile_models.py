"""Small models with a tile-concat-conv, built with onnx.helper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def tiled_conv(
    path: Path,
    opset: int = 17,
    dims: tuple[Any, ...] = ("N", 3, "H", "W"),
    external: bool = False,
    tiled_weight: float = 1.0,
    relu: bool = True,
) -> Path:
    """y = conv2(relu(conv1(concat(x, tile(s))))) with x [N,3,H,W], s [N,16]; weights are seeded.

    Args:
        tiled_weight: factor on the weights of the tiled channels; 0 makes the site insensitive.
        relu: without it conv1's output is the graph's.
    """
    rng = np.random.default_rng(3)
    w1 = rng.standard_normal((24, 19, 3, 3)) / 8
    w1[:, 3:] *= tiled_weight
    weights = {
        "w1": w1,
        "b1": rng.standard_normal(24),
        "w2": rng.standard_normal((2, 24, 3, 3)) / 8,
    }
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Shape", ["x"], ["x_shape"], "shape"),
        helper.make_node("Slice", ["x_shape", "two", "four", "zero"], ["hw"], "slice"),
        helper.make_node("Slice", ["x_shape", "zero", "one", "zero"], ["n"], "batch"),
        helper.make_node("Concat", ["n", "sixteen", "hw"], ["wanted"], "wanted", axis=0),
        helper.make_node("Reshape", ["s", "s_shape"], ["s4"], "reshape"),
        helper.make_node("Expand", ["s4", "wanted"], ["tiled"], "tile"),
        helper.make_node("Concat", ["x", "tiled"], ["joined"], "concat", axis=1),
        helper.make_node("Conv", ["joined", "w1", "b1"], ["t1"], "first", **conv),
    ]
    nodes += [helper.make_node("Relu", ["t1"], ["t2"], "relu")] if relu else []
    nodes.append(helper.make_node("Conv", ["t2" if relu else "t1", "w2"], ["y"], "second", **conv))
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    integers = {"zero": [0], "one": [1], "two": [2], "four": [4], "sixteen": [16], "s_shape": [-1, 16, 1, 1]}
    initializers += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in integers.items()]
    graph = helper.make_graph(
        nodes,
        "tiled_conv",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, dims),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [dims[0], 16]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [dims[0], 2, dims[2], dims[3]])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.metadata_props.add(key="author", value="somebody")
    if external:
        location = f"{path.name}.weights"
        onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=1024)
    else:
        onnx.save(model, path)
    return path


def plain_conv(path: Path, external: bool = False) -> Path:
    """y = conv(x): a model without sites."""
    rng = np.random.default_rng(4)
    weight = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", kernel_shape=[3, 3])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, None, None])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external:
        onnx.save(model, path, save_as_external_data=True, location="plain.weights", size_threshold=64)
    else:
        onnx.save(model, path)
    return path
