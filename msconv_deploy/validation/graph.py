"""What validation reads from an ONNX file: inputs, outputs, and how rounding errors and borders travel through it.

Weights in external files are never loaded: the analysis needs shapes and types, not values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import inliner

from msconv_deploy.errors import BadInputError
from msconv_deploy.model_files import check_graph, check_size, explaining, read_model
from msconv_deploy.ops.symbolic import Dim
from msconv_deploy.validation.difference import is_float
from msconv_deploy.validation.tolerance import ErrorPath

UNKNOWN_REDUCTION = 1024
"""Reduction size that is assumed where the graph does not tell it (operands of unknown static shape)."""

# Operators that only move, select or compare values: their outputs hold no new rounding error.
_EXACT = frozenset(
    {
        "Abs",
        "And",
        "ArgMax",
        "ArgMin",
        "Cast",
        "Ceil",
        "Clip",
        "Compress",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Equal",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "Max",
        "MaxPool",
        "MaxUnpool",
        "Min",
        "Neg",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "Pad",
        "Range",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Round",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Sign",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Upsample",
        "Where",
        "Xor",
    }
)
_SUMS = frozenset(
    {
        "CumSum",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Softmax",
    }
)
"""Operators that sum their input over some axes."""
_MOST_AXES = 16
_LARGE = 4096  # bytes; smaller tensors may hold shapes that shape inference needs


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output."""

    name: str
    dtype: np.dtype
    dims: tuple[Dim, ...]


@dataclass
class OnnxGraph:
    """The structure of an ONNX file.

    Attributes:
        path: the file.
        inputs, outputs: graph inputs that are not initializers, and graph outputs, in order.
        opset: of the default domain.
        errors: tensor -> the heaviest path of rounding errors that leads to it.
        border: tensor -> how far, in pixels, the image border can reach into it (strides are ignored).
        dtypes: tensor -> element type where shape inference knows it.
        at_least: tensor -> tolerance that the reference's own rounding needs, where that is another file.
    """

    path: Path
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    opset: int
    errors: dict[str, ErrorPath] = field(default_factory=dict)
    border: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, np.dtype] = field(default_factory=dict)
    at_least: dict[str, float] = field(default_factory=dict)

    def tolerance(self, name: str) -> float:
        """Policy tolerance of a tensor, see :mod:`msconv_deploy.validation.tolerance`."""
        path = self.errors.get(name, ErrorPath())
        return max(path.tolerance(self.dtypes.get(name, np.dtype(np.float32))), self.at_least.get(name, 0.0))


def load_structure(path: Path | str) -> onnx.ModelProto:
    """Read a file without its large weights, and check it.

    Raises:
        BadInputError: see :func:`msconv_deploy.model_files.read_model`; or the model is not valid, or cannot be held.
    """
    model = read_model(path)
    check_graph(model, path)
    check_size(model, path)
    return model


def read_graph(path: Path | str) -> OnnxGraph:
    """Load and analyse a file.

    Raises:
        BadInputError: see :func:`load_structure`; or an input is not a tensor of numbers.
    """
    return graph_of(load_structure(path), path)


def graph_of(model: onnx.ModelProto, path: Path | str, sums: bool = True) -> OnnxGraph:
    """Analyse a model that is in memory; ``path`` is the file that it belongs to.

    Args:
        sums: poolings, reductions and normalizations count with what they sum, as contractions do. Where a model is compared
            with a rewrite of itself they need not: both sum in one way, but for what the rewrite changes.

    Raises:
        BadInputError: an input is not a tensor of numbers.
    """
    graph = OnnxGraph(
        path=Path(path),
        inputs=graph_inputs(model, path),
        outputs=[_spec(path, v) for v in model.graph.output],
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
    )
    with explaining(model, path):
        _analyse(graph, model, sums)
    return graph


def graph_inputs(model: onnx.ModelProto, path: Path | str) -> list[TensorSpec]:
    """Graph inputs that are not initializers, in order.

    Raises:
        BadInputError: one is not a tensor of numbers.
    """
    constants = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    return [_spec(path, value) for value in model.graph.input if value.name not in constants]


