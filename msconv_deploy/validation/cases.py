"""The reference on every set of inputs: which of them it accepts, what it computes, and how noisy it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msconv_deploy.ops.symbolic import NotAnExtentError, Size, size_text
from msconv_deploy.reporting import Case, RefusedCase
from msconv_deploy.validation.difference import TensorDifference, difference
from msconv_deploy.validation.graph import OnnxGraph
from msconv_deploy.validation.inputs import (
    ENOUGH,
    Inputs,
    complete_size,
    default_sizes,
    elements,
    from_file,
    generate,
)
from msconv_deploy.validation.options import ValidationOptions
from msconv_deploy.validation.tolerance import with_noise

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.comparator import IterationResult

_MOST_UNASKED = 1 << 24
"""Values of all inputs together at a default size: twenty images of 512 x 512 with three channels."""


@dataclass(frozen=True)
class Reference:
    """What the truth is computed with.

    Attributes:
        runner: the reference itself.
        noise_runner: the reference's computation in the tested model's type; None if that is the reference itself.
        input_dtypes: types that the reference wants where they differ from the tested file's.
    """

    runner: BaseRunner
    noise_runner: BaseRunner | None = None
    input_dtypes: Mapping[str, np.dtype] = field(default_factory=dict)

    def feed(self, inputs: Inputs) -> Inputs:
        """The inputs in the reference's types."""
        arrays = {n: a.astype(self.input_dtypes.get(n, a.dtype), copy=False) for n, a in inputs.arrays.items()}
        return Inputs(inputs.name, inputs.size, arrays, inputs.origin)


@dataclass(frozen=True)
class OutputTolerance:
    """What may differ in one output at one size.

    Attributes:
        value: the tolerance.
        policy: the policy's tolerance, without noise.
        noise: the reference's own noise; None if unknown or infinite.
        usable: False where noise drowns every difference above the policy's tolerance.
    """

    value: float
    policy: float
    noise: float | None
    usable: bool


@dataclass(frozen=True)
class Failure:
    """A runtime did not run on a set of inputs.

    Attributes:
        reason: what it said.
        unverified: it was stopped (time, memory): that says nothing about the model.
    """

    reason: str
    unverified: bool = False


@dataclass
class UsableCase:
    """A set of inputs that the reference runs on.

    Attributes:
        expected: outputs of the reference.
        own: outputs of the noise runner; None if there is none, or if it failed: see ``own_failure``.
        noise: difference of the two by output.
        tolerances: by output.
        results: runtime -> outputs, filled while runtimes are compared.
        failures: runtime -> why it did not run.
    """

    inputs: Inputs
    expected: IterationResult
    own: IterationResult | None = None
    own_failure: Failure | None = None
    noise: dict[str, TensorDifference] = field(default_factory=dict)
    tolerances: dict[str, OutputTolerance] = field(default_factory=dict)
    results: dict[str, IterationResult] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def describe(self) -> Case:
        shapes = {name: list(array.shape) for name, array in self.inputs.arrays.items()}
        return Case(name=self.inputs.name, size=self.inputs.size, origin=self.inputs.origin, shapes=shapes)


def collect(
    graph: OnnxGraph, reference: Reference, options: ValidationOptions
) -> tuple[list[UsableCase], list[RefusedCase]]:
    """Run the reference on all inputs; (those that it accepts, those that it refuses)."""
    usable: list[UsableCase] = []
    refused: list[RefusedCase] = []

    def attempt(inputs: Inputs | RefusedCase) -> None:
        found = inputs if isinstance(inputs, RefusedCase) else _try(graph, reference, options, inputs)
        if isinstance(found, RefusedCase):
            refused.append(found)
        else:
            usable.append(found)

    for inputs in _wanted(graph, options):
        attempt(inputs)
    if options.inputs.wants_defaults:
        for inputs in _larger(graph, options, len(usable) + len(refused)):
            if len(usable) >= ENOUGH:
                break
            attempt(inputs)
    return usable, refused


