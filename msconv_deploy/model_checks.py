"""What a model must be before anything is done with it, beyond what ONNX's own checker looks at.

Files come from strangers. A text that is no UTF-8, a weight whose extents and bytes disagree, a function that calls itself, or
constants from which terabytes would be computed are found here, by name, and not by whatever meets them first.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from msconv_deploy.errors import BadInputError

MOST_CONSTANT_BYTES = 1 << 30
"""Most bytes of all tensors together that are computed from constants alone."""

MOST_NODES = 10_000_000
"""Most nodes of a model whose functions are inlined."""

_MOST_DIMENSIONS = 64  # NumPy's own limit
_MOST_ELEMENTS = 1 << 48  # far above any memory, and far below where sizes in 64 bits overflow
_PACKED = {"UINT2": 2, "INT2": 2, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4}  # bits of what shares a byte
_TENSOR_TEXTS = ("name", "doc_string", "external_data")
_TENSOR, _SPARSE_TENSOR = TensorProto.DESCRIPTOR.full_name, onnx.SparseTensorProto.DESCRIPTOR.full_name
_TENSOR_TYPE = onnx.TypeProto.Tensor.DESCRIPTOR.full_name


def check_structure(model: onnx.ModelProto) -> None:
    """Check texts, weights, declared types, imports and functions; no value of a weight is looked at.

    External data is held to its length elsewhere.

    Raises:
        BadInputError: the message names the part of the model, not the file.
    """
    _check_message(model, "the model")
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        if versions.setdefault(entry.domain, entry.version) != entry.version:
            raise BadInputError(
                f"imports two opsets of domain {entry.domain or 'ai.onnx'!r}: {versions[entry.domain]} and {entry.version}"
            )
    _check_functions(model)


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's raw data, from its extents and type; 0 for strings."""
    return _bytes(math.prod(tensor.dims), tensor.data_type)


def _bytes(elements: int, data_type: int) -> int:
    if data_type == TensorProto.STRING:
        return 0
    packed = _PACKED.get(TensorProto.DataType.Name(data_type))
    return -(-elements * packed // 8) if packed else elements * helper.tensor_dtype_to_np_dtype(data_type).itemsize


# -- messages --------------------------------------------------------------------------------------------------------


def _check_message(message: Any, where: str) -> None:
    """Strings are UTF-8 (what is not, protobuf hands out as bytes); tensors and types of tensors are possible ones."""
    kind = message.DESCRIPTOR.full_name
    if kind == _TENSOR:  # its data is no text, and may be large
        fields = [(message.DESCRIPTOR.fields_by_name[name], getattr(message, name)) for name in _TENSOR_TEXTS]
    else:
        fields = message.ListFields()
    name = getattr(message, "name", "") or where
    for field, value in fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            if any(isinstance(text, bytes) for text in ([value] if isinstance(value, (str, bytes)) else value)):
                raise BadInputError(f"is not a valid ONNX model: {field.name} of {name!r} is no UTF-8 text")
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _check_message(inner, f"{field.name} of {name}")
    if kind == _TENSOR:
        _check_tensor(message)
    elif kind == _TENSOR_TYPE:
        _check_tensor_type(message, where)
    elif kind == _SPARSE_TENSOR:
        _check_extents(message.dims, message.values.data_type, f"sparse tensor {message.values.name!r}")


def _check_tensor(tensor: TensorProto) -> None:
    where = f"tensor {tensor.name!r}"
    elements = _check_extents(tensor.dims, tensor.data_type, where)
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        needed, given, unit = _bytes(elements, tensor.data_type), len(tensor.raw_data), "bytes"
    else:
        needed, given = _typed_elements(tensor, elements)
        unit = "elements"
    if given != needed:
        raise BadInputError(
            f"{where} has extents {_dims_text(tensor.dims)}, which take {needed} {unit}, but holds {given}: the file is damaged"
        )


def _check_extents(dims: Iterable[int], data_type: int, where: str) -> int:
    """The number of elements."""
    dims = list(dims)
    if data_type not in TensorProto.DataType.values() or data_type == TensorProto.UNDEFINED:
        raise BadInputError(f"{where} has the element type {data_type}, which ONNX does not know")
    if len(dims) > _MOST_DIMENSIONS:
        raise BadInputError(f"{where} has {len(dims)} dimensions; {_MOST_DIMENSIONS} are the most")
    if min(dims, default=0) < 0 or math.prod(max(extent, 1) for extent in dims) > _MOST_ELEMENTS:
        raise BadInputError(f"{where} has impossible extents {_dims_text(dims)}")
    return math.prod(dims)


def _typed_elements(tensor: TensorProto, elements: int) -> tuple[int, int]:
    """Entries of the typed field that the type calls for: needed, given."""
    given = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * elements, given
    if TensorProto.DataType.Name(tensor.data_type) in _PACKED:
        return _bytes(elements, tensor.data_type), given
    return elements, given


def _dims_text(dims: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, dims)) + "]"