def _spec(path: Path | str, value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or tensor.elem_type == onnx.TensorProto.STRING:
        kind = value.type.WhichOneof("value") or "value of no type"
        raise BadInputError(
            f"{path}: {value.name} is a {kind.removesuffix('_type')}; only tensors of numbers are known"
        )
    dims: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or f"{value.name}[{axis}]")
    return TensorSpec(value.name, _dtype(tensor.elem_type), tuple(dims))


def _dtype(element_type: int) -> np.dtype:
    if element_type == onnx.TensorProto.UNDEFINED:
        return np.dtype(np.float32)
    dtype: np.dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    return dtype


# -- error and border propagation ------------------------------------------------------------------------------------


def _analyse(graph: OnnxGraph, model: onnx.ModelProto, sums: bool) -> None:
    """Walk the nodes once, in their (topological) order, functions inlined."""
    model = _without_weights(model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    shapes, graph.dtypes = _static_types(model)
    ints = _constant_ints(model)
    for node in model.graph.node:
        inputs = [name for name in _all_inputs(node) if name]
        reach = max((graph.border.get(name, 0) for name in inputs), default=0) + _border_reach(node, shapes)
        arrived = ErrorPath.heaviest(graph.errors[name] for name in inputs if name in graph.errors)
        reductions = [k for n in _with_bodies(node) if (k := _reduction_size(n, shapes, ints, sums)) is not None]
        for name in node.output:
            dtype = graph.dtypes.get(name, np.dtype(np.float32))
            graph.border[name] = reach
            if node.op_type == "Cast" and _narrows(graph, node):
                graph.errors[name] = arrived.rounded(dtype)
            elif reductions:
                graph.errors[name] = arrived.rounded(dtype, len(reductions)).accumulated(dtype, sum(reductions))
            elif node.op_type in _EXACT or not is_float(dtype):
                graph.errors[name] = arrived
            else:
                graph.errors[name] = arrived.rounded(dtype)


def _narrows(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    target = graph.dtypes.get(node.output[0])
    source = graph.dtypes.get(node.input[0])
    return target is not None and is_float(target) and (source is None or source.itemsize > target.itemsize)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers keep name, type and dims but no values."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        if tensor.ByteSize() > _LARGE:
            for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(name)
    return light


def _static_types(model: onnx.ModelProto) -> tuple[dict[str, list[int | None]], dict[str, np.dtype]]:
    """Static shapes (None: dynamic extent) and dtypes of initializers and inferred values."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):  # a domain or type that inference does not know
        inferred = model
    shapes: dict[str, list[int | None]] = {}
    dtypes: dict[str, np.dtype] = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if tensor.elem_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            dtypes[value.name] = _dtype(tensor.elem_type)
    for initializer in inferred.graph.initializer:
        shapes[initializer.name] = list(initializer.dims)
        if initializer.data_type != onnx.TensorProto.STRING:
            dtypes[initializer.name] = _dtype(initializer.data_type)
    return shapes, dtypes


def _with_bodies(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node and the nodes of its subgraphs (If, Loop, Scan)."""
    yield node
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _with_bodies(inner)


def _all_inputs(node: onnx.NodeProto) -> Iterable[str]:
    """Inputs of the node, and what its subgraphs read from outside."""
    for inner in _with_bodies(node):
        yield from inner.input


def _attribute_ints(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [])


def _attribute_int(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _constant_ints(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The small constant tensors of integers, which may be axes."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return {
        name: [int(v) for v in onnx.numpy_helper.to_array(tensor).ravel()]
        for name, tensor in found.items()
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        and len(tensor.dims) <= 1
        and 0 < math.prod(tensor.dims) <= _MOST_AXES
        and (tensor.raw_data or tensor.int64_data or tensor.int32_data)
    }


def _reduced_axes(node: onnx.NodeProto, rank: int, ints: Mapping[str, list[int]]) -> list[int] | None:
    """The axes along which a node sums; None if they are not known."""
    if node.op_type in ("GlobalAveragePool", "GlobalLpPool", "InstanceNormalization"):
        return list(range(2, rank))
    if node.op_type in ("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"):
        first = _attribute_int(node, "axis", -1) % rank
        return [first] if node.op_type in ("Softmax", "LogSoftmax") else list(range(first, rank))
    if node.op_type == "LpNormalization":
        return [_attribute_int(node, "axis", -1) % rank]
    if node.op_type == "MeanVarianceNormalization":
        return [axis % rank for axis in _attribute_ints(node, "axes") or [0, 2, 3]]
    if node.op_type == "CumSum":
        axis = ints.get(node.input[1]) if len(node.input) > 1 else None
        return None if axis is None else [a % rank for a in axis]
    if len(node.input) > 1 and node.input[1]:
        axes = ints.get(node.input[1])
        return None if axes is None else [axis % rank for axis in axes]
    axes = _attribute_ints(node, "axes")
    if not axes and _attribute_int(node, "noop_with_empty_axes", 0):
        return []
    return [axis % rank for axis in axes] or list(range(rank))


def _sum_size(
    node: onnx.NodeProto, shapes: Mapping[str, list[int | None]], ints: Mapping[str, list[int]]
) -> int | None:
    """How many values a pooling, reduction or normalization sums into one; None if the node is none of them."""
    if node.op_type in ("AveragePool", "LpPool"):
        return max(1, math.prod(_attribute_ints(node, "kernel_shape")))
    if node.op_type not in _SUMS:
        return None
    shape = shapes.get(node.input[0])
    if not shape:
        return UNKNOWN_REDUCTION if shape is None else None
    if node.op_type == "GroupNormalization":
        groups = max(1, _attribute_int(node, "num_groups", 1))
        known = [extent for extent in shape[1:] if extent is not None]
        complete = len(known) == len(shape) - 1
        return max(1, math.prod(known) // groups) if complete else UNKNOWN_REDUCTION
    axes = _reduced_axes(node, len(shape), ints)
    if axes is None:
        return UNKNOWN_REDUCTION
    extents = [shape[axis] for axis in axes]
    known = [extent for extent in extents if extent is not None]
    product = math.prod(known)
    return max(1, product if len(known) == len(extents) else max(product, UNKNOWN_REDUCTION))


def _reduction_size(
    node: onnx.NodeProto, shapes: dict[str, list[int | None]], ints: Mapping[str, list[int]], sums: bool
) -> int | None:
    """How many products or values are summed into one output value; None if the node sums nothing.

    Conv: C/group * kernel. ConvTranspose: the same (an upper bound: with strides fewer taps meet). Gemm, MatMul: K. Pooling,
    reductions, normalizations: what they sum over. Their shares are positive or not as those of a contraction are, and ONNX
    Runtime sums them in the tensor's own type (float16 in float32), so the same formula holds.
    """
    summed = _sum_size(node, shapes, ints) if sums else None
    if summed is not None:
        return summed
    if node.op_type not in ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "Gemm", "MatMul", "Einsum"):
        return None
    position = 3 if node.op_type == "QLinearConv" else 1
    weight = shapes.get(node.input[position]) if len(node.input) > position else None
    sizes: list[int | None] = [None]
    if node.op_type == "ConvTranspose" and weight:
        channels = weight[0]
        sizes = [None if channels is None else channels // _attribute_int(node, "group", 1), *weight[2:]]
    elif node.op_type in ("Conv", "ConvInteger", "QLinearConv") and weight:
        sizes = weight[1:]
    elif node.op_type == "Gemm" and weight and len(weight) == 2:
        sizes = [weight[1 if _attribute_int(node, "transB", 0) else 0]]
    elif node.op_type == "MatMul" and weight:
        sizes = [weight[-2] if len(weight) > 1 else weight[0]]
    known = [s for s in sizes if s is not None]
    return math.prod(known) if len(known) == len(sizes) else UNKNOWN_REDUCTION


def _border_reach(node: onnx.NodeProto, shapes: dict[str, list[int | None]]) -> int:
    """By how many pixels the node carries border values inwards: half its dilated kernel."""
    if node.op_type not in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"):
        return 0
    kernel: list[int | None] = list(_attribute_ints(node, "kernel_shape"))
    if not kernel and len(node.input) > 1:
        kernel = shapes.get(node.input[1], [])[2:]
    dilations = _attribute_ints(node, "dilations") or [1] * len(kernel)
    return max(((k or 1) * d - d + 1) // 2 for k, d in zip(kernel, dilations, strict=False)) if kernel else 0
