"""The kernels from Python: ``msconv2d.h`` through ctypes.

The tests load the library that ``build_host.py`` makes, whose pointers are NumPy arrays; a GPU check loads the same
``harness.cpp`` compiled by nvcc and passes device pointers. Neither torch nor CUDA is imported here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from msconv_deploy.ops.configuration import SOURCE_NAMES, MSConv2dConfig
from msconv_deploy.ops.shapes import HEIGHT_AXIS, WIDTH_AXIS

DATA_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))  # in the order of DataType
CHOOSE, FFMA, TENSOR_CORE, IMPLICIT_GEMM = range(4)
PATH_NAMES = {CHOOSE: "choose", FFMA: "ffma", TENSOR_CORE: "tensor core", IMPLICIT_GEMM: "implicit GEMM"}

_GUARD_BYTES = 256
_MESSAGE_BYTES = 512


class Attributes(ctypes.Structure):
    _fields_ = [
        ("sources", ctypes.c_int32 * 4),
        ("has_bias", ctypes.c_int32),
        ("kernel_shape", ctypes.c_int32 * 2),
        ("strides", ctypes.c_int32 * 2),
        ("dilations", ctypes.c_int32 * 2),
        ("pads", ctypes.c_int32 * 4),
        ("group", ctypes.c_int32),
        ("padding_semantics", ctypes.c_int32),
        ("padding_mode", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("activation_params", ctypes.c_float * 2),
    ]


class Extents(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int64),
        ("source_batch", ctypes.c_int64 * 4),
        ("channels", ctypes.c_int64 * 4),
        ("out_channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
    ]


class Problem(ctypes.Structure):
    _fields_ = [("attributes", Attributes), ("extents", Extents), ("type", ctypes.c_int32)]


class Tensors(ctypes.Structure):
    _fields_ = [
        ("sources", ctypes.c_void_p * 4),
        ("weights", ctypes.c_void_p * 4),
        ("bias", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    ]


class KernelError(RuntimeError):
    """The kernels refused a problem, or a launch failed. The text is theirs."""


def problem_of(
    config: MSConv2dConfig,
    shapes: Mapping[str, tuple[int, ...]],
    in_channels: Mapping[str, int],
    out_channels: int,
    data_type: int = 0,
) -> Problem:
    """The problem of a configuration on sources of these shapes.

    Args:
        config: the attributes.
        shapes: source name -> shape, for the sources that are present.
        in_channels: source name -> channels.
        out_channels: O.
        data_type: index into :data:`DATA_TYPES`.
    """
    problem = Problem(type=data_type)
    for name, value in config.attributes().items():
        field = getattr(problem.attributes, name)
        if isinstance(field, ctypes.Array):
            field[:] = value
        else:
            setattr(problem.attributes, name, value)
    extents = problem.extents
    extents.out_channels = out_channels
    for index, name in enumerate(SOURCE_NAMES):
        if name not in shapes:
            continue
        shape = shapes[name]
        extents.source_batch[index] = shape[0]
        extents.channels[index] = in_channels[name]
        if HEIGHT_AXIS[name] is not None:
            extents.height = shape[HEIGHT_AXIS[name]]
        if WIDTH_AXIS[name] is not None:
            extents.width = shape[WIDTH_AXIS[name]]
    batches = [shape[0] for shape in shapes.values()]
    extents.batch = next((batch for batch in batches if batch != 1), 1)
    return problem


class Kernels:
    """A loaded library.

    Args:
        path: of the library.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.msconvOutputExtent.restype = ctypes.c_int64
        self._library.msconvWorkspaceBytes.restype = ctypes.c_size_t
        sizes = (ctypes.c_int64 * 2)()
        self._library.msconvSizes(sizes)
        if list(sizes) != [ctypes.sizeof(Problem), ctypes.sizeof(Tensors)]:
            raise KernelError(f"{path}: the structures of msconv2d.h have sizes {list(sizes)}; harness.py has others")

    def check(self, problem: Problem) -> str | None:
        """What is wrong with a problem; None if nothing is."""
        buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
        wrong = self._library.msconvCheck(ctypes.byref(problem), buffer, ctypes.c_size_t(len(buffer)))
        return buffer.value.decode() if wrong else None

    def output_shape(self, problem: Problem) -> tuple[int, int, int, int]:
        rows, columns = (self._library.msconvOutputExtent(ctypes.byref(problem), axis) for axis in (0, 1))
        return (problem.extents.batch, problem.extents.out_channels, rows, columns)

    def workspace_bytes(self, problem: Problem) -> int:
        return self._library.msconvWorkspaceBytes(ctypes.byref(problem))

    def available_paths(self, problem: Problem, compute_capability: int) -> list[int]:
        """Paths that can run the problem, best guess first."""
        paths = (ctypes.c_int32 * 3)()
        count = self._library.msconvAvailablePaths(ctypes.byref(problem), compute_capability, paths)
        return list(paths)[:count]

    def enqueue(
        self, problem: Problem, tensors: Tensors, path: int, compute_capability: int, stream: int | None = None
    ) -> None:
        """Launch on a stream (``None``: the default one).

        Raises:
            KernelError: the problem is not valid, the path cannot run it, or the launch failed.
        """
        buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
        arguments = (path, compute_capability, ctypes.c_void_p(stream), buffer, ctypes.c_size_t(len(buffer)))
        if self._library.msconvEnqueue(ctypes.byref(problem), ctypes.byref(tensors), *arguments):
            raise KernelError(buffer.value.decode())

    def run(
        self,
        problem: Problem,
        sources: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
        bias: np.ndarray | None,
        path: int = CHOOSE,
        compute_capability: int = 80,
    ) -> np.ndarray:
        """Run on NumPy arrays: only with the library for the CPU.

        Inputs are converted to the problem's type. Output and workspace begin as NaN and lie between guards.

        Returns:
            ``[N, O, H', W']`` of the problem's type.

        Raises:
            KernelError: as for :meth:`enqueue`, or the guards were overwritten.
        """
        dtype = DATA_TYPES[problem.type]
        tensors = Tensors()
        kept: list[Any] = []
        for index, name in enumerate(SOURCE_NAMES):
            if name in sources:
                pair = [np.ascontiguousarray(array[name], dtype) for array in (sources, weights)]
                kept += pair
                tensors.sources[index], tensors.weights[index] = (array.ctypes.data for array in pair)
        if bias is not None:
            kept.append(np.ascontiguousarray(bias, dtype))
            tensors.bias = kept[-1].ctypes.data
        shape = self.output_shape(problem)
        output = _Guarded(int(np.prod(shape)) * dtype.itemsize)
        workspace = _Guarded(self.workspace_bytes(problem))
        tensors.output, tensors.workspace = output.address, workspace.address
        self.enqueue(problem, tensors, path, compute_capability)
        if not (output.intact() and workspace.intact()):
            raise KernelError("a kernel wrote outside of the output or the workspace")
        return output.data.view(dtype).reshape(shape)


