"""`make bench`: which steps there are, that their scripts know the arguments, what a failure does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks import run_all
from tests.benchmarks.small_set import small_set

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()


def test_scripts_know_their_arguments(tmp_path):
    for step in run_all.steps(2, small_set(tmp_path), "tiled"):
        assert not step.skipped
        script = (ROOT / "benchmarks" / step.command[0]).read_text()
        if "model_sets.add_arguments" in script:
            script += (ROOT / "benchmarks" / "model_sets.py").read_text()
        for argument in step.command[1:]:
            if argument.startswith("--"):
                assert f'"{argument.split("=")[0]}"' in script, step


def test_the_whole_and_a_part_of_it(tmp_path):
    zoo = small_set(tmp_path)
    whole, part = ({s.name: s.command for s in run_all.steps(pairs, zoo, "")} for pairs in (8, 2))
    assert whole["exactness"][-1] == "1000"
    assert part["exactness"][-1] == "250"
    assert whole["networks"][1:3] == ("--pairs", "8")
    assert part["cost-model"][3:5] == ("--pairs", "2")
    assert "--memory=5000" in part["serving"]
    more = {s.name: s.command for s in run_all.steps(16, zoo, "")}
    assert more["exactness"] == whole["exactness"], "other repetitions have their own whole"


def test_without_a_zoo_its_steps_say_why(tmp_path):
    steps = {step.name: step for step in run_all.steps(8, tmp_path / "none", "")}
    assert "manifest.json" in steps["zoo"].skipped
    assert not any(step.skipped for name, step in steps.items() if name != "zoo")
    assert "--zoo" not in steps["accuracy"].command


def test_a_failure_does_not_stop_the_others(monkeypatch, capsys, tmp_path):
    ran = []

    def run(step):
        ran.append(step.name)
        return 1 if step.name == "accuracy" else 0

    monkeypatch.setattr(run_all, "run", run)
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--zoo", str(tmp_path)])
    assert run_all.main() == 1
    assert ran[-1] == "tables"
    assert {"serving", "cost-model"} <= set(ran)
    assert "zoo" not in ran
    out = capsys.readouterr().out
    assert re.search(r"^accuracy +[\d.]+ min  failed: exit code 1$", out, re.MULTILINE)
    assert re.search(r"^zoo +[\d.]+ min  skipped: no ", out, re.MULTILINE)
    monkeypatch.setattr(run_all, "run", lambda _: 0)
    assert run_all.main() == 0


@pytest.mark.parametrize("arguments", [["--pairs", "1"], ["--steps", "nothing"]])
def test_wrong_use(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_all.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_all.main()
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_chosen_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--steps", "exactness", "--list", "--pairs", "4"])
    assert run_all.main() == 0
    assert capsys.readouterr().out.split() == ["exactness", "exactness.py", "--cases", "500"]


def test_the_page_shows_what_the_steps_write(tmp_path):
    for name in (
        "speed_networks",
        "speed_zoo",
        "exactness",
        "accuracy",
        "cost_model",
        "large_graph",
        "operators",
        "serving",
    ):
        assert f"<!-- benchmarks/results/{name}.md -->" in PAGE, name
    for name in ("speed_networks", "work_networks", "speed_zoo", "work_zoo", "accuracy", "cost_model", "large_graph"):
        assert f"(../benchmarks/results/{name}.png)" in PAGE, name
    overview = PAGE[: PAGE.index("## ")]
    commands = [command.split() for command in re.findall(r"`(benchmarks/[^`]+)`", overview)]
    for step in run_all.steps(8, small_set(tmp_path), ""):
        found = [words for words in commands if words[0] == f"benchmarks/{step.command[0]}"]
        for option in ("--others", "--name", "--sizes", "--zoo"):
            found = [words for words in found if (option in words) == (option in step.command)]
        assert len(found) == 1, f"{step.name}: {step.command}"
    assert "make gpu-check" in PAGE
    assert "make engine-check" in PAGE
