"""Files of inputs from strangers."""

import numpy as np
import pytest

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from tests.tile_models import tiled_conv


class Payload:
    def __reduce__(self):
        return (eval, ("open('pwned', 'w').close()",))


@pytest.mark.parametrize("verb", ["optimize", "validate"])
def test_inputs_with_a_pickle_are_refused_and_nothing_is_run(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    tiled_conv(tmp_path / "m.onnx")
    np.savez("in.npz", x=np.array([Payload()], dtype=object), s=np.zeros((1, 16), np.float32))
    more = {"optimize": ["-o", "o.onnx", "--when", "always"], "validate": ["--reference", "m.onnx"]}[verb]
    assert main([verb, "m.onnx", *more, "--inputs", "in.npz"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "in.npz" in said
    assert "Traceback" not in said
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "o.onnx").exists()
