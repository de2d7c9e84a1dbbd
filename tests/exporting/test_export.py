"""Export end to end: forms, precisions, exporters, opsets, other sizes than the traced one, and failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="export needs torch: pip install 'msconv-deploy[torch]'")
from safetensors.torch import save_file  # noqa: E402

from msconv_deploy.cli.main import main  # noqa: E402
from msconv_deploy.errors import BadInputError, BuildFailedError, ExitCode  # noqa: E402
from msconv_deploy.exporting import export as export_module  # noqa: E402
from msconv_deploy.exporting import export_recipe, load_model, load_recipe  # noqa: E402
from msconv_deploy.exporting.model import check_example  # noqa: E402
from msconv_deploy.model_files import read_model  # noqa: E402
from msconv_deploy.ops.forms import Form, form_of, msconv_nodes  # noqa: E402
from msconv_deploy.reporting.export import ExportReport  # noqa: E402
from tests.oracle import difference  # noqa: E402

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "export" / "minimal.toml"
NAMES = ("image", "rows", "columns", "scalars")


def feeds(n, h, w, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"image": (n, 3, h, w), "rows": (n, 2, h), "columns": (n, 2, w), "scalars": (n, 4)}
    return {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()}


def run(path, inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return folder, export_recipe(load_recipe(RECIPE), folder, build_check=False)


def test_every_artefact_lies_in_its_place_with_its_sidecar(exported):
    folder, sidecars = exported
    names = {f"minimal.{f}.{p}" for f in ("portable", "fused", "plugin") for p in ("fp32", "fp16")}
    assert {p.name for p in (folder / "minimal").iterdir()} == {f"{n}{e}" for n in names for e in (".onnx", ".json")}
    for sidecar in sidecars:
        a = sidecar.artefact
        stored = json.loads((folder / "minimal" / f"minimal.{a.form}.{a.precision}.json").read_text())
        assert stored["verdict"] == sidecar.verdict == "passed"
        assert stored["schema_version"] == 1
        assert 0 < sidecar.largest_difference["ort"] < sidecar.tolerance
        assert (a.opset, a.inputs["rows"], a.outputs) == (18, ["N", 2, "H"], {"y": ["N", 3, "H", "W"]})
        assert Path(folder / "minimal" / stored["recipe"]).resolve() == RECIPE


def test_forms_are_what_they_say(exported):
    folder, _ = exported
    for form in Form:
        model = read_model(folder / "minimal" / f"minimal.{form.value}.fp32.onnx")
        assert form_of(model) == form
        assert len(msconv_nodes(model)) == (0 if form == Form.PORTABLE else 2)
        assert len(model.functions) == (2 if form == Form.FUSED else 0)


def test_no_path_of_this_machine_is_in_an_artefact(exported):
    folder, _ = exported
    for path in (folder / "minimal").glob("*.onnx"):
        assert str(ROOT).encode() not in path.read_bytes()


@pytest.mark.parametrize("size", [(1, 24, 32), (4, 23, 31), (1, 1, 1), (4, 2, 5), (1, 63, 3)])
@pytest.mark.parametrize("form", ["portable", "fused"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 4e-3)])
def test_artefacts_equal_pytorch_at_sizes_other_than_the_traced_one(exported, form, precision, tolerance, size):
    folder, _ = exported
    network = load_model(load_recipe(RECIPE), precision).double()
    inputs = feeds(*size, dtype={"fp32": np.float32, "fp16": np.float16}[precision])
    with torch.no_grad():
        expected = network(*(torch.from_numpy(inputs[n]).double() for n in NAMES)).numpy()
    actual = run(folder / "minimal" / f"minimal.{form}.{precision}.onnx", inputs)
    assert actual.dtype == inputs["image"].dtype
    assert difference(actual, expected) < tolerance


@pytest.mark.parametrize(
    ("exporter", "opset"),
    [("dynamo", 17), ("dynamo", 20), ("dynamo", 23), ("dynamo", 26), ("legacy", 17), ("legacy", 18), ("legacy", 23)],
)
def test_the_opset_asked_for_is_written_and_runs(tmp_path, exporter, opset):
    recipe = load_recipe(RECIPE).replaced(
        exporter=exporter, opset=opset, precision=["fp32"], forms=["portable", "fused"]
    )
    for sidecar in export_recipe(recipe, tmp_path, build_check=False):
        assert sidecar.verdict == "passed"
        path = tmp_path / "minimal" / sidecar.artefact.files[0]
        assert [e.version for e in onnx.load(path).opset_import if e.domain == ""] == [opset]
        assert sidecar.artefact.outputs == {"y": ["N", 3, "H", "W"]}


NETWORK = """
import torch
from torch import nn
from msconv_deploy.nn import MSConv2d

