"""Multiply-accumulates of a model, counted over the shapes that its tensors have when it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, inliner

from msconv_deploy.errors import BadInputError
from msconv_deploy.runtimes import Settings
from msconv_deploy.validation.exposure import exposed
from msconv_deploy.validation.inputs import Inputs

COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_SUFFIX = "/msconv_shape"


def count_macs(path: Path, model: onnx.ModelProto, inputs: Inputs) -> int:
    """Run the model once on the inputs and count; function bodies are included, bodies of If and Loop are not.

    Args:
        path: external data lies beside it.
        model: in memory; not changed.

    Raises:
        BadInputError: ONNX Runtime does not accept the model, or the model does not run on the inputs.
    """
    from msconv_deploy.runtimes.onnx_runtime import make_session

    if model.functions:
        model = inliner.inline_local_functions(model)
    nodes = [node for node in model.graph.node if node.op_type in COUNTED and node.domain in ("", "ai.onnx")]
    shapes: dict[str, Sequence[int]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    shapes |= {name: array.shape for name, array in inputs.arrays.items()}
    wanted = sorted({name for node in nodes for name in (*node.input, node.output[0]) if name} - set(shapes))
    probes = [helper.make_node("Shape", [name], [name + _SUFFIX]) for name in wanted]
    with exposed(model, [name + _SUFFIX for name in wanted], probes):
        session = make_session(path, Settings(optimization="none"), model)
    if wanted:
        feed = {value.name: inputs.arrays[value.name] for value in session.get_inputs()}
        try:
            found: list[np.ndarray] = session.run([name + _SUFFIX for name in wanted], feed)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BadInputError(f"{path}: does not run on {inputs.name}: {error}") from error
        shapes |= {name: tuple(shape.tolist()) for name, shape in zip(wanted, found, strict=True)}
    return sum(_macs(node, [shapes.get(name, ()) for name in (*node.input, node.output[0])]) for node in nodes)


def _macs(node: onnx.NodeProto, shapes: Sequence[Sequence[int]]) -> int:
    """Of one node, given the shapes of its inputs and of its output."""
    first, second, output = shapes[0], shapes[1] if len(node.input) > 1 else (), shapes[-1]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transA"), 0)
        return math.prod(output) * first[0 if transposed else 1]
    if node.op_type == "MatMul":
        return math.prod(output) * first[-1]
    return _einsum_macs(node, shapes[: len(node.input)])


def _einsum_macs(node: onnx.NodeProto, operands: Sequence[Sequence[int]]) -> int:
    """The extents of all letters multiplied; an ellipsis counts with its broadcast extents."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    extents: dict[str, int] = {}
    for term, shape in zip(equation.split("->")[0].split(","), operands, strict=True):
        for letter, extent in zip(_letters(term, len(shape)), shape, strict=True):
            extents[letter] = max(extents.get(letter, 1), extent)
    return math.prod(extents.values())


def _letters(term: str, rank: int) -> Iterator[str]:
    """One label per axis; those of an ellipsis are numbered from the last one."""
    if "..." not in term:
        yield from term
        return
    before, after = term.split("...")
    yield from before
    hidden = rank - len(before) - len(after)
    yield from (f"...{number}" for number in range(hidden, 0, -1))
    yield from after
