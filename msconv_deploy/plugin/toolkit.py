"""The programs that compile the plugin: nvcc, CMake and Ninja, of the system or of PyPI's packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msconv_deploy.errors import NotAvailableError
from msconv_deploy.runtimes.places import nvcc_candidates

INSTALL = "pip install 'msconv-deploy[plugin]'"
OLDEST_CMAKE = (3, 24)

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
"""Compute capabilities that the library holds machine code for by default; PTX of the last serves later ones."""


@dataclass(frozen=True)
class Toolkit:
    """Programs, and their versions as they print them."""

    nvcc: Path
    nvcc_version: str
    cmake: Path
    cmake_version: str
    ninja: Path


def find_toolkit() -> Toolkit:
    """All programs.

    Raises:
        NotAvailableError: naming every one that is missing, and how to get it.
    """
    missing = []
    found: dict[str, tuple[Path, str]] = {}
    finders: dict[str, Callable[[], tuple[Path, str]]] = {"nvcc": find_nvcc, "cmake": find_cmake, "ninja": find_ninja}
    for name, find in finders.items():
        try:
            found[name] = find()
        except NotAvailableError as error:
            missing.append(str(error))
    if missing:
        listed = "".join(f"\n  - {what}" for what in missing)
        raise NotAvailableError(f"the plugin cannot be compiled here:{listed}")
    return Toolkit(*found["nvcc"], *found["cmake"], found["ninja"][0])


def find_nvcc() -> tuple[Path, str]:
    """The CUDA compiler and its version: ``CUDACXX``, ``CUDA_HOME``, PATH, /usr/local/cuda, or PyPI's package.

    Raises:
        NotAvailableError: there is none, the one that is named is not there, or it does not run.
    """
    named = os.environ.get("CUDACXX")
    path = next(nvcc_candidates(), None)
    if named and path != Path(named):
        raise NotAvailableError(f"nvcc: CUDACXX={named} is not a program; correct or unset it")
    if path is None:
        raise NotAvailableError(f"nvcc, the CUDA compiler: {INSTALL}, or install the CUDA toolkit")
    return path, _version_of(path, r"release ([\d.]+)")


def find_cmake() -> tuple[Path, str]:
    """CMake and its version, at least 3.24.

    Raises:
        NotAvailableError: there is none that is new enough.
    """
    too_old = ""
    for path in _programs("cmake"):
        version = _version_of(path, r"cmake version ([\d.]+)")
        if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_CMAKE:
            return path, version
        too_old = f" ({path} is {version}, too old)"
    raise NotAvailableError(f"cmake {'.'.join(map(str, OLDEST_CMAKE))} or later{too_old}: {INSTALL}")


def find_ninja() -> tuple[Path, str]:
    """Ninja and its version.

    Raises:
        NotAvailableError: there is none.
    """
    for path in _programs("ninja"):
        return path, _version_of(path, r"([\d.]+)")
    raise NotAvailableError(f"ninja: {INSTALL}")


def default_architectures(nvcc: Path) -> list[str]:
    """Those of :data:`ARCHITECTURES` that this compiler knows."""
    listed = _run(nvcc, "--list-gpu-code")
    return [a for a in ARCHITECTURES if re.search(rf"\bsm_{a}\b", listed)]


def _programs(name: str) -> list[Path]:
    """On PATH, then beside the Python interpreter, where pip puts the programs of its packages."""
    folders = [None, str(Path(sys.executable).parent)]
    return [Path(found) for folder in folders if (found := shutil.which(name, path=folder))]


def _version_of(program: Path, pattern: str) -> str:
    match = re.search(pattern, _run(program, "--version"))
    if match is None:
        raise NotAvailableError(f"{program}: does not say its version; reinstall it")
    return match[1]


def _run(program: Path, argument: str) -> str:
    try:
        done = subprocess.run([str(program), argument], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAvailableError(f"{program}: does not run: {error}") from None
    if done.returncode:
        raise NotAvailableError(f"{program}: does not run: {(done.stderr or done.stdout).strip()[-200:]}")
    return done.stdout
