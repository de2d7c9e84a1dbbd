"""What "the same" means for two models and for what an optimizer says of them.

Three strengths: bytes that are equal; graphs that are the same expressions of the same inputs and constants, whatever their
names and order (:func:`expressions`); outputs that are numerically equal (``tests.surgery.graphs.compare``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import onnx
from onnx import numpy_helper

from msconv_deploy.surgery.optimize import Result

Expressions = tuple[list[str], Counter[str]]


def serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def expressions(model: onnx.ModelProto) -> Expressions:
    """A graph without its names and order: a hash of what each output is computed by, and those of all nodes, counted.

    Inputs count by position, constants by type, shape and bytes whether they are initializers or Constant nodes, nodes by
    domain, operator, attributes and operands, subgraphs likewise with what they capture.
    """
    nodes: Counter[str] = Counter()
    return _outputs(model.graph, {"": ""}, nodes), nodes


def _outputs(graph: onnx.GraphProto, outer: Mapping[str, str], nodes: Counter[str]) -> list[str]:
    known = dict(outer)
    for tensor in graph.initializer:
        known[tensor.name] = _constant(tensor)
    for i, value in enumerate(graph.input):  # one with a default value is an input all the same
        known[value.name] = _hash("input", i, value.type.tensor_type.elem_type, known.get(value.name))
    for node in graph.node:
        constant = node.op_type == "Constant" and node.attribute[0].name == "value"
        if constant:
            known[node.output[0]] = _constant(node.attribute[0].t)
            continue
        attributes = [_attribute(a, known, nodes) for a in sorted(node.attribute, key=lambda a: a.name)]
        made = _hash(node.domain, node.op_type, *attributes, *(known[name] for name in node.input))
        nodes[made] += 1
        known.update({name: _hash(made, i) for i, name in enumerate(node.output)})
    return [known[value.name] for value in graph.output]


def _attribute(attribute: onnx.AttributeProto, known: Mapping[str, str], nodes: Counter[str]) -> str:
    if attribute.HasField("g"):
        return _hash(attribute.name, *_outputs(attribute.g, known, nodes))
    return _hash(attribute.name, attribute.SerializeToString(deterministic=True))


def _constant(tensor: onnx.TensorProto) -> str:
    array = numpy_helper.to_array(tensor)
    return _hash("constant", tensor.data_type, array.shape, array.tobytes())


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def report_of(result: Result) -> dict[str, list[Mapping[str, Any]]]:
    """Everything that the optimizer says, as data."""
    return {"sites": [asdict(s) for s in result.sites], "near misses": [asdict(m) for m in result.near_misses]}


NAMELESS = (
    "op", "geometry", "rule", "decision", "lowering", "spellings", "macs_before", "macs_after", "bytes_before", "bytes_after",
)  # fmt: skip
"""What a site says without a name."""


def nameless_sites(result: Result) -> list[tuple[object, ...]]:
    """Sites without the names of nodes and tensors, in their order.

    The estimated gain counts to nine digits: it is a quotient of sums, which round as the order of their parts is.
    """
    return [
        (
            *(_frozen(getattr(site, key)) for key in NAMELESS),
            f"{site.estimated_gain:.9g}" if site.estimated_gain is not None else None,
            tuple((s.start, s.size, tuple(s.uniform)) for s in site.segments),
            len(site.taken_over),
        )
        for site in result.sites
    ]


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
