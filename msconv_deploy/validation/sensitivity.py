"""Agreement proves nothing about an input that moves no output, nor about an output that nothing moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msconv_deploy.reporting import Comparison
from msconv_deploy.validation.cases import Reference, UsableCase
from msconv_deploy.validation.difference import difference, is_float
from msconv_deploy.validation.graph import OnnxGraph
from msconv_deploy.validation.inputs import Inputs

_STREAM = 1_000_000  # keeps the random numbers of this check apart from those of the inputs


def insensitive(
    graph: OnnxGraph, reference: Reference, cases: Sequence[UsableCase], seed: int
) -> tuple[list[str], set[str]]:
    """Change one input at a time, at the largest usable size, and see what moves in the reference.

    Unmoved means: within the tolerance of rounding, whatever tolerance the user gave.

    Returns:
        Inputs that move no output; float outputs that no input moves (empty if some input could not be changed).
    """
    from msconv_deploy.validation.comparator import RunnerFailed, run

    case = max(cases, key=lambda c: c.inputs.elements)
    unmoving: list[str] = []
    constant = {name for name in case.expected if is_float(np.asarray(case.expected[name]).dtype)}
    if not case.inputs.arrays:
        return [], set()
    rng = np.random.default_rng([seed, _STREAM])
    for name, array in case.inputs.arrays.items():
        changed = _changed(array, rng)
        if changed is None:
            constant = set()  # an input that cannot be changed might be the one that matters
            continue
        arrays = {**case.inputs.arrays, name: changed}
        try:
            moved = run(reference.runner, reference.feed(Inputs("", case.inputs.size, arrays)))
        except RunnerFailed:  # the change left the input's valid range: nothing was learned
            constant = set()
            continue
        unmoved = {
            output
            for output in case.expected
            if difference(np.asarray(moved[output]), np.asarray(case.expected[output])).within(graph.tolerance(output))
        }
        if unmoved == set(case.expected):
            unmoving.append(name)
        constant &= unmoved
    return unmoving, constant


def withdraw(comparisons: Sequence[Comparison], constant: set[str]) -> None:
    """Take back the passed verdicts of outputs that nothing moves."""
    for comparison in comparisons:
        if comparison.output in constant and comparison.verdict == "passed" and not comparison.exact:
            comparison.verdict = "unverified"
            comparison.reason = "insensitive: no change of the inputs moves this output: agreement means nothing"


def _changed(array: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Other values of the same kind and range; None if that is not possible (a constant integer input, or no values).

    Of a scalar too an array is returned: NumPy computes numbers of arrays without axes, which Polygraphy refuses.
    """
    if array.size == 0:
        return None
    if array.dtype.kind == "b":
        return np.asarray(~array)
    if array.dtype.kind in "iu":
        if array.size == 0 or array.min() == array.max():
            return None
        mirrored: np.ndarray = (array.max() + array.min() - array).astype(array.dtype)
        return mirrored
    spread = float(np.std(array.astype(np.float64))) or 1.0
    moved = array.astype(np.float64) + spread * rng.standard_normal(array.shape)
    return np.asarray(moved, array.dtype)
