"""The command ``python -m tests.fuzz graphs``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tests.fuzz.graphs.campaign import Settings, Tally, run, write_failure
from tests.fuzz.graphs.checking import FAILURES, check
from tests.fuzz.graphs.faults import FAULTS
from tests.fuzz.graphs.generator import random_case
from tests.fuzz.graphs.shrinking import shrunken

RULES = (
    "tile-concat-conv", "sink-broadcast", "drop-expand", "unfold-matmul", "unfold-channel-sum", "unfold-max",
    "merge-convs", "tiled-distance",
)  # fmt: skip
_DEFAULT_COUNT = 2000
_SHRUNKEN = 5
"""Failures of one kind that are made small; the others are written as they are."""


def main(argv: list[str]) -> int:
    """Run a campaign; 1 if anything failed."""
    arguments = _parser().parse_args(argv)
    count = arguments.n if arguments.n is not None else (None if arguments.seconds else _DEFAULT_COUNT)
    settings = Settings(
        arguments.seed, arguments.start, count, arguments.seconds, arguments.jobs, arguments.limit, arguments.fault
    )
    begin = time.monotonic()
    tally = run(settings, lambda text: print(text, flush=True))
    seconds = time.monotonic() - begin
    _keep(settings, tally, arguments.shrink and not arguments.fault)
    print(summary(tally, seconds))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(as_json(settings, tally, seconds), indent=1) + "\n")
    return 1 if tally.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.fuzz graphs", description="Random graphs through the optimizer.")
    parser.add_argument("-n", type=int, help=f"graphs to check (default {_DEFAULT_COUNT})")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first graph")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one graph")
    parser.add_argument("--json", type=Path, help="write the summary there too")
    parser.add_argument(
        "--fault", choices=sorted(FAULTS), help="plant a mistake into the optimizer: it has to be found"
    )
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="write failing models as they are")
    return parser


def _keep(settings: Settings, tally: Tally, shrink: bool) -> None:
    """Write the failing models, the first ones of each kind made small."""
    seen: dict[str, int] = {}
    for failure in tally.failures:
        kind = failure.outcome.kind
        seen[kind] = seen.get(kind, 0) + 1
        if kind == "generator":
            continue
        case = random_case(settings.seed, failure.index)
        if shrink and kind not in ("died", "hung") and seen[kind] <= _SHRUNKEN:
            print(f"making graph {failure.index} small ({kind})", flush=True)
            case = shrunken(case, failure.outcome, seconds=60)
            failure.outcome = check(case)
        write_failure(settings, failure, case)


def summary(tally: Tally, seconds: float) -> str:
    """What was seen, in words and tables."""
    lines = [f"{tally.total} graphs in {seconds:.0f} s ({1000 * seconds / max(1, tally.total):.0f} ms each)"]
    lines += [f"  {n:6} {kind}" for kind, n in tally.kinds.most_common()]
    lines += [
        f"{tally.sizes} sizes compared; {tally.imprecise} outputs beyond the tolerance, explained in float64; {tally.empty} "
        f"sizes at which a site computes nothing; {tally.noisy} at which ONNX Runtime's optimizations change the original"
    ]
    lines += ["refused by ONNX Runtime:"] if tally.refusals else []
    lines += [f"  {n:6} {reason}" for reason, n in tally.refusals.most_common(8)]
    lines += ["the product's own verification: " + ", ".join(f"{n} {v}" for v, n in tally.verdicts.most_common())]
    lines += [f"{'rule':20} {'graphs':>7} {'rewritten':>10} {'left':>7}"]
    for rule in RULES:
        lines.append(f"{rule:20} {tally.graphs[rule]:7} {tally.rewritten[rule]:10} {tally.left[rule]:7}")
    lines += ["lowerings: " + ", ".join(f"{name} {n}" for name, n in sorted(tally.lowerings.items()))]
    lines += ["parts: " + ", ".join(f"{name} {n}" for name, n in tally.parts.most_common())]
    never = [rule for rule in RULES if not tally.rewritten[rule]]
    lines += [f"never applied: {', '.join(never)}"] if never else []
    for failure in tally.failures:
        lines.append(f"FAILED graph {failure.index}: {failure.outcome.kind} ({FAILURES.get(failure.outcome.kind, '')})")
        lines.append(f"  {failure.outcome.detail}")
        lines.append(f"  {failure.file or 'no file'}; made of {', '.join(failure.parts) or 'what is not known'}")
    lines.append(f"{len(tally.failures)} failures")
    return "\n".join(lines)


def as_json(settings: Settings, tally: Tally, seconds: float) -> dict[str, object]:
    """The summary as data."""
    return {
        "seed": settings.seed,
        "start": settings.start,
        "graphs": tally.total,
        "seconds": round(seconds, 1),
        "kinds": dict(tally.kinds),
        "comparisons": tally.sizes,
        "explained_in_float64": tally.imprecise,
        "empty": tally.empty,
        "changed_by_onnxruntime": tally.noisy,
        "refused_by_onnxruntime": dict(tally.refusals),
        "verification": dict(tally.verdicts),
        "rules": {
            rule: {"graphs": tally.graphs[rule], "rewritten": tally.rewritten[rule], "left": tally.left[rule]}
            for rule in RULES
        },
        "lowerings": dict(tally.lowerings),
        "parts": dict(tally.parts),
        "onnxruntime_died": tally.runtime_died,
        "failures": [
            {
                "index": f.index,
                "kind": f.outcome.kind,
                "detail": f.outcome.detail,
                "file": f.file,
                "parts": list(f.parts),
            }
            for f in tally.failures
        ],
    }
