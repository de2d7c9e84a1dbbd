"""The served model: an ONNX Runtime session, what it declares, and whether its samples may be joined."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msconv_deploy.errors import BadInputError, MsconvError, NotAvailableError
from msconv_deploy.model_files import read_model
from msconv_deploy.runtimes import Settings
from msconv_deploy.serving.errors import InvalidRequestError, RunFailedError
from msconv_deploy.validation.graph import OnnxGraph, graph_of
from msconv_deploy.validation.inputs import InputOptions, batch_symbols, default_sizes, generate

logger = logging.getLogger(__name__)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
VERSION = "1"
"""The only version of the only model."""

DATATYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
"""The protocol's datatypes that are served. Not BYTES and not BF16: ONNX Runtime's Python interface has no bfloat16 arrays."""
_NAMES = {np.dtype(kind): name for name, kind in DATATYPES.items()}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """An input or output as the model declares it.

    Attributes:
        datatype: the protocol's name, such as ``FP32``.
        dims: extents; a string is the name of a dynamic one.
    """

    name: str
    datatype: str
    dims: tuple[int | str, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DATATYPES[self.datatype])

    @property
    def shape(self) -> list[int]:
        """Extents, -1 where they are dynamic."""
        return [-1 if isinstance(dim, str) else dim for dim in self.dims]

    @property
    def text(self) -> str:
        """Such as ``FP32 [N, 3, H, W]``."""
        return f"{self.datatype} [{', '.join(map(str, self.dims))}]"

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Refuse a tensor that is not of the declared type and shape.

        Raises:
            InvalidRequestError: names the tensor, what is expected, and what was given.
        """
        if datatype != self.datatype:
            raise InvalidRequestError(f"input {self.name!r}: expected datatype {self.datatype}, got {datatype}")
        fits = len(shape) == len(self.dims) and all(
            isinstance(dim, str) or dim == extent for dim, extent in zip(self.dims, shape, strict=True)
        )
        if not fits:
            raise InvalidRequestError(
                f"input {self.name!r}: expected shape [{', '.join(map(str, self.dims))}], got {list(shape)}"
            )


class Run:
    """One run of the session, which can be stopped between two operators."""

    def __init__(self) -> None:
        import onnxruntime

        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = 4  # errors arrive as exceptions; the log would say them a second time

    def stop(self) -> None:
        self.options.terminate = True


class Model:
    """A loaded model. ``run`` may be called from any thread.

    Attributes:
        inputs, outputs: what it declares, in order.
        batching: empty if requests may be joined along axis 0, else why not.
    """

    def __init__(self, path: Path, name: str, provider: str = "cpu", threads: int | None = None, seed: int = 0) -> None:
        """Load it.

        Args:
            path: the ONNX file, external data beside it.
            name: what clients call it.
            provider: key of :data:`PROVIDERS`.
            threads: within an operator; None leaves the runtime's default, all cores.
            seed: of the probe that decides about batching.

        Raises:
            BadInputError: no file, not a model, or a type that the protocol does not have.
            NotAvailableError: the provider or a kernel is missing.
        """
        from msconv_deploy.runtimes.onnx_runtime import make_session

        graph = graph_of(read_model(path), path)
        self.path, self.name, self.provider = path, name, provider
        self.inputs = [_tensor(path, spec.name, spec.dtype, spec.dims) for spec in graph.inputs]
        self.outputs = [_tensor(path, spec.name, spec.dtype, spec.dims) for spec in graph.outputs]
        self.session = make_session(path, Settings(threads=threads, provider=PROVIDERS[provider]))
        if self.session.get_providers()[0] != PROVIDERS[provider]:
            raise NotAvailableError(
                f"ONNX Runtime could not start {PROVIDERS[provider]} and would run on "
                f"{self.session.get_providers()[0]}: see `msconv doctor`, or choose --provider cpu"
            )
        self.batching = self._why_not_joined(graph, seed)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], run: Run | None = None) -> list[np.ndarray]:
        """Compute the named outputs.

        Raises:
            InvalidRequestError: the runtime failed, and extents that the model gives one name differ.
            RunFailedError: the runtime failed.
        """
        try:
            results: list[np.ndarray] = self.session.run(list(outputs), dict(feeds), (run or Run()).options)
            return results
        except Exception as error:  # its exception classes have no common base
            contradiction = self._contradiction(feeds)
            if contradiction:
                raise InvalidRequestError(contradiction) from None
            raise RunFailedError(f"model {self.name!r}: ONNX Runtime failed: {str(error).strip()}") from None

    def _contradiction(self, feeds: Mapping[str, np.ndarray]) -> str:
        """Inputs whose extents the model gives one name, and that differ; empty if there are none."""
        seen: dict[str, tuple[str, int]] = {}
        for tensor in self.inputs:
            for dim, extent in zip(tensor.dims, feeds[tensor.name].shape, strict=True):
                if isinstance(dim, str):
                    first, other = seen.setdefault(dim, (tensor.name, extent))
                    if other != extent:
                        return (
                            f"input {tensor.name!r}: expected shape [{', '.join(map(str, tensor.dims))}], got "
                            f"{list(feeds[tensor.name].shape)}; {dim} is {other} in input {first!r}"
                        )
        return ""

    # -- batching ------------------------------------------------------------------------------------------------------

    def _why_not_joined(self, graph: OnnxGraph, seed: int) -> str:
        """Declared alike is not enough: a model may mix its samples, so joined samples are compared with single ones."""
        first = {tensor.dims[0] if tensor.dims else None for tensor in (*self.inputs, *self.outputs)}
        symbol = next(iter(first))
        if len(first) != 1 or not isinstance(symbol, str) or symbol not in batch_symbols(graph.inputs):
            return "its inputs and outputs do not share one dynamic dimension on axis 0"
        reason = "no size was found at which it runs on random inputs"
        for larger in (False, True):
            for size in default_sizes(graph.inputs, larger):
                try:
                    feeds = generate(graph.inputs, {**size, symbol: 3}, InputOptions(seed=seed)).arrays
                    joined, parts = self._joined_and_apart(feeds)
                except MsconvError as error:
                    reason = f"it could not be run on random inputs to see whether it mixes its samples: {error}"
                    continue
                tolerances = [graph.tolerance(tensor.name) for tensor in self.outputs]
                agree = all(map(_agree, joined, zip(*parts, strict=True), tolerances))
                return "" if agree else "it mixes the samples of a batch"
        return reason

    def _joined_and_apart(self, feeds: Arrays) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        names = [tensor.name for tensor in self.outputs]
        apart = [self.run({k: v[i : i + 1] for k, v in feeds.items()}, names) for i in range(3)]
        return self.run(feeds, names), apart


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


def _tensor(path: Path, name: str, dtype: np.dtype, dims: Sequence[int | str]) -> Tensor:
    if dtype not in _NAMES:
        raise BadInputError(f"{path}: {name} is of type {dtype}, which is not served: cast it inside the model")
    return Tensor(name, _NAMES[dtype], tuple(dims))
