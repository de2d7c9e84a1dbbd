"""Editing a graph: a model as onnx-graphsurgeon's graph, new nodes into it, and back to a model with nothing lost.

onnx-graphsurgeon copies every weight several times and drops metadata. So the weights stand aside while the graph is
edited (a large one is loaded only when a rule asks for its value), and what it drops is put back after export.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.ir.tensor import LazyValues

from msconv_deploy.model_files import external_location
from msconv_deploy.ops.node_builder import NodeBuilder

_SMALL = 1024
"""Bytes up to which a weight is part of the skeleton: shape arithmetic reads it."""


class _DeferredValues(LazyValues):
    """Values of a weight that stands aside: read from the original model when asked for."""

    def __init__(self, tensor: onnx.TensorProto, folder: Path) -> None:
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._folder = folder

    def load(self) -> NDArray[Any]:
        return tensor_values(self.tensor, self._folder)


def tensor_values(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """A tensor as an array; external data is mapped, not read."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    file, offset, _ = external_location(tensor, folder)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return (
        np.memmap(file, dtype, "r", offset, tuple(tensor.dims))
        if tensor.dims
        else np.fromfile(file, dtype, 1, offset=offset)[0]
    )


def skeleton_of(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """A copy of the model without its large weights, and those by name."""
    weights = {t.name: t for t in model.graph.initializer if uses_external_data(t) or len(t.raw_data) > _SMALL}
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _assign(light, field, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _assign(light.graph, field, value)
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            light.graph.initializer.append(tensor)
        else:
            light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light, weights


def _assign(message: Any, field: Any, value: Any) -> None:
    if isinstance(value, (str, int, float, bytes, bool)):
        setattr(message, field.name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, field.name).CopyFrom(value)
    else:
        getattr(message, field.name).extend(value)


class EditableModel:
    """A model as a graph that can be edited.

    Attributes:
        model: the original, never changed.
        graph: onnx-graphsurgeon's graph; `Constant` nodes are constants.
        inferred: tensor name -> extents by ONNX shape inference (numbers, names, None).
        opset: of the default domain.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, opset: int) -> None:
        self.model = model
        self.opset = opset
        self._skeleton, self._weights = skeleton_of(model)
        self.inferred = _infer(self._skeleton)
        self.graph = gs.import_onnx(self._skeleton)
        for tensor in self.graph.tensors().values():
            if isinstance(tensor, gs.Constant) and tensor.name in self._weights:
                tensor.values = _DeferredValues(self._weights[tensor.name], folder)
        _absorb_constants(self.graph)
        self._prefixes: set[str] = set()
        names = (*self.graph.tensors(), *(node.name for node in self.graph.nodes))
        self._own_names = [name for name in names if "/msconv" in name]  # of an earlier run
        self.stamps: dict[str, dict[str, str]] = {}

    def new_prefix(self, wanted: str) -> str:
        """A prefix for names of new nodes and tensors that nothing in the graph starts with yet."""
        prefix, count = wanted, 0
        while prefix in self._prefixes or any(name.startswith(prefix) for name in self._own_names):
            count += 1
            prefix = f"{wanted}{count}"
        self._prefixes.add(prefix)
        return prefix

    def insert(self, builder: GraphBuilder, stamp: dict[str, str]) -> None:
        """Put a builder's nodes into the graph; each is stamped with where it comes from."""
        known = self.graph.tensors()
        for name, array in builder.constants.items():
            known[name] = gs.Constant(name, array)
        for proto in builder.nodes:
            for output in proto.output:
                if output not in known:
                    known[output] = gs.Variable(output)
        for proto in builder.nodes:
            if proto.op_type == "Constant":
                known[proto.output[0]].to_constant(numpy_helper.to_array(proto.attribute[0].t))
                continue
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
            inputs = [known[i] if i else gs.Variable.empty() for i in proto.input]
            node = gs.Node(
                proto.op_type, proto.name, attributes, inputs, [known[o] for o in proto.output], proto.domain
            )
            self.graph.nodes.append(node)
            self.stamps[proto.name] = stamp

    def export(self) -> onnx.ModelProto:
        """The edited model: dead nodes removed, weights and everything else as in the original."""
        for tensor in self.graph.tensors().values():
            if isinstance(tensor, gs.Constant) and tensor.name in self._weights:
                tensor.values = np.zeros(0, np.float32)  # the weight itself is put back below
        self.graph.cleanup(remove_unused_graph_inputs=False).toposort()
        edited = gs.export_onnx(self.graph, do_type_check=False)
        return self._restored(edited)

    def _restored(self, edited: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx.ModelProto()
        for field, value in self.model.ListFields():
            if field.name != "graph":
                _assign(result, field, value)
        graph = result.graph
        graph.name = self.model.graph.name
        graph.doc_string = self.model.graph.doc_string
        graph.node.extend(edited.graph.node)
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        for tensor in edited.graph.initializer:
            graph.initializer.append(self._weights.get(tensor.name, tensor))
        graph.sparse_initializer.extend(self.model.graph.sparse_initializer)
        graph.metadata_props.extend(self.model.graph.metadata_props)
        alive = {name for node in graph.node for name in (*node.input, *node.output)}
        graph.value_info.extend(v for v in self.model.graph.value_info if v.name in alive)
        graph.quantization_annotation.extend(
            a for a in self.model.graph.quantization_annotation if a.tensor_name in alive
        )
        original = {node.output[0]: node for node in self.model.graph.node if node.output}
        for node in graph.node:
            stamp = self.stamps.get(node.name)
            if stamp is not None:
                for key, value in stamp.items():
                    node.metadata_props.add(key=key, value=value)
            elif node.output and node.output[0] in original:
                before = original[node.output[0]]
                node.metadata_props.extend(before.metadata_props)
                node.doc_string = before.doc_string
                node.overload = before.overload
        return result


def _absorb_constants(graph: gs.Graph) -> None:
    """Turn `Constant` nodes into constants, so that there is one kind of them."""
    kept = []
    for node in graph.nodes:
        value = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(value, gs.Constant) and isinstance(node.outputs[0], gs.Variable):
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(value.values)
        else:
            kept.append(node)
    graph.nodes[:] = kept


def _infer(skeleton: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        inferred = skeleton
    found: dict[str, tuple[int | str | None, ...]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
            )
    return found


class GraphBuilder(NodeBuilder):
    """A node builder that can also hold constants of any size and split a tensor."""

    def __init__(self, prefix: str, opset: int) -> None:
        super().__init__(prefix, opset)
        self.constants: dict[str, NDArray[Any]] = {}

    def constant(self, array: NDArray[Any], hint: str = "weight") -> str:
        """An initializer."""
        name = self.name(hint)
        self.constants[name] = np.asarray(array)
        return name

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Cut a tensor into parts of these sizes."""
        parts = [self.name("part") for _ in sizes]
        node_name = self.name("split")
        if self.opset < 13:
            node = helper.make_node("Split", [x], parts, node_name, axis=axis, split=list(sizes))
        else:
            node = helper.make_node("Split", [x, self.ints(list(sizes))], parts, node_name, axis=axis)
        self.nodes.append(node)
        return parts
