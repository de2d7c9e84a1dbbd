"""benchmarks/accuracy.py end to end on two tiny models: its tables, and that a wrong model fails it."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("torch", reason="the evaluation takes PyTorch's convolutions: pip install 'msconv-deploy[torch]'")

from benchmarks import accuracy
from tests.benchmarks.small_set import numbers_of, rows_of, small_set, spoilt


@pytest.fixture
def run(monkeypatch, tmp_path):
    networks, zoo = small_set(tmp_path / "networks"), small_set(tmp_path / "zoo")
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "results")

    def run(*arguments: str) -> int:
        given = ["--networks", str(networks), "--zoo", str(zoo), *arguments]
        monkeypatch.setattr(sys, "argv", ["accuracy.py", *given])
        return accuracy.main()

    return run


def test_tables(run, tmp_path):
    assert run() == 0
    content = json.loads((tmp_path / "results" / "accuracy.json").read_text())
    assert len(content["rows"]) == 6, "two files of either folder, and the networks again in fp16"
    assert {row["type"] for row in content["rows"]} == {"fp32", "fp16"}
    markdown = (tmp_path / "results" / "accuracy.md").read_text()
    totals = rows_of(markdown, "files")
    assert [row[0] for row in totals] == ["networks", "zoo", "networks, fp16"]
    for _, rewritten, difference, original, optimized, _, rewrite in totals:
        assert rewritten == "1 of 2"
        for cell in (difference, original, optimized, rewrite):
            median, worst = numbers_of(cell)
            assert 0 <= median <= worst < 2e-3
    (tiled,) = [row for row in content["rows"] if row["file"] == "tiled.onnx" and row["collection"] == "zoo"]
    assert 0 < tiled["original"] < 1e-6
    assert 0 < tiled["optimized"] < 1e-6
    assert tiled["rewrite"] < 2e-7, "the rewrite itself only rounds weights"
    files = rows_of(markdown, "file")
    assert [row[2] for row in files] == ["1 of 1", "0 of 0"] * 3
    assert (tmp_path / "results" / "accuracy.png").stat().st_size > 0


def test_a_wrong_model_fails_the_run(run, monkeypatch, tmp_path, capsys):
    right = accuracy.optimize_model
    monkeypatch.setattr(accuracy, "optimize_model", lambda *a, **k: spoilt(right(*a, **k)))
    assert run("--only", "tiled") == 1
    assert "WRONG: tiled.onnx (fp32): the result is farther" in capsys.readouterr().err
    assert "**the result is farther" in (tmp_path / "results" / "accuracy.md").read_text()


def test_an_evaluation_of_another_model_fails_the_run(run, monkeypatch, capsys):
    right = accuracy.evaluate
    monkeypatch.setattr(accuracy, "evaluate", lambda *a: [1.01 * y for y in right(*a)])
    assert run("--only", "plain") == 1
    assert "too far from float64 for rounding" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_listed(run, monkeypatch, tmp_path):
    def refuse(*_):
        raise NotImplementedError("no such operator here")

    monkeypatch.setattr(accuracy, "evaluate", refuse)
    assert run() == 0
    content = json.loads((tmp_path / "results" / "accuracy.json").read_text())
    assert content["summary"]["zoo"]["without"] == 2
    assert "not evaluated in float64: no such operator" in (tmp_path / "results" / "accuracy.md").read_text()


def test_not_a_number_is_wrong():
    row = {"type": "fp32", "original": 1e-7, "optimized": float("inf")}
    assert accuracy.wrong(row)
    assert accuracy.wrong(row | {"optimized": float("nan")})
    assert accuracy.wrong(row | {"optimized": 1e-7, "original": float("nan")})
    assert not accuracy.wrong(row | {"optimized": 2e-7})


def test_wrong_use(run, monkeypatch, tmp_path, capsys):
    assert run("--only", "absent") == 2
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--networks", str(tmp_path / "nothing")])
    assert accuracy.main() == 2
    assert "no manifest.json" in capsys.readouterr().err
