"""`msconv package`: repositories for several models, what is refused, and that nothing is ever half there.

Plans are fake ones, with sidecars made here: nothing ran on a GPU. What a Triton server makes of a repository is seen in
``test_triton_real.py``.
"""

import json
import shlex
import sys

import numpy as np
import onnx
import pytest

pytest.importorskip("tritonclient", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")

import yaml
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as pb

from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError
from msconv_deploy.files import sha256_of
from msconv_deploy.ops.forms import Form
from msconv_deploy.reporting.engine import EnginePlugin, EngineReport, PrecisionCheck
from msconv_deploy.reporting.package import ModelSidecar, PackagedTensor, PackageReport
from msconv_deploy.runtimes.tensorrt.engine import sidecar_of
from msconv_deploy.serving.triton import repository as repository_module
from msconv_deploy.serving.triton.config import check_config
from msconv_deploy.serving.triton.deploy import kubernetes_name
from msconv_deploy.serving.triton.yaml import to_yaml
from tests.serving.networks import four_sources, pointwise
from tests.validation.networks import two_convs

PROFILE = {
    "image": [[1, 3, 16, 16], [4, 3, 64, 64], [6, 3, 128, 128]],
    "rows": [[1, 2, 16], [4, 2, 64], [6, 2, 128]],
    "columns": [[1, 2, 16], [4, 2, 64], [6, 2, 128]],
    "scalars": [[1, 4], [4, 4], [6, 4]],
}


@pytest.fixture
def run(capsys, tmp_path):
    """msconv package MODEL --triton tmp_path/repository OPTIONS -> (exit code, standard output, standard error)."""

    def call(model, *options):
        code = main(["package", str(model), "--triton", str(tmp_path / "repository"), *map(str, options)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def model(tmp_path):
    return four_sources(tmp_path / "m.onnx")


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def tensors_of(entries):
    return {e.name: (pb.DataType.Name(e.data_type), list(e.dims)) for e in entries}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def snapshot(folder):
    """Path -> content of everything below, hidden files included."""
    if not folder.exists():
        return None
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def fake_plan(model, path, profile=None, plugins=(), version="10.6.0", content=b"a plan", **what):
    """A file that is no plan, with the sidecar of one."""
    path.write_bytes(content)
    fields = {
        "model": str(model),
        "model_sha256": sha256_of(model),
        "model_form": "fused",
        "form": "plugin",
        "plan": str(path),
        "plan_sha256": sha256_of(path),
        "plan_bytes": len(content),
        "key": {},
        "tensorrt_version": version,
        "gpu": "Fake H200",
        "compute_capability": "9.0",
        "plugins": [EnginePlugin(path=str(p), sha256=sha256_of(p)) for p in plugins],
        "precision": "fp32",
        "profile": PROFILE if profile is None else profile,
        "precision_check": PrecisionCheck(verdict="passed"),
    }
    sidecar_of(path).write_text(EngineReport(**(fields | what)).to_json())
    return path


# -- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Form.PORTABLE, Form.FUSED])
def test_four_sources_with_dynamic_dims(run, tmp_path, form):
    path = four_sources(tmp_path / "m.onnx", form=form)
    code, out, err = run(path, "--json", tmp_path / "report.json")
    assert (code, "version 1 created" in out) == (0, True), err
    folder = tmp_path / "repository" / "m"
    config = config_of(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("m", "onnxruntime", 8)
    assert tensors_of(config.input) == {
        "image": ("TYPE_FP32", [3, -1, -1]),
        "rows": ("TYPE_FP32", [2, -1]),
        "columns": ("TYPE_FP32", [2, -1]),
        "scalars": ("TYPE_FP32", [4]),
    }
    assert tensors_of(config.output) == {"y": ("TYPE_FP32", [3, -1, -1]), "pooled": ("TYPE_FP32", [3, 1, 1])}
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert [(g.count, g.kind) for g in config.instance_group] == [(1, pb.ModelInstanceGroup.KIND_AUTO)]
    assert (folder / "1" / "model.onnx").read_bytes() == path.read_bytes()
    report = PackageReport.model_validate_json((tmp_path / "report.json").read_text())
    assert (report.model_form, report.max_batch_size, report.action) == (form.value, 8, "created")
    assert sorted(report.files) == sorted(
        str(p.relative_to(tmp_path / "repository")) for p in folder.rglob("*") if p.is_file()
    )
    assert len(report.checks) == 3
    assert any("knows opset 17" in note for note in report.notes)


def test_half_precision(run, tmp_path):
    assert run(four_sources(tmp_path / "m.onnx", TensorProto.FLOAT16))[0] == 0
    config = config_of(tmp_path / "repository" / "m")
    assert {e.data_type for e in [*config.input, *config.output]} == {pb.TYPE_FP16}
    data = tmp_path / "repository" / "m" / "warmup" / config.model_warmup[0].inputs["scalars"].input_data_file
    assert data.stat().st_size == 4 * 2


def test_warm_up_is_there_and_fits(run, tmp_path, model):
    """Each batch size once, every input in it, and the file has the bytes of one sample."""
    assert run(model, "--max-batch", "5", "--input-shape", "image:1x3x24x20")[0] == 0
    folder = tmp_path / "repository" / "m"
    config = config_of(folder)
    assert [w.batch_size for w in config.model_warmup] == [1, 5]
    for warmup in config.model_warmup:
        assert {n: list(e.dims) for n, e in warmup.inputs.items()} == {
            "image": [3, 24, 20], "rows": [2, 24], "columns": [2, 20], "scalars": [4],
        }  # fmt: skip
        for entry in warmup.inputs.values():
            values = np.fromfile(folder / "warmup" / entry.input_data_file, np.float32)
            assert values.size == np.prod(entry.dims)
            assert np.isfinite(values).all()
            assert values.std() > 0.1


def test_static_batch_is_not_joined(run, tmp_path):
    path = two_convs(tmp_path / "m.onnx", dims=(2, 3, 8, 8))
    code, out, _ = run(path)
    assert code == 0
    assert "not joined: its inputs and outputs do not share one dynamic dimension" in out
    config = config_of(tmp_path / "repository" / "m")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors_of(config.input) == {"x": ("TYPE_FP32", [2, 3, 8, 8]), "s": ("TYPE_FP32", [2, 4])}
    assert tensors_of(config.output)["y"][1] in ([2, 2, 8, 8], [-1] * 4)  # the file declares no shape of y
    assert [w.batch_size for w in config.model_warmup] == [1]
    code, _, err = run(path, "--max-batch", "4")
    assert (code, "requests cannot be joined" in err) == (2, True)


def test_a_model_that_mixes_its_samples_is_not_joined(run, tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    path = pointwise(tmp_path / "m.onnx", nodes)
    code, out, _ = run(path)
    assert (code, "it mixes the samples of a batch" in out) == (0, True)
    assert config_of(tmp_path / "repository" / "m").max_batch_size == 0


def test_integers_and_an_input_of_rank_one(run, tmp_path):
    path = pointwise(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], TensorProto.INT64, rank=1)
    code, out, _ = run(path, "--input-range", "x:5:9")
    assert (code, "no dimension beside the batch" in out) == (0, True)
    folder = tmp_path / "repository" / "m"
    assert tensors_of(config_of(folder).input) == {"x": ("TYPE_INT64", [-1])}
    values = np.fromfile(next((folder / "warmup").iterdir()), np.int64)
    assert set(values) <= {5, 6, 7, 8, 9}


def test_a_scalar_is_refused(run, tmp_path):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])]
    graph = helper.make_graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    code, _, err = run(tmp_path / "m.onnx")
    assert (code, "y has no dimensions" in err) == (2, True)


def test_options_reach_the_configuration(run, tmp_path, model):
    options = [
        "--max-batch",
        16,
        "--preferred-batch",
        4,
        "--preferred-batch",
        16,
        "--queue-delay",
        250,
        "--instances",
        3,
    ]
    assert run(model, *options)[0] == 0
    config = config_of(tmp_path / "repository" / "m")
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert config.instance_group[0].count == 3
    code, _, err = run(model, "--max-batch", 2, "--preferred-batch", 3)
    assert (code, "preferred batch size 3" in err) == (2, True)


def test_external_data_travels_with_the_model(run, tmp_path):
    path = two_convs(tmp_path / "m.onnx", external=True)
    assert run(path)[0] == 0
    folder = tmp_path / "repository" / "m" / "1"
    assert names_in(folder) == ["m.onnx.data", "model.onnx"]
    assert (folder / "m.onnx.data").read_bytes() == (tmp_path / "m.onnx.data").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.input[0], "name", "other"), "inputs are other"),
        (lambda c: setattr(c.input[0], "data_type", pb.TYPE_FP16), r"input 'x' is FP16\[-1, 3\]"),
        (lambda c: c.output[0].dims.append(4), r"output 'y' is FP32\[-1, 3, 4\]"),
        (lambda c: setattr(c, "max_batch_size", 0), r"input 'x' is FP32\[3\]"),
        (lambda c: c.input.add(name="z"), "inputs are x, z"),
    ],
)
def test_a_configuration_of_another_model_is_noticed(tmp_path, change, message):
    x, y = (PackagedTensor(name=name, datatype="FP32", shape=[-1, 3]) for name in "xy")
    config = pb.ModelConfig(max_batch_size=4)
    config.input.add(name="x", data_type=pb.TYPE_FP32, dims=[3])
    config.output.add(name="y", data_type=pb.TYPE_FP32, dims=[3])
    check_config(config, [x], [y], tmp_path)
    change(config)
    with pytest.raises(BadInputError, match=message):
        check_config(config, [x], [y], tmp_path)


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fused(tmp_path):
    return four_sources(tmp_path / "m.onnx", form=Form.FUSED)


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "libmsconv_trt10.so"
    path.write_bytes(b"a library")
    return path


