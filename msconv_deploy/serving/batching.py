"""Dynamic batching: requests that wait at the same time and have equal shapes are computed in one run.

Only requests with equal types and equal trailing shapes of every input are joined, along axis 0, and only where the model
allows it (:attr:`Model.batching`) and it is measured to be faster (:mod:`gain`). Everything else runs by itself. While a run
is under way, requests gather; so batches grow with the load, and a lone request does not wait unless a delay is asked for.
Requests that wait for their delay let others go first that need not wait.

Runs have a thread of their own, which leaves the event loop free. The way there and back takes about 0.2 ms, so the run of a
lone request that is expected to take less than :data:`SHORT` seconds stays on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from msconv_deploy.serving.errors import InvalidRequestError, RequestError, RunFailedError
from msconv_deploy.serving.gain import Gain
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.runtime import Arrays, Run

SHORT = 0.001
"""Seconds for which a run may hold up the event loop: no more than reading a larger request does."""

_REMEMBERED = 256  # shapes whose time is known

_Key = tuple[tuple[str, np.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True)
class RunTimes:
    """One run of the session.

    Attributes:
        requests: how many it answered.
        rows: extent of axis 0 of all requests together; 1 where the model has no batch axis.
        gather, compute, split: seconds.
    """

    requests: int
    rows: int
    gather: float
    compute: float
    split: float


@dataclass(frozen=True)
class Outcome:
    """What one request gets: its outputs, the seconds that it waited, and the run that it was part of."""

    arrays: Arrays
    waited: float
    times: RunTimes


@dataclass(eq=False)
class _Pending:
    """A request that waits.

    ``shapes`` are those of all inputs, ``key`` is what requests have in common that may be joined; None: it must not be.
    """

    feeds: Arrays
    outputs: Sequence[str]
    shapes: _Key
    key: _Key | None
    rows: int
    future: asyncio.Future[Outcome]
    arrived: float


@dataclass(frozen=True)
class _Part:
    """A request's share of a run."""

    arrays: Arrays
    times: RunTimes