def _check_tensor_type(kind: onnx.TypeProto.Tensor, where: str) -> None:
    dims = [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")]
    if kind.elem_type not in TensorProto.DataType.values():
        raise BadInputError(f"{where} has the element type {kind.elem_type}, which ONNX does not know")
    if len(kind.shape.dim) > _MOST_DIMENSIONS or min(dims, default=0) < -1:  # -1 stands for one that is not known
        raise BadInputError(f"{where} has impossible extents {_dims_text(dims)}")


# -- functions -------------------------------------------------------------------------------------------------------


def _check_functions(model: onnx.ModelProto) -> None:
    """No function is defined twice or calls itself, and inlining all of them ends in a model that can be held."""
    Key = tuple[str, str, str]
    functions: dict[Key, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (_domain(function), function.name, function.overload)
        if key in functions:
            raise BadInputError(f"defines the function {_title(key)} twice")
        functions[key] = function
    if not functions:
        return
    for node in (*_nodes(model.graph.node), *(n for function in model.functions for n in _nodes(function.node))):
        called = functions.get(_called(node))
        if called and (len(node.input) > len(called.input) or len(node.output) > len(called.output)):
            raise BadInputError(f"node {node.name!r} gives the function {_title(_called(node))} more than it takes")
    own = {key: len(function.node) for key, function in functions.items()}
    calls = {
        key: [called for node in _nodes(function.node) if (called := _called(node)) in functions]
        for key, function in functions.items()
    }
    sizes: dict[Key, int] = {}
    stack = [(key, False) for key in functions]
    opened: set[Key] = set()
    while stack:
        key, ready = stack.pop()
        if ready:
            sizes[key] = own[key] + sum(sizes[called] for called in calls[key])
            opened.discard(key)
        elif key in opened:
            raise BadInputError(f"the function {_title(key)} calls itself, which ONNX does not allow")
        elif key not in sizes:
            opened.add(key)
            stack.append((key, True))
            stack.extend((called, False) for called in dict.fromkeys(calls[key]))
    total = sum(sizes[called] for node in _nodes(model.graph.node) if (called := _called(node)) in functions)
    if total > MOST_NODES:
        raise BadInputError(f"has {total} nodes when its functions are inlined; {MOST_NODES} are the most")


def _domain(what: onnx.NodeProto | onnx.FunctionProto) -> str:
    return "" if what.domain == "ai.onnx" else what.domain


def _called(node: onnx.NodeProto) -> tuple[str, str, str]:
    return _domain(node), node.op_type, node.overload


def _title(key: tuple[str, str, str]) -> str:
    return "::".join(part for part in key if part)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(graph.node)


# -- memory ----------------------------------------------------------------------------------------------------------


_SHAPE_OPERAND = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}
_LONGEST_LIST = 1 << 22
"""Elements: far more than a shape or its indices have, and some 100 MB in shape inference."""


def memory_limit() -> int:
    """Bytes that this process can have: the machine's memory, or its own limit on address space."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    return machine if own == resource.RLIM_INFINITY else min(machine, own)


def propagates(model: onnx.ModelProto) -> bool:
    """Shall shape inference follow values (``data_prop``)?

    It then writes out every element of a list of integers; and it follows a Slice wrongly whose limits a caller gives, which
    they are too where an initializer may be overridden.
    """
    for value in (*model.graph.input, *model.graph.value_info):
        kind = value.type.tensor_type
        listed = len(kind.shape.dim) == 1 and kind.elem_type in (TensorProto.INT32, TensorProto.INT64)
        if listed and kind.shape.dim[0].dim_value > _LONGEST_LIST:
            return False
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        operand = _SHAPE_OPERAND.get(node.op_type)
        shape = constants.get(node.input[operand]) if operand is not None and len(node.input) > operand else None
        if shape is not None and shape.data_type == TensorProto.INT64 and _list_length(shape) > _LONGEST_LIST:
            return False
    given = {value.name for value in model.graph.input}
    if model.ir_version < 4:  # every initializer was an input then
        given -= {tensor.name for tensor in model.graph.initializer}
    return not any(node.op_type == "Slice" and given.intersection(node.input[1:]) for node in model.graph.node)


def _list_length(shape: TensorProto) -> int:
    """Extent of a tensor of this shape if it has one axis; else 0."""
    if list(shape.dims) != [1] or uses_external_data(shape):
        return 0
    return int(numpy_helper.to_array(shape)[0])


def check_memory(model: onnx.ModelProto, weights: Iterable[TensorProto]) -> None:
    """Refuse a model with a tensor that no run could hold, as far as its extents follow from the file.

    A tensor may take half of the memory; all that are computed from constants alone, which a runtime does when it loads the
    model, :data:`MOST_CONSTANT_BYTES`. Dynamic extents count as 1.

    Args:
        model: its large weights are graph inputs.
        weights: those.

    Raises:
        BadInputError: the message names the tensor, not the file.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=propagates(model)).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = model.graph
    constant = {tensor.name for tensor in (*weights, *model.graph.initializer)}
    constant |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    for node in model.graph.node:
        if all(name in constant for name in node.input if name) and not node.op_type.startswith("Random"):
            constant.update(node.output)
    made = {name for node in model.graph.node for name in node.output if name}
    most, total = memory_limit() // 2, 0
    sparse_sizes = [
        (s.values.name, _bytes(math.prod(s.dims), s.values.data_type)) for s in model.graph.sparse_initializer
    ]
    sizes = [(value.name, _value_bytes(value)) for value in (*graph.input, *graph.value_info, *graph.output)]
    for name, size in dict((*sizes, *sparse_sizes)).items():
        if size > most:
            raise BadInputError(
                f"tensor {name!r} would take {_gigabytes(size)}; this machine can hold {_gigabytes(most)}"
            )
        if name in constant and (name in made or (name, size) in sparse_sizes):
            total += size
            if total > MOST_CONSTANT_BYTES:
                raise BadInputError(
                    f"its constants are expanded to more than {_gigabytes(MOST_CONSTANT_BYTES)}, tensor {name!r} alone to "
                    f"{_gigabytes(size)}: compute it from an input, or keep it small and let the operators broadcast"
                )


def _value_bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or kind.elem_type not in TensorProto.DataType.values():
        return 0
    extents = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in kind.shape.dim]
    known = kind.elem_type not in (TensorProto.UNDEFINED, TensorProto.STRING)
    return _bytes(math.prod(max(extent, 0) for extent in extents), kind.elem_type if known else TensorProto.FLOAT)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
