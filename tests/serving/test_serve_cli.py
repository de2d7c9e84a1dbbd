"""`msconv serve` as a program: what it prints, signals, load, memory, optimization, and models that do not load."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from msconv_deploy.ops.forms import Form
from msconv_deploy.reporting.serve import ServeReport
from tests.serving.client_suite import Endpoint, checked, load_cases, run_load, tensors
from tests.serving.networks import four_sources
from tests.serving.servers import PROGRAM, start_program
from tests.tile_models import tiled_conv

REQUESTS = int(os.environ.get("MSCONV_MEMORY_REQUESTS", "500"))


@pytest.fixture
def path(tmp_path):
    return four_sources(tmp_path / "sources.onnx")


def finish(process):
    """SIGTERM; (exit code, standard output, standard error)."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_it_says_what_it_serves_and_where(tmp_path, path):
    process, report = start_program(tmp_path, path, "--name", "denoiser", "--access-log", str(tmp_path / "access.log"))
    endpoint = Endpoint(report["http"], report["grpc"], "denoiser", path)
    for case in load_cases(endpoint, variants=1):
        for module, address in ((http_client, endpoint.http), (grpc_client, endpoint.grpc)):
            with module.InferenceServerClient(address) as client:
                result = client.infer("denoiser", tensors(module, case[0]), request_id="7")
            checked(endpoint, case, result, "7")
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "input image: FP32 [N, 3, H, W]" in out
    assert "requests of equal shapes are joined" in out
    assert f"served as 'denoiser' on http://{report['http']} and grpc://{report['grpc']}" in out
    assert report["http"].startswith("127.0.0.1:")
    assert ServeReport.model_validate(report).inputs["scalars"] == "FP32 [N, 4]"
    entries = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert len(entries) == 2 * len(load_cases(endpoint, variants=1))
    assert {(entry["protocol"], entry["status"], entry["id"]) for entry in entries} == {
        ("http", "200", "7"),
        ("grpc", "OK", "7"),
    }


def test_the_access_log_goes_to_standard_error_unless_quiet(tmp_path, path):
    for options, lines in (((), 1), (("-q",), 0)):
        process, report = start_program(tmp_path, path, *options)
        connection = http.client.HTTPConnection(report["http"])
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        code, out, err = finish(process)
        assert code == 0
        assert [json.loads(line)["method"] for line in err.splitlines()] == ["GET /v2/health/ready"] * lines
        assert out.count("\n") == 1 if options else out.count("\n") > 1


def test_optimized_on_load(tmp_path):
    path = tiled_conv(tmp_path / "tiled.onnx")
    process, report = start_program(tmp_path, path, "--optimize", "-q")
    endpoint = Endpoint(report["http"], report["grpc"], "tiled", path)
    assert report["optimized"].endswith("1 sites rewritten and verified")
    with http_client.InferenceServerClient(endpoint.http) as client:
        case = load_cases(endpoint, variants=1)[0]
        found, wanted = client.infer("tiled", tensors(http_client, case[0])).as_numpy("y"), case[1]["y"]
    assert abs(found - wanted).max() < 1e-5 * abs(wanted).max()
    assert finish(process)[0] == 0


def test_an_optimized_model_that_is_not_verified_is_not_served(tmp_path, monkeypatch, capsys):
    from msconv_deploy import optimizing

    path = tiled_conv(tmp_path / "tiled.onnx")
    real = optimizing.optimize_file
    for verdict, code in (("differ", ExitCode.OUTPUTS_DIFFER), ("unverified", ExitCode.NOT_AVAILABLE)):

        def worse(*arguments, verdict=verdict):
            report = real(*arguments)
            report.verdict, report.reason = verdict, "site conv: 0.5"
            return report

        monkeypatch.setattr(optimizing, "optimize_file", worse)
        assert main(["serve", str(path), "--optimize", "--port", "0", "--grpc-port", "0", "-q"]) == code
        assert "the optimized model is not served: site conv: 0.5" in capsys.readouterr().err


# -- models that do not load -------------------------------------------------------------------------------------------


BAD = [
    "missing", "folder", "truncated", "text", "plugin form", "no CUDA", "access log", "report", "host", "name of a host",
    "no host", "port", "endless", "too long", "no number", "no delay", "name with a slash", "empty name", "taken name",
    "name of a file",
]  # fmt: skip


