"""The command line on spoilt files: a corpus of what once went wrong, fresh ones of a fixed seed, and faults of our own."""

import json
import os
import signal
import time
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from msconv_deploy.cli import main as cli
from msconv_deploy.optimizing import optimize as optimizing
from tests.fuzz.files import draw, main, workers
from tests.fuzz.files.mutations import MUTATIONS, OUTSIDE, Case, mutated
from tests.fuzz.files.shrinking import shrunken
from tests.fuzz.files.sources import made_sources
from tests.fuzz.files.verbs import VERBS, Outcome, arguments, attempt
from tests.fuzz.files.wire import parse, serialized

CORPUS = Path(__file__).parent / "corpus" / "files"
NOTES = json.loads((CORPUS / "notes.json").read_text(encoding="utf-8"))


def test_every_file_of_the_corpus_has_its_note():
    assert sorted(NOTES) == sorted(path.stem for path in CORPUS.glob("*.onnx"))
    assert all(note["note"] and len(note["command"]) > 1 for note in NOTES.values())


@pytest.mark.parametrize("name", NOTES)
def test_corpus(name):
    case = Case((CORPUS / f"{name}.onnx").read_bytes())
    outcome = workers.alone(lambda: attempt(case, Case(source("plain").model), NOTES[name]["command"]))
    assert not outcome.problem, outcome.said
    assert outcome.code == NOTES[name]["code"], outcome.said


@pytest.mark.parametrize("name", NOTES)
def test_every_verb_survives_the_corpus(name):
    case = Case((CORPUS / f"{name}.onnx").read_bytes())
    lines = {verb: arguments(verb, Random(1)) for verb in VERBS}

    def run(index: int) -> Outcome:
        return attempt(case, Case(source("plain").model), lines[VERBS[index]])

    for index, outcome in workers.each(run, range(len(VERBS))):
        assert not outcome.problem, (VERBS[index], outcome.said)


def source(name):
    return next(source for source in made_sources() if source.name == name)


def test_two_hundred_spoilt_files(tmp_path, capsys):
    """Both the good ends and the bad ones are reached, and none that must not be."""
    code = main(["-n", "200", "--seed", "1", "--no-zoo", "--keep", str(tmp_path), "--json", str(tmp_path / "r.json")])
    assert code == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["files"] == 200
    assert set(report["codes"]) == set(VERBS)
    assert set(report["mutations"]) == set(MUTATIONS)
    ends = [code for codes in report["codes"].values() for code in codes]
    assert {"0", "2"} <= set(ends)


@pytest.mark.parametrize("name", [source.name for source in made_sources()])
def test_sources_are_whole(name):
    """Unspoilt, every verb takes them: what is refused later is refused for what was spoilt."""
    found = source(name)
    case = Case(found.model, dict(found.beside))
    lines = [arguments(verb, Random(1)) for verb in VERBS if verb != "convert"]

    def run(index: int) -> Outcome:
        return attempt(case, case, lines[index])

    refused = []
    for index, outcome in workers.each(run, range(len(lines))):
        assert not outcome.problem, outcome.said
        if outcome.code != 0:
            refused.append((lines[index], outcome.said))
    # Of a graph with strings only the reference's own inputs are drawn; what is inside is not compared.
    assert not refused or name == "strings", refused


def test_a_case_follows_from_seed_and_index():
    one, other = (draw(3, 17, made_sources(), ()) for _ in range(2))
    assert one == other
    assert draw(3, 18, made_sources(), ()) != one
    assert draw(4, 17, made_sources(), ()) != one


def test_mutations_of_every_kind_change_files_and_keep_most_of_them_protobuf():
    """A fuzzer whose files are all refused by the parser tests the parser only."""
    whole = changed = 0
    for index in range(300):
        rng = Random(index)
        origin = rng.choice(made_sources())
        case, _ = mutated(origin, made_sources(), rng)
        changed += case.data != origin.model or case.beside != origin.beside
        try:
            onnx.ModelProto().ParseFromString(case.data)
            whole += 1
        except Exception:
            pass
    assert changed > 270
    assert 100 < whole < 300


@pytest.mark.parametrize("name", [source.name for source in made_sources()])
def test_the_tree_of_fields_is_the_file(name):
    data = source(name).model
    assert serialized(parse(data)) == data


# -- a fuzzer that finds nothing proves nothing ------------------------------------------------------------------------


def leaked(self, *arguments, **options):
    self.output.with_name("half").write_bytes(b"half of it")
    raise optimizing.BadInputError(f"{self.path}: is not what it seems to be")


