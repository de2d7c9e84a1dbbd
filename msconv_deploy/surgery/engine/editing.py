"""Editing a graph: a model as onnx-graphsurgeon's graph, new nodes into it, and back to a model with nothing lost.

onnx-graphsurgeon copies every weight several times and drops metadata. So the weights stand aside while the graph is
edited (a large one is loaded only when a rule asks for its value), and what it drops is put back after export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from msconv_deploy.errors import BadInputError
from msconv_deploy.model_checks import propagates
from msconv_deploy.model_files import (
    MIN_REFERENCE_BYTES,
    copy_field,
    external_location,
    is_unknown_extent,
    without_weights,
)
from msconv_deploy.ops.configuration import DOMAIN, DOMAIN_VERSION
from msconv_deploy.ops.node_builder import NodeBuilder
from msconv_deploy.surgery.engine.folding import LIMIT, fold
from msconv_deploy.surgery.engine.symbols import name_in_file, operator
from msconv_deploy.wire_format import Spool, is_inline_reference

_INITIALIZERS_ALONE = 4
"""IR version from which an initializer need not be an input of the graph."""

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


def constant_values(constant: gs.Constant) -> NDArray[Any]:
    """The values of a constant; those of a large weight are read and not kept."""
    values = constant._values
    return values.load() if isinstance(values, _DeferredValues) else np.asarray(constant.values)


def tensor_values(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """A tensor as an array of its own."""
    if not uses_external_data(tensor):
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        return values
    file, offset, _ = external_location(tensor, folder)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return np.fromfile(file, dtype, count, offset=offset).reshape(tuple(tensor.dims))


@contextmanager
def quiet_graphsurgeon() -> Iterator[None]:
    """Only errors of onnx-graphsurgeon: it prints warnings, of element types that NumPy lacks, to standard output."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    finally:
        G_LOGGER.severity = before


