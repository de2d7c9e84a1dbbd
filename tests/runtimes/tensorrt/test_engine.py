"""Whole builds: for real with TensorRT-RTX where no engine has to be loaded, with the fake module where one has."""

import json
import shutil

import numpy as np
import onnx
import pytest

from msconv_deploy.errors import BadInputError, BuildFailedError, NotAvailableError, OutputsDifferError
from msconv_deploy.files import sha256_of
from msconv_deploy.model_files import read_model, write_model
from msconv_deploy.ops.forms import Form, convert_form, form_of
from msconv_deploy.runtimes.gpu import Gpu
from msconv_deploy.runtimes.tensorrt import plugins
from msconv_deploy.runtimes.tensorrt.build import BuildOptions
from msconv_deploy.runtimes.tensorrt.engine import (
    EngineRequest,
    build_engine,
    inspect_plan,
    load_plan,
    make_plan,
    read_plan,
    read_sidecar,
    read_source,
    sidecar_of,
)
from msconv_deploy.runtimes.tensorrt.key import differences, digest, model_sha256
from msconv_deploy.runtimes.tensorrt.profiles import parse_all_shapes
from tests.ops.test_lowerings import two_layers
from tests.runtimes.tensorrt.fakes import fake_tensorrt
from tests.runtimes.tensorrt.rtx import in_rtx, needs_rtx
from tests.runtimes.tensorrt.test_inspect import sample
from tests.validation.networks import two_convs

PLUGIN = ("MSConv2d", "1", "")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No plugin library of this checkout is found, and what a test registers is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MSCONV_PLUGIN_PATH", raising=False)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins.ctypes, "CDLL", lambda path, mode=0: None)


@pytest.fixture
def fused(tmp_path):
    write_model(convert_form(two_layers()[0], Form.FUSED), tmp_path / "fused.onnx")
    return tmp_path / "fused.onnx"


@pytest.fixture
def library(tmp_path):
    (tmp_path / "libmsconv_trt10.so").write_bytes(b"a library")
    return tmp_path / "libmsconv_trt10.so"


def layers(**types):
    """What the fake inspector tells: node -> data type; ``one`` and ``two`` are the plugin nodes of :func:`fused`."""
    kinds = {name: "PluginV3" if name in ("one", "two") else "conv" for name in types}
    return [sample(name, kinds[name], [of], [of], metadata=[name]) for name, of in types.items()]


HALF = layers(first="Half", linear="Half", second="Half")


def fake(**what):
    return fake_tensorrt(**({"layers": HALF} | what))


def half_model(tmp_path):
    return two_convs(tmp_path / "m.onnx", dtype="float16")


# -- for real --------------------------------------------------------------------------------------------------------


@needs_rtx
def test_a_fused_file_is_built_in_portable_form_cached_and_explained(tmp_path, fused):
    code = """
def engine(out, shapes, **options):
    request = EngineRequest(shapes=parse_all_shapes(shapes), cache=folder / "cache", options=BuildOptions(**options))
    source = read_source(folder / "fused.onnx", request)
    report = build_engine(source, folder / out, rtx, read_back=False)
    return [report.source, report.model_form, report.form, report.plan_bytes, report.profile["nch"]]
small, large = ["nchw:1x3x4x4:1x3x8x8:1x3x9x9"], ["nchw:1x3x4x4:1x3x8x8:2x3x9x9"]
result = [attempt(lambda: engine("a.plan", small)), attempt(lambda: engine("a.plan", small)),
          attempt(lambda: engine("b.plan", small)), attempt(lambda: engine("a.plan", large)),
          attempt(lambda: engine("c.plan", small, optimization_level=1)), attempt(lambda: load_plan(folder / "a.plan", rtx))]
"""
    built, again, other, stale, changed, loaded = in_rtx(tmp_path, code)
    assert built["ok"][:3] == ["built", "fused", "portable"]
    assert built["ok"][4] == [[1, 2, 4], [1, 2, 8], [1, 2, 9]]
    assert again["ok"][0] == "up to date"
    assert other["ok"][0] == "cache"
    assert stale["exit"] == 2
    assert "a.plan: exists already and is stale: shapes: nc:1x5:1x5:1x5, nch:1x2x4" in stale["error"]
    assert changed["ok"][0] == "built"
    assert loaded["exit"] == 2  # no GPU, so no engine: said in TensorRT's words, not with a crash
    assert "does not load this plan:" in loaded["error"]
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()
    assert len(list((tmp_path / "cache").glob("*.plan"))) == 2
    report = read_sidecar(tmp_path / "a.plan")
    assert report.plan_sha256 == sha256_of(tmp_path / "a.plan")
    assert report.precision_check.verdict == "unverified"
    assert not list(tmp_path.glob(".*"))


