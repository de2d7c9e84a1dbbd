"""`msconv validate`: table, exit codes, files, and one clear message for bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.reporting import BuildCheck, ValidationReport
from msconv_deploy.runtimes import tensorrt_rtx
from msconv_deploy.runtimes.tensorrt import bindings
from tests.validation.networks import two_convs

ROOT = Path(__file__).parents[2]
WRONG = {"w2": ((1, 3, 1, 1), 0.5)}
SMALL = ["--size", "N=1,H=9,W=8", "--no-rtx"]


@pytest.fixture
def files(tmp_path):
    return str(two_convs(tmp_path / "right.onnx")), str(two_convs(tmp_path / "wrong.onnx", change=WRONG))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["validate", *map(str, arguments)])
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return code, output.out, output.err


def test_agreement_is_exit_code_0_with_a_table(files, capsys):
    code, out, _ = run(capsys, files[0], "--reference", files[0], "--no-rtx")
    assert code == 0
    for text in ("N=4,H=17,W=23", "N=1,H=1,W=1", "border", "interior", "tolerance", "trtexec --onnx="):
        assert text in out
    assert out.count("│ passed") == 8
    assert f"passed: {files[0]} agrees with {files[0]} at 8 sizes" in out


@pytest.mark.parametrize("place", [".", "/", ".."])
def test_a_folder_is_no_model(capsys, place):
    code, _, err = run(capsys, place, "--reference", place)
    assert code == 2
    assert "internal error" not in err


def test_a_difference_is_exit_code_1_and_located(files, capsys):
    code, out, _ = run(capsys, files[1], "--reference", files[0], "--no-rtx")
    assert code == 1
    assert "first diverging tensor: y (Conv second): difference" in out
    assert "t3 before it agrees" in out
    assert "tolerance that would have been needed: " in out
    assert out.splitlines()[-1].startswith(f"differ: {files[1]}: ")


def test_the_needed_tolerance_is_enough(files, capsys, tmp_path):
    run(capsys, files[1], "--reference", files[0], "--no-rtx", "--json", tmp_path / "r.json")
    needed = ValidationReport.model_validate_json((tmp_path / "r.json").read_text()).needed_tolerance
    assert run(capsys, files[1], "--reference", files[0], "--no-rtx", "--tolerance", repr(needed))[0] == 0
    assert run(capsys, files[1], "--reference", files[0], "--no-rtx", "--tolerance", repr(needed * 0.99))[0] == 1


def test_quiet_prints_the_verdict_only(files, capsys):
    code, out, err = run(capsys, files[0], "--reference", files[0], *SMALL, "-q")
    assert code == 0
    assert len(out.splitlines()) == 1
    assert err == ""


def test_sizes_seed_and_json(files, capsys, tmp_path):
    path = tmp_path / "deep" / "r.json"
    sizes = ["--size", "N=2,H=5,W=6", "--size", "H=3,W=3"]
    arguments = [files[0], "--reference", files[0], *sizes, "--seed", "7", "--json", path, "--threads", "1", "--no-rtx"]
    assert run(capsys, *arguments)[0] == 0
    report = ValidationReport.model_validate_json(path.read_text())
    assert [c.size for c in report.cases] == [{"N": 2, "H": 5, "W": 6}, {"N": 1, "H": 3, "W": 3}]
    assert report.seed == 7
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "exists already" in err
    assert run(capsys, *arguments, "--force")[0] == 0


def test_save_prints_the_polygraphy_lines(files, capsys, tmp_path):
    code, out, _ = run(capsys, files[0], "--reference", files[0], *SMALL, "--save", tmp_path / "saved")
    assert code == 0
    assert f"polygraphy run {files[0]} --onnxrt --load-inputs {tmp_path / 'saved' / 'case0.inputs.json'}" in out
    assert (tmp_path / "saved" / "case0.reference.json").exists()
    code, _, err = run(capsys, files[0], "--reference", files[0], *SMALL, "--save", tmp_path / "saved")
    assert code == 2
    assert "is not empty" in err


def test_inputs_and_ranges(files, capsys, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.ones((1, 3, 4, 4), np.float32))
    inputs = ["--inputs", tmp_path / "in.npz", "--input-range", "s:0:1", "--no-rtx"]
    code, out, _ = run(capsys, files[1], "--reference", files[0], *inputs)
    assert code == 1
    assert "N=1,H=4,W=4" in out


def test_unverified_is_exit_code_3(capsys, tmp_path, files):
    nan = np.full((1, 3, 4, 4), np.nan, np.float32)
    np.savez(tmp_path / "in.npz", x=nan)
    code, out, _ = run(capsys, files[0], "--reference", files[0], "--inputs", tmp_path / "in.npz", "--no-rtx")
    assert code == 3
    assert "unverified: " in out
    assert "the reference is NaN" in out


def bad(name: str, tmp_path: Path) -> list[str]:
    """Arguments that are wrong in one way each."""
    right = str(two_convs(tmp_path / "right.onnx"))
    text, cut, npz = tmp_path / "text.onnx", tmp_path / "cut.onnx", tmp_path / "bad.npz"
    text.write_text("hello, this is not a model")
    cut.write_bytes(Path(right).read_bytes()[:500])
    npz.write_bytes(b"PK\x03\x04 rubbish")
    both = [right, "--reference", right]
    return {
        "missing": [str(tmp_path / "nope.onnx"), "--reference", right],
        "missing reference": [right, "--reference", str(tmp_path / "nope.onnx")],
        "folder": [str(tmp_path), "--reference", right],
        "text": [str(text), "--reference", right],
        "truncated": [str(cut), "--reference", right],
        "truncated reference": [right, "--reference", str(cut)],
        "size": [*both, "--size", "1x3x8x8"],
        "symbol": [*both, "--size", "Q=3"],
        "npz": [*both, "--inputs", str(npz)],
        "no npz": [*both, "--inputs", str(tmp_path / "nope.npz")],
        "range": [*both, "--input-range", "x:1"],
        "range of nothing": [*both, "--input-range", "z:0:1"],
        "runtime": [*both, "--runtimes", "ort,orx"],
        "torch without a recipe": [*both, "--runtimes", "torch"],
        "two references": [*both, "--recipe", "r.toml"],
        "nothing to compare": [right],
        "option": [*both, "--sizes", "N=1"],
        "negative tolerance": [*both, "--tolerance", "-1"],
        "unwritable": [*both, "--json", str(text / "r.json")],
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file"),
        ("missing reference", "no such file"),
        ("folder", "is a folder"),
        ("text", "not an ONNX model"),
        ("truncated", "not an ONNX model"),
        ("truncated reference", "cut.onnx: not an ONNX model"),
        ("size", "write NAME=EXTENT"),
        ("symbol", "no dynamic dimension Q; known are N, H, W"),
        ("npz", "bad.npz: is not a NumPy .npz file"),
        ("no npz", "no such file"),
        ("range", "write NAME:LOW:HIGH"),
        ("range of nothing", "no such input; known are x, s"),
        ("runtime", "'orx' is unknown; available are torch, ort"),
        ("two references", "leave out --recipe"),
        ("nothing to compare", "there is no right.json beside it; give --reference OTHER.onnx or --recipe RECIPE.toml"),
        ("option", "No such option"),
        ("negative tolerance", "--tolerance"),
        ("unwritable", "cannot create its folder"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(capsys, tmp_path, name, message):
    arguments = bad(name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, *arguments, "--no-rtx")
    assert code == 2
    assert message in " ".join(err.split())
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_torch_against_a_file_says_what_is_missing(capsys, tmp_path):
    pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")
    code, _, err = run(capsys, *bad("torch without a recipe", tmp_path))
    assert code == 2
    assert "give a recipe" in err


def test_without_a_gpu_trt_is_exit_3_before_anything_runs(files, capsys, monkeypatch):
    monkeypatch.setattr(bindings, "probe", lambda: ([], "no driver library libcuda.so.1"))
    code, out, err = run(capsys, files[0], "--reference", files[0], "--runtimes", "ort,trt")
    assert code == 3
    assert out == ""
    assert "no NVIDIA GPU: no driver library libcuda.so.1" in err


@pytest.mark.parametrize(
    ("status", "option", "expected"),
    [
        ("passed", "--rtx", 0),
        ("failed", "--rtx", 4),
        ("failed", None, 4),
        ("not available", "--rtx", 3),
    ],
)
def test_build_check_and_exit_code(files, capsys, monkeypatch, status, option, expected):
    def check(model, profile):
        assert profile["x"][0] == (1, 3, 9, 8)
        return BuildCheck(runtime="rtx", status=status, reason="" if status == "passed" else "because")

    monkeypatch.setattr(tensorrt_rtx, "available", lambda: True)
    monkeypatch.setattr(tensorrt_rtx, "check_build", check)
    arguments = [files[0], "--reference", files[0], "--size", "N=1,H=9,W=8", *([option] if option else [])]
    code, out, _ = run(capsys, *arguments)
    assert code == expected
    assert f"parse and build: {status}" in out


def test_without_the_package_the_build_check_is_left_out_unless_asked_for(files, capsys, monkeypatch):
    monkeypatch.setattr(tensorrt_rtx, "available", lambda: False)
    small = ["--size", "N=1,H=9,W=8"]
    code, out, _ = run(capsys, files[0], "--reference", files[0], *small)
    assert code == 0
    assert "parse and build: not available" in out
    code, out, _ = run(capsys, files[0], "--reference", files[0], *small, "--rtx")
    assert code == 3
    assert "pip install 'msconv-deploy[rtx]'" in out


# -- against a recipe ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "models" / "minimal", folder / "models" / "minimal")
    recipe = shutil.copy(ROOT / "export" / "minimal.toml", folder / "models")
    (folder / "export").mkdir()
    recipe = Path(recipe).rename(folder / "export" / "minimal.toml")
    arguments = ["export", str(recipe), "-o", str(folder / "build" / "demo"), "--no-validate", "-q"]
    assert main([*arguments, "--form", "fused", "--form", "plugin"]) == 0
    return folder / "build" / "demo" / "minimal"


@pytest.fixture
def project(exported, monkeypatch):
    """The folder in which the recipe and the artefacts lie, and which the program is started in."""
    monkeypatch.chdir(exported.parents[2])
    return exported.parents[2]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_sidecar_names_the_recipe(project, capsys, precision):
    code, out, err = run(capsys, f"build/demo/minimal/minimal.fused.{precision}.onnx", *SMALL)
    assert code == 0, out
    assert f"recipe: export/minimal.toml (named by minimal.fused.{precision}.json)" in err
    assert "torch" in out
    assert "ort" in out
    assert ("float16" in out) == (precision == "fp16")


def test_a_recipe_can_be_given_and_so_can_the_runtimes(exported, capsys, tmp_path):
    model = tmp_path / "m.onnx"
    shutil.copy(exported / "minimal.fused.fp32.onnx", model)
    recipe = ["--recipe", ROOT / "export" / "minimal.toml"]
    code, out, _ = run(capsys, model, *recipe, *SMALL, "--runtimes", "ort")
    assert code == 0
    assert "│ torch " not in out


def test_a_wrong_weight_names_the_module(exported, capsys, tmp_path):
    model = onnx.load(exported / "minimal.fused.fp32.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[1] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    code, out, _ = run(capsys, tmp_path / "m.onnx", "--recipe", ROOT / "export" / "minimal.toml", "--no-rtx")
    assert code == 1
    assert "first diverging tensor: output of module " in out


def test_the_plugin_form_says_how_to_go_on(project, capsys):
    code, _, err = run(capsys, "build/demo/minimal/minimal.plugin.fp32.onnx", *SMALL)
    assert code == 3
    assert "msconv convert --form fused" in err


def test_sidecars_that_do_not_help(exported, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    model = tmp_path / "build" / "m.onnx"
    shutil.copy(exported / "minimal.fused.fp32.onnx", model)
    sidecar = tmp_path / "build" / "m.json"
    for content, message in (
        ("{", "is not a JSON file"),
        ("[]", "names no recipe"),
        ("[" * 100_000 + "]" * 100_000, "is nested too deeply"),
        (json.dumps({"recipe": "../gone.toml"}), "gone.toml is not there any more"),
        (json.dumps({"recipe": "gone\0.toml"}), "cannot be looked for"),
    ):
        sidecar.write_text(content)
        code, _, err = run(capsys, model, *SMALL)
        assert code == 2
        assert message in err
        assert "give --reference OTHER.onnx or --recipe RECIPE.toml" in err


def test_runtimes_that_do_not_run_the_file_verify_nothing(exported, capsys):
    """The module agrees with itself, whatever the file holds."""
    recipe = ["--recipe", ROOT / "export" / "minimal.toml"]
    code, _, err = run(capsys, exported / "minimal.fused.fp32.onnx", *recipe, *SMALL, "--runtimes", "torch")
    assert code == 2
    assert "of the runtimes torch none runs the ONNX file" in err
    assert "add ort, or trt" in err


def test_an_infinite_tolerance_is_refused(files, capsys):
    for text in ("inf", "nan"):
        code, _, err = run(capsys, files[1], "--reference", files[0], *SMALL, "--tolerance", text)
        assert code == 2
        assert "--tolerance" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**63)], "is larger than"),
        (["--size", "H=" + "9" * 5000], "write NAME=EXTENT"),
        (["--input-range", "s:0:1", "--input-range", "s:0:2"], "s is given twice"),
        (["--input-range", "s:-1e308:1e308"], "leaves its type float32"),
        (["--inputs", "."], "is no plain file; name a NumPy .npz file"),
    ],
)
def test_numbers_and_places_that_cannot_be(files, capsys, arguments, message):
    code, _, err = run(capsys, files[0], "--reference", files[0], "--no-rtx", *arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())


def test_the_report_replaces_nothing_that_is_read(files, capsys, tmp_path):
    external = two_convs(tmp_path / "external.onnx", external=True)
    np.savez(tmp_path / "in.npz", x=np.ones((1, 3, 4, 4), np.float32))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    data = next(name for name in before if name.startswith("external.") and name != "external.onnx")
    arguments = [external, "--reference", files[0], "--inputs", tmp_path / "in.npz", "--no-rtx", "--force", "--json"]
    for name in ("external.onnx", data, Path(files[0]).name, "in.npz"):
        code, _, err = run(capsys, *arguments, tmp_path / name)
        assert code == 2, name
        assert f"{name}: belongs to the input" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saved_results_replace_neither_an_input_nor_the_report(capsys, tmp_path, files):
    save = ["--save", tmp_path / "saved", "--force"]
    code, _, err = run(
        capsys, files[0], "--reference", files[0], *SMALL, *save, "--json", tmp_path / "saved/case0.ort.json"
    )
    assert code == 2
    assert "choose another --save DIR" in err
    assert not (tmp_path / "saved").exists() or not list((tmp_path / "saved").iterdir())
    report = tmp_path / "saved" / "report.json"
    assert run(capsys, files[0], "--reference", files[0], *SMALL, *save, "--json", report)[0] == 0


def test_sequences_inside_do_not_stop_the_search(capsys, tmp_path):
    """Shape inference may take a sequence for a tensor."""
    for name, value in (("a", 2.0), ("b", 3.0)):
        nodes = [
            onnx.helper.make_node("Mul", ["x", "c"], ["m"]),
            onnx.helper.make_node("SequenceConstruct", ["m", "m"], ["s"]),
            onnx.helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
        ]
        x = onnx.helper.make_tensor_value_info("x", 1, ["N", 4])
        y = onnx.helper.make_tensor_value_info("y", 1, None)
        c = onnx.helper.make_tensor("c", 1, [1], [value])
        graph = onnx.helper.make_graph(nodes, "g", [x], [y], [c])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    code, out, _ = run(capsys, tmp_path / "a.onnx", "--reference", tmp_path / "b.onnx", "--no-rtx")
    assert code == 1
    assert "first diverging tensor: m (Mul" in out


def test_a_wrong_time_limit_is_not_the_files_fault(files, capsys, monkeypatch):
    monkeypatch.setenv("MSCONV_RUN_SECONDS", "x")
    code, _, err = run(capsys, files[0], "--reference", files[0], *SMALL)
    assert code == 2
    assert err.splitlines()[-1].startswith("msconv: MSCONV_RUN_SECONDS=x: ")
