"""`msconv engine`: exit codes, messages and reports. Engines are those of a fake module: nothing here ran on a GPU."""

import json

import pytest

from msconv_deploy.cli.engine import _Bars, parse_bytes
from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError
from msconv_deploy.reporting.engine import EngineInspectReport, EngineReport
from msconv_deploy.runtimes.tensorrt import bindings, engine, plugins
from msconv_deploy.runtimes.tensorrt.api import BuildStep
from tests.runtimes.tensorrt.fakes import fake_tensorrt
from tests.runtimes.tensorrt.test_inspect import sample
from tests.validation.networks import two_convs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSCONV_PLUGIN_PATH", raising=False)
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(engine, "ENGINE_CACHE", tmp_path / "cache")


@pytest.fixture
def model(tmp_path):
    return two_convs(tmp_path / "m.onnx", dtype="float16")


@pytest.fixture
def fake(monkeypatch):
    def install(kind="Half", **what):
        layers = [sample(name, "conv", [kind], [kind], "tactic", [name]) for name in ("first", "linear", "second")]
        tensorrt = fake_tensorrt(**({"layers": layers} | what))
        monkeypatch.setattr(bindings, "require", lambda: tensorrt)
        return tensorrt

    return install


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(bindings, "probe", lambda: ([], "no driver library libcuda.so.1"))
    monkeypatch.setattr(bindings, "_MODULES", ("no_such_tensorrt",))


