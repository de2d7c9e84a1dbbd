"""Compile the kernels' own sources for the CPU, behind the shim in ``cuda_shim/``.

Objects and results lie in ``build/plugins/tests/``, named by a hash of everything they are made of (sources, headers, flags,
compiler): what did not change is not compiled again, and processes that build at the same time do not disturb each other.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent
KERNELS = TESTS.parent / "kernels"
SHIM = TESTS / "cuda_shim"
BUILD = TESTS.parents[2] / "build" / "plugins" / "tests"

FLAGS = ("-std=c++17", "-fPIC", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
OPTIMIZED = ("-O1",)
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def library(kernels: Path = KERNELS, defines: Sequence[str] = ()) -> Path:
    """The shared library that ``harness.Kernels`` loads: the kernels, the shim and ``harness.cpp``.

    Args:
        kernels: folder of the sources: the repository's, or a changed copy, which is compiled without optimization, for it
            runs only a few cases.
        defines: macros, for instance ``MSCONV_ARCH=750``: the architecture whose code is compiled.
    """
    parts = [*sources(kernels), *_shim(), TESTS / "harness.cpp"]
    level = OPTIMIZED if kernels == KERNELS else ("-O0",)
    return _link(parts, kernels, (*level, *(f"-D{d}" for d in defines)), ("-shared",), "libmsconv_host.so")


def sanitized_program(defines: Sequence[str] = ()) -> Path:
    """``host_check`` under the address and the undefined-behaviour sanitizer."""
    parts = [*sources(), *_shim(), TESTS / "host_check.cpp"]
    return _link(parts, KERNELS, (*SANITIZED, *(f"-D{d}" for d in defines)), (), "host_check")


def shared_object(source: Path, defines: Sequence[str] = ()) -> Path:
    """A shared library of one source of kernels and the shim alone."""
    flags = (*OPTIMIZED, *(f"-D{d}" for d in defines))
    return _link([source, *_shim()], KERNELS, flags, ("-shared",), f"lib{source.stem}.so")


def sources(kernels: Path = KERNELS) -> list[Path]:
    return sorted([*kernels.glob("*.cu"), *kernels.glob("*.cpp")])


def _shim() -> list[Path]:
    return sorted(SHIM.glob("*.cpp"))


def _link(parts: Sequence[Path], kernels: Path, flags: Sequence[str], link_flags: Sequence[str], name: str) -> Path:
    objects = [str(_compile(kernels, part, flags)) for part in parts]
    target = BUILD / digest(objects, flags, link_flags) / name
    if not target.exists():
        _atomically(target, [_compiler(), *flags, *link_flags, *objects, "-o"])
    return target


def _compile(kernels: Path, source: Path, flags: Sequence[str]) -> Path:
    includes = [SHIM, kernels, TESTS]
    content = [path.read_text() for path in (source, *headers(source, includes))]
    target = BUILD / "objects" / f"{source.stem}-{digest(content, FLAGS, flags, [_version()])}.o"
    if not target.exists():
        command = [_compiler(), *FLAGS, *flags, *(f"-I{folder}" for folder in includes)]
        _atomically(target, [*command, "-x", "c++", "-c", str(source), "-o"])
    return target


def headers(source: Path, folders: Sequence[Path]) -> list[Path]:
    """All of these folders' headers that a source includes, also through others, sorted."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        for name in re.findall(r'^#include ["<]([^">]+)[">]', waiting.pop().read_text(), re.MULTILINE):
            for header in (folder / name for folder in folders):
                if header.exists() and header not in found:
                    found.add(header)
                    waiting.append(header)
    return sorted(found)


def _atomically(target: Path, command: list[str]) -> None:
    """Run a command that ends in ``-o`` into a temporary name, then give the result its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run([*command, str(temporary)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed on {target.name}:\n{done.stderr}")
    temporary.replace(target)


def _compiler() -> str:
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler was found: install g++, or name one in CXX")
    return found


@functools.cache
def _version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def digest(*parts: Sequence[str]) -> str:
    """16 hex digits that say what a result was made of."""
    return hashlib.sha256("\0".join(text for part in parts for text in part).encode()).hexdigest()[:16]
