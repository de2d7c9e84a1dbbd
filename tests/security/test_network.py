"""No verb reaches for another machine, unless it is told to (`msconv plugin build --download`)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from msconv_deploy.errors import ExitCode
from tests.tile_models import tiled_conv

ROOT = Path(__file__).parents[2]
WATCH = Path(__file__).parent / "network_watch"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, and the same as an IPv6 address, as the kernel's tables have them."""


class Watched:
    """Runs the program under the watch, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "network.log"
        path = [str(WATCH), str(ROOT)]
        self.environment = {**os.environ, "NETWORK_WATCH_LOG": str(self.log), "PYTHONPATH": os.pathsep.join(path)}
        self.environment.pop("MSCONV_PLUGIN_PATH", None)

    def command(self, *arguments: object) -> list[str]:
        code = "from msconv_deploy.cli.main import run; run()"
        return [sys.executable, "-c", code, *map(str, arguments)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, cwd=self.folder, env=self.environment, timeout=300
        )

    @property
    def attempts(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def watched(tmp_path):
    tiled_conv(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", x=rng.random((1, 3, 8, 8), np.float32), s=rng.random((1, 16), np.float32))
    return Watched(tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('https://example.com', timeout=5)",
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.getaddrinfo('example.com', 80)",
        "import socket; socket.create_server(('', 0))",
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', "
        "'import socket; socket.gethostbyname(\"example.com\")']).returncode)",
    ],
)
def test_the_watch_sees_every_way(watched, code):
    done = subprocess.run([sys.executable, "-c", code], env=watched.environment, capture_output=True, text=True)
    assert done.returncode
    assert watched.attempts.startswith("socket.")


def test_the_watch_lets_this_machine_be(watched):
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    done = subprocess.run([sys.executable, "-c", code], env=watched.environment, capture_output=True, text=True)
    assert (done.returncode, watched.attempts) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (["--help"], {0}),
        (["--version"], {0}),
        (["doctor"], {0, ExitCode.NOT_AVAILABLE}),
        (["inspect", "m.onnx"], {0}),
        (["optimize", "m.onnx", "-o", "o.onnx", "--when", "always", "--html", "o.html"], {0}),
        (["optimize", "m.onnx", "-o", "o.onnx", "--inputs", "in.npz", "--json", "r.json"], {0}),
        (["convert", "m.onnx", "--form", "portable", "-o", "o.onnx"], {0}),
        (["diff", "m.onnx", "m.onnx"], {0}),
        (["validate", "m.onnx", "--reference", "m.onnx"], {0}),
        (["package", "m.onnx", "--triton", "repository"], {0, ExitCode.NOT_AVAILABLE}),  # without the extra serve
        (["plugin", "check"], {ExitCode.NOT_AVAILABLE}),
        (["plugin", "build", "--tensorrt", "99"], {ExitCode.NOT_AVAILABLE}),
        (["engine", "build", "m.onnx", "-o", "m.plan"], {0, ExitCode.NOT_AVAILABLE}),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_no_verb_tries_the_network(watched, arguments, codes):
    done = watched.run(*arguments)
    assert done.returncode in codes, done.stderr
    assert watched.attempts == ""


def test_export_does_not_try_the_network(watched):
    pytest.importorskip("torch", reason="export needs torch: pip install 'msconv-deploy[torch]'")
    recipe = ROOT / "export" / "minimal.toml"
    done = watched.run(
        "export", recipe, "-o", "out", "--form", "portable", "--precision", "fp32", "--exporter", "legacy"
    )
    assert done.returncode == 0, done.stderr
    assert watched.attempts == ""


def test_the_download_that_was_asked_for_is_seen(watched):
    """The one way to the network, tried with a release that no machine has."""
    pytest.importorskip("cmake", reason="the build's programs are not installed: pip install 'msconv-deploy[plugin]'")
    done = watched.run("plugin", "build", "--source", ROOT / "plugins", "--tensorrt", "99.9", "--download")
    assert done.returncode == ExitCode.NOT_AVAILABLE, done.stderr
    assert "github.com" in watched.attempts


def test_serve_listens_on_this_machine_only(watched):
    """Without --host, nothing is bound but the loopback address, and nothing else is tried."""
    for package in ("starlette", "uvicorn", "grpc", "tritonclient", "prometheus_client", "httptools"):
        pytest.importorskip(package, reason="serving needs: pip install 'msconv-deploy[serve]'")
    report = watched.folder / "serve.json"
    command = watched.command("serve", "m.onnx", "--port", 0, "--grpc-port", 0, "--json", report)
    process = subprocess.Popen(command, cwd=watched.folder, env=watched.environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not report.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        content = json.loads(report.read_text())
        listening = listening_addresses(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert content["http"].startswith("127.0.0.1:")
    assert content["grpc"].startswith("127.0.0.1:")
    assert len(listening) >= 2
    assert set(listening) <= LOOPBACK
    assert watched.attempts == ""


def listening_addresses(pid: int) -> list[str]:
    """Hexadecimal local addresses of a process's listening TCP sockets, as the kernel has them: native code is seen too."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except OSError:  # closed meanwhile
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].rpartition(":")[0])
    return found
