"""The batcher by itself, with models that tell what they were given; and which models may be joined at all."""

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
from onnx import TensorProto, helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.serving import batching
from msconv_deploy.serving.batching import Batcher
from msconv_deploy.serving.errors import RunFailedError
from msconv_deploy.serving.gain import Gain
from msconv_deploy.serving.model import Model
from tests.serving.networks import four_sources, pointwise
from tests.tile_models import plain_conv, tiled_conv


class Recorder(SimpleNamespace):
    """A model y = 2x that records the shapes of its runs; closed, it waits before the first run ends."""

    def __init__(self, closed=False, joined_fails=False, mixes=False):
        super().__init__(name="recorder", batching="", shapes=[], joined_fails=joined_fails, mixes=mixes)
        self.gate = threading.Event()
        if not closed:
            self.gate.set()

    def run(self, feeds, outputs, run=None):
        self.shapes.append(feeds["x"].shape)
        assert self.gate.wait(10)
        if self.joined_fails and len(feeds["x"]) > 1:
            raise RunFailedError("no batches")
        if (feeds["x"] == -1).any():
            raise RunFailedError("poison")
        y = 2 * feeds["x"]
        return [y[:1] if self.mixes else y for _ in outputs]


def x(rows, width, value=1.0, dtype=np.float32):
    return {"x": np.full((rows, width), value, dtype)}


def run(model, requests, max_batch=8, max_delay=0.0, runs=None):
    """All requests at once, behind a first one that keeps the model busy; their results or errors."""

    async def main():
        batcher = Batcher(
            model, max_batch, max_delay, (lambda times: runs.append(times)) if runs is not None else print
        )
        first = batcher.submit(x(1, 99), ["y"])
        futures = [batcher.submit(feeds, ["y"]) for feeds in requests]
        assert batcher.length == len(requests)
        model.gate.set()
        await first
        done = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
        await batcher.stop()
        return done

    return asyncio.run(main())


def test_only_equal_types_and_trailing_shapes_are_joined():
    model = Recorder(closed=True)
    requests = [x(1, 4, 1), x(1, 5, 2), x(2, 4, 3), x(1, 4, 4, np.float64), x(1, 5, 5), x(1, 4, 6)]
    runs = []
    results = run(model, requests, runs=runs)
    assert model.shapes == [(1, 99), (4, 4), (2, 5), (1, 4)]
    for feeds, outcome in zip(requests, results, strict=True):
        assert np.array_equal(outcome.arrays["y"], 2 * feeds["x"])
        assert outcome.arrays["y"].dtype == feeds["x"].dtype
    assert [(times.requests, times.rows) for times in runs] == [(1, 1), (3, 4), (2, 2), (1, 1)]


def test_a_run_has_at_most_max_batch_rows():
    model = Recorder(closed=True)
    results = run(model, [x(rows, 4, value) for value, rows in enumerate((3, 3, 2, 1, 9, 8, 4))], max_batch=8)
    assert model.shapes[1:] == [(8, 4), (5, 4), (9, 4), (8, 4)]  # more rows than fit run by themselves
    assert [len(outcome.arrays["y"]) for outcome in results] == [3, 3, 2, 1, 9, 8, 4]
    assert all((outcome.arrays["y"] == 2 * value).all() for value, outcome in enumerate(results))


def test_a_source_for_all_samples_is_not_joined():
    """x [3,4] with s [1,2], which the model broadcasts: rows of another request must not be put behind s."""
    model = Recorder(closed=True)
    shared = {"x": np.ones((3, 4), np.float32), "s": np.ones((1, 2), np.float32)}
    run(model, [shared, shared])
    assert model.shapes[1:] == [(3, 4), (3, 4)]


def test_nothing_is_joined_where_the_model_forbids_it():
    model = Recorder(closed=True)
    model.batching = "it mixes the samples of a batch"
    run(model, [x(1, 4)] * 3)
    assert model.shapes[1:] == [(1, 4)] * 3


def test_one_request_that_fails_does_not_fail_the_others():
    model = Recorder(closed=True)
    results = run(model, [x(1, 4, 1), x(1, 4, -1), x(1, 4, 3)])
    assert model.shapes[1] == (3, 4)
    assert isinstance(results[1], RunFailedError)
    assert [results[i].arrays["y"][0, 0] for i in (0, 2)] == [2, 6]


@pytest.mark.parametrize("flaw", ["joined_fails", "mixes"])
def test_a_model_that_cannot_be_joined_after_all_is_run_apart(flaw):
    results = run(Recorder(closed=True, **{flaw: True}), [x(1, 4, 1), x(1, 4, 2)])
    assert [outcome.arrays["y"].tolist() for outcome in results] == [[[2.0] * 4], [[4.0] * 4]]


