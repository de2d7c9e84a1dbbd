"""A model with more outputs than its file has, for as long as a session is made of it.

Weights are not copied for it: the additions are made to the model in memory and taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import onnx


@contextmanager
def exposed(
    model: onnx.ModelProto,
    tensors: Iterable[str] = (),
    nodes: Iterable[onnx.NodeProto] = (),
    inputs: Iterable[onnx.ValueInfoProto] = (),
) -> Iterator[onnx.ModelProto]:
    """Yield the model with extra outputs, nodes and inputs; afterwards it is as before.

    Args:
        model: is changed within the block.
        tensors: become outputs, unless they are some already; ONNX Runtime infers their types.
        nodes: come after the others (ONNX Runtime sorts them).
        inputs: of the graph.
    """
    graph = model.graph
    fields = (graph.output, graph.node, graph.input)
    lengths = [len(field) for field in fields]
    known = {value.name for value in graph.output}
    try:
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in known)
        graph.node.extend(nodes)
        graph.input.extend(inputs)
        yield model
    finally:
        for field, length in zip(fields, lengths, strict=True):
            del field[length:]


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """First output -> the node of the main graph that makes it."""
    return {node.output[0]: node for node in model.graph.node if node.output}
