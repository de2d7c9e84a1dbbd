"""What a rewrite may change that is exact on paper but cancels otherwise: pairwise distances as a product of matrices.

``|a - b|^2`` and ``|a|^2 - 2ab + |b|^2`` differ by at most

    B = 4 g(D + 6) * (|a + shift|^2 + |b|^2 + D * shift^2)        g(n) = n*u / (1 - n*u)

for D terms in a type of unit roundoff u (``surgery.rules.tiled_distance`` derives it), and their roots by at most
min(sqrt(B), B / root). No relative tolerance of the policy's kind covers that: it depends on the operands, not on the result.

So at such a site the tolerance is the largest B, from the values that the original has for the operands. Further on, what a B
becomes depends on the network: the original itself is run with its distance moved by B, up, down, and up or down at random,
and twice the largest change of a tensor is allowed there. A wrong rewrite is found at the site, where nothing is estimated.
Integers (the index of the nearest point) have to stay equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from msconv_deploy.runtimes import Settings
from msconv_deploy.validation.difference import difference
from msconv_deploy.validation.exposure import exposed, producers
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.tolerance import unit_roundoff

PROPAGATION = 2.0
"""What is allowed behind a site, relative to the largest change that was seen: signs were tried, not searched."""
_STREAM = 3_000_000  # keeps these random numbers apart from those of the inputs
_RANDOM_SIGNS = 2


@dataclass(frozen=True)
class CheckedDistance:
    """The norm of ``first - second + shift`` over an axis, which counts from the end; its square unless ``root``."""

    first: str
    second: str
    axis: int
    shift: float
    root: bool


def distance_bound(
    first: NDArray[Any], second: NDArray[Any], axis: int, shift: float = 0.0, root: bool = False
) -> NDArray[np.float64]:
    """B, or that of the root, for every pair, with the summed axis as extent 1.

    Args:
        first, second: operands of the difference, of the type that it is computed in.
        axis: that is summed, from the end.
    """
    a, b = first.astype(np.float64) + shift, second.astype(np.float64)
    terms = first.shape[axis]
    u = (terms + 6) * unit_roundoff(first.dtype)
    norms = np.square(a).sum(axis, keepdims=True) + np.square(b).sum(axis, keepdims=True) + terms * shift**2
    bound: NDArray[np.float64] = 4 * u / (1 - u) * norms
    if not root:
        return bound
    distance = np.sqrt(np.square(a - b).sum(axis, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bound > 0, np.minimum(np.sqrt(bound), bound / distance), 0.0)


def allowances(
    path: Path,
    original: onnx.ModelProto,
    distances: Mapping[str, CheckedDistance],
    inputs: Inputs,
    expected: Mapping[str, NDArray[Any]],
    seed: int,
) -> dict[str, float]:
    """How much tensors may differ because of the distances, as a difference; those that none of them reaches are left out.

    Args:
        path: external data lies beside it.
        original: in memory; as before afterwards.
        distances: output of a site -> what it is.
        inputs: a set that the original runs on.
        expected: what it computes then: sites and graph outputs.
    """
    from msconv_deploy.runtimes.onnx_runtime import make_session

    # A site is looked at before it is moved itself, so that only what arrives from others counts there.
    seen = {name: _raw(name) if name in distances else name for name in expected}
    operands = {name: (f"{name}/msconv_first", f"{name}/msconv_second") for name in distances}
    wanted = [*seen.values(), *(operand for pair in operands.values() for operand in pair)]
    with _movable(original, distances, operands, expected) as (nodes, moves), exposed(original, wanted, nodes, moves):
        session = make_session(path, Settings(optimization="none"), original)
    accepted = {value.name for value in session.get_inputs()}
    feed = {name: array for name, array in inputs.arrays.items() if name in accepted}

    def run(amounts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = {_move(name): amounts[name].astype(expected[name].dtype) for name in distances}
        return dict(zip(wanted, session.run(wanted, {**feed, **given}), strict=True))

    still = run({name: np.zeros((1,) * expected[name].ndim) for name in distances})
    bounds: dict[str, NDArray[np.float64]] = {}
    for name, distance in distances.items():
        first, second = (still[operand] for operand in operands[name])
        bound = distance_bound(first, second, distance.axis, distance.shift, distance.root)
        bounds[name] = bound if bound.ndim == expected[name].ndim else np.squeeze(bound, distance.axis)
    changes = dict.fromkeys(expected, 0.0)
    rng = np.random.default_rng([seed, _STREAM])
    for signs in (1.0, -1.0, *[None] * _RANDOM_SIGNS):
        moved = run({n: b * (rng.choice((-1.0, 1.0), b.shape) if signs is None else signs) for n, b in bounds.items()})
        for name, tensor in seen.items():
            change = difference(moved[tensor], still[tensor])
            if not change.exact and math.isfinite(change.value):
                changes[name] = max(changes[name], PROPAGATION * change.value)
    for name, bound in bounds.items():
        largest = float(np.abs(expected[name]).max(initial=0.0))
        changes[name] += float(bound.max(initial=0.0)) / largest if largest else math.inf
    return {name: change for name, change in changes.items() if change > 0}


def _raw(name: str) -> str:
    return f"{name}/msconv_raw"


def _move(name: str) -> str:
    return f"{name}/msconv_move"


@contextmanager
def _movable(
    original: onnx.ModelProto,
    distances: Mapping[str, CheckedDistance],
    operands: Mapping[str, tuple[str, str]],
    expected: Mapping[str, NDArray[Any]],
) -> Iterator[tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]]:
    """Yield nodes and inputs that move the distances, none below zero; the model's own nodes lead to them meanwhile."""
    makers = producers(original)
    nodes: list[onnx.NodeProto] = []
    moves: list[onnx.ValueInfoProto] = []
    try:
        for name, distance in distances.items():
            makers[name].output[0] = _raw(name)
            total = f"{name}/msconv_sum"
            nodes.append(helper.make_node("Add", [_raw(name), _move(name)], [total]))
            nodes.append(helper.make_node("Relu", [total], [name]))
            for operand, copy in zip((distance.first, distance.second), operands[name], strict=True):
                nodes.append(helper.make_node("Identity", [operand], [copy]))
            kind = helper.np_dtype_to_tensor_dtype(expected[name].dtype)
            moves.append(helper.make_tensor_value_info(_move(name), kind, [None] * expected[name].ndim))
        yield nodes, moves
    finally:
        for name in distances:
            makers[name].output[0] = name