class Reflect(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = MSConv2d([3, 0, 0, 2], 4, 3, padding=1)
        self.b = nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")
    def forward(self, nchw, nc):
        return self.b(self.a(nchw, nc=nc))

class Baked(Reflect):
    def forward(self, nchw, nc):
        h = int(nchw.shape[2])
        return super().forward(nchw, nc) * torch.linspace(0, 1, h if h > 7 else 7)[:, None]

class Ignores(Reflect):
    def forward(self, nchw, nc):
        return self.b(self.a(nchw, nc=nchw.mean((2, 3))[:, :2]))

class Breaks(Reflect):
    def forward(self, nchw, nc):
        if nchw.sum() > 0:
            return self.b(self.a(nchw, nc=nc))
        return nchw
"""


def recipe_for(folder, kind, extra=""):
    (folder / "network.py").write_text(NETWORK)
    recipe = folder / f"{kind.lower()}.toml"
    recipe.write_text(f"""
[model]
module = "network.py:{kind}"
checkpoint = "net.safetensors"
[inputs]
nchw = ["N", 3, "H", "W"]
nc = ["N", 2]
[example]
N = 2
H = 8
W = 9
[export]
precision = ["fp32"]
{extra}
""")
    torch.manual_seed(0)
    sys.path.insert(0, str(folder))
    try:
        import importlib.util

        spec = importlib.util.spec_from_file_location("net_of_test", folder / "network.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    save_file(module.Reflect().state_dict(), folder / "net.safetensors")
    return recipe


def test_an_opset_that_was_not_written_is_an_error_with_the_cause(tmp_path):
    """The dynamo exporter asked for 17 writes 18 for reflect padding and says nothing."""
    recipe = load_recipe(recipe_for(tmp_path, "Reflect", "opset = 17"))
    with pytest.raises(BuildFailedError, match=r"asked for opset 17, but the dynamo exporter wrote 18.*Pad") as caught:
        export_recipe(recipe, tmp_path / "out")
    assert caught.value.exit_code == ExitCode.BUILD_FAILED
    assert not list((tmp_path / "out").rglob("*.onnx"))
    assert export_recipe(recipe.replaced(exporter="legacy"), tmp_path / "out", build_check=False)[0].verdict == "passed"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("Breaks", BuildFailedError, "the dynamo exporter failed"),
        ("Baked", BuildFailedError, "exporter failed|fixes an extent"),
        ("Missing", BadInputError, "has no nn.Module 'Missing'; it has MSConv2d, Reflect, Baked, Ignores, Breaks"),
    ],
)
def test_networks_that_cannot_be_exported(tmp_path, kind, error, message):
    with pytest.raises(error, match=message):
        export_recipe(load_recipe(recipe_for(tmp_path, kind)), tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def minimal_with(folder, **changed):
    """The minimal recipe with other lines; checkpoint and network stay where they are."""
    lines = RECIPE.read_text().replace("../models", str(ROOT / "models")).splitlines()
    replaced = [f"{key} = {changed[key]}" if (key := line.split(" = ")[0]) in changed else line for line in lines]
    assert len(changed) == sum(old != new for old, new in zip(lines, replaced, strict=True))
    path = folder / "changed.toml"
    path.write_text("\n".join(replaced))
    return path


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_a_recipe_whose_example_the_network_refuses(tmp_path, capsys, exporter):
    """Exporters write it all the same: while they trace, the extents are names that they take for equal."""
    path = minimal_with(tmp_path, rows='["N", 1, "W"]')
    assert main(["export", str(path), "-o", str(tmp_path / "out"), "--exporter", exporter]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert f"{path}: Minimal does not run at the recipe's example size N=2,H=24,W=32" in said
    assert "source nch must have 2 channels" in said
    assert "rows [N, 1, W] = [2, 1, 32]" in said
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_inputs_that_forward_does_not_have(tmp_path):
    path = recipe_for(tmp_path, "Reflect")
    path.write_text(path.read_text().replace('nc = ["N", 2]', 'vector = ["N", 2]'))
    with pytest.raises(BadInputError, match=r"reflect.toml: Reflect does not run .* argument 'vector'"):
        export_recipe(load_recipe(path), tmp_path / "out")


def test_sizes_that_the_module_refuses_are_reported(tmp_path, capsys):
    """One vector for the columns is called one for the rows, which only square images do not show."""
    path = minimal_with(tmp_path, rows='["N", 2, "W"]', H="32", forms='["fused"]', precision='["fp32"]')
    code = main(["export", str(path), "-o", str(tmp_path / "out"), "--no-rtx", "--json", str(tmp_path / "r.json")])
    said = capsys.readouterr().out
    assert code == 0
    (sidecar,) = ExportReport.model_validate_json((tmp_path / "r.json").read_text()).artefacts
    assert sidecar.verdict == "passed"
    assert all(size["H"] == size["W"] for size in sidecar.sizes)
    refused = {(case.size["H"], case.size["W"]): case.reason for case in sidecar.refused}
    assert "nch has height 48 but nchw has height 32" in refused[32, 48]
    assert f"{len(sidecar.sizes)} of {len(sidecar.sizes) + len(refused)} sizes" in " ".join(said.split())
    assert "not compared: the PyTorch module of changed does not run at N=1,H=32,W=48: BadInputError" in said


def test_the_example_is_run_in_float32(tmp_path):
    """A CPU that does not compute some operator in float16 says nothing about the recipe; the weights stay as they are."""
    recipe = load_recipe(RECIPE)
    network = load_model(recipe, "fp16")
    seen = []
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["image"].dtype), with_kwargs=True)
    check_example(recipe, network)
    assert seen == [torch.float32]
    assert {p.dtype for p in network.parameters()} == {torch.float16}


def test_an_unused_input_is_reported(tmp_path):
    recipe = load_recipe(recipe_for(tmp_path, "Ignores"))
    try:
        sidecars = export_recipe(recipe, tmp_path / "out", build_check=False)
    except BuildFailedError as error:
        assert "nc" in str(error)
    else:
        assert all("nc" in s.artefact.inputs for s in sidecars)


def test_wrong_arguments_name_the_recipe(tmp_path):
    path = recipe_for(tmp_path, "Reflect")
    path.write_text(path.read_text().replace("[inputs]", "arguments = { width = 3 }\n[inputs]"))
    with pytest.raises(BadInputError, match=r"reflect.toml: model.arguments do not fit Reflect"):
        export_recipe(load_recipe(path), tmp_path / "out")


def test_artefacts_are_replaced_only_when_asked(exported):
    folder, _ = exported
    with pytest.raises(BadInputError, match="exists already"):
        export_recipe(load_recipe(RECIPE), folder)


def test_two_recipes_of_one_name_are_refused_before_any_work(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        minimal_with(tmp_path / name)
    paths = [str(path) for path in sorted(tmp_path.rglob("*.toml"))]
    assert main(["export", *paths, "-o", str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    assert "both are called" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_report_replaces_nothing_that_is_read_or_written(tmp_path, capsys):
    recipe = minimal_with(tmp_path)
    before = recipe.read_bytes()
    out = tmp_path / "out"
    places = {
        str(recipe): "belongs to the input",
        str(out / recipe.stem / f"{recipe.stem}.fused.fp32.onnx"): "is named for two outputs",
        str(out / recipe.stem / f"{recipe.stem}.fused.fp32.json"): "is named for two outputs",
    }
    for place, message in places.items():
        assert main(["export", str(recipe), "-o", str(out), "--force", "--json", place]) == ExitCode.BAD_INPUT
        assert f"{place}: {message}" in capsys.readouterr().err
    assert recipe.read_bytes() == before
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(BadInputError, match="cannot"):
        export_recipe(load_recipe(RECIPE), tmp_path / "locked")


def test_a_file_in_the_way_of_the_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="file"):
        export_recipe(load_recipe(RECIPE), tmp_path / "file" / "out")


def test_an_artefact_that_differs_is_not_kept(tmp_path, monkeypatch):
    """A wrong body must be caught, named, and leave no file behind."""
    real = export_module.convert_form

    def wrong(model, form):
        converted = real(model, form)
        for tensor in converted.graph.initializer:
            if tensor.name == "second.nc_block.weight":
                array = onnx.numpy_helper.to_array(tensor).copy()
                array[0, 0] *= 3
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return converted

    monkeypatch.setattr(export_module, "convert_form", wrong)
    recipe = load_recipe(RECIPE).replaced(forms=["fused"], precision=["fp32"])
    (sidecar,) = export_recipe(recipe, tmp_path, build_check=False)
    assert sidecar.verdict == "differ"
    assert "module second" in sidecar.reason
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_newer_opset_than_onnx_runtime_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "newest_onnxruntime_opset", lambda: 17)
    with pytest.raises(BadInputError, match="newer than the installed ONNX Runtime runs, which is 17"):
        export_recipe(load_recipe(RECIPE), tmp_path)


def test_a_recipe_of_the_package_needs_no_torch_to_be_imported_elsewhere():
    """The verb, not the program, needs torch."""
    code = "import sys; import msconv_deploy.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_tensorrt_rtx_parses_and_builds_the_portable_and_the_fused_form(tmp_path, exporter):
    """Two configurations in one file: functions that collided would run the wrong body or not parse."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'msconv-deploy[rtx]'")
    recipe = load_recipe(RECIPE).replaced(exporter=exporter, forms=["portable", "fused"])
    for sidecar in export_recipe(recipe, tmp_path):
        assert sidecar.build_checks == {"rtx": "passed"}, sidecar.reason


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to: /proc")
def test_a_folder_that_nobody_can_write_to():
    with pytest.raises(BadInputError, match="/proc/"):
        export_recipe(load_recipe(RECIPE), "/proc/msconv")
