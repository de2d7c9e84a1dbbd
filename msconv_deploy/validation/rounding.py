"""How far one rounding carries: the original on its own inputs and sums, each moved by the unit roundoff of its type.

A value that cancels (the one output of a regression, a sum that happens to be near zero) is small beside what it was summed
from, and so beside the rounding errors of the sum. The policy's tolerance is relative to the value and knows nothing of that,
and the optimizations of a runtime need not show it either. Inputs are given to within their rounding at best, and sums are
computed to within that of their terms (:mod:`.magnitudes`), so what moving them by that much does to a tensor says nothing
about a rewrite: it is the original's own noise, as backward error analysis has it (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 1.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msconv_deploy.validation.difference import TensorDifference, difference
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.tolerance import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

_STREAM = 4_000_000  # keeps these random numbers apart from those of the inputs
_DRAWS = 4
"""Of signs: each element of every input and sum moves up or down."""


def carried_rounding(
    runner: BaseRunner,
    inputs: Inputs,
    expected: Mapping[str, NDArray[Any]],
    seed: int,
    sums: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, TensorDifference]:
    """The largest difference that each tensor shows when everything moves by a rounding; tensors of no float are left out.

    Args:
        runner: of the original; it computes all that is expected.
        inputs: what it computed that from.
        seed: of the signs.
        sums: inputs of the runner's model that are added to its sums -> how far those move (:func:`.magnitudes.movable`).
    """
    from msconv_deploy.validation.comparator import RunnerFailed, run

    rng = np.random.default_rng([seed, _STREAM])
    found: dict[str, TensorDifference] = {}
    for _ in range(_DRAWS):
        arrays = {name: _moved(array, rng) for name, array in inputs.arrays.items()}
        arrays |= {name: np.asarray(array * _signs(array, rng), array.dtype) for name, array in (sums or {}).items()}
        try:
            moved = run(runner, Inputs(inputs.name, inputs.size, arrays, inputs.origin))
        except RunnerFailed:  # moved out of what it accepts: nothing was learned
            continue
        for name, value in expected.items():
            change = difference(np.asarray(moved[name]), value)
            usable = not (change.exact or change.problem or change.unusable) and math.isfinite(change.value)
            if usable and (name not in found or change.value > found[name].value):
                found[name] = change
    return found


def _moved(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Every float a rounding further up or down, in its own type; other values stay."""
    unit = UNIT_ROUNDOFF.get(array.dtype.name)
    if unit is None:
        return array
    factors = 1 + 2 * unit * _signs(array, rng)  # of 1 + unit alone, half would round back to 1
    return np.asarray(array.astype(np.float64) * factors, array.dtype)


def _signs(array: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.choice((-1.0, 1.0), array.shape)
