"""TensorRT-RTX as a build check: parse and build on the CPU, in a process of its own."""

import json
import subprocess
import sys

import onnx
import pytest

from msconv_deploy.runtimes import tensorrt_rtx
from msconv_deploy.runtimes.tensorrt_rtx import check_build, main
from tests.validation.networks import two_convs

PROFILE = {"x": ((1, 3, 1, 1), (1, 3, 8, 9), (4, 3, 20, 30)), "s": ((1, 4), (1, 4), (4, 4))}
needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available(), reason="TensorRT-RTX is not installed: pip install 'msconv-deploy[rtx]'"
)


@needs_rtx
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_good_file_parses_and_builds(tmp_path, dtype):
    check = check_build(two_convs(tmp_path / "m.onnx", dtype=dtype, external=dtype == "float32"), PROFILE)
    assert check.status == "passed", check
    assert check.parsed
    assert check.built
    assert check.engine_bytes > 1000
    assert check.version
    assert check.shapes["s"] == [[1, 4], [1, 4], [4, 4]]


@needs_rtx
def test_functions_are_parsed(tmp_path):
    assert check_build(two_convs(tmp_path / "m.onnx", functions=True), PROFILE).status == "passed"


@needs_rtx
def test_an_operator_that_it_does_not_know_is_not_passed(tmp_path):
    model = onnx.load(two_convs(tmp_path / "m.onnx"))
    model.graph.node[0].op_type, model.graph.node[0].domain = "NoSuchOperator", "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)
    onnx.save(model, tmp_path / "m.onnx")
    check = check_build(tmp_path / "m.onnx", PROFILE)
    assert check.status == "failed"
    assert "NoSuchOperator" in check.reason + " ".join(check.messages)


@needs_rtx
def test_dynamic_inputs_without_a_profile_do_not_build(tmp_path):
    check = check_build(two_convs(tmp_path / "m.onnx"), {})
    assert check.status == "failed"
    assert check.parsed
    assert not check.built
    assert check.engine_bytes is None


@needs_rtx
def test_not_a_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    assert check_build(tmp_path / "m.onnx", {}).status == "failed"
    assert "no such file" in check_build(tmp_path / "nope.onnx", {}).reason


@needs_rtx
def test_command_line(tmp_path):
    path = two_convs(tmp_path / "m.onnx", dims=(1, 3, 8, 8))
    command = [sys.executable, "-m", "msconv_deploy.runtimes.tensorrt_rtx", str(path)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["built"] is True


def fake_process(returncode: int, stdout: str, stderr: str):
    def run(command, **kwargs):
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    return run


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (fake_process(-11, "", "about to crash\n"), "was killed by signal 11: about to crash"),
        (fake_process(-6, '{"parsed": true', ""), "was killed by signal 6: no message"),
        (fake_process(1, "", "Traceback\nImportError: libx"), "exited with 1: ImportError: libx"),
        (fake_process(0, "chatter\n", ""), "exited with 0"),
    ],
)
def test_a_crash_is_never_passed(tmp_path, monkeypatch, process, reason):
    monkeypatch.setattr(tensorrt_rtx, "available", lambda: True)
    monkeypatch.setattr(tensorrt_rtx.subprocess, "run", process)
    check = check_build(tmp_path / "m.onnx", PROFILE)
    assert check.status == "failed"
    assert reason in check.reason
    assert not check.parsed
    assert not check.built


def test_a_result_with_a_failing_exit_code_is_not_passed(tmp_path, monkeypatch):
    found = json.dumps({"parsed": True, "built": True, "engine_bytes": 5, "messages": []})
    monkeypatch.setattr(tensorrt_rtx, "available", lambda: True)
    monkeypatch.setattr(tensorrt_rtx.subprocess, "run", fake_process(-11, found, ""))
    assert check_build(tmp_path / "m.onnx", {}).status == "failed"


def test_a_time_out_is_not_passed(tmp_path, monkeypatch):
    def hang(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(tensorrt_rtx, "available", lambda: True)
    monkeypatch.setattr(tensorrt_rtx.subprocess, "run", hang)
    assert "no result within 3 s" in check_build(tmp_path / "m.onnx", {}, timeout=3).reason


def test_a_missing_package_is_not_passed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensorrt_rtx, "available", lambda: False)
    check = check_build(tmp_path / "m.onnx", PROFILE)
    assert check.status == "not available"
    assert "pip install 'msconv-deploy[rtx]'" in check.reason
    assert main([str(tmp_path / "m.onnx")]) == 3
    assert "pip install" in capsys.readouterr().err


def test_shapes_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["m.onnx", "--shapes", "a:1x3:2x3"])
    assert "write NAME:MIN:OPT:MAX" in capsys.readouterr().err