@needs_rtx
def test_the_plugin_form_is_refused_before_the_parser_sees_it(tmp_path, fused):
    code = """
source = read_source(folder / "fused.onnx", EngineRequest(form=Form.PLUGIN))
result = attempt(lambda: build_engine(source, folder / "a.plan", rtx, read_back=False).source)
"""
    found = in_rtx(tmp_path, "from msconv_deploy.ops.forms import Form\n" + code)
    assert (found["exit"], "takes no plugins; use --form portable" in found["error"]) == (3, True)


# -- form and plugin -------------------------------------------------------------------------------------------------


def test_a_fused_file_gets_the_plugin_where_its_library_is_found(fused, library, tmp_path, monkeypatch):
    tensorrt = fake(layers=layers(one="Float", two="Float"))
    portable = make_plan(read_source(fused), tensorrt).report
    assert (portable.form, portable.plugins) == ("portable", [])
    monkeypatch.setenv("MSCONV_PLUGIN_PATH", str(tmp_path))
    plan = make_plan(read_source(fused), tensorrt)
    assert (plan.report.model_form, plan.report.form) == ("fused", "plugin")
    assert [p.sha256 for p in plan.report.plugins] == [sha256_of(library)]
    assert plan.report.precision_check.verdict == "passed"
    assert plan.report.precision_check.plugin_layers == 2
    forms = [form_of(onnx.load_from_string(content)) for content in tensorrt.module.state.parsed]
    assert forms == [Form.PORTABLE, Form.PLUGIN]
    forced = make_plan(read_source(fused, EngineRequest(form=Form.PORTABLE)), tensorrt)
    assert forced.report.form == "portable"


def test_a_plugin_file_without_a_library_stops_before_parsing(tmp_path):
    write_model(two_layers()[0], tmp_path / "p.onnx")
    tensorrt = fake(registered=[("MSConv3d", "1", "")])
    with pytest.raises(NotAvailableError, match="plugin not found: MSConv2d version 1"):
        make_plan(read_source(tmp_path / "p.onnx"), tensorrt)
    assert tensorrt.module.state.parsed == []


def test_forms_that_cannot_be(tmp_path):
    path = half_model(tmp_path)
    with pytest.raises(BadInputError, match="no msconv::MSConv2d nodes"):
        read_source(path, EngineRequest(form=Form.PLUGIN))
    with pytest.raises(BadInputError, match="takes the plugin or the portable form"):
        read_source(path, EngineRequest(form=Form.FUSED))


# -- precision -------------------------------------------------------------------------------------------------------


def test_an_engine_of_another_precision_is_not_written(tmp_path):
    path = half_model(tmp_path)
    tensorrt = fake(layers=layers(first="Half", linear="Half", second="Float"))
    with pytest.raises(OutputsDifferError, match="second: fp16 asked, fp32 computed by layer 'second'"):
        build_engine(read_source(path, EngineRequest(cache=tmp_path / "cache")), tmp_path / "m.plan", tensorrt)
    assert not (tmp_path / "m.plan").exists()
    assert not list((tmp_path / "cache").glob("*.plan"))
    with pytest.raises(OutputsDifferError, match=r"Kept as .*m.failed.plan"):
        build_engine(read_source(path), tmp_path / "m.plan", tensorrt, keep_failed=True)
    assert (tmp_path / "m.failed.plan").read_bytes() == b"plan"


def test_the_report_of_a_build(tmp_path):
    path = half_model(tmp_path)
    report = build_engine(read_source(path), tmp_path / "m.plan", fake())
    assert report.precision_check.verdict == "passed"
    assert (report.gpu, report.compute_capability, report.tensorrt_version) == ("Fake H200", "9.0", "10.6.0")
    assert set(report.timings) == {"parse", "build", "inspect"}
    assert [layer.precision for layer in report.layers] == ["fp16"] * 3
    assert report.profile["s"][0] == [1, 4]
    stored = json.loads(sidecar_of(tmp_path / "m.plan").read_text())
    assert (stored["verb"], stored["schema_version"]) == ("engine build", 1)