def test_a_plan_with_its_plugin_library(run, tmp_path, fused, library):
    plan = fake_plan(fused, tmp_path / "m.plan", plugins=[library])
    code, out, err = run(fused, "--plan", plan, "--instances", 2, "--json", tmp_path / "r.json")
    assert code == 0, err
    assert "the plan was not run" in out
    repository = tmp_path / "repository"
    config = config_of(repository / "m")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 6)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]  # what the plan is tuned for
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.profile)) == (pb.ModelInstanceGroup.KIND_GPU, 2, ["0"])
    assert list(config.model_warmup[0].inputs["image"].dims) == [3, 64, 64]
    assert names_in(repository / "m" / "1") == ["libmsconv_trt10.so", "model.plan"]
    assert (repository / "m" / "1" / "model.plan").read_bytes() == b"a plan"
    setting = "--backend-config=tensorrt,plugins={}/m/1/libmsconv_trt10.so"
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["launch"] == [
        "tritonserver", f"--model-repository={repository}", setting.format(repository),
    ]  # fmt: skip
    assert shlex.join(report["launch"]) in out
    service = yaml.safe_load((repository / "compose.yaml").read_text())["services"]["triton"]
    assert service["image"] == "nvcr.io/nvidia/tritonserver:24.11-py3"  # the one with TensorRT 10.6.0
    assert service["command"] == ["tritonserver", "--model-repository=/models", setting.format("/models")]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    predictor = yaml.safe_load((repository / "inferenceservice.yaml").read_text())["spec"]["predictor"]["model"]
    assert predictor["args"] == [setting.format("/mnt/models")]
    assert predictor["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert setting.format("$PWD") in (repository / "README.md").read_text()


def test_a_plan_of_a_model_in_plugin_form(run, tmp_path, library):
    path = four_sources(tmp_path / "m.onnx", form=Form.PLUGIN)
    code, _, err = run(path)
    assert (code, "is in plugin form" in err, "convert --form fused" in err) == (2, True, True)
    plan = fake_plan(path, tmp_path / "m.plan", plugins=[library], model_form="plugin")
    assert run(path, "--plan", plan)[0] == 0
    assert tensors_of(config_of(tmp_path / "repository" / "m").output)["y"] == ("TYPE_FP32", [3, -1, -1])


def test_a_plan_for_fixed_batches_is_not_joined(run, tmp_path, fused):
    profile = {name: [[4, *shape[1:]] for shape in shapes] for name, shapes in PROFILE.items()}
    code, out, _ = run(fused, "--plan", fake_plan(fused, tmp_path / "m.plan", profile))
    assert (code, "the plan takes batches from 4 on" in out) == (0, True)
    config = config_of(tmp_path / "repository" / "m")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, 3, -1, -1])
    assert list(config.model_warmup[0].inputs["image"].dims) == [4, 3, 64, 64]


