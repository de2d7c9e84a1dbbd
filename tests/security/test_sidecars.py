"""Sidecars from strangers: a file beside a model must not decide which code is run."""

import json
from pathlib import Path

import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from tests.validation.networks import two_convs

RECIPE = """
[model]
module = "evil.py:Evil"
checkpoint = "evil.safetensors"
[inputs]
x = ["N", 3, "H", "W"]
s = ["N", 4]
[example]
N = 2
H = 8
W = 8
"""
EVIL = "from pathlib import Path\nPath(__file__).with_name('pwned').touch()\n"


def evil(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "evil.py").write_text(EVIL)
    return folder / "recipe.toml"


def model_with_sidecar(path: Path, named: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"recipe": named}))
    return two_convs(path)


@pytest.mark.parametrize(
    ("model", "recipe", "named"),
    [
        ("m.onnx", ".", "recipe.toml"),
        ("m.onnx", "code", "code/recipe.toml"),
        ("downloads/model/m.onnx", "downloads/code", "../code/recipe.toml"),
        ("build/m.onnx", "build", "recipe.toml"),
        ("build/model/m.onnx", "build/code", "../code/recipe.toml"),
        ("build/m.onnx", "build/code", "../export/../build/code/recipe.toml"),
        ("build/m.onnx", "../elsewhere", "../../elsewhere/recipe.toml"),
        ("build/m.onnx", "../elsewhere", "../link/recipe.toml"),
        ("link/m.onnx", "code", "../project/code/recipe.toml"),
    ],
)
def test_a_sidecar_from_elsewhere_runs_nothing(tmp_path, monkeypatch, capsys, model, recipe, named):
    pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")
    project = tmp_path / "project"
    (project / "export").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (project / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(project)
    evil(project / recipe)
    model_with_sidecar(project / model, named)
    assert main(["validate", model, "--no-rtx"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert not list(tmp_path.rglob("pwned"))
    assert f"names the recipe {named}, which is not followed unasked" in said
    assert "pass --recipe PATH" in said


def test_a_recipe_of_the_project_is_followed_for_a_model_in_build(tmp_path, monkeypatch, capsys):
    """The other way round: here the code runs, so the test above would see it."""
    pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")
    monkeypatch.chdir(tmp_path)
    evil(tmp_path / "export")
    model_with_sidecar(tmp_path / "build" / "m.onnx", "../export/recipe.toml")
    assert main(["validate", "build/m.onnx", "--no-rtx"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "recipe: export/recipe.toml (named by m.json)" in said
    assert (tmp_path / "export" / "pwned").exists()


def test_a_recipe_that_is_given_is_followed_from_anywhere(tmp_path, capsys):
    pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")
    recipe = evil(tmp_path / "code")
    model = model_with_sidecar(tmp_path / "m.onnx", "code/recipe.toml")
    assert main(["validate", str(model), "--recipe", str(recipe), "--no-rtx"]) == ExitCode.BAD_INPUT
    assert (tmp_path / "code" / "pwned").exists()
    assert "recipe.toml" in capsys.readouterr().err