def test_a_plan_that_cannot_be_loaded_is_a_failed_build(tmp_path):
    tensorrt = fake()
    tensorrt.deserialize = lambda plan: None
    with pytest.raises(BuildFailedError, match="but cannot load the plan"):
        make_plan(read_source(half_model(tmp_path)), tensorrt)


# -- output and cache ------------------------------------------------------------------------------------------------


def test_stale_outputs_name_the_part_that_differs(tmp_path):
    path, out = half_model(tmp_path), tmp_path / "m.plan"
    build_engine(read_source(path), out, fake())
    assert build_engine(read_source(path), out, fake()).source == "up to date"
    shapes = EngineRequest(shapes=parse_all_shapes(["s:2x4:2x4:2x4"]))
    for change, text in (
        ({"version": "11.2.1"}, "TensorRT version: TensorRT 10.6.0 then, TensorRT 11.2.1 now"),
        ({"gpu": Gpu("Other", (8, 6), (13, 0))}, "compute capability: 9.0 then, 8.6 now"),
    ):
        with pytest.raises(BadInputError, match=f"stale: {text}. Choose another name"):
            build_engine(read_source(path), out, fake(**change))
    with pytest.raises(BadInputError, match="stale: shapes: .*s:1x4:1x4:4x4.* then, .*s:2x4:2x4:2x4.* now"):
        build_engine(read_source(path, shapes), out, fake())
    options = EngineRequest(options=BuildOptions(optimization_level=5))
    with pytest.raises(BadInputError, match="options: optimization level default then, optimization level 5 now"):
        build_engine(read_source(path, options), out, fake())
    two_convs(path, dtype="float16", change={"b1": ((0,), 1.0)})
    with pytest.raises(BadInputError, match=r"stale: model: [0-9a-f]{12} then, [0-9a-f]{12} now"):
        build_engine(read_source(path), out, fake())
    assert build_engine(read_source(path), out, fake(), force=True).source == "built"


def test_outputs_that_are_something_else(tmp_path):
    path, out = half_model(tmp_path), tmp_path / "m.plan"
    out.write_text("precious")
    with pytest.raises(BadInputError, match="exists already; choose another name"):
        build_engine(read_source(path), out, fake())
    assert out.read_text() == "precious"
    assert build_engine(read_source(path), out, fake(), force=True).source == "built"
    out.write_bytes(b"pl")
    with pytest.raises(BadInputError, match="is truncated: it has 2 bytes, but m.plan.json says 4.*--force"):
        build_engine(read_source(path), out, fake())
    with pytest.raises(BadInputError, match="is a folder"):
        build_engine(read_source(path), tmp_path, fake())


def test_damaged_cache_entries_are_built_again(tmp_path, caplog):
    request = EngineRequest(cache=tmp_path / "cache")
    source = read_source(half_model(tmp_path), request)
    assert make_plan(source, fake()).report.source == "built"
    assert make_plan(source, fake()).report.source == "cache"
    (entry,) = (tmp_path / "cache").glob("*.plan")
    for damage in (b"", b"pl", b"palm"):
        entry.write_bytes(damage)
        assert make_plan(source, fake()).report.source == "built"
        assert "an entry of the cache is not used" in caplog.text
    sidecar_of(entry).write_text("{}")
    assert make_plan(source, fake()).report.source == "built"
    sidecar_of(entry).unlink()
    assert make_plan(source, fake()).report.source == "built"


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    source = read_source(half_model(tmp_path), EngineRequest(cache=tmp_path / "cache"))
    assert make_plan(source, fake()).content == b"plan"
    assert "the plan was not put into the cache" in caplog.text


def test_a_miss_says_what_differs(tmp_path, caplog):
    path = half_model(tmp_path)
    make_plan(read_source(path, EngineRequest(cache=tmp_path / "cache")), fake())
    caplog.set_level("INFO")
    make_plan(read_source(path, EngineRequest(cache=tmp_path / "cache")), fake(version="10.7.0"))
    assert "not in the cache: TensorRT version: TensorRT 10.6.0 then, TensorRT 10.7.0 now" in caplog.text


