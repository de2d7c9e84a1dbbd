"""What a user of a model relies on besides its values: inputs, outputs, order, types, symbolic dims, opset, metadata."""

from __future__ import annotations

import onnx


def interface_changes(original: onnx.ModelProto, rewritten: onnx.ModelProto) -> list[str]:
    """What differs between the two, in words; empty if nothing does."""
    changes = []
    for what in ("input", "output"):
        before, after = getattr(original.graph, what), getattr(rewritten.graph, what)
        names = [value.name for value in before], [value.name for value in after]
        if names[0] != names[1]:
            changes.append(f"{what}s: {', '.join(names[0])} became {', '.join(names[1])}")
            continue
        changes += [
            f"{what} {one.name}: {_type_text(one)} became {_type_text(two)}"
            for one, two in zip(before, after, strict=True)
            if one.type != two.type
        ]
    opsets = [{entry.domain or "ai.onnx": entry.version for entry in m.opset_import} for m in (original, rewritten)]
    changes += [
        f"opset of {domain}: {version} became {opsets[1].get(domain)}"
        for domain, version in opsets[0].items()
        if opsets[1].get(domain) != version
    ]
    metadata = [{entry.key: entry.value for entry in m.metadata_props} for m in (original, rewritten)]
    changes += [f"metadata {key!r} is lost" for key, value in metadata[0].items() if metadata[1].get(key) != value]
    return changes


def _type_text(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type":
        return str(value.type.WhichOneof("value"))
    dims = "x".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {dims}"
