"""ONNX Runtime's adapter."""

import numpy as np
import onnx
import pytest

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.runtimes import Settings, get_runtime
from msconv_deploy.runtimes.onnx_runtime import make_session
from tests.validation.networks import two_convs

FEED = {"x": np.ones((1, 3, 5, 6), np.float32), "s": np.ones((1, 4), np.float32)}


def test_runs_a_file(tmp_path):
    with get_runtime("ort").make_runner(two_convs(tmp_path / "m.onnx"), Settings(threads=1), "mine") as runner:
        assert runner.name == "mine"
        assert list(runner.get_input_metadata(use_numpy_dtypes=False)) == ["x", "s"]
        assert runner.infer(FEED)["y"].shape == (1, 2, 5, 6)
        assert runner.last_inference_time() > 0


@pytest.mark.parametrize("optimization", ["none", "basic", "extended", "all"])
def test_settings_reach_the_session(tmp_path, optimization):
    session = make_session(two_convs(tmp_path / "m.onnx"), Settings(threads=3, optimization=optimization))
    options = session.get_session_options()
    assert options.intra_op_num_threads == 3
    wanted = {"none": "DISABLE_ALL", "basic": "BASIC", "extended": "EXTENDED", "all": "ALL"}[optimization]
    assert str(options.graph_optimization_level).endswith(wanted)


def test_an_edited_copy_finds_external_data_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    path = two_convs(tmp_path / "models" / "m.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    model.graph.output.append(onnx.ValueInfoProto(name="t3"))
    monkeypatch.chdir(tmp_path)
    session = make_session("models/m.onnx", Settings(), model)
    y, t3 = session.run(None, FEED)
    assert t3.shape == (1, 8, 5, 6)
    assert np.array_equal(y, make_session(path, Settings()).run(None, FEED)[0])


def test_bad_files_and_missing_kernels(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(BadInputError, match=r"m.onnx: ONNX Runtime does not accept it"):
        make_session(tmp_path / "m.onnx", Settings())
    with pytest.raises(NotAvailableError, match="CPUExecutionProvider"):
        make_session(tmp_path / "m.onnx", Settings(provider="NoSuchProvider"))
    model = onnx.load(two_convs(tmp_path / "p.onnx"))
    model.graph.node[0].op_type, model.graph.node[0].domain = "MSConv2d", "msconv"
    onnx.save(model, tmp_path / "p.onnx")
    with pytest.raises(NotAvailableError, match="plugin form"):
        make_session(tmp_path / "p.onnx", Settings())


def test_errors_are_not_printed_as_well(tmp_path, capfd):
    session = make_session(two_convs(tmp_path / "m.onnx"), Settings())
    with pytest.raises(Exception, match="s"):
        session.run(None, {**FEED, "s": np.ones((3, 4), np.float32), "x": np.ones((2, 3, 5, 6), np.float32)})
    assert capfd.readouterr() == ("", "")
