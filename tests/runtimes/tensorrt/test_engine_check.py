"""`make engine-check` where there is no GPU: what it says, and the parts of it that need none."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from polygraphy.cuda import cuda as polygraphy_cuda

from benchmarks import engine_check, engine_timing
from msconv_deploy.errors import BadInputError, ExitCode
from msconv_deploy.ops import reference
from msconv_deploy.ops.configuration import DOMAIN, MSConv2dConfig
from msconv_deploy.ops.shapes import weight_shape
from msconv_deploy.runtimes import gpu
from msconv_deploy.runtimes.onnx_runtime import make_session
from msconv_deploy.runtimes.settings import Settings
from tests.ops.test_lowerings import two_layers

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(bool(gpu.probe()[0]), reason="this machine has a GPU")
def test_without_a_gpu_it_is_exit_3_and_says_all_that_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/engine_check.py", "--models", str(tmp_path), "--output", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "no NVIDIA GPU: " in done.stderr
    assert f"no {tmp_path}/raw_denoiser.plugin.fp16.onnx: make export" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# -- tile-concat-conv ------------------------------------------------------------------------------------------------


def one_layer(dtype=TensorProto.FLOAT, **changes):
    """A plugin-form model with one layer of all four sources, its inputs and its weights."""
    rng = np.random.default_rng(2)
    config = MSConv2dConfig(**({"sources": (1, 1, 1, 1), "kernel_shape": (3, 5), "pads": (2, 2, 2, 2),
                                "dilations": (2, 1), "strides": (1, 2)} | changes))  # fmt: skip
    shapes = {"nchw": (2, 3, 9, 8), "nch": (2, 2, 9), "ncw": (2, 4, 8), "nc": (2, 5)}
    present = {name: shapes[name] for name in config.source_names}
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    feeds = {name: rng.standard_normal(shape).astype(kind) for name, shape in present.items()}
    weights = {
        name: rng.standard_normal(weight_shape(config, name, shape[1], 6)).astype(kind)
        for name, shape in present.items()
    }
    bias = rng.standard_normal(6).astype(kind)
    names = [*feeds, *(f"w_{name}" for name in weights), "b"]
    node = helper.make_node("MSConv2d", names, ["y"], "layer", domain=DOMAIN, **config.attributes())
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, dtype, ["N", *a.shape[1:]]) for n, a in feeds.items()],
        [helper.make_tensor_value_info("y", dtype, ["N", 6, None, None])],
        [*(numpy_helper.from_array(w, f"w_{n}") for n, w in weights.items()), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    return model, config, feeds, weights, bias


@pytest.mark.parametrize("sources", [(1, 1, 1, 1), (1, 0, 1, 1), (1, 0, 0, 0)])
def test_tile_concat_is_the_same_function(tmp_path, sources):
    model, config, feeds, weights, bias = one_layer(sources=sources)
    tiled = engine_check.tile_concat(model)
    onnx.checker.check_model(tiled, full_check=True)
    onnx.save(tiled, tmp_path / "t.onnx")
    (actual,) = make_session(tmp_path / "t.onnx", Settings()).run(None, feeds)
    expected = reference.msconv2d(config, feeds, weights, bias)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    operators = Counter(node.op_type for node in tiled.graph.node)
    assert (operators["Conv"], operators["Expand"]) == (1, sum(sources) - 1)
    assert not any(entry.domain == DOMAIN for entry in tiled.opset_import)


def test_tile_concat_keeps_fp16():
    model, *_ = one_layer(TensorProto.FLOAT16)
    tiled = engine_check.tile_concat(model)
    weight = next(t for t in tiled.graph.initializer if t.name == "layer_tiled_weight")
    assert (weight.data_type, list(weight.dims)) == (TensorProto.FLOAT16, [6, 14, 3, 5])


@pytest.mark.parametrize(
    "changes", [{"activation": 1}, {"padding_mode": 1}, {"group": 3}, {"padding_semantics": 1}, {"pads": (1, 2, 2, 2)}]
)
def test_what_is_not_expressible_is_refused(changes):
    model, *_ = one_layer()
    for name, value in changes.items():
        attribute = next(a for a in model.graph.node[0].attribute if a.name == name)
        attribute.CopyFrom(helper.make_attribute(name, value))
    with pytest.raises(BadInputError, match=r"is not spelled as|no tap lies inside"):
        engine_check.tile_concat(model)


def test_other_nodes_stay():
    plugin, *_ = two_layers()
    with pytest.raises(BadInputError, match="node one: is not spelled as tile-concat-conv"):
        engine_check.tile_concat(plugin)


# -- timing, on a CUDA that does nothing -----------------------------------------------------------------------------


class FakeCuda:
    """Stands in for Polygraphy's wrapper of libcudart: records the calls; every event pair is 2 ms apart."""

    def __init__(self, refuse: str = "") -> None:
        self.calls: list[str] = []
        self.refuse = refuse
        self.handle = self

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls.append(name)
            if name == "cudaEventElapsedTime":
                arguments[0]._obj.value = 2.0
            return 900 if name == self.refuse else b"operation not permitted" if name == "cudaGetErrorString" else 0

        return call

    def create_stream(self):
        return 1

    def malloc(self, size):
        self.calls.append("malloc")
        return 4096

    def free(self, pointer):
        if pointer:
            self.calls.append("free")


