"""Element types of tensors, followed from the graph's inputs and weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.symbols import operator

CONVOLVED = (np.dtype(np.float32), np.dtype(np.float16))
"""Element types in which every runtime has convolutions and pooling."""

_FARTHEST = 1000
_OTHERWISE = {
    "Shape", "Size", "ArgMax", "ArgMin", "NonZero", "TopK", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "IsNaN", "IsInf", "Not", "And", "Or", "Xor", "OneHot", "QuantizeLinear", "DequantizeLinear", "CastLike", "Where",
    "ConstantOfShape", "RandomNormal", "RandomUniform", "Bernoulli", "If", "Loop", "Scan", "DynamicQuantizeLinear",
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "BitCast", "EyeLike", "Multinomial", "NonMaxSuppression",
    "RandomNormalLike", "RandomUniformLike", "StringSplit", "TfIdfVectorizer", "Unique",
}  # fmt: skip
"""Operators whose result need not have the type of their first input."""


def element_type(tensor: gs.Tensor) -> np.dtype | None:
    """The element type of a tensor, None if it is not known."""
    for _ in range(_FARTHEST):
        if isinstance(tensor, gs.Constant) or tensor.dtype is not None:
            return _dtype(tensor.dtype)
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or not operator(node) or tensor is not node.outputs[0]:
            return None
        if operator(node) == "Cast":
            return _dtype(node.attrs["to"])
        if operator(node) in _OTHERWISE or not node.inputs:
            return None
        tensor = node.inputs[0]
    return None


def _dtype(given: object) -> np.dtype | None:
    """onnx-graphsurgeon keeps types that NumPy lacks by ONNX's numbers."""
    if isinstance(given, int):
        dtype: np.dtype = onnx.helper.tensor_dtype_to_np_dtype(given)
        return dtype
    return np.dtype(given)  # type: ignore[call-overload, no-any-return]
