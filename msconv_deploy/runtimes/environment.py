"""What of the tool chain is on this machine: packages, execution providers, GPU, TensorRT, compiler, plugin.

Nothing heavy is imported: versions come from package metadata and file names, the GPU is asked through the driver's C
interface. Each function returns findings that say what was found, where, and what to do.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from msconv_deploy.reporting import Finding
from msconv_deploy.reporting.versions import DISTRIBUTIONS, distribution_version

CACHE = Path("~/.cache/msconv-deploy")
PLUGIN_FOLDER = Path("build/plugins")
PLUGIN_PATTERN = "libmsconv_trt*.so"

_REQUIRED = {"msconv-deploy", "numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "polygraphy"}
_ADVICE = {
    "torch": "for modules and export: pip install 'msconv-deploy[torch]'",
    "onnxscript": "for the dynamo exporter: pip install 'msconv-deploy[torch]'",
    "tensorrt": "for TensorRT engines (NVIDIA's package index, a GPU): pip install 'msconv-deploy[gpu]'",
    "tensorrt-lean": "to load plugins without a GPU: pip install tensorrt-lean-cu13-bindings tensorrt-lean-cu13-libs",
    "tensorrt-rtx": "to check on a CPU that files parse and build: pip install 'msconv-deploy[rtx]'",
}


def examine() -> list[Finding]:
    """All findings, in the order in which they are shown."""
    return [
        *packages(),
        *execution_providers(),
        gpu(),
        *tensorrt_libraries(),
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
    missing = "not needed for export, optimization and validation on the CPU; TensorRT engines need one"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        where = "no driver library libcuda.so.1"
        return Finding(group="GPU", name="NVIDIA GPU", status="missing", where=where, advice=missing)
    count, driver = ctypes.c_int(0), ctypes.c_int(0)
    code = cuda.cuInit(0)
    if code != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        where = f"the driver is installed, but cuInit returned {code} and {count.value} devices were found"
        return Finding(group="GPU", name="NVIDIA GPU", status="missing", where=where, advice=missing)
    cuda.cuDriverGetVersion(ctypes.byref(driver))
    names = []
    for index in range(count.value):
        name, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(0), ctypes.c_int(0)
        cuda.cuDeviceGetName(name, 128, index)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, index)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)  # ..._MINOR
        names.append(f"{name.value.decode(errors='replace')} (compute capability {major.value}.{minor.value})")
    version = f"CUDA {driver.value // 1000}.{driver.value % 1000 // 10}"
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


def _library_folders() -> Iterator[Path]:
    candidates = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    if root := os.environ.get("TENSORRT_ROOT"):
        candidates += [Path(root) / "lib", Path(root) / "lib64"]
    for packages_folder in _site_packages():
        candidates += [packages_folder / "tensorrt_libs", packages_folder / "tensorrt"]
    candidates += sorted((CACHE / "tensorrt").expanduser().glob("*/lib"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    candidates += [Path("/usr/lib") / multiarch, Path("/usr/local/lib"), Path("/usr/local/cuda/lib64")]
    yield from (folder for folder in dict.fromkeys(candidates) if folder.is_dir())


def tensorrt_headers() -> Finding:
    """NvInferRuntime.h, which the plugin is compiled against."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    candidates: list[Path] = []
    if root := os.environ.get("TENSORRT_ROOT"):
        candidates += [Path(root) / "include", Path(root) / "include" / multiarch]
    if include := os.environ.get("TENSORRT_INCLUDE_DIR"):
        candidates.append(Path(include))
    candidates += [Path("/usr/include") / multiarch, Path("/usr/include"), Path("/usr/local/include")]
    candidates += sorted((CACHE / "tensorrt-headers").expanduser().glob("*/include"), reverse=True)
    for folder in candidates:
        if (folder / "NvInferRuntime.h").is_file():
            version = _header_version(folder / "NvInferVersion.h")
            return Finding(group="TensorRT", name="headers", status="found", version=version, where=str(folder))
    return Finding(
        group="TensorRT",
        name="headers",
        status="missing",
        advice="to compile the plugin: install TensorRT's tar or deb package, or take include/ of "
        "github.com/NVIDIA/TensorRT at the tag of your version, and point TENSORRT_INCLUDE_DIR to it",
    )


def _header_version(path: Path) -> str | None:
    """Version from the macros of NvInferVersion.h, whose names changed over time."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = []
    for word in ("MAJOR", "MINOR", "PATCH"):
        match = re.search(rf"^#define\s+(?:NV_TENSORRT_{word}|TRT_{word}_ENTERPRISE)\s+(\d+)", text, re.MULTILINE)
        if match is None:
            return None
        parts.append(match[1])
    return ".".join(parts)


def nvcc() -> Finding:
    """The CUDA compiler: on PATH, in CUDA_HOME, or from pip's nvcc wheel."""
    candidates = [Path(found)] if (found := shutil.which("nvcc")) else []
    candidates += [Path(os.environ[n]) / "bin" / "nvcc" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    candidates += [p for folder in _site_packages() for p in sorted(folder.glob("nvidia/cu*/bin/nvcc"), reverse=True)]
    for path in candidates:
        if not os.access(path, os.X_OK):
            continue
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
        advice="to compile the plugin's kernels: pip install 'cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.*'",
    )


def plugin_libraries() -> list[Finding]:
    """The TensorRT plugin: in build/plugins and in the files and folders of MSCONV_PLUGIN_PATH."""
    places = [PLUGIN_FOLDER, *(Path(p) for p in os.environ.get("MSCONV_PLUGIN_PATH", "").split(os.pathsep) if p)]
    found: list[Path] = []
    problems: list[Finding] = []
    for place in places:
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
    match = re.search(r"libmsconv_trt(\d+)\.so", path.name)
    return f"for TensorRT {match[1]}" if match else None


def _site_packages() -> Iterable[Path]:
    """Folders that packages are installed in, of this environment."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return dict.fromkeys(Path(f) for f in folders)
