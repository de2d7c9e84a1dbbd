"""A served ONNX file: a session of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from msconv_deploy.errors import BadInputError, MsconvError, NotAvailableError
from msconv_deploy.model_files import read_model
from msconv_deploy.runtimes import Settings
from msconv_deploy.serving.errors import InvalidRequestError, RunFailedError
from msconv_deploy.serving.runtime import DATATYPE_NAMES, Arrays, Run, Tensor
from msconv_deploy.validation.graph import TensorSpec, graph_of
from msconv_deploy.validation.inputs import InputOptions, batch_symbols, default_sizes, generate

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FATAL_ONLY = 4  # errors arrive as exceptions; the log would say them a second time


class OnnxFile:
    """See :class:`.runtime.Runtime`. A run is stopped between two operators."""

    platform, backend = "onnxruntime_onnx", "onnxruntime"
    most_rows: int | None = None

    def __init__(self, path: Path, provider: str = "cpu", threads: int | None = None) -> None:
        """Load it.

        Args:
            path: the ONNX file, external data beside it.
            provider: key of :data:`PROVIDERS`.
            threads: within an operator; None leaves the runtime's default, all cores.

        Raises:
            BadInputError: no file, not a model, or a type that the protocol does not have.
            NotAvailableError: the provider or a kernel is missing.
        """
        from msconv_deploy.runtimes.onnx_runtime import make_session

        self._graph = graph_of(read_model(path), path)
        self.provider = provider
        self.inputs = [_tensor(path, spec) for spec in self._graph.inputs]
        self.outputs = [_tensor(path, spec) for spec in self._graph.outputs]
        self._batch = batch_symbols(self._graph.inputs)
        self._session = make_session(path, Settings(threads=threads, provider=PROVIDERS[provider]))
        if self._session.get_providers()[0] != PROVIDERS[provider]:
            raise NotAvailableError(
                f"ONNX Runtime could not start {PROVIDERS[provider]} and would run on "
                f"{self._session.get_providers()[0]}: see `msconv doctor`, or choose --provider cpu"
            )

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], run: Run) -> list[np.ndarray]:
        import onnxruntime

        if contradiction := self._contradiction(feeds):  # ONNX Runtime would broadcast an extent of 1
            raise InvalidRequestError(contradiction)
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        run.on_stop(lambda: setattr(options, "terminate", True))
        try:
            results: list[np.ndarray] = self._session.run(list(outputs), dict(feeds), options)
            return results
        except Exception as error:  # its exception classes have no common base
            if contradiction := self._contradiction(feeds, broadcast=False):
                raise InvalidRequestError(contradiction) from None
            if empty := [name for name, array in feeds.items() if not array.size]:
                raise InvalidRequestError(
                    f"input {empty[0]!r}: expected at least one element, got shape {list(feeds[empty[0]].shape)}, on "
                    "which the model does not run"
                ) from None
            raise RunFailedError(f"ONNX Runtime failed: {str(error).strip()}") from None

    def _contradiction(self, feeds: Mapping[str, np.ndarray], broadcast: bool = True) -> str:
        """Inputs whose extents the model gives one name, and that differ; empty if there are none.

        Args:
            broadcast: one sample of an input may stand for the samples of another, as the model's sources do.
        """
        seen: dict[str, tuple[str, int]] = {}
        for tensor in self.inputs:
            for dim, extent in zip(tensor.dims, feeds[tensor.name].shape, strict=True):
                if isinstance(dim, str) and not (broadcast and extent == 1 and dim in self._batch):
                    first, other = seen.setdefault(dim, (tensor.name, extent))
                    if other != extent:
                        return (
                            f"input {tensor.name!r}: expected shape {tensor.dims_text}, got "
                            f"{list(feeds[tensor.name].shape)}; {dim} is {other} in input {first!r}"
                        )
        return ""

    def why_no_batch(self) -> str:
        first = {tensor.dims[0] if tensor.dims else None for tensor in (*self.inputs, *self.outputs)}
        if len(first) == 1 and first <= self._batch:
            return ""
        return "its inputs and outputs do not share one dynamic dimension on axis 0"

    def samples(self, rows: int, seed: int) -> Iterator[Arrays]:
        (symbol,) = {tensor.dims[0] for tensor in self.inputs}
        for larger in (False, True):
            for size in default_sizes(self._graph.inputs, larger):
                with suppress(MsconvError):
                    yield generate(self._graph.inputs, {**size, str(symbol): rows}, InputOptions(seed=seed)).arrays

    def tolerance(self, output: str) -> float:
        return self._graph.tolerance(output)


def _tensor(path: Path, spec: TensorSpec) -> Tensor:
    if spec.dtype not in DATATYPE_NAMES:
        raise BadInputError(
            f"{path}: {spec.name} is of type {spec.dtype}, which is not served: cast it inside the model"
        )
    return Tensor(spec.name, DATATYPE_NAMES[spec.dtype], tuple(spec.dims))
