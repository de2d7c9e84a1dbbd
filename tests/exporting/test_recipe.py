"""Recipes: what a typo or a wrong value is told."""

import pytest

from msconv_deploy.errors import BadInputError, ExitCode

pytest.importorskip("torch", reason="export needs torch: pip install 'msconv-deploy[torch]'")
from msconv_deploy.exporting.recipe import load_recipe

GOOD = """
[model]
module = "network.py:Net"
checkpoint = "net.safetensors"
[inputs]
nchw = ["N", 3, "H", "W"]
ids = { shape = ["N"], dtype = "int64" }
[example]
N = 2
H = 8
W = 9
[export]
opset = 18
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        (tmp_path / "net.toml").write_text(text)
        return tmp_path / "net.toml"

    return write


def test_a_good_recipe(recipe):
    loaded = load_recipe(recipe(GOOD))
    assert loaded.name == "net"
    assert loaded.dynamic_dims == ["N", "H", "W"]
    assert loaded.inputs["ids"].dtype == "int64"
    assert loaded.checkpoint == loaded.path.parent / "net.safetensors"
    assert loaded.export.forms == ["portable", "fused", "plugin"]
    changed = loaded.replaced(opset=20, forms=["fused"])
    assert (changed.export.opset, changed.export.forms, changed.export.exporter) == (20, ["fused"], "dynamo")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("opset = 18", "opste = 18", r"export.opste: unknown key; did you mean 'opset'\?"),
        ("[export]", "[exports]", r"exports: unknown key; did you mean 'export'\?"),
        ("module = ", "modul = ", r"model.modul: unknown key; did you mean 'module'\?"),
        ("dtype = ", "dtpe = ", r"inputs.ids.dtpe: unknown key; did you mean 'dtype'\?"),
        ("network.py:Net", "network.py", "file.py:Class"),
        ("H = 8\n", "", "no extent for the dynamic dim H"),
        ("H = 8", "H = 1", "H must be at least 2"),
        ("H = 8", "H = 8\nD = 3", "D is no dim of any input"),
        ("opset = 18", "opset = 16", "opset 16 is not written by the dynamo exporter; exporters write dynamo 17 to 28"),
        ("opset = 18", "opset = 29", "opset 29 is not written"),
        ("opset = 18", 'opset = 24\nexporter = "legacy"', "opset 24 is not written by the legacy exporter"),
        ("opset = 18", 'precision = ["int8"]', "export.precision.0"),
        ("opset = 18", 'forms = ["plug-in"]', "export.forms.0"),
        ('"N", 3, "H", "W"', '"N", 0, "H", "W"', "dimension 0 must be a positive integer"),
        ("opset = 18", 'outputs = [""]', "export.outputs: an output needs a name"),
        ("opset = 18", 'outputs = ["y", "y"]', "export.outputs: y is named twice"),
        ("opset = 18", 'outputs = ["nchw"]', "export.outputs: nchw is an input"),
        ("opset = 18", "[validation]\nsizes = [{ N = -1, H = 8, W = 8 }]", "validation.sizes: N must be at least 1"),
        ("N = 2", "N = 100000000000", "example: input nchw would have 21,600,000,000,000 values"),
        ("network.py:Net", ".network:Net", "'.network' is neither a file NAME.py nor the dotted name"),
        ("[model]", "[model", "not a recipe in TOML"),
        ("opset = 18", "opset = 18\n[validation]\nsizes = [{ N = 1 }]", "must give an extent to each of N, H, W"),
    ],
)
def test_mistakes_are_named_with_their_place(recipe, old, new, message):
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(BadInputError, match=message) as caught:
        load_recipe(recipe(text))
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_forms_and_precisions_count_once(recipe):
    loaded = load_recipe(recipe(GOOD + 'forms = ["fused", "portable", "fused"]\n'))
    assert loaded.export.forms == ["fused", "portable"]
    changed = loaded.replaced(forms=["portable", "portable"], precision=["fp16", "fp16"])
    assert (changed.export.forms, changed.export.precision) == (["portable"], ["fp16"])


def test_no_such_recipe(tmp_path):
    with pytest.raises(BadInputError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(BadInputError, match="not a recipe in TOML"):
        load_recipe(tmp_path)
