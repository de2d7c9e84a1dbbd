"""Compiles the plugin's object code with its C++ driver, against the headers of a TensorRT version, and asks it questions.

No CUDA, no TensorRT library: the kernels' launch and the device are doubles (``tensorrt_kernels_double.cpp``). What is
compiled lies in build/plugins/tests, named by a hash of all that it is made of.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import yaml

from msconv_deploy.runtimes.places import CACHE

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins" / "msconv"
BUILD = ROOT / "build" / "plugins" / "tests"
VERSIONS = ("8.6.0", "10.0.0", "10.6.0", "10.16", "11.1")
DECLARATION = yaml.safe_load((PLUGIN / "msconv2d.yaml").read_text())
ATTRIBUTES = {attribute["name"]: attribute for attribute in DECLARATION["attributes"]}

_FLAGS = (
    "-std=c++17",
    "-O0",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-deprecated-declarations",
    "-Wno-unknown-pragmas",
)
_SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        pytest.skip("there is no C++ compiler (g++, or CXX)")
    return found


def headers(version: str) -> Path:
    """TensorRT's headers of a version; skips the test where they are missing."""
    folder = CACHE.expanduser() / "tensorrt-headers" / version / "include"
    if not (folder / "NvInferRuntime.h").is_file():
        pytest.skip(
            f"TensorRT's headers {version} are not in {folder}: include/ of github.com/NVIDIA/TensorRT, tag v{version}"
        )
    return folder


@cache
def driver(version: str, plugin: Path = PLUGIN) -> Path:
    """The driver program for a version, under the address and undefined-behaviour sanitizers.

    Args:
        plugin: folder of the sources: the repository's, or a changed copy; only what differs is compiled again.
    """
    cxx, include = compiler(), headers(version)
    tensorrt = ("-isystem", str(include), "-isystem", str(PLUGIN / "tests" / "tensorrt_cuda_types"))
    shim = ("-I", str(PLUGIN / "tests" / "cuda_shim"))
    sources = [
        (plugin / "kernels" / "problem.cpp", shim),
        *((p, tensorrt) for p in sorted((plugin / "tensorrt").glob("*.cpp")) if p.name != "device.cpp"),
        *((p, tensorrt) for p in sorted((plugin / "tests").glob("tensorrt_*.cpp"))),
    ]
    texts = b"".join(path.read_bytes() for path in sorted(plugin.rglob("*.h")))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _object(cxx, source[0], source[1], texts), sources))
    program = BUILD / f"object-{version}-{_digest(*(o.name.encode() for o in objects))}"
    if not program.is_file():
        _make(program, [cxx, *_FLAGS, *_SANITIZED, *objects, "-ldl"])
    return program


def _object(cxx: str, source: Path, includes: Sequence[str], texts: bytes) -> Path:
    """An object file, named by a hash of all that it is made of."""
    command = [cxx, *_FLAGS, *_SANITIZED, *includes]
    made_of = _digest(" ".join(command).encode(), source.read_bytes(), texts)
    place = BUILD / "objects" / f"{source.stem}-{made_of}.o"
    if not place.is_file():
        _make(place, [*command, "-c", source])
    return place


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _make(place: Path, command: Sequence[object]) -> None:
    """Run a compiler that writes ``place``, which appears complete or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{os.getpid()}.{place.name}")
    done = subprocess.run([*map(str, command), "-o", str(temporary)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    temporary.replace(place)


def run(program: Path, questions: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The driver's whole answer. Memory that it leaks or misuses makes its exit code 1 or more."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1:detect_leaks=1"}
    return subprocess.run(
        [str(program)], input="\n".join(questions) + "\n", capture_output=True, text=True, timeout=300, env=environment
    )


def ask(program: Path, questions: Sequence[str]) -> list[str]:
    """One answer a question."""
    done = run(program, questions)
    answers = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    assert len(answers) == len(questions)
    return answers


def field(name: str, values: Sequence[float], kind: str | None = None) -> str:
    """A field of the driver's language: ``name:type:value/value``."""
    return f"{name}:{kind or ATTRIBUTES[name]['type']}:{'/'.join(map(str, values))}"


def fields(attributes: dict[str, object]) -> str:
    """All attributes of a configuration in the driver's language."""
    return " ".join(
        field(name, value if isinstance(value, (list, tuple)) else [value]) for name, value in attributes.items()
    )


def shape(extents: Sequence[int]) -> str:
    """Such as ``2x3x8x8``."""
    return "x".join(map(str, extents))


def major(version: str) -> int:
    return int(version.split(".")[0])
