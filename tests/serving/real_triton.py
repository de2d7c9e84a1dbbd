"""A real Triton server for tests: the `tritonserver` inside the nvidia-pytriton wheel, without GPU and without container.

The wheel brings the server and its python backend only; ``triton_backends`` beside this file holds a stand-in for the
onnxruntime backend, so that repositories of ``msconv package`` are loaded unchanged.

Run as a program (``make test-triton``), it installs the wheel into ``build/triton-venv``, serves the models of the client
suite from repositories that ``msconv package`` makes, and runs the suite; then the tests of ``test_triton_real.py``, which
are skipped elsewhere while the wheel is not there. Exit code 3: the server cannot be had here, and nothing was tested.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENV = ROOT / "build" / "triton-venv"
REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime>=1.20")  # with NumPy 2 its answers are empty
BACKENDS = Path(__file__).parent / "triton_backends"
PYTHON = (3, 11)
"""The python backend runs in this Python, and needs its shared library."""

NOT_AVAILABLE = 3


class NoTritonError(Exception):
    """The server cannot be installed or started here."""


@dataclass(frozen=True)
class Endpoint:
    """Addresses of a running server, host and port."""

    http: str
    grpc: str
    metrics: str
    log: Path


def installed() -> bool:
    """Is the server there, as this file wants it?"""
    stamp = VENV / ".installed"
    return stamp.is_file() and stamp.read_text() == "\n".join(REQUIREMENTS)


def install() -> None:
    """Make the virtual environment with the wheel.

    Raises:
        NoTritonError: no such Python, no shared library of it, or the wheel is not to be had.
    """
    find_libpython()
    if installed():
        return
    version = ".".join(map(str, PYTHON))
    python = sys.executable if sys.version_info[:2] == PYTHON else shutil.which(f"python{version}")
    if python is None:
        raise NoTritonError(f"no python{version}: the wheel's python backend wants this one")
    shutil.rmtree(VENV, ignore_errors=True)
    _run([python, "-m", "venv", str(VENV)], "a virtual environment")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([*pip, *REQUIREMENTS], REQUIREMENTS[0])
    (VENV / ".installed").write_text("\n".join(REQUIREMENTS))


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoTritonError(f"{what} cannot be installed:\n{(done.stderr or done.stdout).strip()[-1500:]}")


def find_libpython() -> str | None:
    """Folder of the shared library where the linker needs to be told; None where it finds the library itself.

    Raises:
        NoTritonError: there is none.
    """
    version = ".".join(map(str, PYTHON))
    name = f"libpython{version}.so.1.0"
    try:
        ctypes.CDLL(name)
        return None
    except OSError as error:
        folder = Path(sys.base_prefix) / "lib"
        if sys.version_info[:2] == PYTHON and (folder / name).is_file():
            return str(folder)
        raise NoTritonError(f"{name} is not there ({error}): apt-get install libpython{version}") from None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _backend_folder(folder: Path, site_packages: Path) -> Path:
    """The wheel's python backend with the stub of this Python, and the stand-in."""
    server = site_packages / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends" / "python", folder / "python", ignore=shutil.ignore_patterns("__pycache__"))
    stub = "triton_python_backend_stub"
    shutil.copy2(server / "python_backend_stubs" / ".".join(map(str, PYTHON)) / stub, folder / "python" / stub)
    shutil.copytree(BACKENDS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def serving(
    repository: Path, workspace: Path, arguments: Sequence[str] = (), patience: float = 60
) -> Iterator[Endpoint]:
    """Serve a model repository on free ports of 127.0.0.1 until the block ends.

    Args:
        workspace: an empty folder for the backends and the log.
        arguments: further ones for the server.
        patience: seconds until it has to be ready.

    Raises:
        NoTritonError: the server is not installed, or does not become ready; the message ends with its log.
    """
    if not installed():
        raise NoTritonError("the server is not installed: make test-triton")
    (site_packages,) = (VENV / "lib").glob("python*/site-packages")
    libraries = [str(site_packages / "nvidia_pytriton.libs"), *filter(None, [find_libpython()])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
    }
    ports = dict(zip(("http", "grpc", "metrics"), _free_ports(3), strict=True))
    log = workspace / "tritonserver.log"
    command = [
        str(site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_backend_folder(workspace / 'backends', site_packages)}",
        *(f"--{kind}-address=127.0.0.1" for kind in ports),
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
        "--exit-timeout-secs=20",
        *arguments,
    ]
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    try:
        _wait(process, f"http://127.0.0.1:{ports['http']}/v2/health/ready", patience, log)
        yield Endpoint(**{kind: f"127.0.0.1:{port}" for kind, port in ports.items()}, log=log)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen, url: str, patience: float, log: Path) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    state = (
        f"ended with {process.returncode}" if process.returncode is not None else f"was not ready after {patience:g} s"
    )
    raise NoTritonError(f"tritonserver {state}; the end of its log:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen) -> None:
    """Ask it to end; the python backends are processes of its group."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def package(models: Mapping[str, Path], repository: Path, arguments: Sequence[str] = ()) -> Path:
    """A repository of several models, each made by the command line: name -> ONNX file."""
    for name, path in models.items():
        msconv = [sys.executable, "-c", "from msconv_deploy.cli.main import run; run()"]
        command = [*msconv, "package", str(path), "--triton", str(repository), "--name", name, "--quiet", *arguments]
        subprocess.run(command, check=True, cwd=ROOT)
    return repository


def suite_models(folder: Path) -> dict[str, Path]:
    """The models of the client suite: both precisions, and both forms that the onnxruntime backend takes."""
    from onnx import TensorProto

    from msconv_deploy.ops.forms import Form
    from tests.serving.networks import four_sources

    kinds = {
        "sources_FP32": (TensorProto.FLOAT, Form.PORTABLE),
        "sources_FP16": (TensorProto.FLOAT16, Form.PORTABLE),
        "sources_fused": (TensorProto.FLOAT, Form.FUSED),
    }
    return {name: four_sources(folder / f"{name}.onnx", *kind) for name, kind in kinds.items()}


def run_suite(folder: Path, pytest_arguments: Sequence[str] = ()) -> int:
    """Package the suite's models, serve them, and run the client suite; 0 if it passed, else 1.

    Raises:
        NoTritonError: see :func:`serving`.
    """
    (folder / "models").mkdir()
    (folder / "server").mkdir()
    models = suite_models(folder / "models")
    repository = package(models, folder / "repository")
    with serving(repository, folder / "server") as endpoint:
        environment = os.environ | {
            "MSCONV_ENDPOINT_HTTP": endpoint.http,
            "MSCONV_ENDPOINT_GRPC": endpoint.grpc,
            "MSCONV_ENDPOINT_MODELS": ",".join(f"{name}={path}" for name, path in models.items()),
        }
        return _pytest("client_suite.py", pytest_arguments, environment)


def run_repositories() -> int:
    """The tests of ``test_triton_real.py`` but for the client suite, none of them skipped; 0 if they passed, else 1."""
    return _pytest("test_triton_real.py", ["-k", "not client_suite"], os.environ | {"MSCONV_TRITON": "1"})


def _pytest(file: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", f"tests/serving/{file}", *arguments]
    return 1 if subprocess.run(command, cwd=ROOT, env=environment).returncode else 0  # 3 is said for something else


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="msconv-triton-") as folder:
        try:
            install()
            return run_suite(Path(folder), arguments) or run_repositories()
        except NoTritonError as error:
            print(f"not tested against Triton: {error}", file=sys.stderr)
            return NOT_AVAILABLE


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
