"""Families of ONNX operators by what they do to extents and to copies. The one place where an operator is added to them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

UNARY = (
    "Identity", "Cast", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Softplus",
    "Softsign", "Gelu", "Mish", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sign",
    "Sin", "Cos", "Clip", "Dropout", "ThresholdedRelu", "Not", "Swish",
)  # fmt: skip
"""Each element of the result from the element of the first operand at its place; other operands are numbers."""

BROADCASTING = (
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Where", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "And", "Or", "Xor", "Mod",
)  # fmt: skip
"""Elementwise on operands that broadcast to each other."""

SAME_SHAPE = (
    *UNARY, "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Softmax", "LogSoftmax",
    "PRelu", "LRN", "IsNaN", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
"""The first result has the extents of the first operand, whatever is computed."""


def trains(node: gs.Node) -> bool:
    """Does a BatchNormalization normalize by its input's own statistics? Before opset 14 further outputs say so."""
    return bool(node.attrs.get("training_mode", 0)) or any(output.name for output in node.outputs[1:])