def bad_models(folder: Path, path: Path) -> dict[str, tuple[list[str], int, str]]:
    (folder / "half.onnx").write_bytes(path.read_bytes()[:300])
    (folder / "text.onnx").write_text("not a model")
    (folder / "a b.onnx").write_bytes(path.read_bytes())
    four_sources(folder / "plugin.onnx", form=Form.PLUGIN)
    return {
        "missing": (["nowhere.onnx"], 2, "nowhere.onnx: no such file"),
        "folder": (["."], 2, "is a folder"),
        "truncated": (["half.onnx"], 2, "not an ONNX model, or truncated"),
        "text": (["text.onnx"], 2, "not an ONNX model"),
        "plugin form": (["plugin.onnx"], 3, "msconv convert --form fused"),
        "no CUDA": ([str(path), "--provider", "cuda"], 3, "CUDAExecutionProvider"),
        "access log": (
            [str(path), "--access-log", "nowhere/a.log"],
            2,
            "nowhere/a.log: the access log cannot be written",
        ),
        "report": ([str(path), "--json", "text.onnx"], 2, "exists already"),
        "host": ([str(path), "--host", "192.0.2.1", "--port", "0"], 2, "cannot listen on 192.0.2.1"),
        "name of a host": ([str(path), "--host", "a..b"], 2, "cannot listen on a..b: it is no name of a machine; give"),
        "no host": ([str(path), "--host", ""], 2, "give --host an address of this machine"),
        "port": ([str(path), "--port", "70000"], 2, "less than or equal to 65535"),
        "endless": ([str(path), "--timeout", "inf"], 2, "Invalid value for '--timeout'"),
        "too long": ([str(path), "--timeout", "10000000"], 2, "Invalid value for '--timeout'"),
        "no number": ([str(path), "--timeout", "nan"], 2, "Invalid value for '--timeout'"),
        "no delay": ([str(path), "--max-delay", "nan"], 2, "Invalid value for '--max-delay'"),
        "name with a slash": ([str(path), "--name", "a/b"], 2, "model name 'a/b': letters, digits"),
        "empty name": ([str(path), "--name", ""], 2, "model name '': letters, digits"),
        "taken name": (
            [str(path), "--name", "stats"],
            2,
            "model name 'stats': /v2/models/stats is the statistics' place",
        ),
        "name of a file": (["a b.onnx"], 2, "give one with --name"),
    }


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_served_is_one_message(tmp_path, path, what, monkeypatch, capsys):
    import onnxruntime

    if what == "no CUDA" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    arguments, code, message = bad_models(tmp_path, path)[what]
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments, "-q"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_port_in_use(tmp_path, path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(path), "--port", str(port), "--grpc-port", "0", "-q"]) == 2
    assert (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port"
        in capsys.readouterr().err
    )


def test_without_the_extra_it_says_what_to_install(path, monkeypatch, capsys):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "starlette" else real(name, *a))
    assert main(["serve", str(path), "-q"]) == 3
    assert "msconv serve needs starlette: pip install 'msconv-deploy[serve]'" in capsys.readouterr().err


# -- under load --------------------------------------------------------------------------------------------------------


def test_sigterm_under_load(tmp_path, path):
    """It ends with 0; every request that was accepted was answered, and every answer was right and received."""
    log = tmp_path / "access.log"
    process, report = start_program(tmp_path, path, "-q", "--threads", "1", "--access-log", str(log))
    endpoint = Endpoint(report["http"], report["grpc"], report["name"], path)
    tallies = {}

    def load(way):
        tallies[way] = run_load(endpoint, way, 3, clients=8)

    threads = [threading.Thread(target=load, args=(way,)) for way in ("http", "grpc")]
    for thread in threads:
        thread.start()
    time.sleep(1)
    code, _, err = finish(process)
    for thread in threads:
        thread.join(90)
    assert (code, err) == (0, "")
    statuses = [json.loads(line)["status"] for line in log.read_text().splitlines()]
    assert tallies["http"].right == statuses.count("200") > 0
    assert tallies["grpc"].right == statuses.count("OK") > 0
    assert set(statuses) <= {"200", "OK", "503", "UNAVAILABLE"}, set(statuses)
    for tally in tallies.values():  # after the end: refused, not wrong
        assert all("AssertionError" not in problem for problem in tally.problems), tally.problems[:3]


def test_a_second_signal_ends_at_once(tmp_path, path):
    """While the first one waits for a request whose body does not come."""
    process, report = start_program(tmp_path, path, "-q", "--access-log", str(tmp_path / "a.log"))
    port = int(report["http"].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /v2/models/sources/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


def resident(process) -> int:
    """Bytes of physical memory."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow(tmp_path, path):
    """Right and refused requests of 200 kB each, over both protocols: held bodies would be 100 MB after 500."""
    process, report = start_program(tmp_path, path, "-q", "--threads", "1")
    endpoint = Endpoint(report["http"], report["grpc"], report["name"], path)
    arrays = endpoint.inputs((1, 128, 128))
    wrong = arrays | {"scalars": arrays["scalars"][:, :2]}
    with (
        http_client.InferenceServerClient(endpoint.http) as one,
        grpc_client.InferenceServerClient(endpoint.grpc) as two,
    ):

        def send(count):
            for index in range(count):
                module, client = ((http_client, one), (grpc_client, two))[index % 2]
                if index % 5 == 4:
                    with pytest.raises(InferenceServerException):
                        client.infer(endpoint.model, tensors(module, wrong))
                else:
                    client.infer(endpoint.model, tensors(module, arrays))

        send(200)
        before = resident(process)
        send(REQUESTS)
        grown = resident(process) - before
    assert finish(process)[0] == 0
    print(f"resident memory after {REQUESTS} requests: {grown / 1e6:+.1f} MB of {before / 1e6:.0f} MB")
    assert grown < 10e6


def test_it_is_there_at_once(tmp_path, path):
    """Importing, loading and probing: a few seconds on any machine."""
    start = time.perf_counter()
    process, _ = start_program(tmp_path, path, "-q")
    seconds = time.perf_counter() - start
    finish(process)
    print(f"ready after {seconds:.2f} s")
    assert seconds < 15


def test_help_is_quick_and_needs_nothing():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "serve", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "--grpc-port" in done.stdout