def test_a_plan_whose_precision_was_not_read_back_is_said(run, tmp_path, fused):
    unknown = PrecisionCheck(verdict="unverified", reason="the plan was not read back")
    code, out, _ = run(fused, "--plan", fake_plan(fused, tmp_path / "m.plan", precision_check=unknown))
    assert (code, "types of its graph is unknown: the plan was not read back" in out) == (0, True)


def refused_plans():
    def other_model(model, path, library):
        fake_plan(model, path, model_sha256="0" * 64)

    def no_sidecar(model, path, library):
        path.write_bytes(b"a plan")

    def changed(model, path, library):
        fake_plan(model, path)
        path.write_bytes(b"b plan")

    def other_inputs(model, path, library):
        fake_plan(model, path, {"image": PROFILE["image"]})

    def wrong_precision(model, path, library):
        fake_plan(model, path, precision_check=PrecisionCheck(verdict="differ", reason="1 of 2 in fp32"))

    def unknown_image(model, path, library):
        fake_plan(model, path, version="10.99.0")

    def other_library(model, path, library):
        fake_plan(model, path, plugins=[library])
        library.write_bytes(b"built again")

    return {
        "was not built from": (other_model, 2),
        "has no sidecar": (no_sidecar, 2),
        "was changed since": (changed, 2),
        "optimization profile has the inputs image": (other_inputs, 2),
        "1 of 2 in fp32": (wrong_precision, 2),
        "Triton image with TensorRT 10.99.0": (unknown_image, 2),
        "needs the plugin library": (other_library, 3),
    }