class FakeContext:
    """Records enqueued work."""

    def __init__(self, calls: list[str]) -> None:
        self.calls, self.shapes, self.addresses = calls, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        return (1, 4, 8, 8)

    def execute_async_v3(self, stream):
        self.calls.append("enqueue")
        return True


def time_fake(monkeypatch, refuse=""):
    fake = FakeCuda(refuse)
    monkeypatch.setattr(polygraphy_cuda, "wrapper", lambda: fake)
    monkeypatch.setattr(engine_timing.cuda, "wrapper", lambda: fake)
    context = FakeContext(fake.calls)
    engine = SimpleNamespace(
        num_io_tensors=2, get_tensor_name=["x", "y"].__getitem__, create_execution_context=lambda: context
    )
    return engine_timing.time_engine(engine, {"x": np.ones((1, 4, 8, 8), np.float32)}), fake.calls, context


def test_timing_captures_one_call_and_frees_what_it_took(monkeypatch):
    found, calls, context = time_fake(monkeypatch)
    assert found == {"plain_us": 100.0, "graph_us": 100.0}  # 2 ms for 20 calls
    assert (context.shapes, set(context.addresses)) == ({"x": (1, 4, 8, 8)}, {"x", "y"})
    begin, end = calls.index("cudaStreamBeginCapture"), calls.index("cudaStreamEndCapture")
    assert calls[begin + 1 : end] == ["enqueue"]
    count = Counter(calls)
    assert count["malloc"] == count["free"] == 2
    assert count["cudaEventCreate"] == count["cudaEventDestroy"] == 4
    assert count["cudaGraphLaunch"] == engine_timing.WARM_UP + engine_timing.REPEATS * engine_timing.CALLS
    assert count["cudaGraphExecDestroy"] == count["cudaGraphDestroy"] == 1


def test_what_cannot_be_captured_is_a_finding(monkeypatch):
    found, calls, _ = time_fake(monkeypatch, "cudaGraphInstantiateWithFlags")
    assert found == {
        "plain_us": 100.0,
        "graph_error": "cudaGraphInstantiateWithFlags returned 900: operation not permitted",
    }
    assert Counter(calls)["free"] == 2


# -- the report ------------------------------------------------------------------------------------------------------


def fake_results():
    """Made up, to see the tables: no measurement."""
    check = {"verdict": "passed", "plugin_layers": 2, "plugin_nodes": 2}
    agreement = {"verdict": "passed", "largest_difference": {"trt": 1e-6}, "reason": "", "notes": []}
    engine = {
        "variant": "plugin", "precision": "fp16", "plan_bytes": 1, "layers": 9, "precision_check": check,
        "agreement": agreement, "new_process": {"verdict": "passed"},
        "times": [{"size": {"N": 1, "H": 5, "W": 7}, "plain_us": 3.5, "graph_error": "not capturable"}],
    }  # fmt: skip
    return {
        "gpu": "Fake GPU 9", "compute_capability": "9.0", "driver_cuda": "12.6", "tensorrt": "0.0", "engines": [engine],
        "zoo": [{"model": "z.onnx"} | agreement], "module": {"verdict": "not run", "reason": "torch is not installed"},
        "onnxruntime_provider": {"verdict": "passed", "difference": 2e-4},
    }  # fmt: skip


def test_tables():
    text = engine_check.markdown(fake_results())
    for line in (
        "| plugin fp16 | 9 | 2 of 2 | passed | passed | 1.0e-06 | passed |",
        "| plugin fp16 | 1x5x7 | 3.5 | not capturable |",
        "| z.onnx | passed | 1.0e-06 |  |",
        "| PyTorch module | not run | - | torch is not installed |",
        "| ONNX Runtime's TensorRT provider | passed | 2.0e-04 |  |",
    ):
        assert line in text
    assert json.dumps(fake_results())
    assert engine_check.file_stem("NVIDIA H200 (x)") == "engines_nvidia_h200_x"


def test_verdict():
    results = fake_results()
    assert engine_check.verdict(results) == ExitCode.OK
    results["engines"][0]["precision_check"]["verdict"] = "unverified"
    assert engine_check.verdict(results) == ExitCode.NOT_AVAILABLE
    results["engines"][0]["new_process"]["verdict"] = "differ"
    assert engine_check.verdict(results) == ExitCode.OUTPUTS_DIFFER
