"""Many cases in several processes: each has a time limit, and a process that ends is replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.fuzz.graphs.case import Case, save
from tests.fuzz.graphs.checking import ON_ORIGINAL, Outcome, check
from tests.fuzz.graphs.generator import random_case

FAILING = Path("build/fuzz")
"""Where failing models are written."""


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        seed: with the number of a graph it decides the graph.
        start, count: numbers of the graphs; without a count until the time is over.
        seconds: time for all of them; None for no end.
        limit: seconds for one graph.
        fault: mistake that is planted into the optimizer (:mod:`.faults`).
    """

    seed: int = 0
    start: int = 0
    count: int | None = None
    seconds: float | None = None
    jobs: int = 1
    limit: float = 60.0
    fault: str | None = None


@dataclass
class Failure:
    """A graph that failed."""

    index: int
    outcome: Outcome
    parts: tuple[str, ...] = ()
    file: str = ""


@dataclass
class Tally:
    """What a campaign has seen so far."""

    kinds: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    rewritten: Counter = field(default_factory=Counter)
    graphs: Counter = field(default_factory=Counter)
    left: Counter = field(default_factory=Counter)
    lowerings: Counter = field(default_factory=Counter)
    parts: Counter = field(default_factory=Counter)
    verdicts: Counter = field(default_factory=Counter)
    sizes: int = 0
    imprecise: int = 0
    empty: int = 0
    noisy: int = 0
    runtime_died: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    def add(self, index: int, outcome: Outcome, parts: tuple[str, ...]) -> None:
        self.kinds[outcome.kind] += 1
        self.parts.update(set(parts))
        self.rewritten.update(outcome.rewritten)
        self.graphs.update(set(outcome.rewritten))
        self.left.update(outcome.left)
        self.lowerings.update(outcome.lowerings)
        self.verdicts.update([outcome.verdict] if outcome.verdict else [])
        self.sizes += outcome.sizes
        self.imprecise += outcome.imprecise
        self.empty += outcome.empty
        self.noisy += outcome.noisy
        if outcome.kind == "refused":
            self.refusals[_without_names(outcome.detail)] += 1
        if outcome.failed:
            self.failures.append(Failure(index, outcome, parts))


def _without_names(text: str) -> str:
    """A runtime's message without the names of one model."""
    text = text.partition(" with name ")[0]
    return (text.rpartition("Fatal error: ")[2] or text)[:110]


def run(settings: Settings, progress=lambda text: None) -> Tally:
    """Check the graphs of a campaign."""
    tally = Tally()
    last = time.monotonic()
    for index, outcome, parts in _outcomes(settings):
        if isinstance(outcome, str):
            tally.runtime_died.append(index)
            tally.kinds["refused"] += 1
            tally.refusals[outcome] += 1
        else:
            tally.add(index, outcome, parts)
            if outcome.failed:
                progress(f"graph {index}: {outcome.kind}: {outcome.detail}")
        if time.monotonic() - last > 10:
            last = time.monotonic()
            counts = ", ".join(f"{n} {kind}" for kind, n in tally.kinds.most_common())
            progress(f"{tally.total} graphs: {counts}")
    return tally


def write_failure(settings: Settings, failure: Failure, case: Case) -> Path:
    """Keep a failing case as a file."""
    path = FAILING / f"graph-{settings.seed}-{failure.index}.onnx"
    save(case, path, f"{failure.outcome.kind}: {failure.outcome.detail}")
    failure.file = str(path)
    return path


# -- processes ---------------------------------------------------------------------------------------------------------


class _Worker:
    """A process that checks one graph after another, and says what it is doing."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.index: int | None = None
        self.stage = "start"
        self.since = time.monotonic()

    def give(self, index: int) -> None:
        self.index, self.stage, self.since = index, "generate", time.monotonic()
        self.pipe.send(index)

    def end(self) -> int | None:
        """Make it stop; its exit code."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


def _work(pipe: Connection, settings: Settings) -> None:
    from tests.fuzz.graphs.faults import planted

    sys.setrecursionlimit(10_000)
    with ExitStack() as stack:
        if settings.fault:
            stack.enter_context(planted(settings.fault))
        while True:
            try:
                index = pipe.recv()
            except (EOFError, KeyboardInterrupt):
                os._exit(0)
            pipe.send(("done", *check_number(settings.seed, index, lambda stage: pipe.send(("stage", stage)))))


def check_number(seed: int, index: int, stage=lambda _: None) -> tuple[Outcome, tuple[str, ...]]:
    """Generate and check one graph."""
    try:
        case = random_case(seed, index)
    except Exception as error:
        return Outcome("generator", f"{type(error).__name__}: {error}"), ()
    return check(case, stage), case.parts


def _outcomes(settings: Settings) -> Iterator[tuple[int, Outcome | str, tuple[str, ...]]]:
    """(number, outcome or how the runtime itself died on the original, parts of the graph)."""
    numbers = iter(range(settings.start, sys.maxsize if settings.count is None else settings.start + settings.count))
    end = None if settings.seconds is None else time.monotonic() + settings.seconds
    workers = [_Worker(settings) for _ in range(settings.jobs)]
    try:
        for worker in workers:
            _next(worker, numbers, end)
        while any(worker.index is not None for worker in workers):
            busy = {worker.pipe: worker for worker in workers if worker.index is not None}
            for pipe in wait(list(busy), timeout=1.0):
                worker = busy[pipe]
                try:
                    what, *rest = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    yield _died(worker)
                    workers[workers.index(worker)] = fresh = _Worker(settings)
                    _next(fresh, numbers, end)
                    continue
                if what == "stage":
                    worker.stage = rest[0]
                    continue
                yield worker.index, rest[0], rest[1]
                _next(worker, numbers, end)
            for worker in list(workers):
                if worker.index is not None and time.monotonic() - worker.since > settings.limit:
                    worker.end()
                    yield worker.index, Outcome("hung", f"over {settings.limit:.0f} s, at: {worker.stage}"), ()
                    workers[workers.index(worker)] = fresh = _Worker(settings)
                    _next(fresh, numbers, end)
    finally:
        for worker in workers:
            worker.end()


def _next(worker: _Worker, numbers: Iterator[int], end: float | None) -> None:
    index = None if end is not None and time.monotonic() > end else next(numbers, None)
    worker.index = None
    if index is not None:
        worker.give(index)


def _died(worker: _Worker) -> tuple[int, Outcome | str, tuple[str, ...]]:
    code = worker.end()
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    assert worker.index is not None
    if worker.stage in ON_ORIGINAL:
        return worker.index, f"ended the process ({how}), at: {worker.stage}", ()
    return worker.index, Outcome("died", f"{how}, at: {worker.stage}"), ()
