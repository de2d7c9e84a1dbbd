"""Everything on the page of results in one go: `make bench` (about an hour); `make bench PAIRS=2` for a look (20 minutes).

    python benchmarks/run_all.py [--pairs 8] [--zoo FOLDER] [--only TEXT] [--steps NAME ...] [--list]

Each step is a script of this folder in a process of its own, whose output is shown as it comes. A step that cannot run here is
skipped and the reason said; its earlier results stay. A step that fails does not stop the others. At the end the tables of the
documentation are brought up to date, and the exit code is 1 if any step failed. --pairs stands for all repetitions: pairs of
sessions, runs of each graph size, random configurations, requests. 8 is what the page shows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FULL = 8
"""Pairs of a whole run; other repetitions are scaled with the pairs, up to their own whole."""
SECONDS = 0.3
"""Of runs in a pair of sessions."""


@dataclass(frozen=True)
class Step:
    """A script to run.

    Attributes:
        name: for --steps.
        about: what it measures.
        command: the script in benchmarks/ and its arguments.
        skipped: why it cannot run, or an empty text.
    """

    name: str
    about: str
    command: tuple[str, ...]
    skipped: str = ""


def steps(pairs: int, zoo: Path, only: str) -> list[Step]:
    """All steps in their order."""

    def scaled(whole: int) -> str:
        return str(max(1, min(whole, whole * pairs // FULL)))

    there = (zoo / "manifest.json").is_file()
    no_zoo = "" if there else f"no {zoo}/manifest.json: ZOO=FOLDER names a folder of ONNX files with one"
    with_zoo = ("--zoo", str(zoo)) if there else ()
    repeated = ("--pairs", str(pairs), "--seconds", str(SECONDS))
    files = ("--only", only) if only else ()
    serving = (
        f"--rounds={scaled(20)}",
        f"--seconds={scaled(30)}",
        f"--fuzz={scaled(10000)}",
        f"--memory={scaled(20000)}",
    )
    return [
        Step("networks", "speed, networks of this repository", ("speed.py", *repeated, "--others", *files)),
        Step(
            "zoo",
            "speed, files from elsewhere",
            ("speed.py", str(zoo), *repeated, "--others", "--name", "zoo", *files),
            no_zoo,
        ),
        Step("exactness", "the operator against float64", ("exactness.py", "--cases", scaled(1000))),
        Step("accuracy", "optimized models against float64", ("accuracy.py", *with_zoo, *files)),
        Step("cost-model", "the estimate against measurement", ("cost_model.py", *with_zoo, *repeated, *files)),
        Step("large-graph", "the optimizer's own time", ("large_graph.py", "--sizes", "--repeats", scaled(3))),
        Step("operators", "operators against their formulas", ("operators.py", "--pairs", str(pairs))),
        Step("serving", "msconv serve", ("serving.py", *serving)),
    ]


def run(step: Step) -> int:
    script, *arguments = step.command
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments], cwd=ROOT, check=False
    ).returncode


def run_steps(chosen: Sequence[Step]) -> list[tuple[Step, str, float]]:
    """Each step with how it ended, "ok", "skipped: …" or "failed: …", and its minutes."""
    done = []
    for index, step in enumerate(chosen, 1):
        print(f"== [{index}/{len(chosen)}] {step.name}: {step.about}", flush=True)
        start = time.perf_counter()
        if step.skipped:
            result = f"skipped: {step.skipped}"
            print(result, flush=True)
        else:
            code = run(step)
            result = f"failed: exit code {code}" if code else "ok"
        done.append((step, result, (time.perf_counter() - start) / 60))
        print(f"== {step.name}: {result}, {done[-1][2]:.1f} min", flush=True)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=FULL, help=f"default {FULL}; 2 and more")
    parser.add_argument("--zoo", type=Path, default=ROOT.parent / "shared" / "zoo", help="files from elsewhere")
    parser.add_argument("--only", default="", metavar="TEXT", help="only model files with this in their name")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="only these, see --list")
    parser.add_argument("--list", action="store_true", help="print the steps and what they would run")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("--pairs: an interval needs 2 pairs")
    chosen = steps(args.pairs, args.zoo.resolve(), args.only)
    unknown = sorted({*(args.steps or ())} - {step.name for step in chosen})
    if unknown:
        parser.error(f"--steps: no step {unknown[0]!r}: there are {', '.join(step.name for step in chosen)}")
    chosen = [step for step in chosen if not args.steps or step.name in args.steps]
    if args.list:
        for step in chosen:
            print(f"{step.name:12} {' '.join(step.command)}" + (f"  (skipped: {step.skipped})" if step.skipped else ""))
        return 0
    try:
        done = run_steps(chosen)
    except KeyboardInterrupt:
        print("stopped; steps that were done have written their results", file=sys.stderr)
        return 130
    included = run(Step("tables", "tables of the documentation", ("include_results.py",)))
    print("== all steps")
    for step, result, minutes in done:
        print(f"{step.name:12} {minutes:5.1f} min  {result}")
    return 1 if included or any(result.startswith("failed") for _, result, _ in done) else 0


if __name__ == "__main__":
    sys.exit(main())