def raised(*arguments, **options):
    raise ValueError("math domain error")


def crashed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGSEGV)


def hung(*arguments, **options):
    time.sleep(60)


def ate(*arguments, **options):
    np.ones(workers.MEMORY_GROWTH + (1 << 26), np.uint8)
    raise optimizing.BadInputError("model.onnx: too much")


def peeked(self, *arguments, **options):
    (self.path.parent.parent / OUTSIDE).read_bytes()
    raise optimizing.BadInputError(f"{self.path}: now I know")


def changed(self, *arguments, **options):
    self.path.write_bytes(b"")
    raise optimizing.BadInputError(f"{self.path}: is empty")


def unnamed(*arguments, **options):
    raise optimizing.BadInputError("something is wrong with some file")


def told(self, *arguments, **options):
    print((self.path.parent.parent / OUTSIDE).resolve().open("rb").read(200).decode())  # as a library in C++ might
    raise optimizing.BadInputError(f"{self.path}: see above")


def partial(self, *arguments, **options):
    self.output.write_bytes(b"\x08\x07")
    self.output.with_suffix(".json").write_text("{}")
    return


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (leaked, "exit code 2 left ['out/half']"),
        (raised, "internal error: ValueError: math domain error [optimizing/optimize.py:optimize_file]"),
        (crashed, "crash: SIGSEGV"),
        (hung, "hang: more than 3 s"),
        (ate, "memory: "),
        (peeked, "a file outside of the model's folder was opened"),
        (changed, "an input file was changed"),
        (unnamed, "the message does not name the file"),
        (told, "a file outside of the model's folder was opened"),
        (partial, "internal error"),
    ],
)
def test_planted_faults_are_found(monkeypatch, fault, problem):
    monkeypatch.setattr(optimizing._Work, "run", fault)
    monkeypatch.setattr(workers, "MEMORY_GROWTH", 1 << 28)
    plain = Case(source("plain").model)
    limit = 3 if fault is hung else 60
    outcome = workers.alone(lambda: attempt(plain, plain, arguments("optimize", Random(0))), time_limit=limit)
    assert outcome.problem.startswith(problem), outcome


def test_what_was_never_an_exit_code(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda line: 139)
    plain = Case(source("plain").model)
    assert workers.alone(lambda: attempt(plain, plain, ["inspect"])).problem == "exit code 139"


def test_workers_survive_their_files():
    """A crash, a hang and an exit cost one file each; all others have their outcome, once."""

    def job(index: int) -> Outcome:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 5:
            time.sleep(60)
        if index == 7:
            os._exit(9)
        return Outcome(0, said=str(index))

    found = dict(workers.each(job, range(250), jobs=2, time_limit=1.0))
    assert sorted(found) == list(range(250))
    assert found.pop(3).problem == "crash: SIGKILL"
    assert found.pop(5).problem == "hang: more than 1 s"
    assert found.pop(7).problem == "crash: exit 9"
    assert all(outcome.said == str(index) for index, outcome in found.items())


def test_failing_files_are_kept_small(tmp_path, monkeypatch, capsys):
    """A fault that one name in the model triggers: what is kept has that name and little else."""
    reading = optimizing.read_source

    def refusing(path, shapes):
        if b"first" in path.read_bytes():
            raise KeyError("first")
        return reading(path, shapes)

    monkeypatch.setattr(optimizing, "read_source", refusing)
    index = next(
        i for i in range(500)
        if (drawn := draw(0, i, made_sources(), ())).verb.startswith("optimize") and b"first" in drawn.case.data
    )  # fmt: skip
    assert main(["-n", "1", "--start", str(index), "--no-zoo", "--keep", str(tmp_path)]) == 1
    assert "1 violations" in capsys.readouterr().out
    kept = tmp_path / f"file-0-{index}"
    data = (kept / "model.onnx").read_bytes()
    assert b"first" in data
    assert len(data) < len(draw(0, index, made_sources(), ()).case.data) / 4
    assert f"--start {index} -n 1" in (kept / "note.txt").read_text()


def test_shrinking_keeps_what_fails():
    def fails(case: Case) -> bool:
        model = onnx.ModelProto()
        try:
            model.ParseFromString(case.data)
        except Exception:
            return False
        return any(tensor.data_type == TensorProto.INT64 for tensor in model.graph.initializer)

    case = Case(source("tiled").model, {"beside": b"not needed"})
    smaller = shrunken(case, fails, budget=200)
    assert fails(smaller)
    assert not smaller.beside
    assert len(smaller.data) < 100
