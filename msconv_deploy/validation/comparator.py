"""Running and comparing through Polygraphy's Comparator, with this project's difference as the comparison function."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from msconv_deploy.errors import NotAvailableError, UnverifiedError
from msconv_deploy.validation.cases import Failure
from msconv_deploy.validation.difference import TensorDifference, difference
from msconv_deploy.validation.inputs import Inputs

logger = logging.getLogger(__name__)

Outputs = Mapping[str, np.ndarray]


class RunnerFailed(Exception):  # noqa: N818  (an outcome that the caller records, not an error for the user)
    """A runner raised on one set of inputs. ``str()`` is the first line of what it said."""

    def __init__(self, kind: Failure) -> None:
        super().__init__(kind.reason)
        self.kind = kind


@contextmanager
def _quiet() -> Iterator[None]:
    """Polygraphy prints to stdout by default; a library does not."""
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield


def run(runner: BaseRunner, inputs: Inputs) -> IterationResult:
    """Run one set of inputs.

    Raises:
        RunnerFailed: the runtime or the network refused them.
    """
    try:
        with _quiet():
            results = Comparator.run([runner], data_loader=[inputs.arrays])
    except (Exception, PolygraphyException) as error:  # whatever a user's forward or a runtime raises is the finding
        logger.info("%s on %s: %s", runner.name, inputs.size, error)
        lines = str(error).strip().splitlines() or [""]
        stopped = isinstance(error, (UnverifiedError, NotAvailableError, MemoryError))
        raise RunnerFailed(Failure(f"{type(error).__name__}: {lines[0][:300]}", stopped)) from error
    outputs: IterationResult = results[0][1][0]
    return outputs


class DifferenceFunction:
    """A Polygraphy comparison function: pass if the difference of every output is within that output's tolerance."""

    def __init__(self, tolerance_of: Callable[[str], float], reach_of: Callable[[str], int]) -> None:
        self.tolerance_of = tolerance_of
        self.reach_of = reach_of
        self.differences: dict[str, TensorDifference] = {}

    def __call__(self, tested: IterationResult, reference: IterationResult) -> OrderedDict[str, bool]:
        verdicts: OrderedDict[str, bool] = OrderedDict()
        for name in reference:
            found = difference(np.asarray(tested[name]), np.asarray(reference[name]), self.reach_of(name))
            self.differences[name] = found
            verdicts[name] = found.within(self.tolerance_of(name))
        return verdicts


def compare(
    tested: IterationResult, reference: IterationResult, function: DifferenceFunction
) -> dict[str, TensorDifference]:
    """Difference of every output of the reference, computed inside ``Comparator.compare_accuracy``."""
    results = RunResults([(tested.runner_name, [tested]), (reference.runner_name, [reference])])
    # Its statistics of NaN, of infinity and of nothing warn.
    with _quiet(), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        Comparator.compare_accuracy(results, comparisons=[(0, 1)], compare_func=function)
    return function.differences


def save_inputs(inputs: Inputs, path: str) -> None:
    """A Polygraphy JSON file for ``--load-inputs``."""
    from polygraphy.json import save_json

    with _quiet():
        save_json([inputs.arrays], path)


def save_outputs(outputs: IterationResult, path: str) -> None:
    """A Polygraphy JSON file for ``--load-outputs``."""
    with _quiet():
        RunResults([(outputs.runner_name, [outputs])]).save(path)
