"""`msconv serve` with a TensorRT plan. Where a GPU would compute, ONNX Runtime does, in the host's memory
(:mod:`tests.runtimes.tensorrt.host_engine`): no TensorRT result."""

import http.client
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from msconv_deploy.cli.main import main
from msconv_deploy.reporting.engine import PrecisionCheck
from msconv_deploy.runtimes import gpu
from msconv_deploy.runtimes.tensorrt.engine import sidecar_of
from msconv_deploy.serving.errors import RunFailedError
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.runtime import Run
from msconv_deploy.serving.service import Limits
from tests.runtimes.tensorrt.host_engine import use_host
from tests.runtimes.tensorrt.test_session import PROFILE
from tests.serving.client_suite import Endpoint, expect, outputs_of, tensors
from tests.serving.networks import four_sources, pointwise
from tests.serving.servers import PROGRAM, running
from tests.serving.test_triton_package import fake_plan

KEY = {"TensorRT version": "TensorRT 10.6.0", "compute capability": "9.0"}
HAS_GPU = bool(gpu.probe()[0])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSCONV_PLUGIN_PATH", raising=False)


def with_sidecar(onnx_file, **what):
    return fake_plan(onnx_file, onnx_file.with_suffix(".plan"), content=b"plan", **{"key": KEY} | what)


@pytest.fixture
def source(tmp_path):
    return four_sources(tmp_path / "m.onnx")


@pytest.fixture
def engine(source, monkeypatch):
    return use_host(monkeypatch, source, PROFILE)


@pytest.fixture
def site(source, engine):
    model = Model(with_sidecar(source), "planned")
    engine.runs.clear()  # those of the probe
    with running(model, Limits(max_batch=16)) as server:
        address = [f"127.0.0.1:{port}" for port in (server.http_port, server.grpc_port)]
        yield Endpoint(*address, "planned", source), server


MODULES = [(http_client, "http"), (grpc_client, "grpc")]


@pytest.mark.parametrize(("module", "protocol"), MODULES)
def test_answers_of_many_shapes(site, module, protocol):
    endpoint, _ = site
    with module.InferenceServerClient(getattr(endpoint, protocol)) as client:
        for seed, size in enumerate([(1, 8, 8), (2, 5, 7), (4, 32, 32), (1, 2, 3)]):
            arrays = endpoint.inputs(size, seed)
            result = client.infer("planned", tensors(module, arrays))
            expect(endpoint, outputs_of(result, endpoint.outputs), arrays)


def test_requests_are_joined_up_to_the_largest_batch_of_the_plan(site, engine):
    endpoint, server = site
    assert server.service.model.batching == ""
    assert server.service.limits.max_batch == 4

    def ask(seed):
        arrays = endpoint.inputs((1, 8, 8), seed)
        with http_client.InferenceServerClient(endpoint.http) as client:
            for _ in range(10):
                result = client.infer("planned", tensors(http_client, arrays))
                expect(endpoint, outputs_of(result, endpoint.outputs), arrays)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    rows = {shapes["image"][0] for shapes in engine.runs}
    assert max(rows) <= 4
    assert len(rows) > 1, "nothing was joined"


@pytest.mark.parametrize(("module", "protocol"), MODULES)
def test_shapes_beyond_the_plan_are_told_with_its_range(site, engine, module, protocol):
    endpoint, _ = site
    with module.InferenceServerClient(getattr(endpoint, protocol)) as client:

        def refused(arrays):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("planned", tensors(module, arrays))
            assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
            return caught.value.message()

        expected = "input 'image': expected shape [1..4, 3, 2..32, 2..32], got "
        assert expected + "[1, 3, 33, 8]" in refused(endpoint.inputs((1, 33, 8)))
        assert expected + "[5, 3, 8, 8]" in refused(endpoint.inputs((5, 8, 8)))
        assert expected + "[1, 3, 1, 8]" in refused(endpoint.inputs((1, 1, 8)))
        assert engine.runs == []
        torn = endpoint.inputs((1, 8, 8)) | {"rows": endpoint.inputs((1, 7, 7))["rows"]}
        assert "rows [1, 2, 7]" in refused(torn)
        arrays = endpoint.inputs((1, 8, 8))
        expect(endpoint, outputs_of(client.infer("planned", tensors(module, arrays)), endpoint.outputs), arrays)


