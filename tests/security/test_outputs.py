"""Where output goes: through no link, onto no device, with the rights that the user's umask gives."""

import os
import stat
from pathlib import Path

import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError, ExitCode
from msconv_deploy.files import atomic_write, write_text
from tests.tile_models import tiled_conv


@pytest.fixture
def model(tmp_path):
    return tiled_conv(tmp_path / "m.onnx")


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def optimize(model: Path, output: Path, *more: str) -> int:
    return main(["optimize", str(model), "-o", str(output), "--when", "always", "-q", *more])


def test_links_at_the_outputs_are_replaced_and_their_targets_are_not_written(model, tmp_path):
    links = [tmp_path / name for name in ("o.onnx", "o.json", "report.html", "r.json")]
    for link in links:
        target = tmp_path / f"{link.name}.precious"
        target.write_text("mine")
        link.symlink_to(target)
    more = ["--html", str(tmp_path / "report.html"), "--json", str(tmp_path / "r.json")]
    assert optimize(model, tmp_path / "o.onnx", *more) == ExitCode.BAD_INPUT
    assert all(link.is_symlink() for link in links)
    assert optimize(model, tmp_path / "o.onnx", *more, "--force") == 0
    assert {path.read_text() for path in tmp_path.glob("*.precious")} == {"mine"}
    assert not any(link.is_symlink() for link in links)


def test_a_link_that_leads_nowhere_is_not_replaced_unasked(tmp_path):
    (tmp_path / "o.json").symlink_to(tmp_path / "absent")
    with pytest.raises(BadInputError, match="exists already"):
        write_text(tmp_path / "o.json", "text")
    assert (tmp_path / "o.json").is_symlink()
    write_text(tmp_path / "o.json", "text", force=True)
    assert not (tmp_path / "absent").exists()
    assert (tmp_path / "o.json").read_text() == "text"


def test_a_link_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(BadInputError, match="appeared"), atomic_write(tmp_path / "o.json") as temporary:  # noqa: PT012
        temporary.write_text("text")
        (tmp_path / "o.json").symlink_to(tmp_path / "absent")
    assert (tmp_path / "o.json").is_symlink()


def test_devices_and_pipes_are_not_replaced(model, tmp_path, capsys):
    """With rights enough, a rename would put an ordinary file where /dev/null was."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull)):
        assert optimize(model, place, "--force") == ExitCode.BAD_INPUT
        assert "is not an ordinary file" in capsys.readouterr().err
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_rights_are_those_of_the_umask(model, tmp_path, umask):
    """No file is readable by others where the user's umask says so, and none can be run."""
    out = tmp_path / "out"
    external = tiled_conv(tmp_path / "external.onnx", external=True)
    more = ["--html", str(out / "report.html"), "--json", str(out / "r.json")]
    assert optimize(model, out / "o.onnx", *more) == 0
    assert optimize(external, out / "e.onnx") == 0
    assert main(["convert", str(external), "--form", "portable", "-o", str(out / "c.onnx"), "-q"]) == 0
    written = sorted(out.rglob("*"))
    assert {"o.onnx", "o.json", "report.html", "r.json", "e.onnx.data", "c.onnx.data"} <= {p.name for p in written}
    assert {oct(stat.S_IMODE(p.stat().st_mode)) for p in written} == {oct(0o666 & ~umask)}


def test_nothing_is_left_in_the_temporary_folder(model, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert optimize(model, tmp_path / "out" / "o.onnx") == 0
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_inputs_are_not_replaced_by_reports(model, tmp_path, capsys, option):
    inputs = tmp_path / "in.npz"
    inputs.write_bytes(b"mine")
    more = ["--inputs", str(inputs), option, str(inputs), "--force"]
    assert optimize(model, tmp_path / "o.onnx", *more) == ExitCode.BAD_INPUT
    assert f"{inputs}: belongs to the input" in capsys.readouterr().err
    assert inputs.read_bytes() == b"mine"


@pytest.mark.parametrize("verb", ["inspect", "diff"])
def test_models_are_not_replaced_by_reports(model, capsys, verb):
    before = model.read_bytes()
    models = [str(model)] * {"inspect": 1, "diff": 2}[verb]
    assert main([verb, *models, "--json", str(model), "--force"]) == ExitCode.BAD_INPUT
    assert f"{model}: belongs to the input" in capsys.readouterr().err
    assert model.read_bytes() == before
