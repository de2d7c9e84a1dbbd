"""The tests of the kernels must notice mistakes: the shim those of any kernel, the cases those seeded into ours."""

import ctypes
import re

import numpy as np
import pytest

from plugins.msconv.tests import build_host
from plugins.msconv.tests.harness import FFMA, KernelError
from tests.plugins.kernel_cases import CASES, needs_compiler, patched_library, problem, wrong_regions

pytestmark = needs_compiler

WRONG_KERNELS = [
    (2, "threads wait at different barriers: thread 0 .* thread 32"),
    (3, "deadlock: thread 0 waits at __syncthreads .* thread 5 has ended"),
    (4, "deadlock: thread 0 waits at __shfl_sync .* thread 3 has ended"),
    (5, "__shfl_sync reads lane 20, which is not in the mask 0000ffff"),
    (6, "wrote outside of its shared memory"),
    (7, "wrote outside of its shared memory"),
    (9, "1 blocks of 2048 threads .* is not valid"),
    (10, "102400 bytes of shared memory is not valid"),
]


def launch(index):
    """Message of the shim and what the kernel wrote."""
    library = ctypes.CDLL(str(build_host.shared_object(build_host.TESTS / "faulty_kernels.cu")))
    library.launchFaulty.restype = ctypes.c_char_p
    result = np.zeros(64, np.float32)
    return library.launchFaulty(index, ctypes.c_void_p(result.ctypes.data)).decode(), result


@pytest.mark.parametrize(("index", "message"), WRONG_KERNELS)
def test_the_shim_refuses(index, message):
    actual, _ = launch(index)
    assert re.search(message, actual), actual


def test_the_shim_runs_a_sound_kernel():
    message, result = launch(0)
    assert message == ""
    assert result[0] == 64 * 63 / 2


@pytest.mark.parametrize("index", [1, 8])
def test_what_nobody_wrote_is_not_a_number(index):
    message, result = launch(index)
    assert message == ""
    assert np.isnan(result[:2]).all()


# Name -> file, text, what it becomes, the case that must notice: in fp32, on the FFMA path. Faults of the tensor-core paths are
# seeded in test_tensor_core.py.
FAULTS = {
    "FFMA multiplies before the slice is loaded": (
        "ffma.cu",
        "__syncthreads();\n                sumSlice",
        "sumSlice",
        "tiled 3x3",
    ),
    "FFMA loads over the slice before": (
        "ffma.cu",
        "__syncthreads(); // the slice before has been read",
        "",
        "slices of channels",
    ),
    "FFMA forgets the last row of a kernel": (
        "ffma.cu",
        "u < kKernel; ++u",
        "u + 1 < kKernel; ++u",
        "tiled 3x3",
    ),
    "one column too many is stored": ("epilogue.h", "valid - kHalf)", "valid - kHalf + 1)", "rows only"),
    "the class right of the interior is the interior": (
        "index.h",
        "output - skip);",
        "output - skip - 1);",
        "tiled 3x3",
    ),
    "the last tap range is one short": (
        "index.h",
        "ceilDiv(extent - begin, dilation) : 0",
        "ceilDiv(extent - begin - 1, dilation) : 0",
        "tiled 3x3",
    ),
    "a position behind the image counts as inside": (
        "index.h",
        "position < extent)",
        "position <= extent)",
        "one channel per slice",
    ),
    "the column table is not added": ("tables.h", "x[p + 1] += four.y;", "", "tiled 3x3"),
    "the bias is not added": ("projection.cu", "job.bias == nullptr", "true", "tiled 3x3"),
    "a warp's share of the channels is lost": (
        "projection.cu",
        "w < workers; ++w",
        "w + 1 < workers; ++w",
        "many metadata channels",
    ),
    "partial sums are read before they are there": (
        "projection.cu",
        "__syncthreads();\n#pragma unroll",
        "#pragma unroll",
        "tiled 3x3",
    ),
    "only the first taps of nc count": (
        "projection.cu",
        "tap0 < scalarTaps; tap0 += kTapChunk",
        "tap0 < 1; tap0 += kTapChunk",
        "many taps",
    ),
    "groups of metadata are ignored": ("projection.cu", "* job.channels;", "* 0;", "groups"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_seeded_faults_are_caught(name, tmp_path):
    file, text, replacement, noticing = FAULTS[name]
    library = patched_library(tmp_path, file, text, replacement)
    case = CASES[noticing]
    try:
        output = library.run(problem(case), case.sources, case.weights, case.bias, FFMA)
    except KernelError:
        return
    assert wrong_regions(case, 0, output), f"{noticing} passed although {name}"


def test_grids_of_any_size_are_covered(tmp_path):
    """A grid ends at 65535 along y and z: blocks go on with the next channels and images. Here it ends at 2."""
    library = patched_library(tmp_path, "launch.h", "kMaxGridYZ = 65535", "kMaxGridYZ = 2")
    for name in ("a pixel", "narrow groups", "two tiles of channels", "scalars only", "broadcast batches"):
        for data_type in (0, 1):
            described = problem(CASES[name], data_type)
            for path in library.available_paths(described, 80):
                case = CASES[name]
                output = library.run(described, case.sources, case.weights, case.bias, path)
                assert not wrong_regions(case, data_type, output), (name, path)
