"""What a GPU check compiles: the kernels as a library, and a program that runs files of cases, for this GPU alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from msconv_deploy.errors import BuildFailedError
from msconv_deploy.plugin.headers import find_headers
from msconv_deploy.plugin.toolkit import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "plugins" / "msconv" / "kernels"
TESTS = ROOT / "plugins" / "msconv" / "tests"
BUILD = ROOT / "build" / "plugins" / "gpu"


def kernels_library(capability: int) -> Path:
    """The kernels behind harness.cpp."""
    return _link(capability, "libmsconv_gpu.so", [*_kernels(capability), TESTS / "harness.cpp"], "-shared")


def case_program(capability: int) -> Path:
    """The kernels behind case_runner.cpp: what compute-sanitizer watches."""
    return _link(capability, "case_runner", [*_kernels(capability), TESTS / "case_runner.cpp"])


def plugin_and_driver(capability: int, runtime: Path) -> tuple[Path, Path]:
    """The plugin library and the program that drives it, for the major version of a TensorRT runtime library.

    Raises:
        NotAvailableError: the headers of that version are not there.
        BuildFailedError: something does not compile.
    """
    major = re.search(r"\.so\.(\d+)", runtime.resolve().name)
    include = f"-I{find_headers(major[1] if major else None).folder}"
    sources = sorted((ROOT / "plugins" / "msconv" / "tensorrt").glob("*.cpp"))
    plugin = _link(capability, "libmsconv_trt.so", [*_kernels(capability), *sources], "-shared", include)
    driver_sources = [TESTS / "registry_driver.cpp", KERNELS / "problem.cpp"]
    return plugin, _link(capability, "registry_driver", driver_sources, include, "-ldl")


def _kernels(capability: int) -> list[Path]:
    """The kernels' objects, with line numbers; those that are newer than every source are not made again."""
    newest = max(path.stat().st_mtime for path in KERNELS.iterdir())
    objects = []
    for source in sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp")]):
        target = BUILD / f"sm_{capability}" / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < newest:
            _nvcc(capability, target, [source], "-c", "-lineinfo")
        objects.append(target)
    return objects


def _link(capability: int, name: str, parts: list[Path], *flags: str) -> Path:
    sources = [part for part in parts if part.suffix != ".o"]
    objects = [part for part in parts if part.suffix == ".o"]
    target = BUILD / f"sm_{capability}" / name
    _nvcc(capability, target, sources, *(f"-Xlinker={path}" for path in objects), *flags)
    return target


def _nvcc(capability: int, target: Path, sources: list[Path], *flags: str) -> None:
    compiler = find_nvcc()[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(compiler), "-std=c++17", "-O3", "-x", "cu", f"-arch=sm_{capability}", f"-I{KERNELS}", "-Xcompiler=-fPIC"),
        *("-cudart", "static", f"-L{compiler.parents[1] / 'lib'}"),
        *(*map(str, sources), *flags, "-o", str(target)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailedError(f"nvcc failed on {target.name}:\n{done.stdout}{done.stderr}")


def find_tool(name: str) -> Path | None:
    """A tool of the CUDA toolkit: on the path, beside nvcc or in /usr/local/cuda."""
    for folder in (None, str(find_nvcc()[0].parent), "/usr/local/cuda/bin"):
        found = shutil.which(name, path=folder)
        if found:
            return Path(found)
    return None


def nvcc_version() -> str:
    return find_nvcc()[1]


def driver_version() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else "unknown"