@pytest.mark.parametrize("message", refused_plans())
def test_plans_that_are_refused(run, tmp_path, fused, library, message):
    make, expected = refused_plans()[message]
    make(fused, tmp_path / "m.plan", library)
    code, _, err = run(fused, "--plan", tmp_path / "m.plan")
    assert code == expected, err
    assert message in err
    assert not (tmp_path / "repository").exists()


def test_plugin_libraries_that_are_refused(run, tmp_path, fused, library):
    plan = fake_plan(fused, tmp_path / "m.plan", plugins=[library])
    other = tmp_path / "other.so"
    other.write_bytes(b"another library")
    old = tmp_path / "libmsconv_trt8.so"
    old.write_bytes(b"old")
    for given, message in (
        (other, "is not the plugin library that"),
        (old, "was built for TensorRT 8"),
        (tmp_path / "no.so", "no such"),
    ):
        code, _, err = run(fused, "--plan", plan, "--plugin", given)
        assert (code, message in err) == (2, True), err
    bare = fake_plan(fused, tmp_path / "bare.plan")
    code, _, err = run(fused, "--plan", bare, "--plugin", library)
    assert (code, "was built without plugin libraries" in err) == (2, True)
    code, _, err = run(fused, "--plugin", library)
    assert (code, "--plugin is for TensorRT plans" in err) == (2, True)
    assert run(fused, "--plan", plan, "--plugin", library)[0] == 0


def test_a_batch_larger_than_the_plan_takes(run, tmp_path, fused):
    plan = fake_plan(fused, tmp_path / "m.plan")
    code, _, err = run(fused, "--plan", plan, "--max-batch", 7)
    assert (code, "takes batches up to 6" in err) == (2, True)


def test_models_that_need_different_images_do_not_share_a_repository(run, tmp_path, fused):
    assert run(fused, "--name", "a", "--plan", fake_plan(fused, tmp_path / "m.plan"))[0] == 0
    later = fake_plan(fused, tmp_path / "n.plan", version="10.8.0.43")
    code, _, err = run(fused, "--name", "b", "--plan", later)
    assert (code, "a in the same repository needs 24.11-py3" in err) == (2, True)
    assert run(fused, "--name", "b")[0] == 0  # served by any image
    service = yaml.safe_load((tmp_path / "repository" / "compose.yaml").read_text())["services"]["triton"]
    assert service["image"].endswith(":24.11-py3")


# -- running again ---------------------------------------------------------------------------------------------------


def test_the_same_model_again_updates(run, tmp_path, model):
    assert run(model)[0] == 0
    code, out, _ = run(model, "--max-batch", "2")
    assert (code, "version 1 updated" in out) == (0, True)
    folder = tmp_path / "repository" / "m"
    assert config_of(folder).max_batch_size == 2
    assert names_in(folder) == ["1", "config.pbtxt", "msconv.json", "warmup"]
    before = snapshot(tmp_path / "repository")
    assert run(model, "--max-batch", "2")[0] == 0
    assert snapshot(tmp_path / "repository") == before


