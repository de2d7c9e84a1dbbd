"""What of the GPU check can be held to account without a GPU: its problems, its verdicts, its programs, its refusal to run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import build, registry, report
from benchmarks.gpu.layers import LAYERS
from benchmarks.gpu.random_cases import random_cases
from msconv_deploy.errors import NotAvailableError
from msconv_deploy.ops import reference
from msconv_deploy.plugin.headers import find_headers
from msconv_deploy.plugin.toolkit import find_nvcc
from msconv_deploy.runtimes.gpu import probe
from plugins.msconv.tests import build_host, harness

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


@pytest.mark.skipif(bool(probe()[0]), reason="this machine has a GPU: run make gpu-check")
def test_without_a_gpu_it_says_so_and_is_not_passed():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "PyTorch" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_needs_no_package_beyond_numpy_and_pytorch():
    """It runs on machines where nothing can be installed."""
    blocked = "pydantic polygraphy onnx_graphsurgeon rich typer onnxruntime jinja2 safetensors hypothesis pytest onnx"
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked.split()!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {str(ROOT)!r})
import benchmarks.gpu_check
from benchmarks.gpu import build, layers, random_cases, registry, report
from msconv_deploy.ops import reference
from plugins.msconv.tests import harness
from tests.oracle import border_and_interior
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(build_host.compiler() is None, reason="needs a C++ compiler")
def test_random_problems_are_valid_and_reach_every_path():
    kernels = harness.Kernels(build_host.library())
    reached, borders = set(), 0
    for number, case in enumerate(random_cases(120, seed=0)):
        borders += case.config.has_border(case.config.rows)
        for index in range(3):
            problem = case.problem(index)
            assert kernels.check(problem) is None
            reached |= {(path, index) for path in kernels.available_paths(problem, 90)}
        if number < 4:
            got = kernels.run(case.problem(0), case.sources, case.weights, case.bias)
            expected = reference.msconv2d(case.config, case.sources, case.weights, case.bias)
            assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
    tensor_core_paths = {(path, index) for path in (harness.TENSOR_CORE, harness.IMPLICIT_GEMM) for index in (1, 2)}
    assert reached == {(harness.FFMA, 0), (harness.FFMA, 1), (harness.FFMA, 2), *tensor_core_paths}
    assert borders > 10


@pytest.mark.skipif(build_host.compiler() is None, reason="needs a C++ compiler")
def test_measured_layers_are_valid_and_named_apart():
    kernels = harness.Kernels(build_host.library())
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)
    for layer in LAYERS:
        height, width = layer.size
        shapes = {"nchw": (height, width), "nch": (height,), "ncw": (width,), "nc": ()}
        counts = dict(zip(harness.SOURCE_NAMES, layer.channels, strict=True))
        present = layer.config.source_names
        problem = harness.problem_of(
            layer.config,
            {name: (layer.batch, counts[name], *shapes[name]) for name in present},
            {name: counts[name] for name in present},
            layer.out_channels,
            ("float32", "float16", "bfloat16").index(layer.dtype),
        )
        assert kernels.check(problem) is None, layer.name
        assert kernels.output_shape(problem) == (layer.batch, layer.out_channels, height, width)
        fastest = kernels.available_paths(problem, 90)[0]
        if layer.dtype == "float32":
            assert fastest == harness.FFMA
        else:
            assert fastest == (harness.TENSOR_CORE if layer.few_channels else harness.IMPLICIT_GEMM), layer.name


def content(**changes):
    """Results as a run would leave them, made up for these tests."""
    layer = {
        "layer": "3 + 4 scalars -> 64, 3x3, 1080x1920, N 1, float16",
        "dtype": "float16",
        "few_channels": True,
        "bytes_moved": 100,
        "multiply_adds": 100,
        "chosen": "tensor core",
        "difference": [{"path": "tensor core", "border": 1e-4, "interior": 1e-4}],
        "microseconds": {"tensor core": 10.0, report.ADDS: 20.0, report.TILE: 30.0, report.BARE: 9.0},
        "of_copy_bandwidth": 0.5,
    }
    base = {
        "command": "none",
        "date": "2000-01-01",
        "gpu": "a GPU that does not exist",
        "compute_capability": "9.0",
        "versions": {"nvcc": "13.0"},
        "random": [{"path": "ffma", "dtype": "float32", "cases": 3, "border": 1e-7, "interior": 1e-7}],
        "sanitizer": [{"tool": "memcheck", "result": "clean, 3 runs"}],
        "registry": [{"tool": "registry", "result": "not run: no runtime"}],
        "layers": [layer],
        "copy_bandwidth": 4e12,
    }
    return {**base, **changes}


TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def test_verdict():
    assert report.wrong(content(), TOLERANCE) == []
    for value in (1e-3, float("inf"), float("nan")):
        row = {"path": "ffma", "dtype": "float32", "cases": 3, "border": value, "interior": 0.0}
        assert len(report.wrong(content(random=[row]), TOLERANCE)) == 1
    assert report.wrong(content(sanitizer=[{"tool": "memcheck", "result": "failed: 1 error"}]), TOLERANCE)


def test_report_says_what_was_not_reached(tmp_path):
    found = content()
    report.write(found, tmp_path, "gpu_none")
    text = (tmp_path / "gpu_none.md").read_text()
    assert "not run: no runtime" in text
    assert "never slower than the convolution with separate additions (in NCHW, as given): yes" in text
    assert "image alone: no" in text
    assert "at least 0.75 of copy bandwidth" in text
    assert "no, 0.50" in text
    failed = content()["layers"][0]
    failed["microseconds"][report.TILE] = "failed: OutOfMemoryError"
    assert "failed" in report.layers_table([failed])


def compiled():
    try:
        find_nvcc()
        find_headers("11")
    except NotAvailableError as missing:
        pytest.skip(str(missing).splitlines()[0])


def test_registry_driver_reaches_the_creator_in_a_real_registry():
    """Compiled and loaded for real; without a GPU it stops where the first stream is made, and says so."""
    compiled()
    library = registry.runtime_library()
    if library is None or ".so.11" not in library.name:
        pytest.skip("needs TensorRT's lean runtime: pip install 'msconv-deploy[lean]'")
    plugin, driver = build.plugin_and_driver(90, library)
    host = build_host.library() if build_host.compiler() else pytest.skip("needs a C++ compiler")
    result = registry.run(driver, library, plugin, host, 90, seed=0)
    if probe()[0]:
        assert "agree with float64" in result
    else:
        assert result.startswith("not run")
        assert "the creator was found; there is no GPU" in result


def test_case_runner_compiles():
    compiled()
    program = build.case_program(90)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
