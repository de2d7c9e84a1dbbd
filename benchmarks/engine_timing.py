"""Time an engine on the GPU: enqueued one call at a time, and as a captured CUDA graph.

Buffers, streams and libcudart are Polygraphy's; events and graphs are called here through the same libcudart. Inputs stay
on the device, so that what is timed is the engine and not the copies.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from polygraphy import cuda

_CAPTURE_RELAXED = 2  # cudaStreamCaptureModeRelaxed: other threads of the process may call CUDA
WARM_UP, REPEATS, CALLS = 20, 25, 20


class CudaError(RuntimeError):
    """A call of CUDA's runtime failed."""


def _call(function: str, *arguments: Any) -> None:
    runtime = cuda.wrapper().handle
    code = getattr(runtime, function)(*arguments)
    if code != 0:
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        raise CudaError(f"{function} returned {code}: {runtime.cudaGetErrorString(code).decode()}")


def time_engine(engine: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, float | str]:
    """Median microseconds of a call, plain and as a CUDA graph: ``plain_us``, ``graph_us``, or ``graph_error``.

    Args:
        engine: an ``ICudaEngine``.
        inputs: one set; its shapes are what is timed.
    """
    context = engine.create_execution_context()
    buffers: list[Any] = []
    with cuda.Stream() as stream:
        try:
            _bind(engine, context, inputs, buffers)

            def run() -> None:
                _check(context.execute_async_v3(stream.ptr))

            run()
            stream.synchronize()
            found: dict[str, float | str] = {"plain_us": _microseconds(run, stream)}
            try:
                with _captured(run, stream) as launch:
                    found["graph_us"] = _microseconds(launch, stream)
            except CudaError as error:  # an engine may hold what cannot be captured: that is a finding
                found["graph_error"] = str(error)
            return found
        finally:
            stream.synchronize()
            for buffer in buffers:
                buffer.free()


def _bind(engine: Any, context: Any, inputs: Mapping[str, np.ndarray], buffers: list[Any]) -> None:
    """Give all tensors a buffer on the device: inputs filled, outputs as large as these shapes need."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in (n for n in names if n in inputs):
        array = np.ascontiguousarray(inputs[name])
        buffer = cuda.DeviceArray(shape=array.shape, dtype=array.dtype)
        buffers.append(buffer)
        buffer.copy_from(array)
        _check(context.set_input_shape(name, array.shape) and context.set_tensor_address(name, buffer.ptr))
    for name in (n for n in names if n not in inputs):
        size = int(np.prod(context.get_tensor_shape(name))) * 4  # no output type here is wider than float32
        buffers.append(cuda.DeviceArray.raw((size,)))
        _check(context.set_tensor_address(name, buffers[-1].ptr))


def _check(ok: bool) -> None:
    if not ok:
        raise CudaError("TensorRT refused a call; its log says why")


def _microseconds(run: Callable[[], None], stream: Any) -> float:
    """Median over repeats of the mean over calls, between two events."""
    for _ in range(WARM_UP):
        run()
    stream.synchronize()
    begin, end = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cudaEventCreate", ctypes.byref(begin))
    _call("cudaEventCreate", ctypes.byref(end))
    pointer, times = ctypes.c_void_p(stream.ptr), []
    for _ in range(REPEATS):
        _call("cudaEventRecord", begin, pointer)
        for _ in range(CALLS):
            run()
        _call("cudaEventRecord", end, pointer)
        _call("cudaEventSynchronize", end)
        milliseconds = ctypes.c_float()
        _call("cudaEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        times.append(milliseconds.value * 1000 / CALLS)
    for event in (begin, end):
        _call("cudaEventDestroy", event)
    return round(statistics.median(times), 2)


@contextmanager
def _captured(run: Callable[[], None], stream: Any) -> Iterator[Callable[[], None]]:
    """A function that launches what ``run`` enqueues as one CUDA graph."""
    pointer, graph, executable = ctypes.c_void_p(stream.ptr), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cudaStreamBeginCapture", pointer, _CAPTURE_RELAXED)
    try:
        run()
    finally:  # a stream that is left capturing refuses everything else
        _call("cudaStreamEndCapture", pointer, ctypes.byref(graph))
    _call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    try:
        yield lambda: _call("cudaGraphLaunch", executable, pointer)
    finally:
        stream.synchronize()
        _call("cudaGraphExecDestroy", executable)
        _call("cudaGraphDestroy", graph)