def test_another_model_is_refused(run, tmp_path, model):
    assert run(model, "--name", "m")[0] == 0
    before = snapshot(tmp_path / "repository")
    other = four_sources(tmp_path / "other.onnx", width=5)
    code, _, err = run(other, "--name", "m")
    assert (code, "version 1 is another model" in err, "--version 2" in err) == (2, True, True)
    assert snapshot(tmp_path / "repository") == before
    code, out, _ = run(other, "--name", "m", "--force")
    assert (code, "version 1 replaced" in out) == (0, True)
    assert (tmp_path / "repository" / "m" / "1" / "model.onnx").read_bytes() == other.read_bytes()


def test_versions_of_one_model(run, tmp_path, model):
    """Another file is another version where that is said; its interface has to be the same."""
    newer = four_sources(tmp_path / "newer.onnx", width=5)
    half = four_sources(tmp_path / "half.onnx", TensorProto.FLOAT16)
    assert run(model, "--name", "m")[0] == 0
    code, out, _ = run(newer, "--name", "m", "--version", "2")
    assert (code, "version 2 version added" in out) == (0, True)
    folder = tmp_path / "repository" / "m"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "2" / "model.onnx").read_bytes() == newer.read_bytes()
    sidecar = ModelSidecar.model_validate_json((folder / "msconv.json").read_text())
    assert {v: entry.model_sha256 for v, entry in sidecar.versions.items()} == {
        "1": sha256_of(model), "2": sha256_of(newer),
    }  # fmt: skip
    assert "version 1 updated" in run(model, "--name", "m")[1]  # each file finds its own version again
    assert "version 2 updated" in run(newer, "--name", "m")[1]
    before = snapshot(tmp_path / "repository")
    code, _, err = run(half, "--name", "m", "--version", "3")
    assert (code, "has other inputs or outputs" in err) == (2, True)
    code, _, err = run(newer, "--name", "m", "--version", "2", "--plan", fake_plan(newer, tmp_path / "n.plan"))
    assert (code, "runs on the onnxruntime backend" in err) == (2, True)
    assert snapshot(tmp_path / "repository") == before


def test_two_models_in_one_repository(run, tmp_path, model):
    assert run(model, "--name", "b")[0] == 0
    assert run(model, "--name", "a")[0] == 0
    readme = (tmp_path / "repository" / "README.md").read_text()
    assert readme.index("| `a` |") < readme.index("| `b` |")
    assert sorted(p.name for p in (tmp_path / "repository").iterdir() if p.is_dir()) == ["a", "b"]


