"""The runtime ``trt`` up to the engine: what it builds and for which shapes. Engines themselves need a GPU."""

import json
import subprocess
import sys

import pytest
from polygraphy.backend.onnxrt import OnnxrtRunner

from msconv_deploy.cli.main import main
from msconv_deploy.errors import BuildFailedError, NotAvailableError, OutputsDifferError
from msconv_deploy.model_files import write_model
from msconv_deploy.ops.forms import Form, convert_form
from msconv_deploy.runtimes import Settings, registry
from msconv_deploy.runtimes.onnx_runtime import make_session
from msconv_deploy.runtimes.prepared import PreparedRunner
from msconv_deploy.runtimes.tensorrt import plugins, runner
from tests.ops.test_lowerings import two_layers
from tests.runtimes.tensorrt.fakes import fake_tensorrt
from tests.runtimes.tensorrt.test_inspect import sample
from tests.validation.networks import two_convs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSCONV_PLUGIN_PATH", raising=False)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins.ctypes, "CDLL", lambda path, mode=0: None)
    monkeypatch.setattr(runner, "ENGINE_CACHE", tmp_path / "cache")
    monkeypatch.setattr(runner, "load_cuda_runtime", lambda driver: None)


def make(monkeypatch, path, settings=None, **what):
    tensorrt = fake_tensorrt(**what)
    monkeypatch.setattr(runner, "require", lambda: tensorrt)
    return runner.make_runner(path, settings or Settings(), "trt"), tensorrt


def conv_layers(kind="Half"):
    return [sample(name, "conv", [kind], [kind], metadata=[name]) for name in ("first", "linear", "second")]


def test_one_engine_spans_all_shapes(tmp_path, monkeypatch):
    made, tensorrt = make(monkeypatch, two_convs(tmp_path / "m.onnx", dtype="float16"), layers=conv_layers())
    note = made.prepare([{"x": (1, 3, 9, 8), "s": (1, 4)}, {"x": (4, 3, 2, 30), "s": (4, 4)}])
    assert note == "trt: portable file as portable form; precision passed"
    assert tensorrt.module.state.configs[0].profiles == [
        {"x": ((1, 3, 2, 8), (1, 3, 9, 8), (4, 3, 9, 30)), "s": ((1, 4), (1, 4), (4, 4))}
    ]
    assert made._engine() is made._engine()
    assert len(tensorrt.module.state.configs) == 1


def test_the_note_says_which_form_was_built(tmp_path, monkeypatch):
    write_model(convert_form(two_layers()[0], Form.FUSED), tmp_path / "f.onnx")
    made, _ = make(monkeypatch, tmp_path / "f.onnx")
    note = made.prepare([])
    assert "fused file as portable form with inlined bodies, because no plugin library was found" in note
    assert "precision unverified: the plan holds no details" in note
    library = tmp_path / "lib.so"
    library.write_bytes(b"a library")
    layers = [sample(name, "PluginV3", ["Float"], ["Float"], metadata=[name]) for name in ("one", "two")]
    made, _ = make(monkeypatch, tmp_path / "f.onnx", Settings(plugins=[library]), layers=layers)
    assert made.prepare([]) == f"trt: fused file as plugin form with {library}; precision passed"


def test_an_engine_of_the_wrong_precision_is_not_run(tmp_path, monkeypatch):
    made, _ = make(monkeypatch, two_convs(tmp_path / "m.onnx", dtype="float16"), layers=conv_layers("Float"))
    with pytest.raises(OutputsDifferError, match="first: fp16 asked, fp32 computed"):
        made.prepare([])


