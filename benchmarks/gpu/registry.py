"""The real plugin object behind the plugin registry of a TensorRT runtime: compiled, loaded and enqueued from C++."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import build
from benchmarks.gpu.random_cases import random_cases
from msconv_deploy.errors import MsconvError
from msconv_deploy.ops import reference

CASES = 60
TOLERANCE = {0: 2e-5, 1: 2e-3, 2: 1.6e-2}
TOOL = "plugin object through a TensorRT registry"


def runtime_library() -> Path | None:
    """libnvinfer_lean.so or libnvinfer.so: of TENSORRT_ROOT, of an installed package, or of the system."""
    names = ("libnvinfer_lean.so", "libnvinfer.so")
    folders = []
    if root := os.environ.get("TENSORRT_ROOT"):
        folders.append(Path(root) / "lib")
    for package in ("tensorrt_lean_libs", "tensorrt_libs"):
        spec = importlib.util.find_spec(package)
        folders += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        for name in names:
            found = sorted(folder.glob(f"{name}*"))
            if found:
                return found[0]
    system = ctypes.util.find_library("nvinfer_lean") or ctypes.util.find_library("nvinfer")
    return Path(system) if system else None


def drive(capability: int, seed: int) -> list[dict[str, Any]]:
    """Random problems through creator, attachToContext and enqueue against the NumPy reference."""
    library = runtime_library()
    if library is None:
        return [{"tool": TOOL, "result": "not run: no TensorRT runtime is installed (libnvinfer_lean.so is enough)"}]
    try:
        plugin, driver = build.plugin_and_driver(capability, library)
    except MsconvError as error:
        return [{"tool": TOOL, "result": f"not run: {str(error).splitlines()[0]}"}]
    result = run(driver, library, plugin, build.kernels_library(capability), capability, seed)
    return [{"tool": f"{TOOL} ({library.name})", "result": result}]


def run(driver: Path, library: Path, plugin: Path, kernels_library: Path, capability: int, seed: int) -> str:
    """One sentence: how many cases agree, what failed, or why nothing was run."""
    from plugins.msconv.tests import harness

    kernels = harness.Kernels(kernels_library)
    records, expected = [], []
    for case in random_cases(CASES, seed + 2):
        for index, dtype in enumerate(harness.DATA_TYPES):
            sources, weights = (
                {name: np.asarray(array, dtype).astype(np.float64) for name, array in part.items()}
                for part in (case.sources, case.weights)
            )
            bias = None if case.bias is None else np.asarray(case.bias, dtype).astype(np.float64)
            problem = case.problem(index)
            arrays = [part.get(name) for part in (sources, weights) for name in harness.SOURCE_NAMES]
            size = int(np.prod(kernels.output_shape(problem))) * dtype.itemsize
            path = kernels.available_paths(problem, capability)[0]
            records.append(harness.record(problem, [*arrays, bias], size, path, capability))
            expected.append((index, reference.msconv2d(case.config, sources, weights, bias)))
    with tempfile.TemporaryDirectory() as folder:
        cases, outputs = Path(folder) / "cases", Path(folder) / "outputs"
        cases.write_bytes(b"".join(records))
        command = [str(driver), str(library), str(plugin), str(cases), str(outputs)]
        environment = {**os.environ, "LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if done.returncode == 3:
            return f"not run: {last}"
        if done.returncode:
            return f"failed: {last}"
        data = outputs.read_bytes()
    at, worst = 0, 0.0
    for number, (index, array) in enumerate(expected):
        dtype = harness.DATA_TYPES[index]
        got = np.frombuffer(data, dtype, array.size, at).astype(np.float64).reshape(array.shape)
        at += array.size * dtype.itemsize
        error = float(np.abs(got - array).max(initial=0) / max(np.abs(array).max(initial=0), 1e-30))
        if not error <= TOLERANCE[index]:
            return f"failed: case {number} ({dtype}) differs by {error:.1e}"
        worst = max(worst, error / TOLERANCE[index])
    return f"{len(expected)} runs agree with float64, the worst at {worst:.0%} of its tolerance"
