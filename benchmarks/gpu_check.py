"""Are the kernels right on this GPU, and what do they cost?

    python benchmarks/gpu_check.py [--cases 400] [--seed 0] [--only TEXT] [--no-measure] [--no-compile] [--output FOLDER]

Needs a GPU, nvcc and PyTorch with CUDA; nothing is fetched. In order:

1. compiles plugins/msconv/kernels for this GPU;
2. compares every path with float64, border and interior apart: random problems against the NumPy reference, and the layers of
   benchmarks/gpu/layers.py against PyTorch's own float64 convolution of the tiled tensor;
3. runs a sample of the random problems under compute-sanitizer (memcheck, racecheck), where it works;
4. drives the real plugin object through a TensorRT runtime's registry from C++, where one is installed;
5. measures the layers: microseconds, and the fraction of the copy bandwidth measured in the same run.

Writes gpu_<name>.json, .md and .png to benchmarks/results. Exit codes: 1 an output is wrong, 3 something needed is missing,
4 the kernels do not compile. Speed never fails the run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from msconv_deploy.errors import ExitCode, MsconvError  # noqa: E402

TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest difference from float64 that passes: products of rounded inputs, sums in fp32, one rounding of the result."""

Row = dict[str, Any]


def need_torch() -> str | None:
    """What is missing, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch with CUDA is needed: pip install torch"
    import torch

    if not torch.cuda.is_available():
        return "no CUDA GPU is visible to PyTorch: this check runs on a machine with an NVIDIA GPU"
    return None


# -- exactness -----------------------------------------------------------------------------------------------------------


def check_random(kernels: Any, capability: int, count: int, seed: int) -> list[Row]:
    """Every path on random problems, in the three types: worst differences, one row per path and type."""
    import torch

    from benchmarks.gpu.random_cases import random_cases
    from msconv_deploy.ops import reference
    from plugins.msconv.tests import harness
    from tests.oracle import border_and_interior, extents

    worst: dict[tuple[str, str], Row] = {}
    for case in random_cases(count, seed):
        for index, dtype in enumerate(TOLERANCE):
            kind = getattr(torch, dtype)

            def rounded(array: np.ndarray, kind: Any = kind) -> np.ndarray:
                return torch.from_numpy(array).to(kind).double().numpy()

            sources = {name: rounded(array) for name, array in case.sources.items()}
            weights = {name: rounded(array) for name, array in case.weights.items()}
            bias = None if case.bias is None else rounded(case.bias)
            expected = reference.msconv2d(case.config, sources, weights, bias)
            border = np.broadcast_to(border_and_interior(case.config, *extents(sources)), expected.shape)
            problem = case.problem(index)
            for path in kernels.available_paths(problem, capability):
                got = run_on_gpu(kernels, problem, sources, weights, bias, path, capability, kind)
                row = worst.setdefault(
                    (harness.PATH_NAMES[path], dtype),
                    {"path": harness.PATH_NAMES[path], "dtype": dtype, "cases": 0, "border": 0.0, "interior": 0.0},
                )
                row["cases"] += 1
                error = np.abs(got - expected) / max(np.abs(expected).max(), 1e-30)
                error = np.where(np.isnan(error), np.inf, error)
                for region, mask in (("border", border), ("interior", ~border)):
                    row[region] = max(row[region], float(error[mask].max(initial=0)))
    return list(worst.values())


def run_on_gpu(
    kernels: Any, problem: Any, sources: Any, weights: Any, bias: Any, path: int, capability: int, kind: Any
) -> np.ndarray:
    """One problem on the GPU; the output begins as NaN, and what is not written stays so."""
    import torch

    from msconv_deploy.ops.configuration import SOURCE_NAMES
    from plugins.msconv.tests import harness

    tensors, kept = harness.Tensors(), []

    def on_gpu(array: np.ndarray) -> int:
        kept.append(torch.from_numpy(array).to("cuda", kind))
        return int(kept[-1].data_ptr())

    for position, name in enumerate(SOURCE_NAMES):
        if name in sources:
            tensors.sources[position], tensors.weights[position] = on_gpu(sources[name]), on_gpu(weights[name])
    if bias is not None:
        tensors.bias = on_gpu(bias)
    output = torch.full(kernels.output_shape(problem), float("nan"), dtype=kind, device="cuda")
    workspace = torch.full((kernels.workspace_bytes(problem) + 256,), 0xFF, dtype=torch.uint8, device="cuda")
    tensors.output, tensors.workspace = output.data_ptr(), workspace.data_ptr()
    kernels.enqueue(problem, tensors, path, capability, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return output.double().cpu().numpy()


def check_layer(kernels: Any, tensors: Any, capability: int) -> list[Row]:
    """Every path on one measured layer against float64."""
    import torch

    from benchmarks.gpu.variants import kernels_work
    from plugins.msconv.tests import harness

    layer, rows = tensors.layer, []
    expected = tensors.expected(0)
    scale = expected.abs().max().item()
    edge = torch.zeros(layer.size, dtype=torch.bool, device="cuda")
    width = layer.kernel // 2
    if width:
        edge[:width], edge[-width:], edge[:, :width], edge[:, -width:] = True, True, True, True
    problem = kernels_work(kernels, tensors, capability).problem  # type: ignore[attr-defined]
    for path in kernels.available_paths(problem, capability):
        work = kernels_work(kernels, tensors, capability, path)
        got = work(0)
        torch.cuda.synchronize()
        error = (got.double() - expected).abs_().nan_to_num_(nan=float("inf")).amax((0, 1)) / scale
        rows.append(
            {
                "path": harness.PATH_NAMES[path],
                "border": float(error[edge].max().item()) if width else 0.0,
                "interior": float(error[~edge].max().item()),
            }
        )
    return rows


# -- compute-sanitizer ---------------------------------------------------------------------------------------------------


def sanitize(capability: int, count: int, seed: int) -> list[Row]:
    """compute-sanitizer over a program that runs random problems; a tool that cannot run is reported as not run."""
    from benchmarks.gpu import build
    from benchmarks.gpu.random_cases import random_cases
    from plugins.msconv.tests import harness

    tool = build.find_tool("compute-sanitizer")
    if tool is None:
        return [{"tool": "compute-sanitizer", "result": "not run: not installed"}]
    program = build.case_program(capability)
    kernels = harness.Kernels(build.kernels_library(capability))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases"
        records = []
        for case in random_cases(count, seed + 1):
            for index, dtype in enumerate(harness.DATA_TYPES):
                problem = case.problem(index)
                arrays = [case.sources.get(name) for name in harness.SOURCE_NAMES]
                arrays += [case.weights.get(name) for name in harness.SOURCE_NAMES]
                size = int(np.prod(kernels.output_shape(problem))) * dtype.itemsize
                records += [
                    harness.record(problem, [*arrays, case.bias], size, path, capability)
                    for path in kernels.available_paths(problem, capability)
                ]
        file.write_bytes(b"".join(records))
        for check in ("memcheck", "racecheck"):
            command = [tool, "--tool", check, "--error-exitcode", "9", program, file, Path(folder) / "outputs"]
            try:
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
            except subprocess.TimeoutExpired:
                rows.append({"tool": check, "result": "not run to its end: more than 240 s"})
                continue
            lines = (done.stdout + done.stderr).strip().splitlines()
            if done.returncode == 0:
                result = f"clean, {len(records)} runs"
            elif done.returncode == 9:
                result = "failed: " + " | ".join(lines[:6])
            else:
                result = "not run: " + (lines[-1] if lines else f"exit code {done.returncode}")
            rows.append({"tool": check, "result": result})
    return rows


# -- measurement ---------------------------------------------------------------------------------------------------------


def measure(kernels: Any, capability: int, only: str, compiled: bool) -> tuple[list[Row], float]:
    """Exactness and time of every layer; rows and the copy bandwidth in bytes per second."""
    import torch

    from benchmarks.gpu import timing
    from benchmarks.gpu.layers import LAYERS
    from benchmarks.gpu.variants import LayerTensors, baselines, kernels_work
    from plugins.msconv.tests import harness

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, as in the kernels
    bandwidth = timing.copy_bandwidth()
    rows = []
    for layer in LAYERS:
        if only not in layer.name:
            continue
        tensors = LayerTensors(layer, timing.rotation(layer.bytes_moved))
        sets = len(tensors.sources)
        exact = check_layer(kernels, tensors, capability)
        torch.cuda.empty_cache()
        problem = kernels_work(kernels, tensors, capability).problem  # type: ignore[attr-defined]
        times: dict[str, float | str] = {}
        for path in kernels.available_paths(problem, capability):
            work = kernels_work(kernels, tensors, capability, path)
            times[harness.PATH_NAMES[path]] = timing.microseconds(work, sets)
        chosen = harness.PATH_NAMES[kernels.available_paths(problem, capability)[0]]
        for name, work in baselines(tensors, compiled).items():
            try:
                times[name] = timing.microseconds(work, sets)
            except Exception as error:  # a baseline that fails is a row that says so; ours must not
                times[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        ours = times[chosen]
        assert isinstance(ours, float)
        rows.append(
            {
                "layer": layer.name,
                "dtype": layer.dtype,
                "few_channels": layer.few_channels,
                "bytes_moved": layer.bytes_moved,
                "multiply_adds": layer.multiply_adds,
                "chosen": chosen,
                "difference": exact,
                "microseconds": times,
                "of_copy_bandwidth": layer.bytes_moved / (ours * 1e-6) / bandwidth,
            }
        )
        print(f"{layer.name:60} {chosen} {ours:.0f} us, {rows[-1]['of_copy_bandwidth']:.2f} of copy", flush=True)
        torch.cuda.empty_cache()
        if compiled:
            torch.compiler.reset()
    return rows, bandwidth


# -- report --------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400, help="random problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="only layers with this in their name")
    parser.add_argument("--no-measure", action="store_true", help="correctness only")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    missing = need_torch()
    if missing:
        print(f"gpu_check: {missing}", file=sys.stderr)
        return ExitCode.NOT_AVAILABLE
    try:
        return check(options)
    except MsconvError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return error.exit_code


def check(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu import build, registry, report
    from plugins.msconv.tests import harness

    properties = torch.cuda.get_device_properties(0)
    capability = properties.major * 10 + properties.minor
    print(f"{properties.name}, compute capability {properties.major}.{properties.minor}", flush=True)
    library = build.kernels_library(capability)
    kernels = harness.Kernels(library)
    content: Row = {
        "command": "python benchmarks/gpu_check.py " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvcc": build.nvcc_version(),
            "driver": build.driver_version(),
        },
        "random": check_random(kernels, capability, options.cases, options.seed),
    }
    print(report.random_table(content["random"]), flush=True)
    content["sanitizer"] = sanitize(capability, min(options.cases, 40), options.seed)
    content["registry"] = registry.drive(capability, options.seed)
    print(report.checks_table(content["sanitizer"], content["registry"]), flush=True)
    if not options.no_measure:
        content["layers"], content["copy_bandwidth"] = measure(
            kernels, capability, options.only, not options.no_compile
        )
    wrong = report.wrong(content, TOLERANCE)
    content["wrong"] = wrong
    name = "gpu_" + re.sub(r"[^a-z0-9]+", "_", properties.name.lower()).strip("_")
    report.write(content, options.output, name)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    print(f"written: {options.output / name}.json, .md, .png")
    return ExitCode.OUTPUTS_DIFFER if wrong else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