def test_folders_of_others_are_not_touched(run, tmp_path, model):
    folder = tmp_path / "repository" / "m"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    for options in ((), ("--force",)):
        code, _, err = run(model, *options)
        assert (code, "is no model folder" in err) == (2, True)
    (folder / "config.pbtxt").write_text("name: 'm'")
    code, _, err = run(model)
    assert (code, "msconv did not package" in err) == (2, True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert run(model, "--force")[0] == 0
    assert not (folder / "thesis.txt").exists()


def test_a_file_that_the_user_made_theirs_is_kept(run, tmp_path, model):
    assert run(model)[0] == 0
    compose = tmp_path / "repository" / "compose.yaml"
    compose.write_text("services: {}\n")
    code, out, _ = run(model, "--max-batch", "2")
    assert (code, "compose.yaml in the repository is not msconv's" in out) == (0, True)
    assert compose.read_text() == "services: {}\n"


# -- all or nothing --------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [Interrupted, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["config_text", "write_sample", "check_folder", "keep_versions", "put_in_place"])
def test_an_interrupted_write_leaves_what_was_there(run, tmp_path, model, monkeypatch, step, error, exists):
    from msconv_deploy.serving.triton import package

    if exists:
        assert run(model)[0] == 0
    before = snapshot(tmp_path)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(package, step, fail)
    if error is Interrupted:
        with pytest.raises(Interrupted):
            run(model, "--max-batch", "2")
    else:
        code, _, err = run(model, "--max-batch", "2")
        assert (code, "No space left" in err) == (2, True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_after_the_folder_took_its_place_is_undone(run, tmp_path, model, monkeypatch, exists):
    if exists:
        assert run(model)[0] == 0
    before = snapshot(tmp_path)
    swap = repository_module._swap

    def fail(source, place, there):
        if place.name == "compose.yaml":
            raise OSError(5, "Input/output error")
        swap(source, place, there)

    monkeypatch.setattr(repository_module, "_swap", fail)
    code, _, err = run(model, "--max-batch", "2")
    assert (code, "nothing was changed" in err) == (2, True)
    monkeypatch.undo()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("system", ["renameat2", "plain renames"])
def test_folders_are_exchanged(tmp_path, monkeypatch, system):
    if system == "plain renames":
        monkeypatch.setattr(repository_module.ctypes, "CDLL", lambda *a, **k: object())
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    repository_module.exchange(tmp_path / "a", tmp_path / "b")
    assert snapshot(tmp_path) == {"a": None, "a/b": b"b", "b": None, "b/a": b"a"}
    with pytest.raises(OSError, match="c"):
        repository_module.exchange(tmp_path / "a", tmp_path / "c")
    assert snapshot(tmp_path) == {"a": None, "a/b": b"b", "b": None, "b/a": b"a"}


def test_nothing_hidden_is_ever_in_a_repository(run, tmp_path, model, monkeypatch):
    """Triton takes a hidden folder for a model and does not start."""
    from msconv_deploy.serving.triton import package

    seen = []
    check = package.check_folder

    def look(folder, *arguments):
        seen.append(names_in(tmp_path / "repository"))
        return check(folder, *arguments)

    assert run(model)[0] == 0
    monkeypatch.setattr(package, "check_folder", look)
    assert run(model, "--max-batch", "2")[0] == 0
    assert seen == [["README.md", "compose.yaml", "inferenceservice.yaml", "m"]]


# -- bad input, and the files for deployment -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "../m"], "model name"),
        (["--name", ".m"], "model name"),
        (["--image", "nvcr.io/nvidia/tritonserver:25.01-py3"], "write the tag alone"),
        (["--input-shape", "nobody:1x2"], "no such input"),
        (["--input-shape", "image:1x5x8x8"], "fixes 3"),
        (["--plan", "no.plan"], "no such file"),
    ],
)
def test_bad_options(run, tmp_path, model, options, message):
    code, _, err = run(model, *options)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "repository").exists()


def test_a_missing_model_and_a_repository_that_is_a_file(run, tmp_path, model):
    assert run(tmp_path / "no.onnx")[0] == 2
    (tmp_path / "repository").write_text("")
    code, _, err = run(model)
    assert (code, "is a file" in err) == (2, True)


def test_a_model_that_runs_on_nothing(run, tmp_path):
    """A reshape to an extent that no tried size has."""
    path = pointwise(tmp_path / "m.onnx", [
        helper.make_node("Constant", [], ["shape"], value_ints=[7, 3001]),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ])  # fmt: skip
    code, _, err = run(path)
    assert (code, "runs on none of the inputs" in err, "--input-shape" in err) == (3, True, True)
    assert not (tmp_path / "repository").exists()


def test_without_the_extra(run, model, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("msconv_deploy.serving.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    code, _, err = run(model)
    assert (code, "msconv-deploy[serve]" in err) == (3, True)


def test_manifests(run, tmp_path, model):
    assert run(model, "--image", "25.06-py3", "--storage-uri", "s3://bucket/models")[0] == 0
    compose = yaml.safe_load((tmp_path / "repository" / "compose.yaml").read_text())["services"]["triton"]
    assert compose["image"] == "nvcr.io/nvidia/tritonserver:25.06-py3"
    assert compose["command"] == ["tritonserver", "--model-repository=/models"]
    assert compose["volumes"] == [".:/models:ro"]
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])
    assert "deploy" not in compose
    manifest = yaml.safe_load((tmp_path / "repository" / "inferenceservice.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert manifest["spec"]["predictor"]["model"] == {
        "modelFormat": {"name": "triton"},
        "runtime": "kserve-tritonserver",
        "runtimeVersion": "25.06-py3",
        "protocolVersion": "v2",
        "storageUri": "s3://bucket/models",
    }


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": {"c": [], "d": {}, "e": None, "f": True}},
        [["x", ["y", {"k": 1.5}]], "no", "1e3", "a: b #c", "'\"\\\n\t", "ä\u2028"],
        {"list": [{"a": 1, "b": [2]}, {"c": "x"}]},
    ],
)
def test_yaml_reads_back(value):
    assert yaml.safe_load(to_yaml(value)) == value


def test_kubernetes_names():
    assert [kubernetes_name(n) for n in ("My_Models.v2", "--", "x" * 80)] == ["my-models-v2", "models", "x" * 63]