class _Guarded:
    """Bytes, all 0xFF (NaN in every type), between guards, aligned to 256."""

    def __init__(self, size: int) -> None:
        whole = np.full(size + 4 * _GUARD_BYTES, 0xA5, np.uint8)
        start = _GUARD_BYTES + -(whole.ctypes.data + _GUARD_BYTES) % _GUARD_BYTES
        self._guards = (whole[:start], whole[start + size :])
        self.data = whole[start : start + size]
        self.data[:] = 0xFF
        self.address = whole.ctypes.data + start

    def intact(self) -> bool:
        return all((guard == 0xA5).all() for guard in self._guards)


def record(
    problem: Problem, arrays: list[np.ndarray | None], output_bytes: int, path: int, compute_capability: int
) -> bytes:
    """One case in the format of ``case_file.h``.

    Args:
        problem: of the case.
        arrays: 4 sources, 4 weights and the bias; None where there is none.
        output_bytes: size of the output.
        path: to run.
        compute_capability: of the device that is pretended.
    """
    dtype = DATA_TYPES[problem.type]
    data = [b"" if array is None else np.ascontiguousarray(array, dtype).tobytes() for array in arrays]
    head = np.array([path, compute_capability], np.int32).tobytes()
    sizes = np.array([*map(len, data), output_bytes], np.int64).tobytes()
    return b"".join((bytes(problem), head, sizes, *data))
