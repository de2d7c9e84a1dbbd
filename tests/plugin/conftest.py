"""A machine with only what a test puts there: a compiler that says its version and nothing else."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from msconv_deploy.runtimes import places

REAL_PATH = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  --list-gpu-code) for a in 75 80 86 87 89 90; do echo "sm_$a"; done ;;
esac
"""

# As the plugin's CMakeLists.txt, it makes libmsconv_trt<major>.so; out of a text file, and fails where that says so.
CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.24)
project(fake LANGUAGES NONE)
file(STRINGS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" lines REGEX "MAJOR")
string(REGEX MATCH "[0-9]+" major "${lines}")
if(EXISTS "${CMAKE_SOURCE_DIR}/msconv/kernels/unknown_header.cu")
  message(FATAL_ERROR "no such header")
endif()
file(WRITE "${CMAKE_BINARY_DIR}/architectures" "${MSCONV_CUDA_ARCHITECTURES}")
set(kernel "${CMAKE_SOURCE_DIR}/msconv/kernels/kernel.cu")
add_custom_command(OUTPUT "libmsconv_trt${major}.so" DEPENDS "${kernel}"
  COMMAND sh "${CMAKE_SOURCE_DIR}/compile.sh" "${kernel}" "libmsconv_trt${major}.so")
add_custom_target(everything ALL DEPENDS "libmsconv_trt${major}.so")
"""

COMPILE = """
if grep -q error "$1"; then
  echo "kernel.cu(3): error: expected a semicolon"
  exit 1
fi
cat "$1" > "$2"
"""


def write_headers(folder: Path, version: str) -> None:
    """Stand for TensorRT's headers of a version."""
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").write_text("")
    numbers = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    (folder / "NvInferVersion.h").write_text("".join(f"#define NV_TENSORRT_{word} {n}\n" for word, n in numbers))


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An empty machine."""
    for name in ("TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "MSCONV_PLUGIN_PATH"):
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr("sys.executable", str(empty / "python"))
    monkeypatch.setattr(places, "site_packages", lambda: [tmp_path / "site-packages"])
    monkeypatch.setattr(places, "CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def machine(bare, monkeypatch):
    """With the real CMake and Ninja, the fake compiler, headers of 11.1.0 and 10.6.0, and sources in ``sources``."""
    for name in ("cmake", "ninja"):
        found = shutil.which(name, path=REAL_PATH)
        if found is None:
            pytest.skip(f"{name} is not installed: pip install 'msconv-deploy[plugin]'")
        (bare / "bin" / name).symlink_to(found)
    for name in ("sh", "grep", "cat", "uname"):
        (bare / "bin" / name).symlink_to(shutil.which(name, path=REAL_PATH))
    (bare / "bin" / "nvcc").write_text(NVCC)
    (bare / "bin" / "nvcc").chmod(0o755)
    for version in ("10.6.0", "11.1.0"):
        write_headers(bare / "cache" / "tensorrt-headers" / version / "include", version)
    for folder in ("kernels", "tensorrt"):
        (bare / "sources" / "msconv" / folder).mkdir(parents=True)
    (bare / "sources" / "CMakeLists.txt").write_text(CMAKE_LISTS)
    (bare / "sources" / "compile.sh").write_text(COMPILE)
    (bare / "sources" / "msconv" / "kernels" / "kernel.cu").write_text("first\n")
    return bare
