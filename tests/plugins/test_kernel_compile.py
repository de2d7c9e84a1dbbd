"""nvcc compiles every source for every architecture, and no kernel spills its registers."""

import functools
import re

import pytest

from msconv_deploy.errors import NotAvailableError
from msconv_deploy.plugin.toolkit import ARCHITECTURES, find_nvcc
from plugins.msconv.tests.build_device import compile_source
from plugins.msconv.tests.build_host import KERNELS, sources

# Source -> its kernels and how many instances of each there are, in all types.
INSTANCES = {
    "dispatch.cu": {},
    "problem.cpp": {},
    "projection.cu": {"projectTables": 3},
    "ffma.cu": {"convolveTiled": 9, "convolveDirect": 6},
    "tensor_core.cu": {"convolveTensorCore": 6},
    "implicit_gemm.cu": {"convolveImplicitGemm": 8},
}


@functools.cache
def uses(name):
    try:
        nvcc, version = find_nvcc()
    except NotAvailableError as error:
        pytest.skip(str(error))
    return compile_source(nvcc, version, KERNELS / name, ARCHITECTURES)


def test_every_source_is_compiled():
    assert {path.name for path in sources()} == set(INSTANCES)
    assert {"75", "80", "86", "89", "90", "100", "120"} <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", INSTANCES)
def test_all_architectures_without_spills(name):
    report = uses(name)
    for architecture in ARCHITECTURES:
        here = [use for use in report if use.architecture == architecture]
        for kernel, instances in INSTANCES[name].items():
            assert sum(bool(re.search(rf"\d{kernel}", use.symbol)) for use in here) == instances
        assert len(here) == sum(INSTANCES[name].values())
    spilling = [(use.symbol, use.architecture, use.spilled_bytes) for use in report if use.spilled_bytes]
    assert not spilling
    assert not [use for use in report if use.stack_bytes]


@pytest.mark.parametrize(
    ("name", "kernel", "threads"), [("ffma.cu", "convolveTiled", 256), ("projection.cu", "projectTables", 256)]
)
def test_two_blocks_share_a_multiprocessor(name, kernel, threads):
    """What __launch_bounds__ asks for, of 65536 registers and the shared memory of the smallest device (64 KB)."""
    for use in uses(name):
        if kernel in use.symbol:
            assert 2 * threads * use.registers <= 65536
            assert 2 * use.static_shared_bytes <= 64 * 1024