def tensor_tolerance(graph: OnnxGraph, options: ValidationOptions, name: str) -> float:
    """Tolerance of any tensor of the file, intermediate ones included; without noise."""
    return options.tolerance if options.tolerance is not None else graph.tolerance(name)


def _wanted(graph: OnnxGraph, options: ValidationOptions) -> Iterator[Inputs | RefusedCase]:
    """The user's files and sizes, and the default sizes if they are wanted; no size twice.

    Default sizes are nobody's wish: one that gives a derived dimension (``H - 5``) no extent is refused like those that the
    reference refuses. A size that the user gave is an error then.
    """
    index = 0
    for path in options.inputs.files:
        yield from_file(graph.inputs, Path(path), options.inputs, index)
        index += 1
    sizes = [complete_size(size, graph.inputs) for size in options.inputs.sizes]
    for size in sizes:
        yield generate(graph.inputs, size, options.inputs, index)
        index += 1
    if options.inputs.wants_defaults:
        for size in default_sizes(graph.inputs):
            if size not in sizes:
                yield _at_default(graph, size, options, index)
                index += 1


def _at_default(graph: OnnxGraph, size: Size, options: ValidationOptions, index: int) -> Inputs | RefusedCase:
    """Inputs of a default size.

    The sizes are those of images. Beside a static extent of thousands some of them take minutes and gigabytes, which nobody
    asked for: they are refused, but for the smallest.
    """
    try:
        count = elements(graph.inputs, size)
        if count > _MOST_UNASKED and count > _fewest_elements(graph):
            return RefusedCase(
                size=size,
                reason=f"its inputs would have {count:,} values, too many to be tried unasked; --input-shape asks for them",
            )
        return generate(graph.inputs, size, options.inputs, index)
    except NotAnExtentError as error:
        return RefusedCase(size=size, reason=str(error))


def _fewest_elements(graph: OnnxGraph) -> int:
    """Number of values of the inputs at the smallest default size that they have."""
    counts = []
    for size in default_sizes(graph.inputs):
        with suppress(NotAnExtentError):
            counts.append(elements(graph.inputs, size))
    return min(counts, default=0)


def _larger(graph: OnnxGraph, options: ValidationOptions, index: int) -> Iterator[Inputs | RefusedCase]:
    """The larger default sizes, numbered from ``index``; none for a model of static shapes."""
    tried = {size_text(size) for size in (*default_sizes(graph.inputs), *options.inputs.sizes)}
    for number, size in enumerate(default_sizes(graph.inputs, larger=True), index):
        if size_text(size) not in tried:
            yield _at_default(graph, size, options, number)


def _try(
    graph: OnnxGraph, reference: Reference, options: ValidationOptions, inputs: Inputs
) -> UsableCase | RefusedCase:
    from msconv_deploy.validation.comparator import RunnerFailed, run

    try:
        case = UsableCase(inputs, run(reference.runner, reference.feed(inputs)))
    except RunnerFailed as failure:
        return RefusedCase(size=inputs.size, reason=str(failure))
    if reference.noise_runner is not None:
        try:
            case.own = run(reference.noise_runner, reference.feed(inputs))
        except RunnerFailed as failure:
            case.own_failure = failure.kind
        else:
            case.noise = {n: difference(np.asarray(case.own[n]), np.asarray(case.expected[n])) for n in case.own}
    for name in case.expected:
        policy = tensor_tolerance(graph, options, name)
        case.tolerances[name] = _output_tolerance(policy, case.noise.get(name), fixed=options.tolerance is not None)
    return case


def _output_tolerance(policy: float, noise: TensorDifference | None, fixed: bool) -> OutputTolerance:
    """``fixed``: the user gave the tolerance, so noise is recorded but widens nothing."""
    if noise is None or noise.exact or noise.problem or noise.unusable:
        return OutputTolerance(policy, policy, None, True)
    amount = noise.value if math.isfinite(noise.value) else None
    if fixed:
        return OutputTolerance(policy, policy, amount, True)
    value, usable = with_noise(policy, noise.value)
    return OutputTolerance(value, policy, amount, usable)
