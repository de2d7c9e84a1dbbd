"""What of the tool chain is on this machine: packages, execution providers, GPU, TensorRT, compiler, plugin.

Nothing heavy is imported: versions come from package metadata and file names, the GPU is asked through the driver's C
interface. Each function returns findings that say what was found, where, and what to do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from msconv_deploy.reporting import Finding
from msconv_deploy.reporting.versions import DISTRIBUTIONS, distribution_version
from msconv_deploy.runtimes import places
from msconv_deploy.runtimes.gpu import probe
from msconv_deploy.runtimes.tensorrt.bindings import describe
from msconv_deploy.runtimes.tensorrt.plugins import PLUGIN_FOLDER, major_in_name, search_places

PLUGIN_PATTERN = "libmsconv_trt*.so"

_REQUIRED = {"msconv-deploy", "numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "polygraphy"}
_ADVICE = {
    "torch": "for modules and export: pip install 'msconv-deploy[torch]'",
    "onnxscript": "for the dynamo exporter: pip install 'msconv-deploy[torch]'",
    "tensorrt": "for TensorRT engines (NVIDIA's package index, a GPU): pip install 'msconv-deploy[gpu]'",
    "tensorrt-lean": "to load plugins without a GPU: pip install 'msconv-deploy[lean]'",
    "tensorrt-rtx": "to check on a CPU that files parse and build: pip install 'msconv-deploy[rtx]'",
}


def examine() -> list[Finding]:
    """All findings, in the order in which they are shown."""
    return [
        *packages(),
        *execution_providers(),
        gpu(),
        *tensorrt_libraries(),
        tensorrt_bindings(),
        tensorrt_headers(),
        nvcc(),
        *plugin_libraries(),
    ]


def packages() -> list[Finding]:
    """Python packages, and the clash of the two ONNX Runtime packages."""
    findings = []
    for word, names in DISTRIBUTIONS.items():
        version, required = distribution_version(*names), word in _REQUIRED
        advice = "" if version else _ADVICE.get(word, f"pip install {names[0]}")
        findings.append(
            Finding(
                group="packages",
                name=word,
                status="found" if version else "missing",
                required=required,
                version=version,
                advice=advice,
            )
        )
    if distribution_version("onnxruntime") and distribution_version("onnxruntime-gpu"):
        findings.append(
            Finding(
                group="packages",
                name="onnxruntime and onnxruntime-gpu",
                status="problem",
                where="both install the same import package; which one is used is chance",
                advice="pip uninstall -y onnxruntime onnxruntime-gpu, then pip install only the one you want",
            )
        )
    return findings


def execution_providers() -> list[Finding]:
    """Execution providers of ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as error:
        return [
            Finding(
                group="ONNX Runtime",
                name="execution providers",
                status="problem" if distribution_version("onnxruntime", "onnxruntime-gpu") else "missing",
                required=True,
                where=str(error),
                advice="pip install --force-reinstall onnxruntime",
            )
        ]
    return [
        Finding(
            group="ONNX Runtime",
            name="execution providers",
            status="found",
            required=True,
            version=onnxruntime.__version__,
            where=", ".join(onnxruntime.get_available_providers()),
        )
    ]


def gpu() -> Finding:
    """NVIDIA GPUs, through libcuda."""
    devices, problem = probe()
    if not devices:
        advice = "not needed for export, optimization and validation on the CPU; TensorRT engines need one"
        return Finding(group="GPU", name="NVIDIA GPU", status="missing", where=problem, advice=advice)
    names = [f"{device.name} (compute capability {device.capability_text})" for device in devices]
    version = "CUDA " + ".".join(map(str, devices[0].cuda))
    return Finding(group="GPU", name="NVIDIA GPU", status="found", version=version, where=", ".join(names))