def test_an_engine_that_fails_is_the_servers_fault_and_its_words_are_told(site, engine):
    endpoint, _ = site
    engine.fails = "an illegal memory access was encountered"
    with http_client.InferenceServerClient(endpoint.http) as client:
        with pytest.raises(InferenceServerException, match=r"model 'planned': TensorRT 10.6.0 failed\n  an illegal"):
            client.infer("planned", tensors(http_client, endpoint.inputs((1, 8, 8))))
        engine.fails = ""
        client.infer("planned", tensors(http_client, endpoint.inputs((1, 8, 8))))


def test_metadata_and_configuration(site):
    endpoint, _ = site
    with http_client.InferenceServerClient(endpoint.http) as client:
        found = client.get_model_metadata("planned")
        config = client.get_model_config("planned")
    assert found["platform"] == "tensorrt_plan"
    assert {e["name"]: (e["datatype"], e["shape"]) for e in found["inputs"]}["image"] == ("FP32", [-1, 3, -1, -1])
    assert {e["name"]: e["shape"] for e in found["outputs"]} == {"y": [-1, 3, -1, -1], "pooled": [-1, 3, 1, 1]}
    assert (config["platform"], config["backend"], config["max_batch_size"]) == ("tensorrt_plan", "tensorrt", 4)
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]


def test_a_run_that_nobody_wants_is_not_begun(source, engine):
    model = Model(with_sidecar(source), "m")
    engine.runs.clear()
    run = Run()
    run.stop()
    with pytest.raises(RunFailedError, match="model 'm': stopped before it began"):
        model.run(Endpoint("", "", "", source).inputs((1, 8, 8)), ["y"], run)
    assert engine.runs == []


# -- which requests are joined ---------------------------------------------------------------------------------------


def plan_of(monkeypatch, path, low, best, high, name="x"):
    use_host(monkeypatch, path, {name: (low, best, high)})
    return with_sidecar(path, profile={name: [list(low), list(best), list(high)]})


def test_a_plan_that_mixes_its_samples_is_not_joined(tmp_path, monkeypatch):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    path = pointwise(tmp_path / "mixing.onnx", nodes)
    assert Model(plan_of(monkeypatch, path, (1, 2), (1, 5), (8, 9)), "m").batching == "it mixes the samples of a batch"


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        ((1, 2), (1, 9), "its inputs and outputs do not all have a dynamic axis 0"),
        (
            (2, 2),
            (8, 9),
            "the plan takes batches from 2 on, and a request alone is a batch of 1: build it for 1 as well",
        ),
        ((1, 2), (2, 9), ""),
    ],
)
def test_batches_of_the_plan(tmp_path, monkeypatch, low, high, reason):
    path = pointwise(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])])
    assert Model(plan_of(monkeypatch, path, low, low, high), "m").batching == reason


def test_half_precision(tmp_path, monkeypatch):
    path = four_sources(tmp_path / "h.onnx", TensorProto.FLOAT16)
    use_host(monkeypatch, path, PROFILE)
    model = Model(with_sidecar(path, precision="fp16"), "m")
    assert model.batching == ""
    (y,) = model.run(Endpoint("", "", "", path).inputs((2, 6, 5)), ["y"])
    assert (y.dtype, y.shape) == (np.float16, (2, 3, 6, 5))


# -- plans that are not served -----------------------------------------------------------------------------------------


