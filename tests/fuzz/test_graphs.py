"""The fuzzer of the optimizer: a few graphs of a fixed seed, what it found before, and mistakes that it has to find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.graphs import Case, load, random_case, random_model, save
from tests.fuzz.graphs.campaign import Settings, Tally, check_number, run
from tests.fuzz.graphs.checking import Outcome, check
from tests.fuzz.graphs.command import RULES, as_json, summary
from tests.fuzz.graphs.faults import FAULTS, planted
from tests.fuzz.graphs.reference import Exact, difference, explained
from tests.fuzz.graphs.shrinking import shrunken
from tests.surgery.graphs import Net
from tests.surgery.random_graphs import defined_by_onnxruntime

pytestmark = defined_by_onnxruntime
CORPUS = sorted((Path(__file__).parent / "corpus" / "graphs").glob("*.onnx"))
NOTES = Path(__file__).parent / "corpus" / "graphs" / "README.md"
SEED, GRAPHS, BLOCKS = 1, 150, 5


# -- graphs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_graphs_agree(block, tally):
    size = GRAPHS // BLOCKS
    for index in range(block * size, (block + 1) * size):
        outcome, parts = check_number(SEED, index)
        assert not outcome.failed, (index, outcome.kind, outcome.detail, parts)
        tally.add(index, outcome, parts)
    assert tally.kinds["rewritten"] > 0.5 * tally.total, tally.kinds


def test_every_rule_is_applied():
    """Over a few hundred graphs more at most, so that no rule is fuzzed in name only: the rarest is in one of sixty."""
    tally = Tally()
    index = GRAPHS
    while set(tally.rewritten) != set(RULES) and index < GRAPHS + 450:
        tally.add(index, *check_number(SEED, index))
        index += 1
    assert set(tally.rewritten) == set(RULES), summary(tally, 1.0)


def test_the_same_seed_gives_the_same_graph():
    first, second = (random_case(5, 3) for _ in range(2))
    assert first == second
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert random_case(5, 4).model != first.model
    onnx.checker.check_model(random_model(9))


# -- what it found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(path):
    outcome = check(load(path))
    assert not outcome.failed, (outcome.kind, outcome.detail)


def test_the_corpus_is_small_and_explained():
    assert CORPUS
    notes = NOTES.read_text(encoding="utf-8")
    for path in CORPUS:
        assert path.stat().st_size < 20_000, path
        assert f"`{path.name}`" in notes, f"{NOTES}: say what {path.name} was"


# -- planted mistakes --------------------------------------------------------------------------------------------------

FOUND_WITHIN = 300
QUICK = ("border-class", "no-border", "skipped-bias", "wrong-axis", "window-padding")


def first_failure(fault: str, limit: int = FOUND_WITHIN, seed: int = 7) -> tuple[int, Outcome] | None:
    with planted(fault):
        for index in range(limit):
            outcome, _ = check_number(seed, index)
            if outcome.failed:
                return index, outcome
    return None


@pytest.mark.parametrize("fault", QUICK)
def test_planted_mistakes_are_found(fault):
    found = first_failure(fault)
    assert found is not None
    index, _ = found
    assert not check_number(7, index)[0].failed, "it fails without the mistake as well"


def test_a_planted_mistake_is_made_small(tmp_path):
    with planted("skipped-bias"):
        index, outcome = first_failure("skipped-bias")
        case = random_case(7, index)
        small = shrunken(case, outcome, seconds=20)
        assert check(small).kind == outcome.kind == "wrong"
    assert [node.op_type for node in small.model.graph.node] == ["Conv", "Conv"]
    assert len(small.sizes) == 1
    assert not check(small).failed
    save(small, tmp_path / "small.onnx", "a note")
    assert load(tmp_path / "small.onnx").sizes == small.sizes
    assert onnx.load(tmp_path / "small.onnx").doc_string == "a note"


def test_shrinking_takes_away_all_that_does_not_matter():
    """Down to the one node that a check complains about."""
    net = Net()
    x = net.input("N", 6, 8)
    for _ in range(30):
        x = net.node("Relu", x)
    y = net.node("Mul", net.node("Sigmoid", x), net.random(6, 1), name="the one")
    net.output(net.node("Tanh", y), net.node("Neg", x), rank=3)
    case = Case(net.model(), [{"N": 1}, {"N": 5}])

    def checked(candidate: Case) -> Outcome:
        onnx.checker.check_model(candidate.model)
        there = any(node.op_type == "Mul" for node in candidate.model.graph.node)
        return Outcome("wrong" if there else "unchanged")

    small = shrunken(case, checked(case), seconds=30, checked=checked)
    assert [node.op_type for node in small.model.graph.node] == ["Mul"]
    assert small.sizes == [{}]
    (value,) = small.model.graph.input
    assert all(d.dim_value <= 1 for d in value.type.tensor_type.shape.dim)


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_campaign_in_processes(tmp_path, capsys):
    assert (
        main(["graphs", "-n", "6", "--seed", str(SEED), "--jobs", "2", "--json", str(tmp_path / "summary.json")]) == 0
    )
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["graphs"] == 6
    assert not written["failures"]
    assert set(written["rules"]) == set(RULES)
    assert "6 graphs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "kind", "limit"), [("ends-the-process", "died", 120.0), ("never-returns", "hung", 3.0)]
)
def test_a_process_that_ends_is_replaced_and_reported(fault, kind, limit):
    tally = run(Settings(SEED, count=2, fault=fault, limit=limit))
    assert [f.outcome.kind for f in tally.failures] == [kind, kind]
    assert [f.index for f in tally.failures] == [0, 1]
    assert "optimize" in tally.failures[0].outcome.detail
    assert as_json(Settings(SEED), tally, 1.0)["failures"]


def test_the_usage_names_both(capsys):
    assert main([]) == 2
    assert "graphs|files" in capsys.readouterr().err


# -- the third opinion ---------------------------------------------------------------------------------------------------


def test_cancellation_is_explained_and_a_wrong_result_is_not():
    net = Net()
    x = net.input(4, name="x")
    big = net.node("Add", x, net.scalar(1e4))
    net.output(net.node("Sub", big, net.scalar(1e4)), rank=1)
    given = {"x": np.array([0.1, 0.2, -0.3, 0.4], np.float32)}
    value, moved = Exact(net.model(), 2.0**-24).run(given)[0]
    rounded = (given["x"] + np.float32(1e4)) - np.float32(1e4)
    assert difference(value.astype(np.float32), rounded, 2e-5)
    assert explained(value, moved, given["x"], rounded, 2e-5)
    assert not explained(value, moved, rounded, rounded + np.float32(0.05), 2e-5)


@pytest.mark.parametrize(("op", "shape"), [("Conv", (4, 2, 3, 2)), ("ConvTranspose", (4, 3, 3, 2))])
def test_convolutions_of_the_third_opinion(op, shape):
    """Against ONNX Runtime, where nothing cancels."""
    from tests.surgery.graphs import feeds, session

    net = Net()
    attributes = {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}
    weight = net.random(*shape)
    net.output(net.node(op, net.input(2, 4, 9, 8), weight, net.random(4 if op == "Conv" else 6), **attributes))
    model = net.model()
    given = feeds(model, {})
    (expected,) = session(model).run(None, given)
    ((value, _),) = Exact(model, 2.0**-24).run(given)
    assert value.shape == expected.shape
    assert np.abs(value - expected).max() < 1e-5


def test_every_fault_says_what_it_is():
    assert all(make.__doc__ for make, _ in FAULTS.values())
