"""Compile the kernels with nvcc and read what ptxas says of each: registers, stack, spills."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from plugins.msconv.tests.build_host import BUILD, KERNELS, digest, headers

FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v")

_USE = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class KernelUse:
    """What one kernel takes on one architecture. Bytes are per thread, shared memory per block."""

    symbol: str
    """The mangled name; it contains the kernel's name and its template arguments."""
    architecture: str
    registers: int
    stack_bytes: int
    spilled_bytes: int
    """Stores and loads."""
    static_shared_bytes: int


def compile_source(nvcc: Path, nvcc_version: str, source: Path, architectures: Sequence[str]) -> list[KernelUse]:
    """Compile one source to machine code of all architectures. What did not change is not compiled again.

    Raises:
        RuntimeError: nvcc refused it or warned; the text is nvcc's.
    """
    content = [path.read_text() for path in (source, *headers(source, [KERNELS]))]
    report = BUILD / "ptxas" / f"{source.stem}-{digest(content, FLAGS, architectures, [nvcc_version])}.json"
    if not report.exists():
        report.parent.mkdir(parents=True, exist_ok=True)
        machine_code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        command = [str(nvcc), *FLAGS, *machine_code, "-c", str(source), "-o", str(report.with_suffix(".o"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc refused {source.name}:\n{done.stderr}")
        temporary = report.with_suffix(".new")
        temporary.write_text(json.dumps([asdict(use) for use in _uses(done.stderr)], indent=1))
        temporary.replace(report)
    return [KernelUse(**use) for use in json.loads(report.read_text())]


def _uses(text: str) -> list[KernelUse]:
    found = []
    for match in _USE.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            KernelUse(
                match["symbol"],
                match["architecture"],
                int(match["registers"]),
                int(match["stack"]),
                int(match["stores"]) + int(match["loads"]),
                int(shared[1]) if shared else 0,
            )
        )
    return found