def serve(path, *options):
    return main(["serve", str(path), "--port", "0", "--grpc-port", "0", "-q", *map(str, options)])


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ({"TensorRT version": "TensorRT 10.15.1"}, "TensorRT version: TensorRT 10.15.1 then, TensorRT 10.6.0 now"),
        ({"compute capability": "8.6"}, "compute capability: 8.6 then, 9.0 now"),
    ],
)
def test_a_plan_of_another_tensorrt_or_gpu(source, engine, capsys, key, part):
    assert serve(with_sidecar(source, key=KEY | key)) == 2
    err = capsys.readouterr().err
    assert f"this plan does not run here: {part}" in err
    assert "msconv engine build" in err


def test_a_plan_that_was_changed(source, engine, capsys):
    plan = with_sidecar(source)
    plan.write_bytes(b"nalp")
    assert serve(plan) == 2
    assert "was changed since it was built" in capsys.readouterr().err


def test_a_plan_of_the_wrong_precision(source, engine, capsys):
    differ = PrecisionCheck(verdict="differ", reason="first: fp16 asked, fp32 computed")
    assert serve(with_sidecar(source, precision_check=differ)) == 2
    assert "does not compute in the types of its graph: first: fp16 asked" in capsys.readouterr().err


def test_a_plan_that_tensorrt_does_not_load_is_told_in_its_words(source, engine, capsys):
    plan = source.with_suffix(".plan")
    plan.write_bytes(b"something else, without a sidecar")
    assert serve(plan) == 2
    err = capsys.readouterr().err
    assert "TensorRT 10.6.0 on Fake H200 does not load this plan:\n  Serialization assertion" in err
    assert not sidecar_of(plan).exists()


def test_the_plugin_library_that_it_was_built_with(tmp_path, source, engine, capsys):
    library = tmp_path / "libmsconv_trt10.so"
    library.write_bytes(b"a library")
    plan = with_sidecar(source, plugins=[library])
    assert Model(plan, "m").batching == ""
    assert ("MSConv2d", "1", "") in [
        (c.name, c.plugin_version, c.plugin_namespace) for c in engine.trt.get_plugin_registry().all_creators
    ]
    library.write_bytes(b"another library")
    assert serve(plan) == 3
    assert "needs the plugin library libmsconv_trt10.so that it was built with" in capsys.readouterr().err
    assert serve(plan, "--plugin", library) == 2
    assert "is not the plugin library that" in capsys.readouterr().err


def test_options_of_the_other_runtime(source, engine, tmp_path, capsys):
    plan = with_sidecar(source)
    for arguments, message in (
        ((plan, "--provider", "cpu"), "--provider is for ONNX files"),
        ((plan, "--threads", "2"), "--threads is for ONNX files"),
        ((plan, "--optimize"), "--optimize is for ONNX files"),
        ((source, "--plugin", "lib.so"), "--plugin is for plans"),
    ):
        assert serve(*arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_is_exit_3_and_says_all_that_is_missing(source):
    """The program itself, with nothing in TensorRT's place."""
    plan = with_sidecar(source)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "serve", str(plan), "--port", "0", "--grpc-port", "0"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "no NVIDIA GPU: " in done.stderr
    assert "msconv doctor" in done.stderr
    assert "Traceback" not in done.stderr
    plan.unlink()
    assert serve(plan) == 2  # what is wrong with the file is said first


def test_an_onnx_file_is_served_without_tensorrt(source):
    """Serving by ONNX Runtime imports nothing of TensorRT's bindings."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom msconv_deploy.serving.model import Model\n"
        f"Model(Path({str(source)!r}), 'm')\n"
        "sys.exit(', '.join(m for m in ('tensorrt', 'tensorrt_bindings', 'polygraphy.cuda', 'torch') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_raw_error_body_names_the_range(site):
    """As a client without tritonclient sees it."""
    endpoint, _ = site
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [0, 0, 0]}]}
    connection = http.client.HTTPConnection(endpoint.http)
    connection.request("POST", "/v2/models/planned/infer", json.dumps(body))
    answer = connection.getresponse()
    assert answer.status == 400
    assert "[1..4, 3, 2..32, 2..32]" in json.loads(answer.read())["error"]