def skeleton_of(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """A copy of the model without its large weights, and those by name.

    An initializer that is a graph input as well is a default that the caller may override: it stays an input only.
    """
    light, aside = without_weights(model, _SMALL + 1)
    for tensor in aside:
        light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    inputs = {value.name for value in model.graph.input}
    own = [tensor for tensor in light.graph.initializer if tensor.name not in inputs]
    del light.graph.initializer[:]
    light.graph.initializer.extend(own)
    weights = {tensor.name: tensor for tensor in aside}
    return light, weights


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
        self._folder = folder
        # Weights that were not read into memory are not to be made there either.
        self._as_nodes = model.ir_version < _INITIALIZERS_ALONE  # new constants: the inputs have to stay what they are
        self._spool = Spool() if any(is_inline_reference(t) for t in model.graph.initializer) else None
        self._skeleton, self._weights = skeleton_of(model)
        self.inferred, self._stale = _infer(self._skeleton)
        try:
            self.graph = gs.import_onnx(self._skeleton)
        except UnicodeDecodeError as error:
            raise BadInputError(
                f"an attribute of a node is no UTF-8 text, and onnx-graphsurgeon reads no other: {error}"
            ) from None
        for tensor in self.graph.tensors().values():
            if isinstance(tensor, gs.Constant) and tensor.name in self._weights:
                tensor.values = _DeferredValues(self._weights[tensor.name], folder)
        _absorb_constants(self.graph)
        _read_by_bodies(self.graph)
        self._prefixes: set[str] = set()
        self._own_names = [name for name in _all_names(model.graph) if "/msconv" in name]  # of an earlier run
        self._known: dict[str, gs.Tensor] = dict(self.graph.tensors())
        self._new_nodes: list[onnx.NodeProto] = []
        self._new_constants: list[onnx.TensorProto] = []

    def new_prefix(self, wanted: str) -> str:
        """A prefix for names of new nodes and tensors that nothing in the graph starts with yet."""
        prefix, count = wanted, 0
        while prefix in self._prefixes or any(name.startswith(prefix) for name in self._own_names):
            count += 1
            prefix = f"{wanted}{count}"
        self._prefixes.add(prefix)
        return prefix

    def add_constant(self, name: str, array: NDArray[Any]) -> gs.Constant:
        """An initializer of the edited model (in an old one a Constant), exported if something reads it then."""
        proto = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        if self._spool is not None and not self._as_nodes and len(proto.raw_data) >= MIN_REFERENCE_BYTES:
            self._spool.add(proto)
        self._new_constants.append(proto)
        constant = gs.Constant(name, _DeferredValues(proto, self._folder))  # one copy of the values is enough
        self._known[name] = constant
        return constant

    def insert(self, builder: GraphBuilder, stamp: dict[str, str]) -> None:
        """Put a builder's nodes into the graph; each is stamped with where it comes from."""
        known = self._known
        kept = [name for node in builder.nodes for name in node.output if name in known]  # of the original nodes
        builder.nodes = fold(builder.nodes, builder.constants, self._small_constant, kept, self.opset)
        for name, array in builder.constants.items():
            self.add_constant(name, array)
        builder.constants.clear()
        for proto in builder.nodes:
            for output in proto.output:
                if output not in known:
                    known[output] = gs.Variable(output)
        for proto in builder.nodes:
            if proto.op_type == "Constant":
                constant = onnx.TensorProto()
                constant.CopyFrom(proto.attribute[0].t)
                constant.name = proto.output[0]
                self._new_constants.append(constant)
                known[proto.output[0]].to_constant(numpy_helper.to_array(constant))
                continue
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
            inputs = [known[i] if i else gs.Variable.empty() for i in proto.input]
            node = gs.Node(
                proto.op_type, proto.name, attributes, inputs, [known[o] for o in proto.output], proto.domain
            )
            self.graph.nodes.append(node)
            made = onnx.NodeProto()
            made.CopyFrom(proto)
            for key, value in stamp.items():
                made.metadata_props.add(key=key, value=value)
            self._new_nodes.append(made)

    def _small_constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._known.get(name)
        small = isinstance(tensor, gs.Constant) and tensor._values.nbytes <= LIMIT
        return constant_values(tensor) if small else None

    def export(self) -> onnx.ModelProto:
        """The edited model: dead nodes removed, everything that was not rewritten exactly as in the original."""
        result = onnx.ModelProto()
        for field, value in self.model.ListFields():
            if field.name != "graph":
                copy_field(result, field.name, value)
        before, graph = self.model.graph, result.graph
        for field, value in before.ListFields():
            if field.name not in ("node", "initializer", "value_info", "quantization_annotation"):
                copy_field(graph, field.name, value)
        made = {output for node in self._new_nodes for output in node.output if output}
        kept = [node for node in before.node if not made.intersection(node.output)]
        graph.node.extend(_live_in_order([*kept, *self._new_nodes], [o.name for o in before.output]))
        alive = {value.name for value in (*before.input, *before.output)}
        for node in graph.node:
            alive.update((*_names_read(node), *node.output))
        annotations = [a for a in before.quantization_annotation if a.tensor_name in alive]
        graph.quantization_annotation.extend(annotations)
        alive.update(entry.value for a in annotations for entry in a.quant_parameter_tensor_names)
        graph.initializer.extend(t for t in before.initializer if t.name in alive)
        constants = [t for t in self._new_constants if t.name in alive]
        if self._as_nodes:
            nodes = [*(_constant_node(t) for t in constants), *graph.node]
            del graph.node[:]
            graph.node.extend(nodes)
        else:
            graph.initializer.extend(constants)
        if not self._stale:
            graph.value_info.extend(v for v in before.value_info if v.name in alive)
        imported = {entry.domain for entry in result.opset_import}
        if DOMAIN not in imported and any(node.domain == DOMAIN for node in graph.node):
            result.opset_import.add(domain=DOMAIN, version=DOMAIN_VERSION)
        return result


def _constant_node(tensor: onnx.TensorProto) -> onnx.NodeProto:
    value = onnx.TensorProto()
    value.CopyFrom(tensor)
    value.ClearField("name")
    return helper.make_node("Constant", [], [tensor.name], tensor.name, value=value)


def _names_read(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads: its inputs, and whatever its subgraphs mention, which may be captured."""
    names = [name for name in node.input if name]
    for graph in _subgraphs(node):
        names.extend(value.name for value in graph.output)
        for inner in graph.node:
            names.extend(_names_read(inner))
    return names


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else a.graphs)]


def _all_names(graph: onnx.GraphProto) -> set[str]:
    """Names of all tensors and nodes of a graph and its subgraphs."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update((node.name, *node.input, *node.output))
        for inner in _subgraphs(node):
            names |= _all_names(inner)
    return names


def _live_in_order(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, in their order except that each comes after what it reads."""
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [[producer[name] for name in _names_read(node) if name in producer] for node in nodes]
    live: set[int] = set()
    stack = [producer[name] for name in outputs if name in producer]
    while stack:
        i = stack.pop()
        if i not in live:
            live.add(i)
            stack.extend(needs[i])
    order: list[onnx.NodeProto] = []
    opened: set[int] = set()
    done: set[int] = set()
    for first in sorted(live):
        stack = [first]
        while stack:
            i = stack[-1]
            waiting = [] if i in opened else [j for j in needs[i] if j not in opened]
            opened.add(i)
            if waiting:
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            if i not in done:
                done.add(i)
                order.append(nodes[i])
    return order


def _absorb_constants(graph: gs.Graph) -> None:
    """Turn `Constant` nodes into constants, so that there is one kind of them."""
    kept = []
    for node in graph.nodes:
        value = _constant_value(node) if operator(node) == "Constant" else None
        if value is not None and isinstance(node.outputs[0], gs.Variable):
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(value)
        else:
            kept.append(node)
    graph.nodes[:] = kept


def _read_by_bodies(graph: gs.Graph) -> None:
    """What a body of control flow captures is read by the node that has the body, so that nobody follows readers into it.

    graphsurgeon names the body's own nodes as readers, and none for a captured tensor that is a result of the body.
    """
    outer = {id(tensor) for tensor in graph.tensors().values()}
    for node in graph.nodes:
        for body in node.subgraphs(recursive=True):
            captured = {id(t): t for inner in body.nodes for t in inner.inputs if id(t) in outer}
            captured.update((id(t), t) for t in body.outputs if id(t) in outer)
            inside = {id(inner) for inner in body.nodes}
            for tensor in captured.values():
                readers = [reader for reader in tensor.outputs if id(reader) not in inside]
                list.__setitem__(tensor.outputs, slice(None), [*readers, node])  # the list would undo the nodes' inputs


def _constant_value(node: gs.Node) -> Any:
    """The value of a Constant node, whichever of its attributes holds it."""
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return value.values
    for name, dtype in (("int", np.int64), ("ints", np.int64), ("float", np.float32), ("floats", np.float32)):
        if f"value_{name}" in node.attrs:
            return np.asarray(node.attrs[f"value_{name}"], dtype)
    return None


def _infer(skeleton: onnx.ModelProto) -> tuple[dict[str, tuple[int | str | None, ...]], bool]:
    """Extents of the tensors by shape inference; and is what the file says of them stale?

    What the file itself says of intermediate tensors helps where inference finds nothing, but it is stale in files whose
    inputs were made dynamic by hand: where it contradicts what follows from the inputs, all of it is left out (a runtime
    that believed it would reuse memory of the wrong size).
    """
    bare = _without_declarations(skeleton)
    followed = _extents(_inferred(bare))
    declared = _extents(skeleton)
    for name, dims in followed.items():
        said = declared.get(name, dims)
        if len(said) != len(dims) or any(
            isinstance(s, int) and d is not None and s != d and not str(d).startswith("unk__")
            for s, d in zip(said, dims, strict=True)
        ):
            return followed, True
    return _extents(_inferred(skeleton)), False


def _without_declarations(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.CopyFrom(skeleton)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return bare


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=propagates(model))
    except MemoryError:  # an absurd axis or extent makes a list of that length there
        raise BadInputError(
            "ONNX's shape inference takes more memory than there is: a value in the model is absurd"
        ) from None
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return model


def _extents(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    found: dict[str, tuple[int | str | None, ...]] = {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            found[value.name] = tuple(
                None
                if is_unknown_extent(d)
                else d.dim_value
                if d.HasField("dim_value")
                else (name_in_file(d.dim_param) or None)
                for d in kind.shape.dim
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

    def rename(self, old: str, new: str) -> None:
        """Give a result, and the node that makes it, another name."""
        for node in self.nodes:
            node.name = new if node.name == old else node.name
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

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
