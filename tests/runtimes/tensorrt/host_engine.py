"""A device that is this host's memory, and an engine that ONNX Runtime computes: everything around an enqueue, without a GPU.

What is tested with it is what this project does: shapes, addresses, copies, buffers, errors. Not what TensorRT computes, or
when: here every call is finished when it returns. The engine checks what TensorRT does, and refuses what it refuses.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from polygraphy import cuda
from polygraphy.exception import PolygraphyException

from tests.runtimes.tensorrt.fakes import H200, fake_module

_KINDS = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(double)": "DOUBLE"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "DOUBLE": np.float64}


class HostCuda:
    """Stands in for Polygraphy's wrapper of libcudart.

    Attributes:
        blocks: address -> memory that is allocated.
        copies: (bytes, to the device?) of every copy.
        room: bytes that may be allocated.
    """

    def __init__(self, room: int = 1 << 30) -> None:
        self.blocks: dict[int, Any] = {}
        self.copies: list[tuple[int, bool]] = []
        self.room = room

    def create_stream(self) -> int:
        return 7

    def destroy_stream(self, stream: int) -> None:
        assert stream == 7

    def stream_synchronize(self, stream: int) -> None:
        assert stream == 7

    def malloc(self, size: int) -> int:
        if size + sum(map(ctypes.sizeof, self.blocks.values())) > self.room:
            raise PolygraphyException("CUDA Error: 2: out of memory")
        block = (ctypes.c_char * size)()
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        if address:
            del self.blocks[address]

    def memcpy(self, dst: int, src: int, nbytes: int, kind: int, stream_ptr: int) -> None:
        to_device = kind == cuda.MemcpyKind.HostToDevice
        assert stream_ptr == 7
        assert nbytes <= ctypes.sizeof(self.blocks[dst if to_device else src])
        self.copies.append((nbytes, to_device))
        ctypes.memmove(dst, src, nbytes)

    def view(self, address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert size <= ctypes.sizeof(self.blocks[address])
        return np.frombuffer(self.blocks[address], dtype, int(np.prod(shape))).reshape(shape)


class HostEngine:
    """An ``ICudaEngine`` and its only ``IExecutionContext``.

    Attributes:
        runs: shapes of the inputs of every enqueue.
        fails: what the next enqueue logs before it fails.
    """

    def __init__(self, trt: Any, model: Path, profile: dict[str, tuple], device: HostCuda) -> None:
        self.trt, self.profile, self.device = trt, profile, device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.values = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.names = list(self.values)
        self.num_io_tensors = len(self.names)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs: list[dict[str, tuple[int, ...]]] = []
        self.fails = ""
        self.depends_on_data = False
        self.tensor_format = trt.TensorFormat.LINEAR
        self.shape_inputs: set[str] = set()
        self.log = trt.state.log
        self.without_context = False

    # -- the engine

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_KINDS[self.values[name].type])

    def get_tensor_format(self, name):
        return self.tensor_format

    def is_shape_inference_io(self, name):
        return name in self.shape_inputs

    def get_tensor_profile_shape(self, name, index):
        assert index == 0
        assert name in self.inputs
        fixed = tuple(self.values[name].shape)
        return [list(point) for point in self.profile.get(name, (fixed,) * 3)]

    def create_execution_context(self):
        return None if self.without_context else self

    # -- the context

    def set_input_shape(self, name, shape):
        low, _, high = self.get_tensor_profile_shape(name, 0)
        if not all(a <= extent <= b for a, extent, b in zip(low, shape, high, strict=True)):
            self.log(f"Parameter check failed: {name} {tuple(shape)} is not in the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        declared = self.values[name].shape
        if name in self.inputs or not self.shapes:
            return tuple(extent if isinstance(extent, int) else -1 for extent in declared)
        if self.depends_on_data:
            return (*(-1 for _ in declared),)
        symbols: dict[str, int] = {}
        for one in self.inputs:
            for dim, extent in zip(self.values[one].shape, self.shapes[one], strict=True):
                if isinstance(dim, str) and symbols.setdefault(dim, extent) != extent:
                    self.log(f"IExecutionContext: dimensions {dim} of {one} are not equal")
                    return _InvalidDims()
        return tuple(dim if isinstance(dim, int) else symbols[dim] for dim in declared)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address in self.device.blocks

    def execute_async_v3(self, stream):
        assert stream == 7
        assert set(self.addresses) == set(self.names), "every tensor needs an address"
        if self.fails:
            self.log(self.fails)
            return False
        self.runs.append(dict(self.shapes))
        feeds = {name: self._view(name, self.shapes[name]).copy() for name in self.inputs}
        for value, result in zip(self.session.get_outputs(), self.session.run(None, feeds), strict=True):
            self._view(value.name, result.shape)[...] = result
        return True

    def _view(self, name, shape):
        return self.device.view(self.addresses[name], shape, _NUMPY[_KINDS[self.values[name].type]])


class _InvalidDims:
    """A ``Dims`` of negative rank."""

    def __len__(self):
        return -1

    def __iter__(self):
        raise ValueError("__len__() should return >= 0")


def host_module(version: str = "10.6.0") -> Any:
    """The fake bindings, whose runtime gives out ``state.engine`` for ``state.plan``."""
    trt: Any = fake_module(version)
    trt.TensorFormat = IntEnum("TensorFormat", ["LINEAR", "CHW4"])
    trt.state.engine = None

    class Runtime(trt.Runtime):
        def deserialize_cuda_engine(self, plan):
            return trt.state.engine if super().deserialize_cuda_engine(plan) is not None else None

    trt.Runtime = Runtime
    return trt


def use_host(monkeypatch: Any, model: Path, profile: dict[str, tuple], version: str = "10.6.0") -> HostEngine:
    """From now on there is a GPU, and every plan with the content ``b"plan"`` is an engine of this model."""
    from msconv_deploy.runtimes.tensorrt import plugins, session
    from msconv_deploy.runtimes.tensorrt.api import TensorRT

    tensorrt = TensorRT(host_module(version), H200)
    device = HostCuda()
    trt = tensorrt.module
    trt.state.log = lambda text: tensorrt.logger.log(trt.Severity.ERROR, text)
    trt.state.engine = HostEngine(trt, model, profile, device)
    monkeypatch.setattr(session, "require", lambda: tensorrt)
    monkeypatch.setattr(session, "load_cuda_runtime", lambda driver: None)
    monkeypatch.setattr("polygraphy.cuda.cuda.wrapper", lambda: device)
    monkeypatch.setattr(cuda, "wrapper", lambda: device)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins.ctypes, "CDLL", lambda path, mode=0: None)
    return trt.state.engine