def tensorrt_libraries() -> list[Finding]:
    """Every libnvinfer in the places where the dynamic linker, pip and this project put it."""
    found = {path.resolve(): path for folder in _library_folders() for path in sorted(folder.glob("libnvinfer.so*"))}
    if not found:
        return [
            Finding(
                group="TensorRT",
                name="libnvinfer",
                status="missing",
                advice="to build and run engines: pip install 'msconv-deploy[gpu]', or unpack TensorRT and add its lib "
                "folder to LD_LIBRARY_PATH",
            )
        ]
    return [
        Finding(
            group="TensorRT",
            name="libnvinfer",
            status="found",
            version=path.name.rpartition(".so.")[2] if ".so." in path.name else None,
            where=str(path),
        )
        for path in found
    ]


def tensorrt_bindings() -> Finding:
    """The Python package, in this environment or below TENSORRT_ROOT; it is not imported."""
    version, folder = describe()
    return Finding(
        group="TensorRT",
        name="Python package",
        status="found" if folder else "missing",
        version=version,
        where=str(folder or ""),
        advice="" if folder else "to build and run engines: pip install 'msconv-deploy[gpu]', or set TENSORRT_ROOT",
    )


def _library_folders() -> Iterator[Path]:
    candidates = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    if root := os.environ.get("TENSORRT_ROOT"):
        candidates += [Path(root) / "lib", Path(root) / "lib64"]
    for packages_folder in places.site_packages():
        candidates += [packages_folder / "tensorrt_libs", packages_folder / "tensorrt"]
    candidates += sorted((places.CACHE / "tensorrt").expanduser().glob("*/lib"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    candidates += [Path("/usr/lib") / multiarch, Path("/usr/local/lib"), Path("/usr/local/cuda/lib64")]
    yield from (folder for folder in dict.fromkeys(candidates) if folder.is_dir())


def tensorrt_headers() -> Finding:
    """NvInferRuntime.h, which the plugin is compiled against."""
    for folder in places.header_folders():
        return Finding(
            group="TensorRT", name="headers", status="found", version=places.header_version(folder), where=str(folder)
        )
    return Finding(
        group="TensorRT",
        name="headers",
        status="missing",
        advice="to compile the plugin: set TENSORRT_ROOT to an unpacked TensorRT, or fetch them with "
        "msconv plugin build --tensorrt VERSION --download",
    )


def nvcc() -> Finding:
    """The CUDA compiler: the one that is named, on PATH, in CUDA_HOME, or from pip's nvcc wheel."""
    for path in places.nvcc_candidates():
        try:
            done = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding(group="CUDA", name="nvcc", status="problem", where=f"{path}: {error}", advice="reinstall it")
        match = re.search(r"release ([\d.]+)", done.stdout)
        return Finding(group="CUDA", name="nvcc", status="found", version=match[1] if match else None, where=str(path))
    return Finding(
        group="CUDA",
        name="nvcc",
        status="missing",
        advice="to compile the plugin's kernels: pip install 'msconv-deploy[plugin]', or install the CUDA toolkit",
    )


def plugin_libraries() -> list[Finding]:
    """The TensorRT plugin: in build/plugins and in the files and folders of MSCONV_PLUGIN_PATH."""
    found: list[Path] = []
    problems: list[Finding] = []
    for place in search_places():
        if place.is_file():
            found.append(place)
        elif place.is_dir():
            found += sorted(place.glob(PLUGIN_PATTERN))
        elif place != PLUGIN_FOLDER:
            problems.append(
                Finding(
                    group="plugin",
                    name="MSCONV_PLUGIN_PATH",
                    status="problem",
                    where=f"{place}: no such file or folder",
                    advice="correct or unset MSCONV_PLUGIN_PATH",
                )
            )
    if not found:
        advice = "only the plugin form needs it; the portable and the fused form run without"
        return [*problems, Finding(group="plugin", name="plugin library", status="missing", advice=advice)]
    return problems + [
        Finding(group="plugin", name="plugin library", status="found", version=_plugin_major(path), where=str(path))
        for path in found
    ]


def _plugin_major(path: Path) -> str | None:
    major = major_in_name(path)
    return f"for TensorRT {major}" if major else None
