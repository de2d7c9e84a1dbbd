"""The kernels under the address and the undefined-behaviour sanitizer: every access within its tensor, no overflow."""

import subprocess

import numpy as np
import pytest

from msconv_deploy.ops.configuration import SOURCE_NAMES
from plugins.msconv.tests import build_host
from plugins.msconv.tests.harness import DATA_TYPES, record
from tests.plugins.kernel_cases import ARCHITECTURES, CASES, kernels, needs_compiler, problem, wrong_regions

pytestmark = needs_compiler

# Each reaches other code; what only differs in numbers is left out, for the sanitizers are slow.
WATCHED = [
    "tiled 3x3",
    "slices of channels",
    "one channel per slice",
    "1x1",
    "strides",
    "dilations",
    "no interior",
    "outputs in the padding",
    "strides beyond the kernel",
    "groups",
    "narrow groups",
    "depthwise",
    "broadcast batches",
    "rows only",
    "columns only",
    "scalars only",
    "columns and scalars",
    "reflect",
    "replicate",
    "circular",
    "silu",
    "clip",
]


def test_sanitizers_have_nothing_to_say(tmp_path):
    records, expected = [], []
    for name in WATCHED:
        case = CASES[name]
        for data_type, dtype in enumerate(DATA_TYPES):
            if data_type == 2 and name not in ("tiled 3x3", "groups"):
                continue  # bfloat16 runs the code of float16 but for the conversion
            described = problem(case, data_type)
            shape = kernels().output_shape(described)
            arrays = [tensors.get(source) for tensors in (case.sources, case.weights) for source in SOURCE_NAMES]
            for path in kernels().available_paths(described, 80):
                size = int(np.prod(shape)) * dtype.itemsize
                records.append(record(described, [*arrays, case.bias], size, path, 80))
                expected.append((name, case, data_type, path, shape))
    (tmp_path / "cases").write_bytes(b"".join(records))
    program = build_host.sanitized_program(ARCHITECTURES[80])
    done = subprocess.run(
        [program, tmp_path / "cases", tmp_path / "outputs"],
        capture_output=True,
        text=True,
        check=False,
        env={"UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert done.returncode == 0, done.stderr[:4000]
    complaints = [
        line for line in done.stderr.splitlines() if "makecontext/swapcontext" not in line
    ]  # that it knows fibers badly
    assert not complaints
    outputs, start = (tmp_path / "outputs").read_bytes(), 0
    for name, case, data_type, path, shape in expected:
        dtype = DATA_TYPES[data_type]
        output = np.frombuffer(outputs, dtype, int(np.prod(shape)), start).reshape(shape)
        start += output.nbytes
        assert not wrong_regions(case, data_type, output), (name, path)
    assert start == len(outputs)


@pytest.mark.parametrize("what", ["output", "source"])
def test_the_sanitizer_sees_what_lies_outside(what, tmp_path):
    """A tensor one row too small: were the sanitizer not at work, nobody would see it."""
    case = CASES["image only"]
    described = problem(case)
    size = int(np.prod(kernels().output_shape(described))) * 4
    arrays = [tensors.get(source) for tensors in (case.sources, case.weights) for source in SOURCE_NAMES]
    if what == "output":
        size -= 4 * case.width
    else:
        arrays[0] = arrays[0].ravel()[: -case.width]
    (tmp_path / "cases").write_bytes(record(described, [*arrays, None], size, 1, 80))
    program = build_host.sanitized_program(ARCHITECTURES[80])
    done = subprocess.run(
        [program, tmp_path / "cases", tmp_path / "outputs"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
