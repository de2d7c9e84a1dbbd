"""Counts of what was served, in the words of the protocol's statistics extension."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from msconv_deploy.serving.batching import Outcome, RunTimes
from msconv_deploy.serving.model import VERSION, Model


@dataclass
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def report(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


_STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Statistics:
    """Counters of one model since its start; a request counts once it is answered.

    Attributes:
        max_batch: runs of more rows, which a single request may have, are counted together, as of ``max_batch + 1``.
        batches: rows of a run -> times of gathering, computing and splitting.
    """

    max_batch: int
    rows: int = 0
    runs: int = 0
    last: float = 0.0
    steps: dict[str, _Duration] = field(default_factory=lambda: {step: _Duration() for step in _STEPS})
    batches: dict[int, list[_Duration]] = field(
        default_factory=lambda: defaultdict(lambda: [_Duration() for _ in range(3)])
    )

    def ran(self, times: RunTimes) -> None:
        """A run of the session has ended."""
        self.rows += times.rows
        self.runs += 1
        self.last = time.time()
        for duration, seconds in zip(self.batches[min(times.rows, self.max_batch + 1)], _parts(times), strict=True):
            duration.add(seconds)

    def answered(self, seconds: float, outcome: Outcome | None) -> None:
        """A request has been answered after that time: with tensors, or (no outcome) with an error."""
        self.steps["fail" if outcome is None else "success"].add(seconds)
        if outcome is not None:
            self.steps["queue"].add(outcome.waited)
            for step, part in zip(_STEPS[3:], _parts(outcome.times), strict=True):
                self.steps[step].add(part)

    def report(self, model: Model) -> dict[str, Any]:
        """The answer of the statistics extension."""
        return {
            "model_stats": [
                {
                    "name": model.name,
                    "version": VERSION,
                    "last_inference": round(self.last * 1e3),
                    "inference_count": self.rows,
                    "execution_count": self.runs,
                    "inference_stats": {step: duration.report() for step, duration in self.steps.items()},
                    "batch_stats": [
                        {"batch_size": rows}
                        | {step: part.report() for step, part in zip(_STEPS[3:], parts, strict=True)}
                        for rows, parts in sorted(self.batches.items())
                    ],
                }
            ]
        }


def _parts(times: RunTimes) -> tuple[float, float, float]:
    return times.gather, times.compute, times.split
