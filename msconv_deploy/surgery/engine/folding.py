"""Folding: nodes of a rewrite that read constants only are computed when the model is optimized.

A core that is a constant makes such nodes: its contraction depends on no input. They are evaluated one by one by ONNX's
reference implementation, if they are of a kind that it computes as a runtime does. Only where operands and result together
stay within ``LIMIT`` bytes, and where the result has the type and shape that shape inference says; otherwise the node stays.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

LIMIT = 1 << 20
"""Most bytes of the operands and the result of a node that is folded."""

_EXACT = {
    "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Concat", "Slice", "Gather", "Shape", "Expand", "Tile", "Where",
    "Max", "Min", "Abs", "Neg", "Relu", "Equal", "Greater", "Less",
}  # fmt: skip
"""Operators with one right result, in any type."""

_FLOAT = {"Add", "Sub", "Mul", "Div", "Conv", "ConvTranspose", "MatMul", "Gemm"}
"""Operators that are folded in these types only: float16 accumulates differently in every runtime, and the division of
integers rounds differently in the reference implementation. Others, functions and normalizations, are not folded."""
_FLOAT_TYPES = (np.float32, np.float64)

Lookup = Callable[[str], NDArray[Any] | None]


def fold(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], lookup: Lookup, keep: Container[str], opset: int
) -> list[onnx.NodeProto]:
    """The nodes that are left; results of the others are added to the constants.

    Args:
        nodes: of a rewrite, each after what it reads.
        constants: initializers of the rewrite, by name; those that only folded nodes read are removed.
        lookup: the values of a small constant of the graph, or None.
        keep: names of results that have to be computed by a node.
        opset: of the default domain.
    """
    values = {name: array for name, array in constants.items() if array.nbytes <= LIMIT}
    left: list[onnx.NodeProto] = []
    folded: dict[str, NDArray[Any]] = {}
    operands: set[str] = set()
    for node in nodes:
        if node.op_type == "Constant":
            if node.attribute[0].name == "value":
                values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            left.append(node)
            continue
        result = None
        if len(node.output) == 1 and node.output[0] not in keep and node.domain == "":
            result = _evaluated(node, values, lookup, opset)
        if result is None:
            left.append(node)
        else:
            values[node.output[0]] = folded[node.output[0]] = result
            operands.update(node.input)
    if not folded:
        return nodes
    constants.update(folded)
    read = {name for node in left for name in node.input}
    for name in operands - read:
        constants.pop(name, None)
    return [node for node in left if node.op_type != "Constant" or node.output[0] in read or node.output[0] in keep]


def _evaluated(
    node: onnx.NodeProto, values: dict[str, NDArray[Any]], lookup: Lookup, opset: int
) -> NDArray[Any] | None:
    """The result of a node, or None where it reads something else than small constants or cannot be relied on."""
    operands: dict[str, NDArray[Any]] = {}
    for name in filter(None, node.input):
        array = values[name] if name in values else lookup(name)
        if array is None:
            return None
        operands[name] = array
    size = sum(array.nbytes for array in operands.values())
    floats = all(array.dtype in _FLOAT_TYPES for array in operands.values())
    covered = node.op_type in _EXACT or (node.op_type in _FLOAT and floats)
    if not covered or not operands or size > LIMIT:
        return None
    model = _alone(node, operands, opset)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output[0]
    except onnx.shape_inference.InferenceError:
        return None
    kind = inferred.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    if not kind.elem_type or not kind.HasField("shape") or -1 in shape:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if size + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > LIMIT:
        return None
    try:
        result = np.asarray(ReferenceEvaluator(model).run(None, {})[0])
    except Exception:  # whatever the reference implementation cannot do stays for the runtime
        return None
    return result if result.dtype == dtype and result.shape == shape else None


def _alone(node: onnx.NodeProto, operands: dict[str, NDArray[Any]], opset: int) -> onnx.ModelProto:
    """A model of one node and its constants."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in operands.items()]
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = helper.make_graph([node], "node", [], [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
