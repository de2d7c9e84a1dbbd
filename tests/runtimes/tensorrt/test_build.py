"""The builder's side for real, with TensorRT-RTX on the CPU; what a version gets, with the fake module."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from msconv_deploy.errors import BuildFailedError, NotAvailableError
from msconv_deploy.ops.forms import Form, convert_form
from msconv_deploy.runtimes.tensorrt import build
from msconv_deploy.runtimes.tensorrt.build import BuildOptions, NetworkSource, build_plan, graph_precision
from tests.ops.test_lowerings import two_layers
from tests.runtimes.tensorrt.fakes import FakeLayer, fake_tensorrt
from tests.runtimes.tensorrt.rtx import in_rtx, needs_rtx
from tests.validation.networks import two_convs

SHAPES = "['x:1x3x1x1:1x3x8x9:4x3x20x30', 's:1x4:1x4:4x4']"
BUILD = f"""
def plan(name, shapes={SHAPES}, **options):
    path = folder / name
    steps = []
    source = NetworkSource(path, path.read_bytes(), "fp32")
    built = build_plan(rtx, source, parse_all_shapes(shapes), BuildOptions(**options), progress=steps.append)
    return {{"bytes": len(built.plan), "timings": sorted(built.timings), "cache": built.timing_cache,
             "phases": [(s.phase, s.parent, s.step, s.steps, s.finished) for s in steps]}}
"""


# -- real parser and builder -----------------------------------------------------------------------------------------


@needs_rtx
def test_a_dynamic_model_is_built_and_progress_is_told(tmp_path):
    two_convs(tmp_path / "m.onnx", dtype="float16", external=True)  # external data is found beside the file
    code = BUILD + "result = attempt(lambda: plan('m.onnx', optimization_level=2, workspace_bytes=1 << 28))"
    found = in_rtx(tmp_path, code)["ok"]
    assert found["bytes"] > 1000
    assert found["timings"] == ["build", "parse"]
    phases = found["phases"]
    assert phases[0][1:3] == [None, 0]
    assert phases[-1] == [phases[0][0], None, phases[0][3], phases[0][3], True]
    names = {phase[0] for phase in phases}
    assert all(phase[1] in names for phase in phases if phase[1] is not None)  # a parent is a phase
    assert all(phase[2] <= phase[3] for phase in phases)


@needs_rtx
def test_parse_errors_name_the_node(tmp_path):
    model = onnx.load(two_convs(tmp_path / "m.onnx"))
    model.graph.node[1].op_type, model.graph.node[1].domain = "NoSuchOperator", "elsewhere"
    model.opset_import.add(domain="elsewhere", version=1)
    onnx.save(model, tmp_path / "m.onnx")
    found = in_rtx(tmp_path, BUILD + "result = attempt(lambda: plan('m.onnx'))")
    assert found["exit"] == 4
    assert "m.onnx: TensorRT-RTX" in found["error"]
    assert "node 'relu' (NoSuchOperator)" in found["error"]


@needs_rtx
def test_builder_errors_are_kept(tmp_path):
    two_convs(tmp_path / "m.onnx")
    found = in_rtx(tmp_path, BUILD + "result = attempt(lambda: plan('m.onnx', shapes=[]))")
    assert found["exit"] == 4
    assert "cannot build" in found["error"]
    assert "profile" in found["error"]
    wrong = BUILD + "result = attempt(lambda: plan('m.onnx', shapes=['x:1x3x1x1:1x3x8x9:4x3x20x30', 's:1x9:1x9:4x9']))"
    found = in_rtx(tmp_path, wrong)
    assert found["exit"] == 4
    assert "cannot build" in found["error"]


@needs_rtx
def test_an_interrupted_build_raises_what_interrupted_it(tmp_path):
    two_convs(tmp_path / "m.onnx")
    code = f"""
def stop(step):
    if step.step == 1:
        raise KeyboardInterrupt
source = NetworkSource(folder / "m.onnx", (folder / "m.onnx").read_bytes(), "fp32")
try:
    build_plan(rtx, source, parse_all_shapes({SHAPES}), BuildOptions(), progress=stop)
except KeyboardInterrupt:
    result = "interrupted"
