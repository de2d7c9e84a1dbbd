"""The program: exit codes and one message for every kind of bad input, never a traceback or a partial file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from msconv_deploy.model_files import read_model, write_model
from msconv_deploy.ops.forms import Form, convert_form, form_of
from msconv_deploy.reporting.convert import ConvertReport
from tests.ops.test_lowerings import two_layers
from tests.validation.networks import two_convs

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
        (["convert", "plugin.onnx", "--form", "fused", "-o", "."], ".: is a folder; name the output file"),
        (["convert", "plugin.onnx", "--form", "fused", "-o", "/"], "/: is a folder; name the output file"),
        (["convert", "plugin.onnx", "--form", "fused", "-o", "b.json"], "b.json: is named for two outputs"),
        (
            ["convert", "plugin.onnx", "--form", "fused", "-o", "a.onnx", "--json", "a.onnx", "--force"],
            "a.onnx: is named for two outputs",
        ),
        (
            ["convert", "plugin.onnx", "--form", "fused", "-o", "a.onnx", "--json", "plugin.onnx", "--force"],
            "plugin.onnx: belongs to the input",
        ),
        (
            ["convert", "plugin.onnx", "--form", "fused", "-o", "a.onnx", "--json", "a.onnx/r.json"],
            "cannot be the folder",
        ),
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


def test_a_conversion_writes_all_or_nothing(plugin_file, tmp_path, monkeypatch):
    """The sidecar cannot be written any more when the model is ready."""
    before = sorted(tmp_path.iterdir())

    def full(self, *arguments, **more):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["convert", str(plugin_file), "--form", "fused", "-o", str(tmp_path / "o.onnx")]) == ExitCode.BAD_INPUT
    assert sorted(tmp_path.iterdir()) == before


def test_the_sidecar_may_be_named_as_the_report(plugin_file, tmp_path):
    arguments = ["--form", "fused", "-o", str(tmp_path / "o.onnx"), "--json", str(tmp_path / "o.json"), "-q"]
    assert main(["convert", str(plugin_file), *arguments]) == 0


def test_external_data_of_the_input_is_not_replaced(tmp_path, capsys):
    """OUT.onnx.data would be the file that holds the input's weights."""
    model = two_convs(tmp_path / "o.onnx", external=True).rename(tmp_path / "m.onnx")
    data = tmp_path / "o.onnx.data"
    before = data.read_bytes()
    for more in (["-o", str(tmp_path / "o.onnx")], ["-o", str(tmp_path / "n.onnx"), "--json", str(data)]):
        assert main(["convert", str(model), "--form", "portable", *more, "--force"]) == ExitCode.BAD_INPUT
        assert f"{data}: belongs to the input" in capsys.readouterr().err
        assert data.read_bytes() == before


def test_a_node_whose_function_is_another_ones_is_refused(tmp_path, capsys):
    """Converting would go by the attributes, and so change what is computed."""
    model = convert_form(two_layers()[0], Form.FUSED)
    next(a for a in model.graph.node[0].attribute if a.name == "activation").i = 5
    write_model(model, tmp_path / "m.onnx")
    for form in ("portable", "plugin"):
        arguments = ["convert", str(tmp_path / "m.onnx"), "--form", form, "-o", str(tmp_path / "o.onnx")]
        assert main(arguments) == ExitCode.BAD_INPUT
        said = capsys.readouterr().err
        assert "m.onnx: node 'one': it calls MSConv2d_" in said
        assert "the function of its attributes is MSConv2d_" in said
    assert not (tmp_path / "o.onnx").exists()


def test_a_failure_to_write_names_the_output_alone(plugin_file, tmp_path, capsys, monkeypatch):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msconv_deploy.model_files._write_inline", full)
    assert main(["convert", str(plugin_file), "--form", "fused", "-o", str(tmp_path / "o.onnx")]) == 2
    assert capsys.readouterr().err == f"msconv: {tmp_path / 'o.onnx'}: cannot be written: No space left on device\n"


# -- the streams of the process --------------------------------------------------------------------------------------

PROGRAM = [sys.executable, "-c", "from msconv_deploy.cli.main import run; run()"]


def piped(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of the program when the reader of its standard output is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*PROGRAM, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("wrong", "code"), [(False, 0), (True, 1)])
def test_a_closed_pipe_leaves_the_verbs_own_exit_code(tmp_path, wrong, code):
    right = two_convs(tmp_path / "right.onnx")
    tested = two_convs(tmp_path / "m.onnx", change={"w2": ((1, 3, 1, 1), 0.5)} if wrong else None)
    size = ["--size", "N=1,H=9,W=8", "--no-rtx"]
    found, said = piped("validate", str(tested), "--reference", str(right), *size)
    assert found == code
    assert "Traceback" not in said
    assert "Exception" not in said


def test_help_into_a_closed_pipe_is_no_difference():
    for arguments in (["--help"], ["validate", "--help"], ["--version"]):
        assert piped(*arguments) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said(tmp_path):
    path = two_convs(tmp_path / "m.onnx")
    with Path("/dev/full").open("w") as full:
        for arguments in (["--version"], ["diff", str(path), str(path)]):
            done = subprocess.run([*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
            assert done.returncode == ExitCode.BAD_INPUT
            assert done.stderr == "msconv: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_terminal_of_few_characters_gets_all_lines(plugin_file, tmp_path, environment):
    out = tmp_path / "größe.onnx"
    arguments = ["convert", str(plugin_file), "--form", "fused", "-o", str(out)]
    done = subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    assert "plugin -> fused form" in done.stdout
    assert out.exists()


def test_names_that_are_no_utf8(plugin_file, tmp_path, capsys):
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff.onnx"))
    try:
        plugin_file.rename(source)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    out = source.with_name("\udcfe.onnx")
    assert main(["convert", str(source), "--form", "fused", "-o", str(out)]) == 0
    report = ConvertReport.model_validate_json(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert report.model == str(source).replace("\udcff", "?")
    assert main(["validate", str(out), "--reference", str(out), "--no-rtx"]) == ExitCode.BAD_INPUT
    assert "its name is no UTF-8, which ONNX Runtime needs" in capsys.readouterr().err


def test_help_needs_no_rich():
    code = (
        "import sys\nfrom msconv_deploy.cli.main import main\nmain(['validate', '--help'])\n"
        "sys.exit(any(name.split('.')[0] in ('rich', 'markdown_it', 'numpy', 'onnx') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--reference OTHER.onnx" in done.stdout


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
