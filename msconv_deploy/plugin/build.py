"""Compile the plugin with CMake and Ninja, and write the library with a sidecar that says from what."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msconv_deploy.errors import BadInputError, BuildFailedError, NotAvailableError
from msconv_deploy.files import atomic_write, check_writable, sha256_of
from msconv_deploy.plugin.headers import Headers, find_headers
from msconv_deploy.plugin.toolkit import Toolkit, default_architectures, find_toolkit
from msconv_deploy.reporting.plugin import PluginBuildReport
from msconv_deploy.runtimes.tensorrt.plugins import PLUGIN_FOLDER

CHECKOUT_SOURCES = Path(__file__).parents[2] / "plugins"
PACKAGED_SOURCES = Path(__file__).parent / "sources"
"""In a wheel, where setup.py puts a copy."""
_SOURCE_SUFFIXES = {".cpp", ".cu", ".h", ".map", ".txt"}
_PARTS = ("CMakeLists.txt", "msconv/kernels", "msconv/tensorrt")
_LAST_LINES, _LINE_LENGTH = 30, 300


def library_name(major: int) -> str:
    """File name of the library for a major version of TensorRT (``docs/spec.md``, places)."""
    return f"libmsconv_trt{major}.so"


def build_plugin(
    output: Path | None = None,
    tensorrt: str | None = None,
    architectures: Sequence[str] | None = None,
    jobs: int | None = None,
    source: Path | None = None,
    download: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> PluginBuildReport:
    """Compile the library.

    Args:
        output: the library; default ``build/plugins/libmsconv_trt<major>.so``.
        tensorrt: version of the headers to take, see :func:`find_headers`; default the first that are found.
        architectures: compute capabilities such as ``86``; default all that the compiler knows of those the project serves.
        jobs: compilers at once; default the number of cores.
        source: the folder ``plugins`` of a checkout; default the one that this package lies in, or the package's own copy.
        download: fetch the headers of ``tensorrt`` if they are not there.
        force: replace the library.
        progress: told the present step.

    Returns:
        The report, which is also written beside the library (``.json``).

    Raises:
        NotAvailableError: sources, a program or the headers are missing.
        BadInputError: an architecture is none, or the output cannot be written.
        BuildFailedError: CMake or the compiler failed; with its last lines, and where its log is.
    """
    start = time.perf_counter()
    folder = _sources(source)
    toolkit = find_toolkit()
    headers = find_headers(tensorrt, download)
    architectures = _architectures(architectures, toolkit)
    output = output or PLUGIN_FOLDER / library_name(headers.major)
    sidecar = output.with_suffix(".json")
    for path in (output, sidecar):
        check_writable(path, force)
    work = output.parent / ".cmake"  # one for all versions of TensorRT: they share the kernels
    log = work / f"{output.stem}.log"
    with _locked(work):
        log.unlink(missing_ok=True)
        progress(f"configuring for TensorRT {headers.version}, CUDA {toolkit.nvcc_version}")
        _configure(folder, work, toolkit, headers, architectures, log, progress)
        compile_command = [str(toolkit.cmake), "--build", str(work), "--parallel", str(jobs or os.cpu_count() or 1)]
        _run(compile_command, toolkit, log, "the compiler", progress)
        with atomic_write(output, force) as temporary:
            shutil.copy(work / library_name(headers.major), temporary)
    report = PluginBuildReport(
        library=str(output),
        library_sha256=sha256_of(output),
        library_bytes=output.stat().st_size,
        sources=str(folder),
        sources_sha256=sources_sha256(folder),
        tensorrt_version=headers.version,
        tensorrt_headers=str(headers.folder),
        architectures=list(architectures),
        nvcc=str(toolkit.nvcc),
        nvcc_version=toolkit.nvcc_version,
        cmake_version=toolkit.cmake_version,
        log=str(log),
        timings={"build": round(time.perf_counter() - start, 3)},
    )
    report.write(sidecar, force)
    return report


def sources_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of the plugin's source files: what the library is made of."""
    digest = hashlib.sha256()
    for path in source_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def source_files(folder: Path) -> list[Path]:
    """The files that the library is made of, sorted."""
    found = []
    for part in _PARTS:
        place = folder / part
        found += [place] if place.is_file() else [p for p in place.rglob("*") if p.suffix in _SOURCE_SUFFIXES]
    return sorted(found)


