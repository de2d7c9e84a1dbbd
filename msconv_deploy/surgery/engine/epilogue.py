"""Epilogue: arithmetic with constants, one per output channel, that a contraction's weights and bias can take over.

    s (contract(x, W) + b) + t  =  contract(x, s W) + (s b + t)

Runtimes do the same to a convolution that such nodes follow (BatchNormalization, Mul, Add), but not to the sum that a
rewrite leaves in its place: so the rewrite takes them over first. Computed in float64 and rounded once.

Valid where only these nodes read the contraction and all that it is made of is constant, in float32 and float64: another
rounding of float16 weights would show. A BatchNormalization whose mean is many times its deviation subtracts what is
almost equal, so that the order of the operations would show; it stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.surgery.engine.contraction import Contraction, Weight, constant_array, constant_of
from msconv_deploy.surgery.engine.editing import EditableModel, constant_values
from msconv_deploy.surgery.engine.operators import trains
from msconv_deploy.surgery.engine.symbols import Symbols, operator

MOST_CANCELLATION = 32.0
"""Largest ratio of a BatchNormalization's mean to its deviation that is taken over: 5 of float32's 24 bits are lost then."""

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What follows a contraction.

    Attributes:
        nodes: in order, at least one.
        scale, shift: [O], float64: their result is ``scale * contraction + shift``.
    """

    nodes: tuple[gs.Node, ...]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def result(self) -> gs.Tensor:
        return self.nodes[-1].outputs[0]


def epilogue_of(contraction: Contraction, symbols: Symbols, outputs: frozenset[str]) -> Epilogue | None:
    """The arithmetic behind a contraction that it can take over; None if there is none.

    Args:
        outputs: names of the graph's outputs.
    """
    tensor = contraction.node.outputs[0]
    dims = symbols.dims(tensor)
    if dims is None or contraction.stored.constant.dtype not in _DTYPES:
        return None
    if contraction.bias is not None and constant_array(contraction.bias) is None:
        return None
    axis = 1 if contraction.axes else len(dims) - 1
    scale, shift = np.ones(contraction.out_channels), np.zeros(contraction.out_channels)
    nodes: list[gs.Node] = []
    taken = 0  # nodes up to the last one that computes
    while len(tensor.outputs) == 1 and tensor.name not in outputs:
        node = tensor.outputs[0]
        step = _step(node, tensor, symbols, contraction.out_channels, axis, len(dims))
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        nodes.append(node)
        taken = len(nodes) if operator(node) != "Identity" else taken
        tensor = node.outputs[0]
    if not taken or not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return Epilogue(tuple(nodes[:taken]), scale, shift)


_Step = tuple[NDArray[np.float64], NDArray[np.float64]]


def _step(node: gs.Node, tensor: gs.Tensor, symbols: Symbols, channels: int, axis: int, rank: int) -> _Step | None:
    """(scale, shift) of a node that reads the tensor, [O] each."""
    one, zero = np.ones(channels), np.zeros(channels)
    if operator(node) == "Identity":
        return one, zero
    if operator(node) == "BatchNormalization" and axis == 1 and node.inputs[0] is tensor:
        return _normalization(node, channels)
    if operator(node) not in ("Mul", "Add") or len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]
    values = None if other is tensor else _per_channel(_constant(other, symbols, channels), channels, axis, rank)
    if values is None:
        return None
    return (values, zero) if operator(node) == "Mul" else (one, values)


def _normalization(node: gs.Node, channels: int) -> _Step | None:
    if trains(node):
        return None
    found = [_per_channel(constant_array(t), channels, 0, 1) for t in node.inputs[1:5]]
    if len(found) != 4 or any(values is None for values in found):
        return None
    gamma, beta, mean, variance = (values for values in found if values is not None)
    deviation = np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    if not (np.abs(mean) <= MOST_CANCELLATION * deviation).all():
        return None
    return gamma / deviation, beta - mean * gamma / deviation


def _constant(tensor: gs.Tensor, symbols: Symbols, most: int) -> NDArray[Any] | None:
    """The value of a tensor of at most so many elements that is constant, or a constant in another shape."""
    shaped = bool(tensor.inputs) and operator(tensor.inputs[0]) in ("Reshape", "Unsqueeze")
    constant = constant_of(tensor.inputs[0].inputs[0] if shaped else tensor)
    if constant is None or math.prod(constant.shape) > most:
        return None
    dims = symbols.dims(tensor) if shaped else tuple(constant.shape)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return constant_values(constant).reshape([int(dim) for dim in dims])


def _per_channel(array: NDArray[Any] | None, channels: int, axis: int, rank: int) -> NDArray[np.float64] | None:
    """A constant that broadcasts to a tensor of this rank with one value per channel, as [O]; None if it is another."""
    if array is None or array.ndim > rank or array.dtype not in _DTYPES:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(extent != 1 for i, extent in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,)).copy()


def taken_over(contraction: Contraction, epilogue: Epilogue, editable: EditableModel, prefix: str) -> Contraction:
    """The contraction with the weights and the bias that compute the epilogue's result. The graph is not changed.

    Args:
        editable: gets the bias as a constant, named after ``prefix``.
    """
    stored, scale = contraction.stored, epilogue.scale
    values = constant_values(stored.constant)
    if (scale != 1).any():
        scaled = (values.astype(np.float64) * _as_stored(scale, contraction, values)).astype(values.dtype)
        stored = Weight(gs.Constant(stored.constant.name, scaled), stored.transposed, stored.scale)
    own = None if contraction.bias is None else constant_array(contraction.bias)
    before = np.zeros(1) if own is None else own.astype(np.float64).reshape(-1)
    bias = (scale * before + epilogue.shift).astype(values.dtype)
    return replace(contraction, stored=stored, bias=editable.add_constant(f"{prefix}_folded_bias", bias))


def _as_stored(scale: NDArray[np.float64], contraction: Contraction, values: NDArray[Any]) -> NDArray[np.float64]:
    """One factor per output channel, to be multiplied with the stored weight."""
    if not contraction.axes:
        return scale[:, None] if contraction.stored.transposed else scale
    ones = [1] * len(contraction.axes)
    if not contraction.transposed:
        return scale.reshape(-1, *ones, 1)
    per_group = scale.reshape(contraction.group, -1)  # of [C, O/group, *kernel]
    return np.repeat(per_group, values.shape[0] // contraction.group, axis=0).reshape(*values.shape[:2], *ones)
