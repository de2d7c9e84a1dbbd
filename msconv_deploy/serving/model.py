"""The served model: its name, what computes it, and whether its samples may be joined."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from msconv_deploy.errors import BadInputError, MsconvError
from msconv_deploy.serving.errors import RunFailedError
from msconv_deploy.serving.runtime import Arrays, Run, Runtime

logger = logging.getLogger(__name__)

VERSION = "1"
"""The only version of the only model."""

_PROBED_ROWS = 3


class Model:
    """A loaded model. ``run`` may be called from any thread, by one at a time.

    Attributes:
        inputs, outputs: what it declares, in order.
        batching: empty if requests may be joined along axis 0, else why not.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        provider: str | None = None,
        threads: int | None = None,
        seed: int = 0,
        plugins: Sequence[Path] = (),
    ) -> None:
        """Load it.

        Args:
            path: an ONNX file, external data beside it; or a TensorRT plan, its sidecar beside it.
            name: what clients call it.
            provider: of ONNX Runtime, ``cpu`` or ``cuda``; None: the CPU.
            threads: within an operator, of ONNX Runtime; None leaves its default, all cores.
            seed: of the probe that decides about batching.
            plugins: libraries that the plan was built with; none: those that its sidecar names.

        Raises:
            BadInputError: no file, not a model, a type that the protocol does not have, or an option of the other runtime.
            NotAvailableError: the provider, a kernel, a GPU, TensorRT or a plugin library is missing.
        """
        self.path, self.name = path, name
        self.runtime = _load(path, provider, threads, plugins)
        self.inputs, self.outputs = self.runtime.inputs, self.runtime.outputs
        self.batching = self._why_not_joined(seed)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], run: Run | None = None) -> list[np.ndarray]:
        """Compute the named outputs.

        Raises:
            InvalidRequestError: the shapes of the inputs do not fit each other.
            RunFailedError: the runtime failed.
        """
        try:
            return self.runtime.run(feeds, outputs, run or Run())
        except RunFailedError as error:
            raise RunFailedError(f"model {self.name!r}: {error}") from None

    # -- batching ------------------------------------------------------------------------------------------------------

    def _why_not_joined(self, seed: int) -> str:
        """Declared alike is not enough: a model may mix its samples, so joined samples are compared with single ones."""
        if declared := self.runtime.why_no_batch():
            return declared
        rows = min(_PROBED_ROWS, self.runtime.most_rows or _PROBED_ROWS)
        if rows < 2:
            return "it takes one sample at a time"
        reason = "no size was found at which it runs on random inputs"
        for feeds in self.runtime.samples(rows, seed):
            try:
                joined, parts = self._joined_and_apart(feeds, rows)
            except MsconvError as error:
                reason = f"it could not be run on random inputs to see whether it mixes its samples: {error}"
                continue
            tolerances = [self.runtime.tolerance(tensor.name) for tensor in self.outputs]
            agree = all(map(_agree, joined, zip(*parts, strict=True), tolerances))
            return "" if agree else "it mixes the samples of a batch"
        return reason

    def _joined_and_apart(self, feeds: Arrays, rows: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        names = [tensor.name for tensor in self.outputs]
        apart = [self.run({k: v[i : i + 1] for k, v in feeds.items()}, names) for i in range(rows)]
        return self.run(feeds, names), apart


def _load(path: Path, provider: str | None, threads: int | None, plugins: Sequence[Path]) -> Runtime:
    from msconv_deploy.serving.tensorrt_plan import PlanFile, is_plan

    if is_plan(path):
        given = {"--provider": provider, "--threads": threads}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise BadInputError(f"{wrong[0]} is for ONNX files, and {path} is served by TensorRT: leave it out")
        return PlanFile(path, plugins)
    if plugins:
        raise BadInputError(
            f"--plugin is for plans, and ONNX Runtime, which serves {path}, takes no TensorRT plugins: leave it out, or "
            "build a plan: msconv engine build"
        )
    from msconv_deploy.serving.onnx_runtime import OnnxFile

    return OnnxFile(path, provider or "cpu", threads)


def _agree(joined: np.ndarray, apart: Sequence[np.ndarray], tolerance: float) -> bool:
    """Row i of the joined run is what sample i gives alone, within the rounding that the graph allows for."""
    if any(len(part) != 1 or part.shape[1:] != joined.shape[1:] for part in apart) or len(joined) != len(apart):
        return False
    expected = np.concatenate(apart)
    if expected.dtype.kind != "f":
        return np.array_equal(joined, expected)
    if not np.array_equal(np.isfinite(joined), np.isfinite(expected)):
        return False
    finite = np.isfinite(expected)
    a, b = joined[finite].astype(np.float64), expected[finite].astype(np.float64)
    return bool(np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=0))
