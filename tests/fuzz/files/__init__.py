"""The command line on files from strangers: every file that is no model, or no good one, ends in a message.

``python -m tests.fuzz files -n 20000 --jobs 2`` spoils models in every way of :mod:`tests.fuzz.files.mutations`, runs a
verb on each as its user would, in a process that may crash, and holds it to what ``docs/spec.md`` says of exit codes and
output files. A case follows from (seed, index) alone; ``--start INDEX -n 1`` runs one again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.files.mutations import Case, mutated
from tests.fuzz.files.shrinking import shrunken
from tests.fuzz.files.sources import Source, made_sources, zoo_sources
from tests.fuzz.files.verbs import VERBS, Outcome, arguments, attempt, warm_up
from tests.fuzz.files.workers import alone, each

KEEP = Path(__file__).parents[3] / "build" / "fuzz"
_ZOO_SHARE = 0.05
"""How often a file of the zoo is the source: they are larger, and take longer."""


@dataclass(frozen=True)
class Drawn:
    """A case as (seed, index) draws it: the spoilt file, its source, how it was spoilt, and the command line."""

    case: Case
    original: Case
    source: str
    kinds: list[str]
    verb: str
    line: list[str]

    def run(self) -> Outcome:
        return attempt(self.case, self.original, self.line)


@dataclass
class Summary:
    """What a run of the fuzzer saw."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[dict[str, object]] = field(default_factory=list)
    done: int = 0

    def count(self, index: int, drawn: Drawn, outcome: Outcome) -> None:
        self.done += 1
        code = "!" if outcome.problem else str(outcome.code)
        self.codes[drawn.verb, code] += 1
        for kind in set(drawn.kinds):
            self.kinds[kind, code] += 1
        if outcome.problem:
            self.problems.append(
                {
                    "index": index,
                    "problem": outcome.problem,
                    "command": drawn.line,
                    "source": drawn.source,
                    "mutations": drawn.kinds,
                }
            )


def draw(seed: int, index: int, sources: Sequence[Source], zoo: Sequence[Source]) -> Drawn:
    """The case of a seed and an index; it depends on nothing else, but on whether the zoo is there."""
    rng = Random(f"{seed}:{index}")
    source = rng.choice(zoo if zoo and rng.random() < _ZOO_SHARE else sources)
    case, kinds = mutated(source, sources, rng)
    verb = rng.choice(VERBS)
    return Drawn(case, Case(source.model, dict(source.beside)), source.name, kinds, verb, arguments(verb, rng))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fuzzer; 1 where something happened that must not."""
    options = _options(argv)
    sources, zoo = made_sources(), () if options.no_zoo else zoo_sources()
    if not zoo:
        print("without the zoo: " + ("not wanted" if options.no_zoo else "shared/zoo is not beside the checkout"))
    warm_up()
    summary, start = Summary(), time.monotonic()

    def run(index: int) -> Outcome:
        return draw(options.seed, index, sources, zoo).run()

    def indices() -> Iterator[int]:
        for index in range(options.start, options.start + options.n):
            if options.seconds is not None and time.monotonic() - start > options.seconds:
                return
            yield index

    told = start
    for index, outcome in each(run, indices(), options.jobs):
        drawn = draw(options.seed, index, sources, zoo)
        new = outcome.problem and not any(_kind(p["problem"]) == _kind(outcome.problem) for p in summary.problems)
        summary.count(index, drawn, outcome)
        if outcome.problem:
            print(
                f"{index}: {outcome.problem}: msconv {' '.join(drawn.line)} ({drawn.source}, {', '.join(drawn.kinds)})"
            )
            _keep(options.keep, options.seed, index, drawn, outcome, shrink=bool(new) and not options.no_shrink)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            rate = summary.done / (told - start)
            print(f"{summary.done} files, {rate:.1f}/s, {len(summary.problems)} violations", file=sys.stderr)
        sys.stdout.flush()
    seconds = time.monotonic() - start
    _print(summary, seconds)
    if options.json is not None:
        content = {"seed": options.seed, "start": options.start, "files": summary.done, "seconds": round(seconds, 1)}
        content |= {
            "codes": _nested(summary.codes),
            "mutations": _nested(summary.kinds),
            "violations": summary.problems,
        }
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 1 if summary.problems else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz files", description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=1000, help="files (1000)")
    parser.add_argument("--jobs", type=int, default=1, help="workers (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, metavar="INDEX", help="index of the first file")
    parser.add_argument("--seconds", type=float, help="start no file after this time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts and violations to FILE")
    parser.add_argument(
        "--keep", type=Path, default=KEEP, metavar="DIR", help="where failing files are kept (build/fuzz)"
    )
    parser.add_argument("--no-zoo", action="store_true", help="start from the models made here only")
    parser.add_argument("--no-shrink", action="store_true", help="keep failing files as they are")
    return parser.parse_args(argv)


def _kind(problem: object) -> str:
    """The problem without what is particular to one file."""
    text = str(problem)
    return text.split(":")[0] + (" " + text[text.rfind("[") :] if text.endswith("]") else "")


def _keep(folder: Path, seed: int, index: int, drawn: Drawn, outcome: Outcome, shrink: bool) -> None:
    """Keep a failing file with what is beside it and how it failed; shrunken where it is the first of its kind."""
    place = folder / f"file-{seed}-{index}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    case = drawn.case

    def fails(smaller: Case) -> bool:
        found = alone(lambda: attempt(smaller, drawn.original, drawn.line))
        return bool(found.problem) and _kind(found.problem) == _kind(outcome.problem)

    if shrink:
        case = shrunken(case, fails)
    (place / "model.onnx").write_bytes(case.data)
    for name, content in case.beside.items():
        if isinstance(content, bytes):
            (place / name).write_bytes(content)
        else:
            content(place / name)
    text = [
        f"problem: {outcome.problem}",
        f"command: msconv {' '.join(drawn.line)}",
        f"source: {drawn.source}",
        f"mutations: {', '.join(drawn.kinds)}",
        f"again: python -m tests.fuzz files --seed {seed} --start {index} -n 1",
        "",
        outcome.said,
    ]
    (place / "note.txt").write_text("\n".join(text), encoding="utf-8", errors="replace")


def _nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (row, column), number in sorted(counts.items()):
        found.setdefault(row, {})[column] = number
    return found


def _print(summary: Summary, seconds: float) -> None:
    for title, counts in (("verb", summary.codes), ("mutation", summary.kinds)):
        table = _nested(counts)
        columns = sorted({column for row in table.values() for column in row})
        print(f"{title:<18}" + "".join(f"{column:>8}" for column in columns))
        for name, row in table.items():
            print(f"{name:<18}" + "".join(f"{row.get(column, 0):>8}" for column in columns))
    print(f"{summary.done} files in {seconds:.0f} s, {len(summary.problems)} violations")
    for problem, number in Counter(_kind(p["problem"]) for p in summary.problems).most_common():
        print(f"{number:>6}  {problem}")
