"""A served plan: a TensorRT engine that ``msconv engine build`` made on a machine like this one.

Why not ONNX files through ONNX Runtime's TensorRT provider: it builds an engine while a request waits, again for every shape
beyond those that it has seen, and nobody reads its precision back. A plan is built before, for shapes that are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msconv_deploy.errors import BadInputError
from msconv_deploy.runtimes.tensorrt.engine import read_plan
from msconv_deploy.serving.errors import InvalidRequestError, RunFailedError
from msconv_deploy.serving.runtime import DATATYPE_NAMES, Arrays, Extents, Run, Tensor
from msconv_deploy.serving.triton.plan import plugin_libraries, why_not_joined
from msconv_deploy.validation.graph import UNKNOWN_REDUCTION, TensorSpec
from msconv_deploy.validation.inputs import InputOptions, generate
from msconv_deploy.validation.tolerance import policy_tolerance

if TYPE_CHECKING:
    from msconv_deploy.runtimes.tensorrt.session import EngineTensor

_SUFFIXES = (".plan", ".engine")
_NO_NAME = "?"  # engines do not keep the names of dynamic dimensions
_UNKNOWN_DEPTH = 100  # operators that round, where only the engine is known


def is_plan(path: Path) -> bool:
    """By its name, is a file served by TensorRT?"""
    return path.suffix in _SUFFIXES


class PlanFile:
    """See :class:`.runtime.Runtime`. A run that has begun on the GPU cannot be stopped: its result is dropped."""

    platform, backend, provider = "tensorrt_plan", "tensorrt", "tensorrt"

    def __init__(self, path: Path, plugins: Sequence[Path] = ()) -> None:
        """Load it.

        Args:
            path: the plan; a sidecar beside it must be of this plan, this TensorRT and this kind of GPU.
            plugins: libraries that it was built with; none: those that the sidecar names.

        Raises:
            BadInputError: no file, damaged, of another TensorRT or GPU, or a type that the protocol does not have.
            NotAvailableError: there is no GPU, no TensorRT, no CUDA runtime, or a plugin library is missing.
        """
        _, report = read_plan(path)  # a missing or damaged file is said before anything else is looked for
        if report is not None:
            if report.precision_check.verdict == "differ":
                raise BadInputError(
                    f"{path}: does not compute in the types of its graph: {report.precision_check.reason}"
                )
            plugins = plugin_libraries(path, report, plugins)
        from msconv_deploy.runtimes.tensorrt.session import open_session

        self._session = open_session(path, plugins)
        self._precision = None if report is None else {"bf16": "bfloat16", "fp16": "float16"}.get(report.precision)
        self.inputs = [_tensor(tensor) for tensor in self._session.inputs]
        self.outputs = [_tensor(tensor) for tensor in self._session.outputs]
        self.most_rows: int | None = min((point[0] for point in self._corner(2) if point), default=1)

    def _corner(self, point: int) -> list[tuple[int, ...]]:
        """Shapes of all inputs: 0 the smallest, 1 the best, 2 the largest."""
        return [tensor.range[point] for tensor in self._session.inputs if tensor.range is not None]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], run: Run) -> list[np.ndarray]:
        from msconv_deploy.runtimes.tensorrt.session import EngineRunError, ShapesRefusedError

        if run.stopped:
            raise RunFailedError("stopped before it began")
        try:
            return self._session.run(feeds, outputs)
        except ShapesRefusedError as error:
            raise InvalidRequestError(str(error)) from None
        except EngineRunError as error:
            raise RunFailedError(str(error)) from None

    def why_no_batch(self) -> str:
        first = [tensor.dims[0] if tensor.dims else 0 for tensor in (*self.inputs, *self.outputs)]
        if any(isinstance(dim, int) for dim in first):
            return "its inputs and outputs do not all have a dynamic axis 0"
        ranges = [dim for dim in first if isinstance(dim, Extents)]
        return why_not_joined(max((dim.low for dim in ranges), default=1), min((dim.high for dim in ranges), default=1))

    def samples(self, rows: int, seed: int) -> Iterator[Arrays]:
        """At the sizes that the plan is tuned for, else at the smallest."""
        for point in (1, 0):
            specs = [
                TensorSpec(tensor.name, tensor.dtype, (rows, *shape[1:]))
                for tensor, shape in zip(self.inputs, self._corner(point), strict=True)
            ]
            yield generate(specs, {}, InputOptions(seed=seed)).arrays

    def tolerance(self, output: str) -> float:
        dtype = next(tensor.dtype for tensor in self.outputs if tensor.name == output)
        return policy_tolerance(self._precision or dtype, _UNKNOWN_DEPTH, [UNKNOWN_REDUCTION])


def _tensor(tensor: EngineTensor) -> Tensor:
    """In the protocol's words; a dynamic dimension of an input has the range that the plan was built for."""
    if tensor.range is None:
        dims: list[int | str | Extents] = [_NO_NAME if extent < 0 else extent for extent in tensor.shape]
    else:
        low, _, high = tensor.range
        dims = [a if a == b else Extents(a, b) for a, b in zip(low, high, strict=True)]
    return Tensor(tensor.name, DATATYPE_NAMES[tensor.dtype], tuple(dims))
