"""The program: exit codes and one message for every kind of bad input, never a traceback or a partial file."""

import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from msconv_deploy.model_files import read_model, write_model
from msconv_deploy.ops.forms import Form, convert_form, form_of
from tests.ops.test_lowerings import two_layers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plugin_file(tmp_path):
    write_model(two_layers()[0], tmp_path / "plugin.onnx")
    return tmp_path / "plugin.onnx"


def test_convert_writes_the_form_and_a_sidecar(plugin_file, tmp_path, capsys):
    for form in ("fused", "portable"):
        out = tmp_path / f"{form}.onnx"
        assert (
            main(
                [
                    "convert",
                    str(plugin_file),
                    "--form",
                    form,
                    "-o",
                    str(out),
                    "--json",
                    str(tmp_path / "r.json"),
                    "--force",
                ]
            )
            == 0
        )
        assert form_of(read_model(out)) == Form(form)
        assert '"to_form": "' + form in out.with_suffix(".json").read_text()
    assert "2 MSConv2d layers" in capsys.readouterr().out


def test_convert_never_replaces_its_input_unasked(plugin_file, capsys):
    before = plugin_file.read_bytes()
    arguments = ["convert", str(plugin_file), "--form", "fused", "-o", str(plugin_file)]
    assert main(arguments) == ExitCode.BAD_INPUT
    assert "is the input" in capsys.readouterr().err
    assert plugin_file.read_bytes() == before
    assert main([*arguments, "--force"]) == 0
    assert form_of(read_model(plugin_file)) == Form.FUSED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "absent.onnx", "--form", "fused", "-o", "o.onnx"], "absent.onnx: no such file"),
        (["convert", "text.onnx", "--form", "fused", "-o", "o.onnx"], "text.onnx: not an ONNX model"),
        (["convert", ".", "--form", "fused", "-o", "o.onnx"], "is a folder"),
        (["convert", "plugin.onnx", "--form", "fussed", "-o", "o.onnx"], "fussed"),
        (
            ["convert", "plugin.onnx", "--form", "fused", "-o", "text.onnx/o.onnx"],
            "text.onnx/o.onnx: cannot create its folder",
        ),
        (["convert", "plugin.onnx", "--form", "fused", "-o", "text.onnx"], "text.onnx: exists already"),
        (
            ["convert", "portable.onnx", "--form", "fused", "-o", "o.onnx"],
            "portable.onnx: the model has no msconv::MSConv2d",
        ),
        (["convert", "plugin.onnx", "--form", "fused"], "Missing option"),
        (["transmogrify"], "No such command"),
        (["convert", "--no-such-option"], "No such option"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(plugin_file, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    write_model(convert_form(two_layers()[0], Form.PORTABLE), tmp_path / "portable.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert main(arguments) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert message in " ".join(said.replace("│", " ").split())
    assert "Traceback" not in said
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_malformed_node_is_named(tmp_path, capsys):
    model = two_layers()[0]
    del model.graph.node[1].input[-1]
    write_model(model, tmp_path / "m.onnx")
    assert main(["convert", str(tmp_path / "m.onnx"), "--form", "fused", "-o", str(tmp_path / "o.onnx")]) == 2
    assert "node 'two': MSConv2d with sources" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


def test_export_without_torch_says_how_to_get_it(tmp_path):
    """In a process in which torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from msconv_deploy.cli.main import main\n"
        f"sys.exit(main(['export', {str(ROOT / 'export' / 'minimal.toml')!r}, '-o', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ExitCode.NOT_AVAILABLE
    assert "pip install 'msconv-deploy[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_module_entry(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("msconv-deploy ")


def test_a_model_without_our_nodes_is_portable(tmp_path):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    write_model(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx"
    )
    assert main(["convert", str(tmp_path / "m.onnx"), "--form", "portable", "-o", str(tmp_path / "o.onnx"), "-q"]) == 0
    assert read_model(tmp_path / "o.onnx") == read_model(tmp_path / "m.onnx")