# -- reading plans ---------------------------------------------------------------------------------------------------


def test_plans_that_are_damaged(tmp_path):
    build_engine(read_source(half_model(tmp_path)), tmp_path / "m.plan", fake())
    assert read_plan(tmp_path / "m.plan")[0] == b"plan"
    for content, message in (
        (b"pla", "is truncated: it has 3 bytes"),
        (b"plan and more", "is another file: it has 13 bytes"),
        (b"palm", "was changed since it was built"),
        (b"", "is empty"),
    ):
        (tmp_path / "m.plan").write_bytes(content)
        with pytest.raises(BadInputError, match=message):
            load_plan(tmp_path / "m.plan", fake())
    with pytest.raises(BadInputError, match="nope.plan: no such file"):
        read_plan(tmp_path / "nope.plan")
    with pytest.raises(BadInputError, match="is a folder"):
        read_plan(tmp_path)
    sidecar_of(tmp_path / "m.plan").write_text("[]")
    with pytest.raises(BadInputError, match="is not the sidecar of a plan"):
        read_sidecar(tmp_path / "m.plan")


def test_a_plan_of_another_version_or_device(tmp_path):
    build_engine(read_source(half_model(tmp_path)), tmp_path / "m.plan", fake())
    with pytest.raises(
        BadInputError, match="does not run here: TensorRT version: TensorRT 10.6.0 then, TensorRT 11.2.1 now"
    ):
        load_plan(tmp_path / "m.plan", fake(version="11.2.1"))
    with pytest.raises(BadInputError, match="compute capability: 9.0 then, 8.6 now"):
        load_plan(tmp_path / "m.plan", fake(gpu=Gpu("Other", (8, 6), (13, 0))))
    (tmp_path / "other.plan").write_bytes(b"of who knows what")
    with pytest.raises(BadInputError, match="does not load this plan:\n  Serialization assertion"):
        load_plan(tmp_path / "other.plan", fake())


def test_inspection(tmp_path):
    path = half_model(tmp_path)
    build_engine(read_source(path), tmp_path / "m.plan", fake())
    report = inspect_plan(tmp_path / "m.plan", fake(), source=read_source(path))
    assert report.precision_check.verdict == "passed"
    assert report.precisions == {"fp16": 3}
    assert report.inputs == {"x": "half [-1, 3, -1, -1]"}
    assert inspect_plan(tmp_path / "m.plan", fake()).precision_check is None
    two_convs(path, dtype="float16", change={"b1": ((0,), 1.0)})
    with pytest.raises(BadInputError, match="was not built from this file"):
        inspect_plan(tmp_path / "m.plan", fake(), source=read_source(path))


def test_inspection_without_a_sidecar_goes_by_the_layers(tmp_path, fused):
    (tmp_path / "m.plan").write_bytes(b"plan")
    tensorrt = fake(layers=layers(one="Float", two="Float"))
    report = inspect_plan(tmp_path / "m.plan", tensorrt, source=read_source(fused))
    assert (report.precision_check.verdict, report.precision_check.plugin_layers) == ("passed", 2)


# -- keys ------------------------------------------------------------------------------------------------------------


def test_keys():
    key = {"model": "a" * 64, "options": "x, y"}
    assert digest(key) == digest(dict(reversed(key.items())))
    assert differences(key, key) == []
    assert differences(key, key | {"options": "x, z"}) == ["options: y then, z now"]
    assert differences({}, key)[0] == f"model: unknown then, {'a' * 12} now"


def test_the_hash_of_a_model_covers_its_external_data(tmp_path):
    path = two_convs(tmp_path / "m.onnx", external=True)
    before = model_sha256(read_model(path), path)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    copy = tmp_path / "copy" / "m.onnx"
    assert model_sha256(read_model(copy), copy) == before
    (data,) = (f for f in (tmp_path / "copy").iterdir() if f != copy)
    content = np.fromfile(data, np.uint8)
    content[0] ^= 1
    content.tofile(data)
    assert model_sha256(read_model(copy), copy) != before
    plain = two_convs(tmp_path / "plain.onnx")
    assert model_sha256(read_model(plain), plain) == sha256_of(plain)