"""
    assert in_rtx(tmp_path, code) == "interrupted"


@needs_rtx
@pytest.mark.parametrize("capability", [(8, 9), (9, 0)])
def test_the_target_is_the_gpu(tmp_path, capability):
    two_convs(tmp_path / "m.onnx")
    code = BUILD + (
        "from msconv_deploy.runtimes.gpu import Gpu\n"
        f"rtx = TensorRT(tensorrt_rtx_bindings, Gpu('x', {capability}, (13, 0)))\n"
        "result = attempt(lambda: plan('m.onnx'))"
    )
    found = in_rtx(tmp_path, code)
    if capability == (8, 9):
        assert found["ok"]["bytes"] > 1000
    else:
        assert (found["exit"], "compute capability 9.0" in found["error"]) == (3, True)


# -- what a version gets (fake module) -------------------------------------------------------------------------------


def fake_build(tensorrt, path, precision="fp16", **more):
    return build_plan(
        tensorrt, NetworkSource(path, b"model", precision), {}, more.pop("options", BuildOptions()), **more
    )


@pytest.mark.parametrize(("version", "flags"), [("8.6.1", 1), ("10.0.1", 2), ("10.16.0", 2), ("11.4.0", 0)])
def test_networks_are_strongly_typed_where_that_exists(tmp_path, version, flags):
    tensorrt = fake_tensorrt(version)
    fake_build(tensorrt, tmp_path / "m.onnx")
    assert tensorrt.module.state.network_flags == flags


def test_precision_is_constrained_in_8_6_only(tmp_path):
    for version, expected in (("8.6.1", {"FP16", "OBEY_PRECISION_CONSTRAINTS"}), ("10.6.0", set()), ("11.1.0", set())):
        tensorrt = fake_tensorrt(version)
        trt = tensorrt.module
        half, single = (FakeLayer(trt.LayerType.CONVOLUTION, t) for t in (trt.DataType.HALF, trt.DataType.FLOAT))
        shuffle = FakeLayer(trt.LayerType.SHUFFLE, trt.DataType.HALF)
        trt.state.network_layers = [half, single, shuffle]
        fake_build(tensorrt, tmp_path / "m.onnx")
        assert trt.state.configs[0].flags == expected
        assert half.precision == half.output_type == (trt.DataType.HALF if expected else None)
        assert single.precision is shuffle.precision is None
        fake_build(tensorrt, tmp_path / "m.onnx", precision="fp32")
        assert trt.state.configs[1].flags == set()
    with pytest.raises(NotAvailableError, match="does not know bfloat16"):
        fake_build(fake_tensorrt("8.6.1"), tmp_path / "m.onnx", precision="bf16")


def test_options_reach_the_builder_and_tf32_is_off(tmp_path):
    tensorrt = fake_tensorrt()
    fake_build(tensorrt, tmp_path / "m.onnx", options=BuildOptions(5, 1 << 30))
    fake_build(tensorrt, tmp_path / "m.onnx", options=BuildOptions(tf32=True))
    first, second = tensorrt.module.state.configs
    assert (first.builder_optimization_level, first.limits) == (5, {"WORKSPACE": 1 << 30})
    assert (first.cleared, first.flags) == ({"TF32"}, set())
    assert (second.cleared, second.flags, second.limits) == (set(), {"TF32"}, {})


def test_the_timing_cache_is_read_extended_and_replaced(tmp_path, caplog):
    path = tmp_path / "t.cache"
    assert fake_build(fake_tensorrt(), tmp_path / "m.onnx", timing_cache=path).timing_cache == "new"
    assert path.read_bytes() == b"+"
    assert fake_build(fake_tensorrt(), tmp_path / "m.onnx", timing_cache=path).timing_cache == "read and extended"
    assert path.read_bytes() == b"++"
    path.write_bytes(b"other device")
    assert "replaced" in fake_build(fake_tensorrt(), tmp_path / "m.onnx", timing_cache=path).timing_cache
    assert path.read_bytes() == b"+"
    assert "does not take this timing cache" in caplog.text


def test_a_timing_cache_that_cannot_be_written_fails_nothing(tmp_path, caplog):
    (tmp_path / "folder.cache").mkdir()
    assert fake_build(fake_tensorrt(), tmp_path / "m.onnx", timing_cache=tmp_path / "folder.cache").plan == b"plan"
    assert "timing cache was not saved" in caplog.text


def test_a_refusal_says_what_was_logged(tmp_path):
    tensorrt = fake_tensorrt()
    tensorrt.module.state.plan = None
    with pytest.raises(BuildFailedError, match=r"TensorRT 10.6.0 cannot build .*m.onnx:\n  no implementation for node"):
        fake_build(tensorrt, tmp_path / "m.onnx")


def test_no_progress_monitor_before_it_existed(tmp_path):
    steps: list = []
    fake_build(fake_tensorrt("8.6.1"), tmp_path / "m.onnx", progress=steps.append)
    assert steps == []
    fake_build(fake_tensorrt("10.6.0"), tmp_path / "m.onnx", progress=steps.append)
    assert [step.phase for step in steps] == ["Building engine"] * 3


def test_a_builder_that_is_null_is_an_error(tmp_path):
    tensorrt = fake_tensorrt("11.2.1")

    def refuse(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt.module.Builder = refuse
    with pytest.raises(BuildFailedError, match="cannot make a builder:\n  pybind11::init"):
        fake_build(tensorrt, tmp_path / "m.onnx")


def test_parser_errors_of_older_versions_have_a_number_only():
    old = SimpleNamespace(node=lambda: 5, desc=lambda: " no importer ")
    assert build._describe(old) == "node number 5: no importer"
    none = SimpleNamespace(node=lambda: -1, desc=lambda: "cannot read", node_name=lambda: "", node_operator=lambda: "")
    assert build._describe(none) == "the model: cannot read"


def test_precision_of_a_graph(tmp_path):
    assert graph_precision(onnx.load(two_convs(tmp_path / "m.onnx", dtype="float16"))) == "fp16"
    assert graph_precision(onnx.load(two_convs(tmp_path / "m.onnx"))) == "fp32"
    model = convert_form(two_layers()[0], Form.FUSED)
    assert graph_precision(model) == "fp32"
    model.graph.initializer.append(onnx.helper.make_tensor("b", TensorProto.BFLOAT16, [1], np.ones(1)))
    assert graph_precision(model) == "bf16"
