"""Tuning: choose by measuring whole models on this machine.

An isolated site tells little: its neighbours fuse with it or not, and share its layout. So whole models are compared, by
the protocol of ``timing``. The start is the fastest of the original, the estimate's choice and every site rewritten; then
site by site, those that promise most first, every other spelling is tried, leaving it among them, and kept if it is
faster by more than ``LEAST_GAIN``. A last comparison with the original decides what is returned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from msconv_deploy.surgery.choice.timing import Comparison, Feeds, compare

Plan = Mapping[str, str]
"""Output of a site -> its lowering; a site that is not there is left as it is."""

LEAST_GAIN = 0.01
"""Least relative gain for which one spelling is preferred to another: what the protocol can tell apart."""
TRIAL_PAIRS, TRIAL_SECONDS = 4, 0.3
FINAL_PAIRS, FINAL_SECONDS = 8, 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A site with its ways to be spelled; ``None`` among them is leaving it."""

    output: str
    spellings: tuple[str | None, ...]


@dataclass(frozen=True)
class Tuned:
    """The plan that was found, and how its model compares with the original (None if it is the original)."""

    plan: Plan
    comparison: Comparison | None


def tune(
    original: onnx.ModelProto,
    folder: Path,
    feeds: Feeds,
    starts: Sequence[Plan],
    candidates: Sequence[Candidate],
    build: Callable[[Plan], onnx.ModelProto],
    *,
    may_keep_original: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """Find a fast plan.

    Args:
        original: the model; external data lies in ``folder``.
        feeds: inputs to measure at.
        starts: plans to start from; the empty one is tried too.
        candidates: sites, those that promise most first.
        build: the model of a plan.
        may_keep_original: whether the original may be the result.
        progress: is told each measurement.
    """
    say = progress or log.info
    best, best_model = _best_start(original, folder, feeds, starts, build, may_keep_original, say)
    for candidate in candidates:
        tried = best.get(candidate.output)
        for spelling in candidate.spellings:
            if spelling == tried:
                continue
            plan = {k: v for k, v in best.items() if k != candidate.output}
            if spelling is not None:
                plan[candidate.output] = spelling
            model = build(plan)
            found = compare(best_model, model, folder, feeds, pairs=TRIAL_PAIRS, seconds_per_pair=TRIAL_SECONDS)
            say(f"{candidate.output} {spelling or 'left'}: x{found.ratio:.3f}")
            if found.ratio > 1 + LEAST_GAIN:
                best, best_model = plan, model
    if not best:
        return Tuned({}, None)
    final = compare(original, best_model, folder, feeds, pairs=FINAL_PAIRS, seconds_per_pair=FINAL_SECONDS)
    say(f"whole model: x{final.ratio:.3f} ± {final.half_width:.3f}")
    if final.ratio <= 1 and may_keep_original:
        say("the original is not slower: it is kept")
        return Tuned({}, None)
    return Tuned(best, final)


def _best_start(
    original: onnx.ModelProto,
    folder: Path,
    feeds: Feeds,
    starts: Sequence[Plan],
    build: Callable[[Plan], onnx.ModelProto],
    may_keep_original: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, str], onnx.ModelProto]:
    best: dict[str, str] = {}
    best_model, best_ratio = original, 1.0 + LEAST_GAIN if may_keep_original else 0.0
    for start in starts:
        if not start or dict(start) == best:
            continue
        model = build(start)
        found = compare(original, model, folder, feeds, pairs=TRIAL_PAIRS, seconds_per_pair=TRIAL_SECONDS)
        say(f"{len(start)} sites rewritten: x{found.ratio:.3f}")
        if found.ratio > best_ratio:
            best, best_model, best_ratio = dict(start), model, found.ratio
    return best, best_model
