"""benchmarks/cost_model.py end to end on two tiny models; how decisions are judged; that a wrong model fails it."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("matplotlib")

from benchmarks import cost_model
from benchmarks.conditions import conditions
from benchmarks.model_sets import ZOO, entries_of
from msconv_deploy.model_files import read_model
from msconv_deploy.surgery.choice.cost import Cost
from msconv_deploy.surgery.choice.estimates import SiteCost
from msconv_deploy.surgery.choice.timing import Comparison
from tests.benchmarks.small_set import rows_of, small_set, spoilt


@pytest.fixture
def run(monkeypatch, tmp_path):
    networks, zoo = small_set(tmp_path / "networks"), small_set(tmp_path / "zoo")
    monkeypatch.setattr(cost_model, "RESULTS", tmp_path / "results")

    def run(*arguments: str) -> int:
        given = ["--networks", str(networks), "--zoo", str(zoo), "--pairs", "2", "--seconds", "0.001", *arguments]
        monkeypatch.setattr(sys, "argv", ["cost_model.py", *given])
        return cost_model.main()

    return run


def test_tables(run, tmp_path):
    assert run() == 0
    content = json.loads((tmp_path / "results" / "cost_model.json").read_text())
    assert len(content["rows"]) == 4, "one site in one file of either folder, in either mode"
    for row in content["rows"]:
        assert row["measured"]["ratio"] > 0
        assert row["estimated"] > 0
        assert row["noise"] >= cost_model.LEAST_NOISE
        assert row["difference"] < cost_model.TOLERANCE
    summary = rows_of((tmp_path / "results" / "cost_model.md").read_text(), "mode")
    assert [row[:2] for row in summary] == [["default", "2 of 2"], ["always", "2 of 2"]]
    assert (tmp_path / "results" / "cost_model.png").stat().st_size > 0


def test_a_wrong_model_fails_the_run(run, monkeypatch, capsys):
    right = cost_model.by_plan
    monkeypatch.setattr(cost_model, "by_plan", lambda *a: spoilt(right(*a)))
    assert run() == 1
    assert "WRONG: tiled.onnx: the outputs change" in capsys.readouterr().err


def test_by_plan_rewrites_what_the_plan_says(tmp_path):
    (entry,) = entries_of(small_set(tmp_path), ZOO, "tiled")
    model = read_model(entry.folder / entry.file)
    assert not cost_model.by_plan(model, entry, {}).changed
    (site,) = cost_model.by_plan(model, entry, {"t1": "border-gather"}).sites
    assert (site.output, site.decision, site.lowering) == ("t1", "rewritten", "border-gather")


CONTROL = Comparison(1.001, 0.005, (1.0, 1.0))


@pytest.mark.parametrize(
    ("promised", "ratio", "wrong", "undecided"),
    [
        (True, 1.5, False, False),
        (True, 0.9, True, False),
        (True, 0.98, False, True),
        (False, 1.5, True, False),
        (False, 1.02, False, True),
        (False, 0.5, False, False),
    ],
)
def test_a_decision_is_wrong_beyond_the_noise(promised, ratio, wrong, undecided):
    found = Comparison(ratio, 0.03, (ratio, 1.0))
    row = cost_model.judged(promised, found, CONTROL, SiteCost(Cost(3.0), Cost(1.0)))
    assert (row["wrong"], row["undecided"]) == (wrong, undecided)
    assert row["noise"] == 0.03
    assert row["estimated"] == pytest.approx(3), "one second with it rewritten, and two that are saved"


def test_noise_of_the_file_itself_counts():
    row = cost_model.judged(False, Comparison(1.1, 0.01, (1.1, 1.0)), Comparison(0.8, 0.01, (1.0, 1.25)), None)
    assert row["noise"] == pytest.approx(0.2)
    assert not row["wrong"]
    assert "estimated" not in row


def test_summary_and_the_worst():
    def row(mode, promised, ratio, estimated, site="a"):
        found = Comparison(ratio, 0.01, (ratio, 1.0))
        made = cost_model.judged(promised, found, CONTROL, SiteCost(Cost(estimated), Cost(1.0)))
        return {"file": "f.onnx", "site": site, "lowering": "l", "mode": mode, "estimated_ratio": estimated} | made

    rows = [
        row("default", True, 0.8, 1.2, "slower"),
        row("default", False, 1.4, 1.0, "faster"),
        row("default", True, 2.0, 2.0),
        row("default", True, 3.0, 2.5),
        row("always", True, 0.8, 1.2, "slower"),
        {"file": "f.onnx", "site": "same", "mode": "always", "note": "the file is the same"},
    ]
    made = cost_model.summary(rows)
    default = made["default"]
    assert (default["promised"], default["promised_and_slower"]) == (3, 1)
    assert (default["not_promised"], default["not_promised_and_faster"]) == (1, 1)
    assert (default["wrong"], default["beyond_noise"], default["wrong_share"]) == (2, 4, 0.5)
    within = row("default", True, 1.0, 1.2, "within the noise")
    more = cost_model.summary([*rows, within])["default"]
    assert (more["measured"], more["wrong"], more["beyond_noise"], more["wrong_share"]) == (5, 2, 4, 0.5)
    content = {"command": "c", "conditions": conditions(), "summary": {"default": more}, "worst": []}
    (cells,) = rows_of(cost_model.table(content), "mode")
    assert cells[-2:] == ["2 of 4", "1 of 5"], "wrong of those beyond the noise, and those within it"
    assert default["rank_correlation"] == pytest.approx(0.8)
    assert (made["always"]["sites"], made["always"]["measured"]) == (2, 1)
    assert [r["site"] for r in cost_model.worst(rows)] == ["faster", "slower"], "each once, the largest first"


def test_rank_correlation():
    assert cost_model.rank_correlation([1, 2, 3, 4], [10, 20, 25, 100]) == pytest.approx(1)
    assert cost_model.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # With ties: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert cost_model.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert cost_model.rank_correlation([1, 2], [1, 2]) is None
    assert cost_model.rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_wrong_use(run, monkeypatch, tmp_path, capsys):
    assert run("--only", "plain") == 2
    assert "no site" in capsys.readouterr().err