def test_a_delay_gathers_and_no_delay_does_not():
    async def main(delay):
        model = Recorder()
        batcher = Batcher(model, 4, delay)
        start = time.perf_counter()
        futures = [batcher.submit(x(1, 4), ["y"])]
        await asyncio.sleep(0.01)
        futures += [batcher.submit(x(1, 4), ["y"]) for _ in range(2)]
        await asyncio.gather(*futures)
        seconds = time.perf_counter() - start
        await batcher.stop()
        return model.shapes, seconds

    assert asyncio.run(main(0.0))[0][0] == (1, 4)
    shapes, seconds = asyncio.run(main(0.2))
    assert shapes == [(3, 4)]
    assert seconds >= 0.2


def test_a_full_batch_does_not_wait_for_its_delay():
    async def main():
        batcher = Batcher(Recorder(), 2, 30.0)
        await asyncio.wait_for(asyncio.gather(*(batcher.submit(x(1, 4), ["y"]) for _ in range(2))), 10)
        waiting = batcher.submit(x(1, 4), ["y"])
        await asyncio.wait_for(batcher.stop(), 10)  # nor does the end
        return waiting.result().arrays["y"].shape

    assert asyncio.run(main()) == (1, 4)


def test_who_waits_for_its_delay_lets_others_go_first():
    """A full batch, one that is joined with nobody, and then a kind whose delay ends first."""

    async def main():
        model = Recorder()
        batcher = Batcher(model, 4, 0.5)
        begun = time.perf_counter()
        first = batcher.submit(x(1, 4), ["y"])
        await asyncio.sleep(0.01)
        second = batcher.submit(x(1, 5), ["y"])
        full = [batcher.submit(x(2, 6), ["y"]) for _ in range(2)]
        alone = batcher.submit(x(4, 4), ["y"])
        await asyncio.gather(alone, *full)
        early = time.perf_counter() - begun
        await asyncio.gather(first, second)
        late = time.perf_counter() - begun
        await batcher.stop()
        return model.shapes, early, late

    shapes, early, late = asyncio.run(main())
    assert shapes == [(4, 6), (4, 4), (1, 4), (1, 5)]
    assert early < 0.5 <= late


def test_requests_that_join_nobody_do_not_keep_others_from_their_turn():
    """Once its delay is over, the oldest is first."""

    async def main():
        model = Recorder()
        batcher = Batcher(model, 4, 0.2)
        waiting = batcher.submit(x(1, 5), ["y"])
        while not waiting.done():
            await asyncio.wait([batcher.submit(x(4, 4), ["y"]) for _ in range(2)])
        waited = waiting.result().waited
        await batcher.stop()
        return waited

    assert 0.2 <= asyncio.run(main()) < 5


def runs_on_event_loop(seconds, lone, together):
    """Whether each run of the model was on the event loop, and its rows.

    Args:
        seconds: what each run takes.
        together: requests that are submitted at once, for each step; a step ends when all are answered.
    """

    class Watched(Recorder):
        def run(self, feeds, outputs, run=None):
            time.sleep(next(times))
            places.append((threading.get_ident() == loop_thread, len(feeds["x"])))
            return super().run(feeds, outputs, run)

    times, places, loop_thread = iter(seconds), [], threading.get_ident()

    async def main():
        batcher = Batcher(Watched(), 8, 0.0, lone=lambda: lone)
        for count in together:
            await asyncio.gather(*(batcher.submit(x(1, 4), ["y"]) for _ in range(count)))
        await batcher.stop()

    asyncio.run(main())
    return places


@pytest.fixture
def long(monkeypatch):
    """Seconds of a run that is not short, where short is what a loaded machine manages as well."""
    monkeypatch.setattr(batching, "SHORT", 0.1)
    return 0.2


def test_a_lone_request_stays_on_the_event_loop_once_its_run_is_known_to_be_short(long):
    away, here = (False, 1), (True, 1)
    assert runs_on_event_loop([0, 0, 0], True, [1, 1, 1]) == [away, here, here]
    assert runs_on_event_loop([0, 0], False, [1, 1]) == [away, away]
    assert runs_on_event_loop([long] * 2, True, [1, 1]) == [away, away]
    assert runs_on_event_loop([0, long, 0, 0], True, [1, 1, 1, 1]) == [away, here, away, here]


def test_short_requests_that_come_together_are_joined(long):
    assert runs_on_event_loop([0, 0], True, [1, 4]) == [(False, 1), (False, 4)]


