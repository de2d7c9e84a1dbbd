"""What differs between two models, by name: a structural comparison, nothing is run.

Nodes are told apart by their first output (names of nodes are optional in ONNX), weights by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnx import helper

from msconv_deploy.model_files import read_model
from msconv_deploy.reporting.diff import Change, DiffReport, NodeEntry, TensorEntry
from msconv_deploy.surgery.engine.editing import tensor_values
from msconv_deploy.validation.interface import interface_changes

_Tensor: TypeAlias = onnx.TensorProto | onnx.SparseTensorProto

_LONGEST = 80  # characters of an attribute's value


def diff_files(a: Path | str, b: Path | str) -> DiffReport:
    """Compare two files.

    Raises:
        BadInputError: one of them is no ONNX model, or its external data is missing or elsewhere.
    """
    a, b = Path(a), Path(b)
    report = diff_models(read_model(a), read_model(b), a.parent, b.parent)
    report.a, report.b = str(a), str(b)
    return report


def diff_models(a: onnx.ModelProto, b: onnx.ModelProto, folder_a: Path, folder_b: Path) -> DiffReport:
    """Compare two models whose external data lies in these folders."""
    nodes_a, nodes_b = _nodes(a), _nodes(b)
    weights_a, weights_b = _weights(a), _weights(b)
    report = DiffReport(
        a="a",
        b="b",
        equal=False,
        interface=_interface(a, b),
        nodes_added=[_node_entry(nodes_b[name]) for name in nodes_b if name not in nodes_a],
        nodes_removed=[_node_entry(nodes_a[name]) for name in nodes_a if name not in nodes_b],
        nodes_changed=[
            Change(name=name, op=nodes_b[name].op_type, what=what)
            for name in nodes_a
            if name in nodes_b and (what := list(_node_changes(nodes_a[name], nodes_b[name])))
        ],
        tensors_added=[_tensor_entry(weights_b[name]) for name in weights_b if name not in weights_a],
        tensors_removed=[_tensor_entry(weights_a[name]) for name in weights_a if name not in weights_b],
        tensors_changed=[
            Change(name=name, what=[values])
            for name in weights_a
            if name in weights_b and (values := _tensor_change(weights_a[name], weights_b[name], folder_a, folder_b))
        ],
    )
    parts = (report.interface, report.nodes_added, report.nodes_removed, report.nodes_changed)
    report.equal = not any((*parts, report.tensors_added, report.tensors_removed, report.tensors_changed))
    return report


def _weights(model: onnx.ModelProto) -> dict[str, _Tensor]:
    """Initializers by name, sparse ones as well."""
    found: dict[str, _Tensor] = {tensor.name: tensor for tensor in model.graph.initializer}
    return found | {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}


def _nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {next(filter(None, node.output), node.name): node for node in model.graph.node}


def _interface(a: onnx.ModelProto, b: onnx.ModelProto) -> list[str]:
    changes = interface_changes(a, b)
    imported = {entry.domain for entry in a.opset_import}
    changes += [
        f"opset of {e.domain or 'ai.onnx'}: {e.version} is new" for e in b.opset_import if e.domain not in imported
    ]
    if a.ir_version != b.ir_version:
        changes.append(f"IR version: {a.ir_version} became {b.ir_version}")
    functions = [{f"{f.domain}::{f.name}": f for f in model.functions} for model in (a, b)]
    changes += [f"function {name} is gone" for name in functions[0] if name not in functions[1]]
    changes += [f"function {name} is new" for name in functions[1] if name not in functions[0]]
    changes += [
        f"function {name} has changed"
        for name, function in functions[0].items()
        if name in functions[1] and function != functions[1][name]
    ]
    old = {entry.key for entry in a.metadata_props}
    return changes + [f"metadata {entry.key!r} is new" for entry in b.metadata_props if entry.key not in old]


def _node_entry(node: onnx.NodeProto) -> NodeEntry:
    return NodeEntry(output=next(filter(None, node.output), ""), name=node.name, op=_op(node))


def _op(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _node_changes(a: onnx.NodeProto, b: onnx.NodeProto) -> Iterator[str]:
    if _op(a) != _op(b):
        yield f"operator: {_op(a)} became {_op(b)}"
    if a.name != b.name:
        yield f"name: {a.name or '(none)'} became {b.name or '(none)'}"
    for what, one, two in (("inputs", a.input, b.input), ("outputs", a.output, b.output)):
        if list(one) != list(two):
            yield f"{what}: {_names(one)} became {_names(two)}"
    attributes = [{attribute.name: attribute for attribute in node.attribute} for node in (a, b)]
    for name in dict.fromkeys((*attributes[0], *attributes[1])):
        first, second = attributes[0].get(name), attributes[1].get(name)
        if first is None or second is None or _without_doc(first) != _without_doc(second):
            yield f"{name}: {_value(first)} became {_value(second)}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(name or "(none)" for name in names)


def _without_doc(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    if not attribute.doc_string:
        return attribute
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    copy.ClearField("doc_string")
    return copy


def _value(attribute: onnx.AttributeProto | None) -> str:
    if attribute is None:
        return "(none)"
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return "a graph"
    if attribute.type == onnx.AttributeProto.TENSOR:
        entry = _tensor_entry(attribute.t)
        return f"a tensor {entry.dtype} {entry.shape}"
    value: Any = helper.get_attribute_value(attribute)
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _tensor_entry(tensor: _Tensor) -> TensorEntry:
    if isinstance(tensor, onnx.SparseTensorProto):
        values = _tensor_entry(tensor.values)
        return TensorEntry(name=values.name, dtype=f"sparse {values.dtype}", shape=list(tensor.dims))
    dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return TensorEntry(name=tensor.name, dtype=dtype, shape=list(tensor.dims))


def _tensor_change(a: _Tensor, b: _Tensor, folder_a: Path, folder_b: Path) -> str:
    """What differs, or an empty text. Where the values lie (in the file or beside it) makes no difference."""
    one, two = _tensor_entry(a), _tensor_entry(b)
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"{one.dtype} {one.shape} became {two.dtype} {two.shape}"
    if isinstance(a, onnx.SparseTensorProto) or isinstance(b, onnx.SparseTensorProto):
        assert isinstance(a, onnx.SparseTensorProto)  # both: their types are equal
        assert isinstance(b, onnx.SparseTensorProto)
        pairs = (a.values, b.values), (a.indices, b.indices)
        return next((what for one, two in pairs if (what := _tensor_change(one, two, folder_a, folder_b))), "")
    if a.data_type == onnx.TensorProto.STRING:
        return "" if list(a.string_data) == list(b.string_data) else "values differ"
    return "" if tensor_values(a, folder_a).tobytes() == tensor_values(b, folder_b).tobytes() else "values differ"
