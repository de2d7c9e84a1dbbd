"""Engines that run on arrays, on a device that is the host's memory: see :mod:`tests.runtimes.tensorrt.host_engine`."""

import numpy as np
import pytest

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.runtimes import gpu
from msconv_deploy.runtimes.tensorrt.session import EngineRunError, ShapesRefusedError, open_session
from tests.runtimes.tensorrt.host_engine import use_host
from tests.serving.networks import four_sources

PROFILE = {
    "image": ((1, 3, 2, 2), (1, 3, 6, 5), (4, 3, 32, 32)),
    "rows": ((1, 2, 2), (1, 2, 6), (4, 2, 32)),
    "columns": ((1, 2, 2), (1, 2, 5), (4, 2, 32)),
    "scalars": ((1, 4), (1, 4), (4, 4)),
}


@pytest.fixture
def engine(tmp_path, monkeypatch):
    (tmp_path / "m.plan").write_bytes(b"plan")
    return use_host(monkeypatch, four_sources(tmp_path / "m.onnx"), PROFILE)


@pytest.fixture
def session(engine, tmp_path):
    return open_session(tmp_path / "m.plan")


def feeds(n=1, h=6, w=5, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"image": (n, 3, h, w), "rows": (n, 2, h), "columns": (n, 2, w), "scalars": (n, 4)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def test_what_it_takes_and_gives(session):
    image, *_, scalars = session.inputs
    assert (image.name, image.dtype, image.shape) == ("image", np.float32, (-1, 3, -1, -1))
    assert image.range == ((1, 3, 2, 2), (1, 3, 6, 5), (4, 3, 32, 32))
    assert scalars.range == ((1, 4), (1, 4), (4, 4))
    assert [(t.name, t.shape, t.range) for t in session.outputs] == [
        ("y", (-1, 3, -1, -1), None),
        ("pooled", (-1, 3, 1, 1), None),
    ]


def test_results_of_changing_shapes_stay_what_they_were(session, engine):
    """Buffers grow and are used again; what a run gave out is not theirs."""
    sizes = [(1, 6, 5), (2, 32, 20), (4, 2, 2), (1, 31, 32)]
    cases = [feeds(*size, seed=seed) for seed, size in enumerate(sizes)]
    found = [session.run(case, ["pooled", "y"]) for case in cases]
    for case, (pooled, y) in zip(cases, found, strict=True):
        expected = engine.session.run(["pooled", "y"], case)
        assert np.array_equal(pooled, expected[0])
        assert np.array_equal(y, expected[1])
    assert len(engine.device.blocks) == 6
    assert engine.runs[2]["columns"] == (4, 2, 2)


def test_only_wanted_outputs_are_copied_and_inputs_may_lie_anyhow(session, engine):
    case = feeds(2)
    session.run(case, ["pooled"])
    copied = [size for size, to_device in engine.device.copies if not to_device]
    assert copied == [2 * 3 * 4]
    assert sum(size for size, to_device in engine.device.copies if to_device) == sum(a.nbytes for a in case.values())
    strided = {**case, "image": np.asfortranarray(case["image"])}
    assert np.array_equal(session.run(strided, ["y"])[0], session.run(case, ["y"])[0])


def test_half_precision(tmp_path, monkeypatch):
    from onnx import TensorProto

    (tmp_path / "m.plan").write_bytes(b"plan")
    engine = use_host(monkeypatch, four_sources(tmp_path / "h.onnx", TensorProto.FLOAT16), PROFILE)
    session = open_session(tmp_path / "m.plan")
    case = feeds(dtype=np.float16)
    (found,) = session.run(case, ["y"])
    assert found.dtype == np.float16
    assert np.array_equal(found, engine.session.run(["y"], case)[0])


def test_shapes_that_are_refused(session):
    with pytest.raises(
        ShapesRefusedError, match=r"input 'image': shape \[5, 3, 6, 5\] is refused\n.*not in the profile"
    ):
        session.run(feeds(5), ["y"])
    torn = feeds() | {"rows": np.zeros((1, 2, 7), np.float32)}
    with pytest.raises(ShapesRefusedError, match=r"do not fit each other: .*rows \[1, 2, 7\].*\n.*dimensions H"):
        session.run(torn, ["y"])
    session.run(feeds(), ["y"])  # and it still runs


def test_an_enqueue_that_fails(session, engine):
    engine.fails = "Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(EngineRunError, match=r"TensorRT 10.6.0 failed\n  Cuda Runtime \(an illegal memory access"):
        session.run(feeds(), ["y"])
    engine.fails = ""
    session.run(feeds(), ["y"])


def test_no_memory_on_the_device_is_an_error_of_that_run_only(session, engine, capfd):
    engine.device.room = 20_000
    with pytest.raises(EngineRunError, match="CUDA failed: .*out of memory"):
        session.run(feeds(4, 32, 32), ["y"])
    session.run(feeds(), ["y"])
    assert "out of memory" not in "".join(capfd.readouterr())


def test_outputs_whose_shape_depends_on_the_data(session, engine):
    engine.depends_on_data = True
    with pytest.raises(EngineRunError, match="the shape of output 'y' depends on the data"):
        session.run(feeds(), ["y"])


def test_engines_that_cannot_be_fed(engine, tmp_path):
    plan = tmp_path / "m.plan"
    engine.shape_inputs = {"scalars"}
    with pytest.raises(BadInputError, match="the values of scalars are a shape"):
        open_session(plan)
    engine.shape_inputs = set()
    engine.tensor_format = engine.trt.TensorFormat.CHW4
    with pytest.raises(BadInputError, match="image is not row-major"):
        open_session(plan)
    engine.tensor_format = engine.trt.TensorFormat.LINEAR
    engine.without_context = True
    with pytest.raises(EngineRunError, match=r"m.plan: TensorRT 10.6.0 cannot prepare it to run"):
        open_session(plan)


def test_a_type_that_numpy_has_not(engine, tmp_path, monkeypatch):
    kind = type("Kind", (), {"name": "BF16"})
    monkeypatch.setattr(engine, "get_tensor_dtype", lambda name: kind)
    with pytest.raises(BadInputError, match="image is of type bf16, which NumPy does not have"):
        open_session(tmp_path / "m.plan")


@pytest.mark.skipif(bool(gpu.probe()[0]), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_opened(tmp_path):
    (tmp_path / "m.plan").write_bytes(b"plan")
    with pytest.raises(NotAvailableError, match="no NVIDIA GPU"):
        open_session(tmp_path / "m.plan")


ENGINE = ["num_io_tensors", "is_shape_inference_io", "create_execution_context"]
ENGINE += [f"get_tensor_{what}" for what in ("name", "mode", "dtype", "format", "shape", "profile_shape")]
CONTEXT = ["set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"]


@pytest.mark.parametrize("bindings", ["tensorrt", "tensorrt_rtx_bindings"])
def test_what_it_calls_is_there_in_real_bindings(bindings):
    """The stand-in for an engine has no method that TensorRT's own classes lack; types are named as they are here."""
    trt = pytest.importorskip(bindings, reason=f"{bindings} is not installed")
    assert [name for name in ENGINE if not hasattr(trt.ICudaEngine, name)] == []
    assert [name for name in CONTEXT if not hasattr(trt.IExecutionContext, name)] == []
    assert {"FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8"} <= set(trt.DataType.__members__)
    assert trt.TensorFormat.LINEAR is not None
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
