"""Forked workers that may crash, hang or eat memory, each over one file at a time, and the one who looks after them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.fuzz.files.verbs import MEMORY_GROWTH, Outcome

TIME_LIMIT = 20.0
"""Seconds for one file."""

ADDRESS_SPACE = 12 << 30
"""Bytes of address space of a worker: what would take more fails at once, and takes nothing from the machine."""

_LIFETIME = 100
"""Files until a worker is replaced, so that what a runtime keeps does not add up."""

Job = Callable[[int], Outcome]


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    index: int | None = None
    since: float = 0.0
    done: int = 0


def each(
    job: Job, indices: Iterable[int], jobs: int = 1, time_limit: float = TIME_LIMIT
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of every index, in the order in which they end; a crash, a hang or memory is an outcome like others.

    Args:
        job: runs in a forked worker; its result must not depend on what the worker did before.
        jobs: workers at a time.
        time_limit: seconds for one index.
    """
    left = iter(indices)
    workers: list[_Worker] = []
    exhausted = False
    try:
        while workers or not exhausted:
            while not exhausted and len(workers) < jobs:
                worker = _start(job)
                exhausted = not _assign(worker, left)
                if worker.index is None:
                    _stop(worker)
                else:
                    workers.append(worker)
            if not workers:
                break
            ready = wait([worker.connection for worker in workers], timeout=0.2)
            for worker in list(workers):
                outcome = _outcome(worker, worker.connection in ready, time_limit)
                if outcome is None:
                    continue
                assert worker.index is not None
                yield worker.index, outcome
                worker.index, worker.done = None, worker.done + 1
                fit = outcome.code is not None and worker.done < _LIFETIME
                if not fit or exhausted or not _assign(worker, left):
                    exhausted = exhausted or (fit and worker.index is None)
                    workers.remove(worker)
                    _stop(worker)
    finally:
        for worker in workers:
            _stop(worker)


def alone(job: Callable[[], Outcome], time_limit: float = TIME_LIMIT) -> Outcome:
    """The outcome of one call in a worker of its own."""
    return next(each(lambda _: job(), [0], time_limit=time_limit))[1]


def _start(job: Job) -> _Worker:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    sys.stdout.flush(), sys.stderr.flush()
    process: Any = multiprocessing.get_context("fork").Process(target=_work, args=(job, ours, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _assign(worker: _Worker, left: Iterator[int]) -> bool:
    worker.index = next(left, None)
    if worker.index is None:
        return False
    worker.since = time.monotonic()
    worker.connection.send(worker.index)
    return True


def _outcome(worker: _Worker, ready: bool, time_limit: float) -> Outcome | None:
    """What became of the worker's file; None while it is at it."""
    if ready:
        try:
            found: Outcome = worker.connection.recv()
            return found
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit {code}"
            return Outcome(None, f"crash: {how}")
    if time.monotonic() - worker.since > time_limit:
        return Outcome(None, f"hang: more than {time_limit:.0f} s")
    return None


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    if worker.process.pid is not None and worker.process.is_alive():
        worker.process.kill()
    worker.process.join()


def _work(job: Job, unused: Connection, connection: Connection) -> None:
    """In the worker: one file after the other, until the connection ends."""
    unused.close()
    faulthandler.disable()  # a crash is an outcome, not a report of its own
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        before = _peak_memory(reset=True)
        outcome = job(index)
        grown = _peak_memory() - before
        if grown > MEMORY_GROWTH and not outcome.problem:
            outcome = Outcome(outcome.code, f"memory: {grown / (1 << 30):.1f} GiB more", outcome.said)
        try:
            connection.send(outcome)
        except BrokenPipeError:
            return


def _peak_memory(reset: bool = False) -> int:
    """Bytes of the process that were in memory at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