class Batcher:
    """Joins requests and runs them, one run at a time. Lives on one event loop."""

    def __init__(
        self,
        model: Model,
        max_batch: int,
        max_delay: float,
        on_run: Callable[[RunTimes], None] = lambda times: None,
        lone: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            max_batch: most rows of one run. A request with more rows runs by itself.
            max_delay: seconds that the first request of a batch waits for others.
            on_run: is told of every run.
            lone: is the request that waits the only one that has begun to arrive? A short run then stays on the event loop.
        """
        self.model, self.max_batch, self.max_delay, self._on_run = model, max_batch, max_delay, on_run
        self._lone = lone
        self._seconds: dict[_Key, float] = {}  # what the last run of these shapes took
        self._waiting: deque[_Pending] = deque()
        self._gain = Gain()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._stopped: asyncio.Event | None = None
        self._executor = ThreadPoolExecutor(1, "model")

    @property
    def length(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def stop(self) -> None:
        """Finish what waits, then end."""
        self._stopped = asyncio.Event()
        self._next()
        await self._stopped.wait()
        self._executor.shutdown()

    def submit(self, feeds: Arrays, outputs: Sequence[str]) -> asyncio.Future[Outcome]:
        """Queue a request. Ending the future takes it out again, or stops its run if nobody else needs it.

        The future raises InvalidRequestError or RunFailedError.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        rows, key = self._rows_and_key(feeds)
        shapes = tuple((name, array.dtype, array.shape) for name, array in sorted(feeds.items()))
        pending = _Pending(feeds, outputs, shapes, key, rows, future, time.perf_counter())
        future.add_done_callback(lambda _: self._forget(pending))
        self._waiting.append(pending)
        # what has arrived together with it is read first, so that it is not taken for a lone one
        if self._is_short(pending):
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._next()
        return future

    def _is_short(self, pending: _Pending) -> bool:
        return self._seconds.get(pending.shapes, SHORT) < SHORT

    def _forget(self, pending: _Pending) -> None:
        if pending in self._waiting:
            self._waiting.remove(pending)

    def _rows_and_key(self, feeds: Arrays) -> tuple[int, _Key | None]:
        if self.model.batching:
            return 1, None
        extents = {array.shape[0] for array in feeds.values()}
        rows = max(extents)
        if len(extents) != 1 or not 0 < rows < self.max_batch:  # one source for all samples is not cut into rows
            return rows, None
        return rows, tuple((name, feeds[name].dtype, feeds[name].shape[1:]) for name in sorted(feeds))

    # -- on the event loop: callbacks and no task, because every switch of tasks costs a lone request its time ---------

    def _next(self) -> None:
        """Start a run if none is under way: of the oldest request that need not wait for others any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            return
        if not self._waiting:
            if self._stopped is not None:
                self._stopped.set()
            return
        now, shortest = time.perf_counter(), self.max_delay
        for group in self._groups():
            left = self._due(group) - now
            if left <= 0:
                self._start(group)
                return
            shortest = min(shortest, left)
        self._timer = asyncio.get_running_loop().call_later(shortest, self._next)

    def _groups(self) -> Iterator[list[_Pending]]:
        """Requests that may run together, by the arrival of the oldest of each; those of the oldest are mostly enough."""
        key = self._waiting[0].key
        yield self._fitting(pending for pending in self._waiting if pending.key == key)
        others: dict[object, list[_Pending]] = {}
        for pending in self._waiting:
            if pending.key != key:
                others.setdefault(pending if pending.key is None else pending.key, []).append(pending)
        yield from map(self._fitting, others.values())

    def _fitting(self, alike: Iterable[_Pending]) -> list[_Pending]:
        """The first of them, and those that fit into one run with it."""
        group: list[_Pending] = []
        room = self.max_batch
        for pending in alike:
            if not group or (pending.key is not None and pending.rows <= room):
                group.append(pending)
                room -= pending.rows
        return group

    def _chooses(self, group: list[_Pending]) -> bool:
        """Is joining them, or waiting for others, a choice?"""
        return group[0].key is not None and (len(group) > 1 or self.max_delay > 0)

    def _due(self, group: list[_Pending]) -> float:
        """When it shall run, on the clock of ``time.perf_counter``; 0: at once."""
        waits = self._stopped is None and self.max_delay and sum(pending.rows for pending in group) < self.max_batch
        if waits and self._chooses(group) and self._gain.joins(group[0].key):
            return group[0].arrived + self.max_delay
        return 0.0

    def _start(self, group: list[_Pending]) -> None:
        if self._chooses(group) and not self._gain.decide(group[0].key):
            group = group[:1]
        for pending in group:
            self._waiting.remove(pending)
        run, loop = Run(), asyncio.get_running_loop()

        def stop_if_unwanted(_: object) -> None:
            if all(pending.future.done() for pending in group):
                run.stop()

        for pending in group:
            pending.future.add_done_callback(stop_if_unwanted)
        self._running = True
        begun = time.perf_counter()

        if len(group) == 1 and self._is_short(group[0]) and self._lone():
            self._finish(group, self._compute(group, run), begun, away=False)
            return

        def work() -> None:
            loop.call_soon_threadsafe(self._finish, group, self._compute(group, run), begun)

        self._executor.submit(work)

    def _finish(
        self, group: list[_Pending], results: list[_Part | RequestError], begun: float, away: bool = True
    ) -> None:
        self._running = False
        # with the way to the other thread and back, which a batch takes once
        seconds = time.perf_counter() - begun if away else None
        for pending, result in zip(group, results, strict=True):
            if pending.future.done():
                continue
            if isinstance(result, RequestError):
                pending.future.set_exception(result)
            else:
                pending.future.set_result(Outcome(result.arrays, begun - pending.arrived, result.times))
        runs = [result.times for result in results if isinstance(result, _Part)]
        for times in {id(times): times for times in runs}.values():
            self._on_run(times)
            if len(group) == 1:
                self._remember(group[0].shapes, times.compute)
            if group[0].key is not None and seconds is not None:
                self._gain.ran(group[0].key, times.requests, times.rows, seconds)
        self._next()

    def _remember(self, shapes: _Key, seconds: float) -> None:
        self._seconds.pop(shapes, None)
        if len(self._seconds) >= _REMEMBERED:
            del self._seconds[next(iter(self._seconds))]  # the one that was not seen for longest
        self._seconds[shapes] = seconds

    # -- on the model's thread -----------------------------------------------------------------------------------------

    def _compute(self, group: list[_Pending], run: Run) -> list[_Part | RequestError]:
        """One result for each request; never raises."""
        try:
            arrays, times = self._together(group, run)
            return [_Part(part, times) for part in arrays]
        except Exception as error:
            if len(group) > 1:  # one of them may be to blame: the others shall not suffer
                return [result for pending in group for result in self._compute([pending], run)]
            if not isinstance(error, (InvalidRequestError, RunFailedError)):
                error = RunFailedError(f"model {self.model.name!r}: {type(error).__name__}: {error}")
            return [error]

    def _together(self, group: list[_Pending], run: Run) -> tuple[list[Arrays], RunTimes]:
        start = time.perf_counter()
        names = list(dict.fromkeys(name for pending in group for name in pending.outputs))
        feeds = group[0].feeds
        if len(group) > 1:
            feeds = {name: np.concatenate([pending.feeds[name] for pending in group]) for name in feeds}
        gathered = time.perf_counter()
        results = dict(zip(names, self.model.run(feeds, names, run), strict=True))
        computed = time.perf_counter()
        rows = sum(pending.rows for pending in group)
        parts: list[Arrays] = []
        at = 0
        for pending in group:
            part = {name: results[name] for name in pending.outputs}
            if len(group) > 1:
                if any(array.shape[:1] != (rows,) for array in part.values()):
                    raise RunFailedError(f"model {self.model.name!r}: an output has not one row for each sample")
                part = {name: array[at : at + pending.rows] for name, array in part.items()}
            at += pending.rows
            parts.append(part)
        return parts, RunTimes(len(group), rows, gathered - start, computed - gathered, time.perf_counter() - computed)