def test_cuda_runtimes_newer_than_the_driver_are_not_offered(tmp_path, monkeypatch):
    for name, file in (("a", "libcudart.so.12.6.77"), ("b", "libcudart.so.13"), ("c", "libother.so.1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("")
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(str(tmp_path / name) for name in "abc"))
    mine = lambda newest: [f.name for f in runner._cuda_runtime_folders(newest) if f.parent == tmp_path]  # noqa: E731
    assert (mine(12), mine(13), mine(11)) == (["a"], ["a", "b"], [])


def test_no_cuda_runtime_is_exit_3_and_leaves_the_environment_alone(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")

    def absent():
        assert runner.os.environ["LD_LIBRARY_PATH"].endswith("/nowhere")
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(runner.cuda, "wrapper", absent)
    with pytest.raises(NotAvailableError, match="no CUDA runtime library .*nvidia-cuda-runtime-cu12"):
        runner.load_cuda_runtime((12, 6))
    assert runner.os.environ["LD_LIBRARY_PATH"] == "/nowhere"


# -- validation prepares its runners ---------------------------------------------------------------------------------


class FakeTrt:
    """A runtime that is told its shapes, and evaluates with ONNX Runtime: no TensorRT result."""

    NAME, SUBJECT = "trt", "onnx"
    prepared: list = []
    failure: Exception | None = None

    class Runner(OnnxrtRunner, PreparedRunner):
        def prepare(self, shapes):
            if FakeTrt.failure:
                raise FakeTrt.failure
            FakeTrt.prepared.append(shapes)
            return "trt: a stand-in was built"

    @staticmethod
    def check_available():
        pass

    @staticmethod
    def version():
        return "0.0"

    @staticmethod
    def make_runner(subject, settings, name):
        return FakeTrt.Runner(make_session(subject, settings), name=name)


@pytest.fixture
def fake_runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "fake_trt_runtime", FakeTrt)
    monkeypatch.setitem(registry._ADAPTERS, "trt", ("fake_trt_runtime", "fake_trt_runtime", ""))
    monkeypatch.setattr(FakeTrt, "prepared", [])
    monkeypatch.setattr(FakeTrt, "failure", None)


def validate(path, *more):
    sizes = ["--size", "N=1,H=9,W=8", "--size", "N=2,H=3,W=4"]
    return main(["validate", str(path), "--reference", str(path), "--runtimes", "ort,trt", "--no-rtx", *sizes, *more])


def test_validate_tells_the_runner_all_shapes_and_notes_what_was_built(tmp_path, fake_runtime, capsys):
    path = two_convs(tmp_path / "m.onnx")
    assert validate(path, "--json", str(tmp_path / "r.json")) == 0
    expected = [{"x": (1, 3, 9, 8), "s": (1, 4)}, {"x": (2, 3, 3, 4), "s": (2, 4)}]
    assert FakeTrt.prepared == [expected]
    assert "note: trt: a stand-in was built" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert {row["runtime"] for row in report["comparisons"]} == {"ort", "trt"}
    assert "trt build" in report["timings"]


def test_a_failed_build_is_exit_4(tmp_path, fake_runtime, capsys, monkeypatch):
    monkeypatch.setattr(FakeTrt, "failure", BuildFailedError("m.onnx: TensorRT 10.6.0 cannot parse it"))
    assert validate(two_convs(tmp_path / "m.onnx")) == 4
    assert "cannot parse it" in capsys.readouterr().err


def test_plugin_libraries_reach_the_runner(tmp_path, fake_runtime, monkeypatch):
    seen = []
    original = FakeTrt.make_runner
    record = lambda subject, settings, name: (seen.append(settings.plugins), original(subject, settings, name))[1]  # noqa: E731
    monkeypatch.setattr(FakeTrt, "make_runner", staticmethod(record))
    validate(two_convs(tmp_path / "m.onnx"), "--plugin", "a.so", "--plugin", "b.so")
    assert [str(path) for path in seen[0]] == ["a.so", "b.so"]


@pytest.mark.skipif(not runner._cuda_runtime_folders(99), reason="no CUDA runtime library is installed")
def test_polygraphy_loads_the_cuda_runtime_that_is_found():
    code = """
from msconv_deploy.runtimes.tensorrt import runner
runner.load_cuda_runtime((99, 0))
print(runner.cuda.wrapper().handle._name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "libcudart.so" in done.stdout
    assert done.stderr == ""
