"""NVIDIA GPUs, asked through the driver's C interface (libcuda): neither CUDA's runtime nor TensorRT is touched.

TensorRT must not be asked: without a GPU its builder aborts the process (10.6) and its runtime crashes (8.6).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# CUdevice_attribute of cuda.h
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        name: such as ``NVIDIA H200``.
        compute_capability: (major, minor).
        cuda: newest CUDA version that the driver knows, (major, minor).
    """

    name: str
    compute_capability: tuple[int, int]
    cuda: tuple[int, int]

    @property
    def capability_text(self) -> str:
        """Such as ``9.0``."""
        return ".".join(map(str, self.compute_capability))


def probe() -> tuple[list[Gpu], str]:
    """(the devices that this process sees, what is missing); exactly one of the two is empty."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [], "no driver library libcuda.so.1"
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    code = cuda.cuInit(0)
    if code != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return [], f"the driver is installed, but cuInit returned {code} and {count.value} devices were found"
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return [_device(cuda, index, version.value) for index in range(count.value)], ""


def _device(cuda: ctypes.CDLL, index: int, version: int) -> Gpu:
    name, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDeviceGetName(name, 128, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, index)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=(major.value, minor.value),
        cuda=(version // 1000, version % 1000 // 10),
    )
