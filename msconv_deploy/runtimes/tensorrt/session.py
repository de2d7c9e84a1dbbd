"""Runs an engine on arrays of the host, again and again: one execution context, one stream, device buffers that are kept.

Memory, copies and streams are those of CUDA's runtime, through Polygraphy's wrapper of libcudart. Buffers grow to the largest
shapes that were run. Inputs are copied from where they lie, outputs to where they will be read: nothing is copied twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy import cuda
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from msconv_deploy.errors import BadInputError, MsconvError
from msconv_deploy.runtimes.tensorrt.api import TensorRT
from msconv_deploy.runtimes.tensorrt.bindings import require
from msconv_deploy.runtimes.tensorrt.engine import load_plan
from msconv_deploy.runtimes.tensorrt.profiles import Range
from msconv_deploy.runtimes.tensorrt.runner import load_cuda_runtime

# TensorRT's names of the types that NumPy has
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


class ShapesRefusedError(BadInputError):
    """TensorRT does not take inputs of these shapes together."""


class EngineRunError(MsconvError):
    """TensorRT or CUDA failed while an engine ran."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine.

    Attributes:
        shape: -1 where it is dynamic.
        range: smallest, best and largest shape of an input, by the first optimization profile; None for an output.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    range: Range | None = None


def open_session(path: Path, plugins: Sequence[Path] = ()) -> EngineSession:
    """Load a plan, and the plugin libraries before it.

    Raises:
        NotAvailableError: there is no GPU, no TensorRT or no CUDA runtime.
        BadInputError: the plan is damaged, of another version or device, or has a tensor that cannot be passed.
    """
    tensorrt = require()
    load_cuda_runtime(tensorrt.gpu.cuda)
    return EngineSession(load_plan(path, tensorrt, plugins), tensorrt, path)


class EngineSession:
    """One engine on one device. One run at a time, from any thread.

    Attributes:
        inputs, outputs: in the order of the engine.
    """

    def __init__(self, engine: Any, tensorrt: TensorRT, path: Path) -> None:
        """Raises:
        BadInputError: a tensor cannot be passed as an array.
        EngineRunError: there is not enough memory on the device.
        """
        self.tensorrt = tensorrt
        mode = tensorrt.module.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        described = {name: _describe(engine, tensorrt, path, name) for name in names}
        self.inputs = [described[name] for name in names if engine.get_tensor_mode(name) == mode.INPUT]
        self.outputs = [described[name] for name in names if engine.get_tensor_mode(name) == mode.OUTPUT]
        tensorrt.messages.clear()
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineRunError(f"{path}: {tensorrt.name} cannot prepare it to run{self._said()}")
        with _quiet():
            self._stream = cuda.Stream()
        self._buffers: dict[str, Any] = {}

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Compute the named outputs.

        Args:
            feeds: every input, of its type and within its range.

        Raises:
            ShapesRefusedError: the shapes do not fit each other.
            EngineRunError: TensorRT or CUDA failed.
        """
        self.tensorrt.messages.clear()
        try:
            with _quiet():
                arrays = {tensor.name: np.ascontiguousarray(feeds[tensor.name]) for tensor in self.inputs}
                shapes = self._set_shapes(arrays)
                results = {name: np.empty(shape, self._dtype(name)) for name, shape in shapes.items()}
                for name, array in (arrays | results).items():
                    self._place(name, array.nbytes)
                for name, array in arrays.items():
                    self._copy(self._buffers[name].ptr, _address(array), array.nbytes, cuda.MemcpyKind.HostToDevice)
                if not self._context.execute_async_v3(self._stream.ptr):
                    raise EngineRunError(f"{self.tensorrt.name} failed{self._said()}")
                for name in outputs:
                    array = results[name]
                    self._copy(_address(array), self._buffers[name].ptr, array.nbytes, cuda.MemcpyKind.DeviceToHost)
                self._stream.synchronize()
        except PolygraphyException as error:
            raise EngineRunError(f"CUDA failed: {str(error).strip()}{self._said()}") from None
        return [results[name] for name in outputs]

    def _set_shapes(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """Tell the shapes of the inputs; the shapes that the outputs will have."""
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise ShapesRefusedError(f"input {name!r}: shape {list(array.shape)} is refused{self._said()}")
        shapes = {}
        for tensor in self.outputs:
            shape = _extents(self._context.get_tensor_shape(tensor.name))
            if shape is None or min(shape, default=0) < 0:
                given = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
                if shape is None or self.tensorrt.messages.errors:
                    raise ShapesRefusedError(f"these shapes do not fit each other: {given}{self._said()}")
                raise EngineRunError(f"the shape of output {tensor.name!r} depends on the data, which is not supported")
            shapes[tensor.name] = shape
        return shapes

    def _dtype(self, output: str) -> np.dtype:
        return next(tensor.dtype for tensor in self.outputs if tensor.name == output)

    def _place(self, name: str, size: int) -> None:
        """Give a tensor at least this many bytes of the device."""
        if name not in self._buffers:
            self._buffers[name] = cuda.DeviceArray.raw((size,))
        else:
            self._buffers[name].resize((size,))
        if not self._context.set_tensor_address(name, self._buffers[name].ptr):
            raise EngineRunError(f"{self.tensorrt.name} refuses the memory of {name!r}{self._said()}")

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        cuda.wrapper().memcpy(dst=target, src=source, nbytes=size, kind=kind, stream_ptr=self._stream.ptr)

    def _said(self) -> str:
        return "".join(f"\n  {text}" for text in self.tensorrt.messages.errors)


def _describe(engine: Any, tensorrt: TensorRT, path: Path, name: str) -> EngineTensor:
    trt = tensorrt.module
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise BadInputError(
            f"{path}: {name} is of type {kind.lower()}, which NumPy does not have: cast it in the model"
        )
    if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        raise BadInputError(f"{path}: {name} is not row-major in memory; build the engine with msconv engine build")
    if engine.is_shape_inference_io(name):
        raise BadInputError(f"{path}: the values of {name} are a shape, which is not supported: make them constants")
    shape, limits = tuple(engine.get_tensor_shape(name)), None
    if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
        low, best, high = (tuple(point) for point in engine.get_tensor_profile_shape(name, 0))
        limits = low, best, high
    return EngineTensor(name, np.dtype(_DTYPES[kind]), shape, limits)


def _extents(dims: Any) -> tuple[int, ...] | None:
    """None: TensorRT could not compute them, which it says with a negative rank."""
    try:
        return tuple(dims)
    except (ValueError, IndexError):
        return None


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _quiet() -> Any:
    """Polygraphy's errors arrive as exceptions; its log would say them a second time."""
    return G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1)
