"""What a careful engineer writes instead of tile, concatenation and convolution, for two well-known networks.

The PointNet segmentation head and the spatial broadcast decoder, rewritten by hand in the very file, so that nothing else
differs. These are yardsticks for benchmarks/speed.py; they know the architecture, the optimizer does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Rewriter = Callable[[onnx.ModelProto], onnx.ModelProto]


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def concat_and_conv(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The convolution that reads a concatenation of features, and that concatenation."""
    made_by = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "Conv" else None
        if source is not None and source.op_type == "Concat":
            return source, node
    raise ValueError("no convolution reads a concatenation")


def replace(
    model: onnx.ModelProto, conv: onnx.NodeProto, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """A copy of the model with ``nodes`` in place of ``conv``, without what nobody needs any more."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    position = next(i for i, node in enumerate(copy.graph.node) if node.output[0] == conv.output[0])
    kept = [*copy.graph.node[:position], *nodes, *copy.graph.node[position + 1 :]]
    needed = {output.name for output in copy.graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(kept):
        if needed.intersection(node.output):
            alive.insert(0, node)
            needed.update(node.input)
    weights = [t for t in copy.graph.initializer if t.name in needed]
    weights += [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    del copy.graph.node[:], copy.graph.initializer[:], copy.graph.value_info[:]
    copy.graph.node.extend(alive)
    copy.graph.initializer.extend(weights)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def pointnet_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """``W [g repeated; x] + b = W_x x + (W_g g + b)``: a Linear of the pooled feature g is added to every point."""
    concat, conv = concat_and_conv(model)
    pooled = next(node for node in model.graph.node if node.op_type == "ReduceMax").output[0]
    weights = weight(model, conv.input[1])
    channels = weights.shape[1] - 64
    constants = {
        "hand_global_weight": weights[:, :channels, 0],
        "hand_local_weight": weights[:, channels:],
        "hand_axis": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Squeeze", [pooled, "hand_axis"], ["hand_pooled"]),
        helper.make_node("Gemm", ["hand_pooled", "hand_global_weight", conv.input[2]], ["hand_linear"], transB=1),
        helper.make_node("Unsqueeze", ["hand_linear", "hand_axis"], ["hand_bias"]),
        helper.make_node("Conv", [concat.input[1], "hand_local_weight"], ["hand_local"], kernel_shape=[1]),
        helper.make_node("Add", ["hand_local", "hand_bias"], [conv.output[0]]),
    ]
    return replace(model, conv, nodes, constants)


def broadcast_decoder(model: onnx.ModelProto) -> onnx.ModelProto:
    """No padding: a Linear of z with the taps summed, plus the convolved coordinates, which are a constant."""
    _, conv = concat_and_conv(model)
    weights, bias = weight(model, conv.input[1]).astype(np.float64), weight(model, conv.input[2])
    coordinates = weight(model, "c").astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(coordinates, weights.shape[2:], axis=(2, 3))
    convolved = np.einsum("nchwij,ocij->nohw", windows, weights[:, :2]) + bias[:, None, None]
    constants = {
        "hand_weight": weights[:, 2:].sum((2, 3)).astype(np.float32),
        "hand_coordinates": convolved.astype(np.float32),
        "hand_axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Gemm", [model.graph.input[0].name, "hand_weight"], ["hand_linear"], transB=1),
        helper.make_node("Unsqueeze", ["hand_linear", "hand_axes"], ["hand_bias"]),
        helper.make_node("Add", ["hand_coordinates", "hand_bias"], [conv.output[0]]),
    ]
    return replace(model, conv, nodes, constants)


# Start of the file's name -> its rewrite.
REWRITES: dict[str, Rewriter] = {"pointnet_seg.": pointnet_head, "broadcast_decoder.": broadcast_decoder}


def rewrite_for(file: str) -> Rewriter | None:
    """The rewrite by hand of a file, if there is one."""
    return next((rewrite for start, rewrite in REWRITES.items() if file.startswith(start)), None)
