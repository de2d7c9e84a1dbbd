"""benchmarks/speed.py end to end on a small folder, in hardly any time; its numbers are not looked at here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import handwritten, other_optimizers, speed
from tests.benchmarks.small_set import rows_of, spoilt
from tests.tile_models import tiled_conv

pytest.importorskip("matplotlib")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiled_conv(tmp_path / "tiled.onnx")
    inputs = {"x": ["float32", [1, 3, 32, 32]], "s": ["float32", [1, 16]]}
    entry = {"inputs": inputs, "source": "synthetic trap: a tile, and a convolution"}
    (tmp_path / "manifest.json").write_text(json.dumps({"tiled.onnx": entry}))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> int:
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments, "--pairs", "2", "--seconds", "0.001", "--name", "trial"])
    return speed.main()


def test_a_folder_with_a_manifest(folder, monkeypatch):
    assert run(monkeypatch, folder, str(folder), "--always") == 0
    content = json.loads((folder / "results" / "speed_trial.json").read_text())
    (row,) = content["rows"]
    assert row["rewritten"] == 1
    assert row["optimized"]["difference"] < speed.TOLERANCE
    assert row["control"]["ratio"] > 0
    assert "handwritten_skipped" in content["summary"]
    text = (folder / "results" / "speed_trial.md").read_text()
    (table,) = rows_of(text, "file")
    assert table[:2] == ["tiled", "1 of 1"]
    assert table[-1] == "synthetic"
    assert row["source"] == "synthetic trap: a tile, and a convolution"
    assert "\u00a0±\u00a0" in table[5], "the A/A column is not broken at its sign"
    assert content["conditions"]["date"] in text
    for kind in ("speed", "work"):
        assert (folder / "results" / f"{kind}_trial.png").stat().st_size > 0


def test_a_wrong_model_fails_the_run(folder, monkeypatch):
    right = speed.optimize_model
    monkeypatch.setattr(speed, "optimize_model", lambda *a, **k: spoilt(right(*a, **k)))
    assert run(monkeypatch, folder, str(folder), "--always") == 1
    assert "differs" in (folder / "results" / "speed_trial.md").read_text()


def test_other_optimizers_are_optional(folder, monkeypatch):
    """One that is missing or refuses the model gets a word in the table, the others run."""
    notes = {"onnxsim": "not installed", "onnxslim": "failed: no idea what this is", "onnxoptimizer": b"not a model"}
    monkeypatch.setattr(other_optimizers.OtherOptimizers, "__call__", lambda _, name, content: notes.get(name, content))
    assert run(monkeypatch, folder, str(folder), "--others") == 0
    content = json.loads((folder / "results" / "speed_trial.json").read_text())
    others = content["rows"][0]["others"]
    assert others["onnxsim"] == {"note": "not installed"}
    assert others["onnxoptimizer"]["note"].startswith("failed: ONNX Runtime refuses")
    assert others["onnxscript"]["difference"] == 0
    assert others["onnxscript"]["macs"] == content["rows"][0]["macs"][0]
    assert content["summary"]["others"]["onnxscript"]["macs"] == 1
    assert content["summary"]["others"]["onnxsim"] == {"note": "not installed"}
    assert content["summary"]["others"]["onnxslim"]["failed"] == 1
    text = (folder / "results" / "speed_trial.md").read_text()
    first, second = (table for table in text.split("\n\n") if table.startswith("| file |"))
    assert not any(name in first for name in other_optimizers.OPTIMIZERS)
    assert second.splitlines()[0] == "| file | onnxsim | onnxslim | onnxoptimizer | onnxscript |"
    assert second.splitlines()[2].startswith("| tiled | not installed | failed | failed | ")


def test_rewrites_by_hand_have_a_table_with_the_files_that_have_one():
    ratio = {"ratio": 1.5, "half_width": 0.0, "difference": 0.0}
    rows = [{"file": "a.onnx"}, {"file": "b.onnx", "handwritten": ratio, "optimized_over_handwritten": ratio}]
    assert speed.table_of_others(rows)[-3:] == [
        "| file | by hand | optimized / by hand |",
        "|---|---:|---:|",
        "| b | 1.50 | 1.50 |",
    ]
    assert speed.table_of_others(rows[:1]) == []


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("reimplemented: DeepSDF decoder (Gemm)", "reimplemented"),
        ("deepinv FFDNet 0.5.0, 0-dim sigma (torch.full)", "deepinv"),
        ("pytorchcv PSPNet 0.0.74 (fixed_size=False) on features", "pytorchcv"),
        ("", ""),
    ],
)
def test_origins(source, origin):
    assert speed.origin_text(source) == origin


def test_an_optimizer_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    assert other_optimizers._optimized("onnxsim", b"") == "not installed"


def test_no_manifest_and_no_such_file(folder, tmp_path_factory, monkeypatch, capsys):
    assert run(monkeypatch, folder, str(tmp_path_factory.mktemp("empty"))) == 2
    assert "no manifest.json" in capsys.readouterr().err
    assert run(monkeypatch, folder, str(folder), "--only", "absent") == 2
    assert "absent" in capsys.readouterr().err


def test_difference_notices_what_is_not_a_number():
    one = [np.ones(3, np.float32)]
    assert speed.difference(one, [np.full(3, np.nan, np.float32)]) == float("inf")
    assert speed.difference(one, [np.ones(4, np.float32)]) == float("inf")
    assert speed.difference(one, one) == 0


def test_the_rewrite_of_the_broadcast_decoder_by_hand():
    """On a small network of that architecture, the outputs stay."""
    random = np.random.default_rng(0)
    arrays = {
        "c": random.standard_normal((1, 2, 8, 8)),
        "w": random.standard_normal((5, 6, 3, 3)),
        "b": random.standard_normal(5),
    }
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    integers = {"axes": [2, 3], "shape": [3, 4, 8, 8], "shape_c": [3, 1, 1, 1]}
    weights += [numpy_helper.from_array(np.array(a, np.int64), n) for n, a in integers.items()]
    nodes = [
        helper.make_node("Unsqueeze", ["z", "axes"], ["z4"]),
        helper.make_node("Expand", ["z4", "shape"], ["tiled"]),
        helper.make_node("Expand", ["c", "shape_c"], ["grid"]),
        helper.make_node("Concat", ["grid", "tiled"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w", "b"], ["y"], kernel_shape=[3, 3]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("z", [3, 4]), ("y", [3, 5, 6, 6]))]
    graph = helper.make_graph(nodes, "decoder", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    by_hand = handwritten.broadcast_decoder(model)
    assert not {"Concat", "Conv", "Expand"} & {node.op_type for node in by_hand.graph.node}
    feeds = {"z": random.standard_normal((3, 4)).astype(np.float32)}
    results = [speed.outputs(m, Path(), feeds) for m in (model, by_hand)]
    assert speed.difference(*results) < 1e-5
