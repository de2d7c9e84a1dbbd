"""What the sums of a contraction are made of: the same contraction over the magnitudes of its operands.

Rounding errors of a sum are proportional to the sum of the magnitudes, not to what is left of it. For the contraction
``w * x + bias`` with K products, summed in a type of unit roundoff u (float32 for float16), any two orders of it agree to
within a multiple of

    u * (|w| * |x| + |bias|)

which is K at worst (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., equations 3.3 and 3.13) and about 1 for
terms of either sign: the partial sums that are rounded are then as large as sqrt(K) terms, and their errors add up as sqrt(K).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from msconv_deploy.runtimes import Settings
from msconv_deploy.validation.exposure import exposed, producers
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.tolerance import accumulation_roundoff

_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FACTORS = ("alpha", "beta")  # of Gemm; they may be negative


def summed_magnitudes(
    path: Path, original: onnx.ModelProto, tensors: Iterable[str], inputs: Inputs
) -> dict[str, NDArray[Any]]:
    """``|w| * |x| + |bias|`` of each of the tensors that a contraction makes, in its shape and type; the others are left out.

    Args:
        path: external data lies beside it.
        original: in memory; as before afterwards.
        inputs: a set that the original runs on.
    """
    from msconv_deploy.runtimes.onnx_runtime import make_session

    makers = producers(original)
    contractions = {
        name: makers[name]
        for name in tensors
        if name in makers and makers[name].op_type in _OPERATORS and makers[name].domain in ("", "ai.onnx")
    }
    if not contractions:
        return {}
    nodes = [made for name, node in contractions.items() for made in _over_magnitudes(node, name)]
    wanted = [_magnitude(name) for name in contractions]
    with exposed(original, wanted, nodes):
        session = make_session(path, Settings(optimization="none"), original)
    accepted = {value.name for value in session.get_inputs()}
    feed = {name: array for name, array in inputs.arrays.items() if name in accepted}
    found = dict(zip(contractions, session.run(wanted, feed), strict=True))
    return {name: array for name, array in found.items() if accumulation_roundoff(array.dtype) is not None}


@contextmanager
def movable(original: onnx.ModelProto, magnitudes: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """The model with an input for each of the tensors that is added to it; yields how far a rounding moves those.

    Args:
        original: is changed within the block.
        magnitudes: of :func:`summed_magnitudes`.
    """
    makers = producers(original)
    nodes = [
        helper.make_node("Add", [f"{name}/msconv_sum", _rounding(name)], [name], f"{name}/msconv_rounded")
        for name in magnitudes
    ]
    inputs = [
        helper.make_tensor_value_info(_rounding(name), helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in magnitudes.items()
    ]
    try:
        for name in magnitudes:
            makers[name].output[0] = f"{name}/msconv_sum"
        with exposed(original, (), nodes, inputs):
            yield {
                _rounding(name): np.asarray(accumulation_roundoff(array.dtype) * array, array.dtype)
                for name, array in magnitudes.items()
            }
    finally:
        for name in magnitudes:
            makers[name].output[0] = name


def _over_magnitudes(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """The contraction with every operand's magnitude in place of it."""
    operands = [f"{_magnitude(name)}/{index}" if tensor else "" for index, tensor in enumerate(node.input)]
    absolute = [
        helper.make_node("Abs", [tensor], [operand], operand)
        for tensor, operand in zip(node.input, operands, strict=True)
        if tensor
    ]
    contraction = onnx.NodeProto()
    contraction.CopyFrom(node)
    contraction.name = _magnitude(name)
    del contraction.input[:], contraction.output[:]
    contraction.input.extend(operands)
    contraction.output.append(_magnitude(name))
    for attribute in contraction.attribute:
        if attribute.name in _FACTORS:
            attribute.f = abs(attribute.f)
    return [*absolute, contraction]


def _magnitude(name: str) -> str:
    return f"{name}/msconv_magnitude"


def _rounding(name: str) -> str:
    return f"{name}/msconv_rounding"