def _sources(given: Path | None) -> Path:
    for folder in [given] if given is not None else [CHECKOUT_SOURCES, PACKAGED_SOURCES]:
        if (folder / "CMakeLists.txt").is_file() and (folder / "msconv").is_dir():
            return folder.resolve()
    if given is not None:
        raise BadInputError(f"{given}: is not the folder plugins of a checkout; it has no CMakeLists.txt and msconv/")
    raise NotAvailableError(
        f"the plugin's sources are missing from the installed package ({PACKAGED_SOURCES}): install it anew, or name the "
        "folder of a checkout with --source DIR/plugins"
    )


def _architectures(given: Sequence[str] | None, toolkit: Toolkit) -> list[str]:
    if not given:
        return default_architectures(toolkit.nvcc)
    wanted = [part for text in given for part in re.split(r"[;, ]+", text) if part]
    plain = [part.removeprefix("sm_").replace(".", "") for part in wanted]
    for text, architecture in zip(wanted, plain, strict=True):
        if not re.fullmatch(r"\d{2,3}[af]?", architecture):
            raise BadInputError(f"--arch {text}: is no compute capability; write 86, 9.0 or sm_90")
    return list(dict.fromkeys(plain))


def _configure(
    folder: Path,
    work: Path,
    toolkit: Toolkit,
    headers: Headers,
    architectures: Sequence[str],
    log: Path,
    progress: Callable[[str], None],
) -> None:
    """Run CMake in ``work``, from scratch where the last time was for other sources or another compiler, or failed."""
    made_of = work / "made-of"
    parts = f"{folder}\n{toolkit.nvcc} {toolkit.nvcc_version}\n"
    fresh = not made_of.is_file() or made_of.read_text() != parts
    made_of.unlink(missing_ok=True)
    *others, last = architectures
    command = [
        str(toolkit.cmake),
        *(["--fresh"] if fresh else []),
        *("-S", str(folder), "-B", str(work), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={toolkit.ninja}",
        f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}",
        f"-DTENSORRT_INCLUDE_DIR={headers.folder.resolve()}",
        f"-DMSCONV_CUDA_ARCHITECTURES={';'.join([*(f'{a}-real' for a in others), last])}",
    ]
    _run(command, toolkit, log, "CMake", progress)
    made_of.write_text(parts)


def _run(command: Sequence[str], toolkit: Toolkit, log: Path, who: str, progress: Callable[[str], None]) -> None:
    """Run a program, its output in the log and its steps to ``progress``.

    Raises:
        BuildFailedError: it failed; with the lines that say why.
    """
    lines: deque[str] = deque(maxlen=400)
    environment = {**os.environ, "CUDACXX": str(toolkit.nvcc)}
    with log.open("a", encoding="utf-8") as sink:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process:
            try:
                for line in process.stdout or ():
                    sink.write(line)
                    lines.append(line.rstrip())
                    if step := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
                        progress(f"{step[1]}/{step[2]} {step[3].split('/')[-1]}")
            except BaseException:
                process.terminate()
                raise
        code = process.returncode
    if code:
        telling = [
            line for line in lines if not re.match(r"ptxas info|\s+\d+ bytes stack frame|\[\d+/\d+\]|\s*$", line)
        ]
        said = "\n  ".join(line[:_LINE_LENGTH] for line in telling[-_LAST_LINES:])
        raise BuildFailedError(f"{who} failed with {code}; all it said is in {log}. Its last lines:\n  {said}")


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """One build at a time in a folder."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
