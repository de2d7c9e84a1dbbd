"""benchmarks/large_graph.py end to end on graphs that are not large."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("matplotlib")

from benchmarks import large_graph
from tests.benchmarks.small_set import rows_of

SMALL = ["large_graph.py", "--nodes", "160", "--megabytes", "1", "--sites", "8", "--repeats", "1"]


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(large_graph, "RESULTS", tmp_path)
    return tmp_path


def test_sizes_and_phases(results, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*SMALL, "--sizes"])
    assert large_graph.main() == 0
    content = json.loads((results / "large_graph.json").read_text())
    assert [row["sites"] for row in content["rows"]] == [1, 2, 4, 8]
    for row in content["rows"]:
        assert set(row["phases"]) == set(large_graph.PHASES)
        assert row["phases"]["read"] > 0
        assert row["phases"]["tile-concat-conv"] > 0
        assert 0.8 * row["seconds"] < sum(row["phases"].values()) <= row["seconds"]
    rows = rows_of((results / "large_graph.md").read_text(), "nodes")
    assert [row[0] for row in rows] == ["20", "40", "80", "160"]
    assert len(rows[0]) == 6 + len(large_graph.PHASES)
    assert (results / "large_graph.png").stat().st_size > 0


def test_sites_that_are_left_fail_the_run(results, monkeypatch, capsys):
    right = large_graph.measure
    monkeypatch.setattr(large_graph, "measure", lambda *a: right(*a) | {"rewritten": 7})
    monkeypatch.setattr(sys, "argv", SMALL)
    assert large_graph.main() == 1
    assert "WRONG: 7 of 8 sites" in capsys.readouterr().err


def test_the_exponent_is_that_of_a_power_law():
    rows = [{"nodes": n, "seconds": 3 * n**1.3, "phases": {"read": n**2, "write": 0.0}} for n in (10, 20, 40)]
    assert large_graph.exponent(rows) == pytest.approx(1.3)
    assert large_graph.exponent(rows, "read") == pytest.approx(2)
    assert large_graph.exponent(rows, "write") is None
    assert large_graph.exponent(rows[:1]) is None
