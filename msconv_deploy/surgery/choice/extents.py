"""Numbers for extents: the shapes at which a site is estimated.

Shapes that the caller gives are used as they are. Extents that are dynamic and not given get a default: 1 along the first
axis (one sample), 128 along every other. Everything between follows node by node: small tensors, which carry shapes, are
computed; the shapes of all others are inferred from them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from msconv_deploy.errors import BadInputError
from msconv_deploy.surgery.engine.editing import GraphBuilder, skeleton_of

DEFAULT_BATCH = 1
DEFAULT_EXTENT = 128

_MAX_ELEMENTS = 4096
"""Tensors up to this size are computed: they carry shapes, indices and coordinates."""

_GROWING = {
    "AffineGrid", "AveragePool", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "Conv", "ConvTranspose", "DFT",
    "Einsum", "Expand", "GridSample", "HammingWindow", "HannWindow", "LpPool", "MaxPool", "MaxUnpool", "MelWeightMatrix",
    "OneHot", "Pad", "Range", "Resize", "STFT", "Split", "Tile", "Upsample",
}  # fmt: skip
"""Operators whose result may be far larger than what they read: they are computed only where its extents are known first."""

InputShapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Tensor:
    """Shape and element type (ONNX enum, 0 if unknown) of a tensor."""

    shape: tuple[int, ...]
    elem_type: int = onnx.TensorProto.FLOAT

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        size = helper.tensor_dtype_to_np_dtype(self.elem_type).itemsize if self.elem_type not in (0, 8) else 4
        return self.count * size


Tensors = dict[str, Tensor]


def check_input_shapes(model: onnx.ModelProto, shapes: InputShapes) -> None:
    """Refuse shapes of inputs that the model does not have, or that contradict it."""
    weights = {t.name for t in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    for name, shape in shapes.items():
        if name not in inputs:
            raise BadInputError(f"the model has no input {name!r}: it has {', '.join(map(repr, inputs)) or 'none'}")
        kind = inputs[name].type.tensor_type
        if not kind.HasField("shape"):
            continue
        dims = kind.shape.dim
        if len(dims) != len(shape):
            raise BadInputError(f"the input {name!r} has {len(dims)} dimensions, not {len(shape)}")
        for axis, (dim, number) in enumerate(zip(dims, shape, strict=True)):
            if number < 1 or (dim.HasField("dim_value") and dim.dim_value not in (number, 0)):
                wanted = dim.dim_value if dim.HasField("dim_value") else "at least 1"
                raise BadInputError(f"the input {name!r} has extent {wanted} along axis {axis}, not {number}")


def input_tensors(model: onnx.ModelProto, shapes: InputShapes) -> Tensors:
    """The inputs with numbers for all extents."""
    inputs = onnx.ModelProto()
    inputs.graph.input.extend(model.graph.input)
    _number_inputs(inputs, shapes)
    found: Tensors = {}
    for value in inputs.graph.input:
        _note(found, value)
    return found


class Numbers:
    """Shapes with numbers for all tensors of a model where they follow from the inputs' shapes.

    Args:
        model: the model; its weights' values are looked at only where they are small.
        shapes: of inputs.
    """

    def __init__(self, model: onnx.ModelProto, shapes: InputShapes) -> None:
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        skeleton, _ = skeleton_of(model)
        _number_inputs(skeleton, shapes)
        self.tensors: Tensors = {t.name: Tensor(tuple(t.dims), t.data_type) for t in skeleton.graph.initializer}
        self._values: dict[str, NDArray[Any]] = {
            t.name: numpy_helper.to_array(t)
            for t in skeleton.graph.initializer
            if (0 in t.dims or _has_values(t)) and int(np.prod(t.dims, dtype=np.int64)) <= _MAX_ELEMENTS
        }
        for value in (*skeleton.graph.value_info, *skeleton.graph.output, *skeleton.graph.input):
            _note(self.tensors, value)
        self.follow(skeleton.graph.node, self.tensors, self._values)

    def of_builder(self, builder: GraphBuilder) -> Tensors:
        """Shapes of what a builder's nodes compute, and of its constants."""
        made = {
            name: Tensor(tuple(array.shape), helper.np_dtype_to_tensor_dtype(array.dtype))
            for name, array in builder.constants.items()
        }
        small = {name: array for name, array in builder.constants.items() if array.size <= _MAX_ELEMENTS}
        tensors, values = ChainMap(made, self.tensors), ChainMap(small, self._values)
        self.follow(builder.nodes, tensors, values)
        return made

    def follow(
        self,
        nodes: Iterable[onnx.NodeProto],
        tensors: MutableMapping[str, Tensor],
        values: MutableMapping[str, NDArray[Any]],
    ) -> None:
        """Add the shapes of what nodes in topological order compute, and the values of small tensors among them."""
        for node in nodes:
            if node.op_type == "Shape" and node.input[0] in tensors:
                shape = tensors[node.input[0]].shape
                attributes = {a.name: a.i for a in node.attribute}
                result = np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)
                values[node.output[0]] = result
                tensors[node.output[0]] = Tensor(tuple(result.shape), onnx.TensorProto.INT64)
                continue
            names = [name for name in node.input if name]
            if all(name in values for name in names) and self._evaluate(node, names, tensors, values):
                continue
            if all(name in tensors for name in names):
                self._infer(node, names, tensors, values)

    def _evaluate(
        self,
        node: onnx.NodeProto,
        names: list[str],
        tensors: MutableMapping[str, Tensor],
        values: MutableMapping[str, NDArray[Any]],
    ) -> bool:
        """Compute a small tensor from small tensors."""
        if node.domain not in ("", "ai.onnx") or node.op_type.startswith("Random"):
            return False
        if not self._is_small(node, names, tensors, values):
            return False
        try:
            results = ReferenceEvaluator(node, opsets=self._opsets).run(None, {n: values[n] for n in names})
        except Exception:  # whatever the reference cannot do is not known here
            return False
        for name, result in zip(node.output, results, strict=True):
            array = np.asarray(result)
            tensors[name] = Tensor(tuple(array.shape), helper.np_dtype_to_tensor_dtype(array.dtype))
            if array.size <= _MAX_ELEMENTS:
                values[name] = array
        return True

    def _is_small(
        self,
        node: onnx.NodeProto,
        names: list[str],
        tensors: MutableMapping[str, Tensor],
        values: MutableMapping[str, NDArray[Any]],
    ) -> bool:
        """May the node be computed: is its result no larger than what a broadcast of small tensors makes?"""
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            return False  # a loop may be endless
        if node.op_type not in _GROWING:
            return True
        self._infer(node, names, tensors, values)
        return all(name in tensors and tensors[name].count <= _MAX_ELEMENTS**2 for name in node.output if name)

    def _infer(
        self,
        node: onnx.NodeProto,
        names: list[str],
        tensors: MutableMapping[str, Tensor],
        values: MutableMapping[str, NDArray[Any]],
    ) -> None:
        """One node's shape inference, with the values of small tensors at hand."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            return
        types = {n: helper.make_tensor_type_proto(tensors[n].elem_type or 1, tensors[n].shape) for n in names}
        data = {n: numpy_helper.from_array(values[n], n) for n in names if n in values}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(domain, 1), domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=[helper.make_opsetid(d, v) for d, v in self._opsets.items()]
            )
        except Exception:  # an operator that is not ONNX's own, or shapes that contradict each other
            return
        for name, kind in found.items():
            _note(tensors, helper.make_value_info(name, kind))


def _has_values(tensor: onnx.TensorProto) -> bool:
    """Is this a tensor with its values, not the shape of one that stands aside?"""
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return any(len(getattr(tensor, field)) for field in fields)


def _note(tensors: MutableMapping[str, Tensor], value: onnx.ValueInfoProto) -> None:
    kind = value.type.tensor_type
    if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
        tensors[value.name] = Tensor(tuple(d.dim_value for d in kind.shape.dim), kind.elem_type)


def _number_inputs(skeleton: onnx.ModelProto, shapes: InputShapes) -> dict[str, int]:
    """Write numbers into the inputs' shapes; returns the number of every named extent."""
    names: dict[str, int] = {}
    for given in (True, False):
        for value in skeleton.graph.input:
            if (value.name in shapes) is not given:
                continue
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.HasField("dim_value"):
                    continue
                default = DEFAULT_EXTENT if axis else DEFAULT_BATCH
                number = shapes[value.name][axis] if given else names.get(dim.dim_param, default)
                if dim.dim_param:
                    names.setdefault(dim.dim_param, number)
                dim.dim_value = number
    return names
