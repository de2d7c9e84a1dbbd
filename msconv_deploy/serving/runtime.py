"""What computes a served model: the face that ONNX Runtime and TensorRT have here, and the tensors that they speak of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from msconv_deploy.serving.errors import InvalidRequestError

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
"""The protocol's datatypes that are served. Not BYTES and not BF16: NumPy has no bfloat16 arrays."""

DATATYPE_NAMES = {np.dtype(kind): name for name, kind in DATATYPES.items()}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Extents:
    """A dynamic dimension whose lowest and highest extent are known."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Tensor:
    """An input or output as the model declares it.

    Attributes:
        datatype: the protocol's name, such as ``FP32``.
        dims: extents; a string is the name of a dynamic one.
    """

    name: str
    datatype: str
    dims: tuple[int | str | Extents, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DATATYPES[self.datatype])

    @property
    def shape(self) -> list[int]:
        """Extents, -1 where they are dynamic."""
        return [dim if isinstance(dim, int) else -1 for dim in self.dims]

    @property
    def dims_text(self) -> str:
        """Such as ``[N, 3, H, W]``, or ``[1..4, 3, 16..1024, 16..1024]``."""
        return f"[{', '.join(map(str, self.dims))}]"

    @property
    def text(self) -> str:
        """Such as ``FP32 [N, 3, H, W]``."""
        return f"{self.datatype} {self.dims_text}"

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Refuse a tensor that is not of the declared type and shape.

        Raises:
            InvalidRequestError: names the tensor, what is expected, and what was given.
        """
        if datatype != self.datatype:
            raise InvalidRequestError(f"input {self.name!r}: expected datatype {self.datatype}, got {datatype}")
        if len(shape) != len(self.dims) or not all(map(_takes, self.dims, shape)):
            raise InvalidRequestError(f"input {self.name!r}: expected shape {self.dims_text}, got {list(shape)}")


def _takes(dim: int | str | Extents, extent: int) -> bool:
    if isinstance(dim, Extents):
        return dim.low <= extent <= dim.high
    return isinstance(dim, str) or dim == extent


class Run:
    """One run of a model, which may be stopped as far as the runtime can do that."""

    def __init__(self) -> None:
        self.stopped = False
        self._stop: Callable[[], None] | None = None

    def stop(self) -> None:
        """Nobody wants the result any more."""
        self.stopped = True
        if self._stop is not None:
            self._stop()

    def on_stop(self, stop: Callable[[], None]) -> None:
        """How the runtime stops this run."""
        self._stop = stop
        if self.stopped:
            stop()


class Runtime(Protocol):
    """A loaded model. ``run`` may be called from any thread, by one at a time.

    Attributes:
        platform, backend: Triton's words for it.
        provider: what computes: ``cpu``, ``cuda`` or ``tensorrt``.
        inputs, outputs: what the model declares, in order.
        most_rows: largest extent of axis 0; None: as large as memory allows.
    """

    platform: str
    backend: str
    provider: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    most_rows: int | None

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], run: Run) -> list[np.ndarray]:
        """Compute the named outputs. Whoever gets the arrays may keep them.

        Raises:
            InvalidRequestError: the shapes of the inputs do not fit each other.
            RunFailedError: the runtime failed, or the run was stopped.
        """

    def why_no_batch(self) -> str:
        """Why axis 0 of the inputs and outputs is not a batch, by what the model declares; empty if it may be one."""

    def samples(self, rows: int, seed: int) -> Iterator[Arrays]:
        """Random inputs with so many rows, at several sizes; the model may refuse some of them."""

    def tolerance(self, output: str) -> float:
        """How far an output may differ from itself by rounding alone, relative to its largest value."""