def run(capsys, *arguments):
    code = main(["engine", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


# -- without a GPU ---------------------------------------------------------------------------------------------------


def test_build_without_gpu_or_tensorrt_is_exit_3(model, no_gpu, capsys, tmp_path):
    code, out, err = run(capsys, "build", model, "-o", tmp_path / "m.plan")
    assert (code, out) == (3, "")
    assert "can be neither built nor run here" in err
    assert "no NVIDIA GPU: no driver library libcuda.so.1" in err
    assert "no package tensorrt: pip install 'msconv-deploy[gpu]'" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]


def test_inspect_without_gpu_is_exit_3(no_gpu, capsys, tmp_path):
    (tmp_path / "m.plan").write_bytes(b"plan")
    code, _, err = run(capsys, "inspect", tmp_path / "m.plan")
    assert (code, "no NVIDIA GPU" in err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "absent.onnx", "-o", "m.plan"], "absent.onnx: no such file"),
        (["build", "text.onnx", "-o", "m.plan"], "text.onnx: not an ONNX model"),
        (["build", "m.onnx"], "Missing option"),
        (["build", "m.onnx", "-o", "m.onnx"], "is the model itself"),
        (["build", "m.onnx", "-o", "m.plan", "--shapes", "x:1"], "write NAME:MIN:OPT:MAX"),
        (["build", "m.onnx", "-o", "m.plan", "--shapes", "q:1:1:1"], "no input q; known are x, s"),
        (["build", "m.onnx", "-o", "m.plan", "--shapes", "x:1x4x2x2:1x4x2x2:1x4x2x2"], "input x is Nx3xHxW"),
        (["build", "m.onnx", "-o", "m.plan", "--form", "plugin"], "no msconv::MSConv2d nodes"),
        (["build", "m.onnx", "-o", "m.plan", "--form", "fused"], "'fused' is not one of"),
        (["build", "m.onnx", "-o", "m.plan", "--workspace", "lots"], "write a number of bytes"),
        (["build", "m.onnx", "-o", "m.plan", "--cache", "c", "--no-cache"], "contradict"),
        (["build", "m.onnx", "-o", "m.plan", "--optimization-level", "9"], "--optimization-level"),
        (["build", "m.onnx", "-o", "m.plan", "--json", "text.onnx"], "exists already"),
        (["inspect", "absent.plan"], "absent.plan: no such file"),
        (["inspect", "."], "is a folder"),
        (["inspect", "empty.plan"], "empty.plan: is empty"),
        (["inspect", "odd.plan"], "odd.plan.json: is not the sidecar of a plan"),
        (["inspect", "odd.plan", "--model", "absent.onnx"], "odd.plan.json: is not the sidecar of a plan"),
    ],
)
def test_bad_input_is_said_before_a_gpu_is_looked_for(model, no_gpu, capsys, tmp_path, arguments, message):
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "empty.plan").touch()
    (tmp_path / "odd.plan").write_bytes(b"plan")
    (tmp_path / "odd.plan.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# -- with the fake module --------------------------------------------------------------------------------------------


def test_build_reports(model, fake, capsys, tmp_path):
    fake()
    code, out, err = run(capsys, "build", model, "-o", "m.plan", "--json", "r.json", "--workspace", "1G")
    assert code == 0, err
    assert "m.plan: built in" in out
    assert "portable file as portable form, TensorRT 10.6.0, Fake H200 (compute capability 9.0)" in out
    assert "layers: 3 fp16" in out
    assert "precision passed: 3 fp16 computed as asked" in out
    assert err.splitlines() == ["Building engine"]
    report = EngineReport.model_validate_json((tmp_path / "r.json").read_text())
    assert report == EngineReport.model_validate_json((tmp_path / "m.plan.json").read_text())
    assert f"workspace {1 << 30}" in report.key["options"]
    code, out, _ = run(capsys, "build", model, "-o", "m.plan", "--workspace", "1G", "-q")
    assert (code, "is up to date already" in out) == (0, True)
    code, out, _ = run(capsys, "build", model, "-o", "n.plan", "--workspace", "1G", "-q")
    assert (code, "taken from the cache" in out) == (0, True)
    code, _, err = run(capsys, "build", model, "-o", "m.plan")
    assert (code, "stale: options: workspace 1073741824 then, workspace default now" in err) == (2, True)
    code, out, _ = run(capsys, "build", model, "-o", "m.plan", "--no-cache", "--force", "-q")
    assert (code, "built in" in out) == (0, True)


def test_a_wrong_precision_is_exit_1_and_no_plan(model, fake, capsys, tmp_path):
    fake("Float")
    code, _, err = run(capsys, "build", model, "-o", "m.plan", "--keep-failed")
    assert code == 1
    assert "first: fp16 asked, fp32 computed by layer 'first' (tactic tactic)" in err
    assert (tmp_path / "m.failed.plan").exists()
    assert not (tmp_path / "m.plan").exists()


def test_a_refused_model_is_exit_4(model, fake, capsys, tmp_path):
    fake().module.state.plan = None
    code, _, err = run(capsys, "build", model, "-o", "m.plan")
    assert (code, "no implementation for node conv" in err) == (4, True)
    assert not (tmp_path / "m.plan").exists()


def test_inspect_shows_layers_and_compares(model, fake, capsys, tmp_path):
    fake()
    run(capsys, "build", model, "-o", "m.plan", "-q")
    code, out, _ = run(capsys, "inspect", "m.plan", "--model", model, "--json", "r.json")
    assert code == 0
    for text in ("first", "Half", "tactic", "input x: half [-1, 3, -1, -1]", "layers: 3 fp16", "precision passed"):
        assert text in out
    report = EngineInspectReport.model_validate(json.loads((tmp_path / "r.json").read_text()))
    assert report.precision_check.asked == {"fp16": 3}
    fake("Float")
    code, out, _ = run(capsys, "inspect", "m.plan", "--model", model, "-q")
    assert (code, "precision differ: the engine does not compute" in out) == (1, True)
    fake(layers=["first", "linear", "second"])
    code, out, _ = run(capsys, "inspect", "m.plan", "--model", model, "-q")
    assert (code, "precision unverified: the plan holds no details" in out) == (3, True)
    code, out, _ = run(capsys, "inspect", "m.plan", "-q")
    assert (code, "layers: 3 unknown" in out) == (0, True)


def test_a_truncated_plan(model, fake, capsys, tmp_path):
    fake()
    run(capsys, "build", model, "-o", "m.plan", "-q")
    (tmp_path / "m.plan").write_bytes(b"pl")
    code, _, err = run(capsys, "inspect", "m.plan")
    assert (code, "is truncated: it has 2 bytes, but m.plan.json says 4" in err) == (2, True)


@pytest.mark.parametrize(("text", "expected"), [("17", 17), ("2k", 2048), ("512M", 512 << 20), ("4G", 4 << 30)])
def test_sizes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1M", "1.5G", "0", "1T"])
def test_sizes_that_are_none(text):
    with pytest.raises(BadInputError, match="write a number of bytes"):
        parse_bytes(text)


def test_bars_follow_nested_phases():
    from rich.progress import Progress

    progress = Progress(disable=True)
    bars = _Bars(progress)
    bars(BuildStep("outer", None, 0, 4))
    bars(BuildStep("inner", "outer", 0, 2))
    bars(BuildStep("inner", "outer", 1, 2))
    assert [(t.description, t.completed, t.total) for t in progress.tasks] == [("outer", 0, 4), ("  inner", 1, 2)]
    bars(BuildStep("inner", "outer", 2, 2, finished=True))
    bars(BuildStep("never started", None, 1, 1, finished=True))
    assert [t.description for t in progress.tasks] == ["outer"]