@pytest.mark.parametrize("slower", [False, True])
def test_joining_stops_where_it_is_slower(slower):
    """A run takes 1 ms, or 1 ms for each row and row: after the ways are measured, the faster one is taken."""

    class Timed(Recorder):
        def run(self, feeds, outputs, run=None):
            rows = len(feeds["x"])
            time.sleep(0.001 * (rows * rows if slower else 1))
            return super().run(feeds, outputs, run)

    async def main():
        model = Timed()
        batcher = Batcher(model, 4, 0.0)
        for _ in range(20):
            await batcher.submit(x(1, 4), ["y"])
            await asyncio.gather(*(batcher.submit(x(1, 4), ["y"]) for _ in range(5)))
        await batcher.stop()
        return [shape[0] for shape in model.shapes[-30:]]

    rows = asyncio.run(main())
    if slower:
        assert rows.count(1) >= 25  # now and then it is tried again
    else:
        assert rows.count(4) >= 9


def test_asking_is_not_deciding():
    """The other way is tried before every fiftieth run, however often it was looked at before."""
    gain = Gain()
    gain.ran("x", 1, 1, 0.1)
    gain.ran("x", 2, 2, 1.0)
    decisions = []
    for _ in range(100):
        looked = {gain.joins("x") for _ in range(7)}
        decisions.append(gain.decide("x"))
        assert looked == {decisions[-1]}
    assert [index for index, joins in enumerate(decisions) if joins] == [49, 99]


def test_kinds_that_are_not_seen_any_more_are_forgotten():
    gain = Gain()
    for width in range(5000):
        gain.ran(("x", width), 1, 1, 0.1)
    assert len(gain._kinds) <= 512


def test_cancelled_requests_leave_the_queue_and_stop_their_run():
    async def main():
        model = Recorder(closed=True)
        stopped = []
        batcher = Batcher(model, 8, 0.0)
        first = batcher.submit(x(1, 4), ["y"])
        while not model.shapes:
            await asyncio.sleep(0.001)
        waiting = [batcher.submit(x(1, 5), ["y"]) for _ in range(100)]
        for future in waiting:
            future.cancel()
        await asyncio.sleep(0)
        stopped.append(batcher.length)
        first.cancel()
        model.gate.set()
        last = await batcher.submit(x(1, 6), ["y"])
        await batcher.stop()
        return stopped, model.shapes, last.arrays["y"].shape

    assert asyncio.run(main()) == ([0], [(1, 4), (1, 6)], (1, 6))


def test_a_run_that_nobody_waits_for_is_stopped(tmp_path):
    """ONNX Runtime ends it between two operators."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["t0"])]
    nodes += [helper.make_node("MatMul", [f"t{i}", "x"], [f"t{i + 1}"]) for i in range(2000)]
    nodes.append(helper.make_node("Identity", ["t2000"], ["y"]))
    model = Model(pointwise(tmp_path / "long.onnx", nodes), "long", threads=1)

    async def main():
        batcher = Batcher(model, 1, 0.0)
        start = time.perf_counter()
        future = batcher.submit({"x": np.zeros((700, 700), np.float32)}, ["y"])
        await asyncio.sleep(0.1)
        future.cancel()
        await batcher.stop()
        return time.perf_counter() - start

    assert asyncio.run(main()) < 5  # 2000 products of 700x700 matrices take over ten seconds


# -- which models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_models_of_independent_samples_are_joined(tmp_path, element):
    assert Model(four_sources(tmp_path / "m.onnx", element), "m").batching == ""
    assert Model(plain_conv(tmp_path / "c.onnx", external=True), "c").batching == ""
    assert Model(tiled_conv(tmp_path / "t.onnx"), "t").batching == ""


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_model_that_mixes_its_samples_is_not_joined(tmp_path, element):
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1)
    path = pointwise(tmp_path / "m.onnx", [mean, helper.make_node("Sub", ["x", "m"], ["y"])], element)
    assert Model(path, "m").batching == "it mixes the samples of a batch"


def test_a_model_that_reverses_its_samples_is_not_joined(tmp_path):
    reverse = helper.make_node("ReverseSequence", ["x", "l"], ["y"], batch_axis=1, time_axis=0)
    n = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Shape", ["x"], ["a"], start=1, end=2),
        helper.make_node("Expand", ["n", "a"], ["l"]),
    ]
    assert Model(pointwise(tmp_path / "m.onnx", [*n, reverse]), "m").batching == "it mixes the samples of a batch"


def test_a_static_batch_is_not_joined(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx", dims=(1, 3, 8, 8))
    assert "do not share one dynamic dimension on axis 0" in Model(path, "m").batching


def test_a_type_that_the_protocol_lacks_is_refused(tmp_path):
    path = pointwise(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], TensorProto.BFLOAT16)
    with pytest.raises(BadInputError, match="x is of type bfloat16, which is not served"):
        Model(path, "m")
