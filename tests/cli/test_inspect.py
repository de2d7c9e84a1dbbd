"""`msconv inspect`: sites, how their uniformity was found, near-misses; nothing is changed."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from msconv_deploy.reporting import InspectReport
from tests.tile_models import plain_conv, tiled_conv


@pytest.fixture
def model(tmp_path):
    return tiled_conv(tmp_path / "m.onnx")


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def test_sites_with_the_way_their_uniformity_was_found(model, tmp_path, capsys):
    before = model.read_bytes()
    code, out, _ = run(capsys, model, "--input-shape", "x:1x3x64x48", "--json", tmp_path / "r.json")
    assert code == 0
    assert model.read_bytes() == before
    for text in ("first", "16 of 19", "0 to 2: dense", "3 to 18: uniform along", "Expand tile", "1 sites"):
        assert text in out
    report = InspectReport.model_validate_json((tmp_path / "r.json").read_text())
    (site,) = report.sites
    assert (site.node, site.op, site.output) == ("first", "Conv", "t1")
    assert [(s.start, s.size, s.uniform) for s in site.segments] == [(0, 3, []), (3, 16, [2, 3])]
    assert report.input_shapes == {"x": [1, 3, 64, 48]}
    assert report.facts.opset == 17


def test_near_misses_have_a_reason(tmp_path, capsys):
    """The weights of the contraction are computed, so it is no site."""
    model = onnx.load(tiled_conv(tmp_path / "m.onnx"))
    conv = next(node for node in model.graph.node if node.name == "first")
    model.graph.node.insert(0, helper.make_node("Mul", ["w1", "factor"], ["w1_scaled"], "scaled"))
    model.graph.input.append(helper.make_tensor_value_info("factor", 1, [1]))
    conv.input[1] = "w1_scaled"
    onnx.save(model, tmp_path / "m.onnx")
    code, out, _ = run(capsys, tmp_path / "m.onnx", "--json", tmp_path / "r.json")
    report = InspectReport.model_validate_json((tmp_path / "r.json").read_text())
    assert code == 0
    assert not report.sites
    for miss in report.near_misses:
        assert miss.reason
        assert miss.reason.split()[0] in out


def test_a_model_without_sites_says_so(tmp_path, capsys):
    code, out, _ = run(capsys, plain_conv(tmp_path / "m.onnx"))
    assert code == 0
    assert "no sites: no contraction of this model reads copies" in out
    assert run(capsys, tmp_path / "m.onnx", "-q")[1].count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx"], "no such file"),
        (["m.onnx", "--input-shape", "image:1x3x8x8"], "the model has no such input"),
        (["m.onnx", "--json", "m.onnx"], "belongs to the input"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = model.read_bytes()
    code, _, err = run(capsys, *arguments)
    assert code == ExitCode.BAD_INPUT
    assert message in " ".join(err.replace("│", " ").split())
    assert model.read_bytes() == before


def test_it_works_without_torch_and_without_a_runtime(model):
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnxruntime'] = None\n"
        f"from msconv_deploy.cli.main import main\nsys.exit(main(['inspect', {str(model)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_large_weights_are_not_needed(tmp_path, capsys):
    """Weights above the size at which they stay in the file."""
    model = onnx.load(plain_conv(tmp_path / "m.onnx"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((300, 300), np.float32), "unused"))
    onnx.save(model, tmp_path / "m.onnx")
    assert run(capsys, tmp_path / "m.onnx")[0] == 0
