"""A model in double precision, independently of the product: the graph retyped, its convolutions computed by PyTorch.

ONNX Runtime has no double-precision convolutions, so the graph runs in ``onnx.reference``; Conv, ConvTranspose and MaxPool,
which are loops there, in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
FLOAT_INPUTS = {"Resize": (2,), "Upsample": (1,), "QuantizeLinear": (), "DequantizeLinear": ()}
"""Inputs that ONNX wants in float32 whatever the type of the rest: scales."""


def retyped(model: onnx.ModelProto, elem_type: int) -> onnx.ModelProto:
    """A copy whose floating-point tensors all have one type, weights rounded or widened to it.

    Args:
        model: weights inside; local functions are inlined.
        elem_type: of ``onnx.TensorProto``.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    _retype_graph(copy.graph, elem_type)
    return copy


def _retype_graph(graph: onnx.GraphProto, elem_type: int) -> None:
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type in FLOATS:
            tensor.elem_type = elem_type
    for weight in graph.initializer:
        _retype_tensor(weight, elem_type)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _retyped_node(node, elem_type)
    del graph.node[:]
    graph.node.extend(nodes)


def _retyped_node(node: onnx.NodeProto, elem_type: int) -> Iterator[onnx.NodeProto]:
    """The node, behind casts of what has to stay in float32."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _retype_tensor(attribute.t, elem_type)
        if attribute.name in ("to", "dtype") and attribute.i in FLOATS:
            attribute.i = elem_type
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            _retype_graph(graph, elem_type)
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Constant" and {"value_float", "value_floats"} & set(values):
        (number,) = values.values()
        array = np.array(number, helper.tensor_dtype_to_np_dtype(elem_type))
        yield helper.make_node("Constant", [], list(node.output), node.name, value=numpy_helper.from_array(array))
        return
    if node.op_type == "ConstantOfShape" and "value" not in values:
        node.attribute.append(helper.make_attribute("value", helper.make_tensor("", elem_type, [1], [0.0])))
    for place in FLOAT_INPUTS.get(node.op_type, ()):
        if place < len(node.input) and node.input[place]:
            kept = f"{node.output[0]}/float32_{place}"
            yield helper.make_node("Cast", [node.input[place]], [kept], to=TensorProto.FLOAT)
            node.input[place] = kept
    yield node


def _retype_tensor(tensor: onnx.TensorProto, elem_type: int) -> None:
    if tensor.data_type in FLOATS:
        dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model in float64 for the very same weights and inputs, widened.

    Raises:
        NotImplementedError: an operator is used in a way that is not covered here.
    """
    evaluator = ReferenceEvaluator(retyped(model, TensorProto.DOUBLE), new_ops=OPERATORS)
    wide = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    with torch.no_grad():
        return list(evaluator.run(None, wide))


# -- operators ---------------------------------------------------------------------------------------------------------


def _padding(x: np.ndarray, kernel: Sequence[int], given: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Zeros before and after along each spatial axis."""
    rank = len(kernel)
    mode = given.get("auto_pad") or "NOTSET"
    if mode == "VALID":
        return [(0, 0)] * rank
    if mode == "NOTSET":
        pads = list(given.get("pads") or [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    strides, dilations = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
    found = []
    for extent, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-extent // s) - 1) * s + d * (k - 1) + 1 - extent)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found


def _padded(x: np.ndarray, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(torch.tensor(x), flat, value=value)


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.tensor(array)


_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class Conv(OpRun):
    op_domain = ""

    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **given: Any) -> tuple[np.ndarray]:
        rank = w.ndim - 2
        padded = _padded(x, _padding(x, w.shape[2:], given))
        strides, dilations = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
        groups = given.get("group") or 1
        y = _CONVOLUTIONS[rank](padded, _tensor(w), _tensor(b), strides, 0, dilations, groups)
        return (y.numpy(),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, **given: Any) -> tuple[np.ndarray]:
        rank = w.ndim - 2
        if (given.get("auto_pad") or "NOTSET") not in ("NOTSET", "VALID") or given.get("output_shape"):
            raise NotImplementedError("ConvTranspose whose padding follows from its output's shape")
        strides, dilations = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
        pads = list(given.get("pads") or [0] * 2 * rank)
        more = given.get("output_padding") or [0] * rank
        y = _TRANSPOSED[rank](_tensor(x), _tensor(w), None, strides, 0, 0, given.get("group") or 1, dilations).numpy()
        # Rows that output_padding appends lie beyond every tap's reach unless padding cuts less than they add.
        y = np.pad(y, [(0, 0), (0, 0), *((0, extra) for extra in more)])
        y = y[(..., *(slice(p, y.shape[2 + i] - pads[rank + i]) for i, p in enumerate(pads[:rank])))]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: np.ndarray, **given: Any) -> tuple[np.ndarray]:
        kernel = given["kernel_shape"]
        rank = len(kernel)
        if given.get("ceil_mode"):
            raise NotImplementedError("MaxPool with ceil_mode")
        padded = _padded(x, _padding(x, kernel, given), -np.inf)
        strides, dilations = given.get("strides") or [1] * rank, given.get("dilations") or [1] * rank
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[rank]
        return (pool(padded, kernel, strides, 0, dilations).numpy(),)


class BatchNormalization(OpRun):
    """As inference means it: before opset 14, onnx.reference takes the statistics of the batch where momentum is given."""

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        variance: np.ndarray,
        **given: Any,
    ) -> tuple[np.ndarray]:
        if given.get("training_mode"):
            raise NotImplementedError("BatchNormalization in training mode")
        epsilon = given.get("epsilon")
        factor = scale / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        shape = (-1, *[1] * (x.ndim - 2))
        return (x * factor.reshape(shape) + (bias - mean * factor).reshape(shape),)


OPERATORS = [Conv, ConvTranspose, MaxPool, BatchNormalization]
