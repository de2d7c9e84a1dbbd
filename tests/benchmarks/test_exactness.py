"""benchmarks/exactness.py on a few cases: its table, what this machine lacks, and that a wrong implementation fails it."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import exactness
from tests.benchmarks.small_set import rows_of


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(exactness, "RESULTS", tmp_path)
    own = {"reference": exactness.IMPLEMENTATIONS["reference"]}
    monkeypatch.setattr(exactness, "IMPLEMENTATIONS", own)
    monkeypatch.setattr(sys, "argv", ["exactness.py", "--cases", "20"])
    return own


def test_table(run, tmp_path):
    assert exactness.main() == 0
    text = (tmp_path / "exactness.md").read_text()
    assert text.startswith("`python benchmarks/exactness.py --cases 20`; ")
    assert json.loads((tmp_path / "exactness.json").read_text())["conditions"]["date"] in text
    right, popular = rows_of((tmp_path / "exactness.md").read_text().strip(), "implementation")
    assert right[:2] == ["reference", "20"]
    assert float(right[2]) < 1e-12
    assert popular[0] == exactness.SIMPLE
    assert 0 < int(popular[1]) <= 20


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_wrong_implementation_fails_the_run(factor, run, capsys):
    correct, tolerance, needs = run["reference"]
    run["reference"] = lambda case: factor * correct(case), tolerance, needs
    assert exactness.main() == 1
    assert "WRONG: reference" in capsys.readouterr().err


def test_what_this_machine_lacks_is_listed(run, tmp_path):
    def lacking(_):
        pytest.skip("needs a C++ compiler")

    run["kernels"] = lacking, 1e-5, None
    assert exactness.main() == 0
    assert "| kernels | 0 | not measured: needs a C++ compiler |" in (tmp_path / "exactness.md").read_text()
