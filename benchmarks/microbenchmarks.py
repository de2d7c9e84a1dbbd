"""What does an operator cost? The constants of the cost estimate, measured on isolated operators.

    python benchmarks/microbenchmarks.py [--sessions 3] [--seconds 0.15] [--only plain plain-1x1]

Runs chains of single operators in ONNX Runtime on one thread and fits, for each kind of operator, seconds per
multiply-accumulate, per byte and, for a convolution in NCHW, per element of its im2col matrix (relative least squares over
the sizes below). No network is involved: the constants have to hold for models that nobody has seen. Writes
benchmarks/results/microbenchmarks.json; the values that the estimate uses are copied by hand to
msconv_deploy/surgery/choice/constants.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.conditions import conditions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "microbenchmarks.json"
RANDOM = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


class Chain:
    """A model of a few nodes, built one at a time from one input."""

    def __init__(self, *shape: int) -> None:
        self.feed = random(*shape)
        self.given: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "x"

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def given_weight(self, array: np.ndarray) -> Chain:
        """Append a Conv whose weight is an input of the model: it is not constant, so the Conv stays in NCHW."""
        name = f"given{len(self.given)}"
        self.given[name] = array
        output = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node("Conv", [self.last, name], [output], pads=[array.shape[2] // 2] * 4))
        self.last = output
        return self

    def then(self, op: str, *others: np.ndarray, first: bool = True, **attributes: object) -> Chain:
        """Append a node that reads the last result and constants."""
        names = [self.weight(other) for other in others]
        inputs = [self.last, *names] if first else [*names, self.last]
        output = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        self.last = output
        return self

    def conv(self, outputs: int, inputs: int, kernel: int) -> Chain:
        return self.then("Conv", random(outputs, inputs, kernel, kernel) / 100, pads=[kernel // 2] * 4)

    def split(self, count: int) -> Chain:
        """Append a Split of the last axis into parts of 1; the first one is the result."""
        names = [f"part{i}" for i in range(count)]
        self.nodes.append(helper.make_node("Split", [self.last], names, axis=-1))
        self.last = names[0]
        return self

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {"x": self.feed, **self.given}

    def model(self) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in self.feeds.items()],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@dataclass
class Clock:
    """Times a chain: of several fresh sessions the least 20th percentile of the run times."""

    sessions: int
    seconds: float

    def __call__(self, chain: Chain) -> float:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        model, best = chain.model(), np.inf
        for _ in range(self.sessions):
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            session.run(None, chain.feeds)
            samples: list[float] = []
            end = time.perf_counter() + self.seconds
            while time.perf_counter() < end or len(samples) < 5:
                start = time.perf_counter()
                session.run(None, chain.feeds)
                samples.append(time.perf_counter() - start)
            best = min(best, float(np.percentile(samples, 20)))
        return best


@dataclass
class Sample:
    """One measurement: what was done and how long it took."""

    case: str
    macs: int
    bytes: int
    seconds: float
    columns: int = 0  # elements of the im2col matrix


def fit(samples: Sequence[Sample]) -> dict[str, float]:
    """Seconds per MAC, byte and element of the im2col matrix with the least relative error, none of them negative."""
    seconds = np.array([s.seconds for s in samples])
    terms = np.array([[s.macs, s.bytes, s.columns] for s in samples], np.float64) / seconds[:, None]
    keep = [i for i in range(3) if terms[:, i].any()]
    while True:
        found, *_ = np.linalg.lstsq(terms[:, keep], np.ones(len(samples)), rcond=None)
        if (found >= 0).all() or len(keep) == 1:
            break
        keep.pop(int(np.argmin(found)))
    rates = dict(zip(keep, map(float, found), strict=True))
    predicted = sum(terms[:, i] * rate for i, rate in rates.items())
    return {
        "mac": rates.get(0, 0.0),
        "byte": rates.get(1, 0.0),
        "column": rates.get(2, 0.0),
        "mean_relative_error": float(np.mean(np.abs(predicted - 1))),
        "worst_relative_error": float(np.max(np.abs(predicted - 1))),
    }


IMAGES = ((1, 64), (2, 128))
CHANNELS = ((16, 32), (32, 32), (32, 64), (64, 64), (96, 48), (128, 128))
FEW_CHANNELS = ((2, 16), (4, 32), (4, 64), (13, 64))
MOST_MACS = 3e9


def blocked(clock: Clock, kernel: int) -> list[Sample]:
    """Conv between two that keep the blocked layout, so that what is measured is the Conv alone."""
    samples = []
    for batch, extent in IMAGES:
        for channels, outputs in CHANNELS:
            pixels = batch * extent * extent
            macs = pixels * channels**2 * kernel**2
            if macs > MOST_MACS:
                continue
            ends = Chain(batch, channels, extent, extent).conv(channels, channels, 1)
            one = clock(ends.conv(outputs, channels, 1))
            many = Chain(batch, channels, extent, extent).conv(channels, channels, 1)
            seconds = clock(many.conv(channels, channels, kernel).conv(outputs, channels, 1)) - one
            moved = 4 * (pixels * 2 * channels + channels**2 * kernel**2)
            case = f"{batch}x{channels}->{channels} {kernel}x{kernel} at {extent}"
            samples.append(Sample(case, macs, moved, seconds))
    return [s for s in samples if s.seconds > 0]


def plain(clock: Clock, kernels: Sequence[int]) -> list[Sample]:
    """Conv in NCHW: channels that do not fill blocks, and few channels with weights that are not constant.

    The latter is how `ones-channel` runs. Kernels over 1x1 go through an im2col matrix [C*k*k, pixels].
    """
    samples = []
    for kernel in kernels:
        for batch, extent in IMAGES:
            for inputs, outputs in (*FEW_CHANNELS, *((c + 1, o) for c, o in CHANNELS)):
                pixels, taps = batch * extent * extent, kernel**2
                macs = pixels * outputs * inputs * taps
                if macs > MOST_MACS or (kernel > 3 and inputs > 33):
                    continue
                chain = Chain(batch, inputs, extent, extent)
                seconds = clock(chain.given_weight(random(outputs, inputs, kernel, kernel) / 100))
                moved = 4 * (pixels * (inputs + outputs) + outputs * inputs * taps)
                case = f"{batch}x{inputs}->{outputs} {kernel}x{kernel} at {extent}"
                samples.append(Sample(case, macs, moved, seconds, pixels * inputs * taps if taps > 1 else 0))
    return samples


def narrow(clock: Clock, kernel: int, reorder: float) -> list[Sample]:
    """Conv of few channels, read in NCHW and written in blocks; the way out of the layout is taken off."""
    samples = []
    for batch, extent in IMAGES:
        for inputs, outputs in ((3, 32), (3, 64), (4, 32), (12, 64)):
            pixels = batch * extent * extent
            seconds = clock(Chain(batch, inputs, extent, extent).conv(outputs, inputs, kernel))
            seconds -= 2 * 4 * pixels * outputs * reorder
            macs = pixels * outputs * inputs * kernel**2
            moved = 4 * pixels * (inputs + outputs)
            samples.append(Sample(f"{batch}x{inputs}->{outputs} {kernel}x{kernel} at {extent}", macs, moved, seconds))
    return [s for s in samples if s.seconds > 0]


def transposed(clock: Clock) -> list[Sample]:
    samples = []
    for extent in (16, 32, 64):
        for inputs, outputs in ((32, 32), (64, 32), (128, 64)):
            weight = random(inputs, outputs, 4, 4)
            chain = Chain(2, inputs, extent, extent).then("ConvTranspose", weight, strides=[2, 2], pads=[1] * 4)
            macs = 2 * inputs * extent**2 * outputs * 16
            moved = 4 * (2 * extent**2 * (inputs + 4 * outputs) + weight.size)
            samples.append(Sample(f"{inputs}->{outputs} 4x4/2 at {extent}", macs, moved, clock(chain)))
    return samples


def products(clock: Clock) -> list[Sample]:
    samples = []
    for rows in (1, 32, 400, 4096, 16384):
        for inputs, outputs in ((64, 64), (256, 256), (512, 128), (1024, 512)):
            macs = rows * inputs * outputs
            if macs > 2e9:
                continue
            moved = 4 * (rows * (inputs + outputs) + inputs * outputs)
            seconds = clock(Chain(rows, inputs).then("MatMul", random(inputs, outputs)))
            samples.append(Sample(f"{rows}x{inputs} by {inputs}x{outputs}", macs, moved, seconds))
    return samples


def passes(clock: Clock) -> dict[str, list[Sample]]:
    """Operators without multiply-accumulates that count, by bytes read and written."""
    kinds: dict[str, list[tuple[str, Callable[[Chain], Chain], float]]] = {
        "elementwise": [
            ("Relu", lambda c: c.then("Relu"), 2),
            ("Add [N,O,1,1]", lambda c: c.then("Add", random(*c.feed.shape[:2], 1, 1)), 2),
            ("Add", lambda c: c.then("Add", random(*c.feed.shape)), 3),
        ],
        "copy": [
            ("Concat", lambda c: c.then("Concat", random(*c.feed.shape), axis=1), 4),
            ("Tile", lambda c: c.then("Tile", np.array([1, 2, 1, 1])), 3),
            ("Slice", lambda c: c.then("Slice", np.array([1]), np.array([2**31]), np.array([1])), 2),
            ("Gather rows", lambda c: c.then("Gather", np.arange(c.feed.shape[2]), axis=2), 2),
            ("Expand", lambda c: c.then("Unsqueeze", np.array([2])).then("Expand", np.array([1, 1, 3, 1, 1])), 4),
        ],
        "transpose": [("Transpose", lambda c: c.then("Transpose", perm=[0, 2, 3, 1]), 2)],
        "heavy": [
            ("Sigmoid", lambda c: c.then("Sigmoid"), 2),
            ("Exp", lambda c: c.then("Exp"), 2),
            ("Softplus", lambda c: c.then("Softplus"), 2),
            ("ReduceMean", lambda c: c.then("ReduceMean", axes=[2, 3]), 1),
        ],
        "resize": [
            ("nearest", lambda c: c.then("Resize", np.zeros(0, "f"), np.array([1, 1, 2, 2], "f"), mode="nearest"), 5),
            ("linear", lambda c: c.then("Resize", np.zeros(0, "f"), np.array([1, 1, 2, 2], "f"), mode="linear"), 5),
        ],
    }
    found: dict[str, list[Sample]] = {}
    for kind, cases in kinds.items():
        for name, build, count in cases:
            for shape in ((1, 32, 128, 128), (2, 32, 128, 128), (2, 64, 128, 128)):
                chain = build(Chain(*shape))
                moved = int(count * chain.feed.nbytes)
                found.setdefault(kind, []).append(Sample(f"{name} of {shape}", 0, moved, clock(chain)))
    return found


def reorders(clock: Clock, elementwise: float) -> list[Sample]:
    """Into and out of the blocked layout: around an operator that ONNX Runtime only has in NCHW."""
    samples = []
    for batch, channels, extent in ((1, 32, 128), (2, 32, 128), (2, 64, 128)):
        inside = clock(Chain(batch, channels, extent, extent).conv(channels, channels, 1).conv(channels, channels, 1))
        chain = Chain(batch, channels, extent, extent).conv(channels, channels, 1).then("Neg")
        size = chain.feed.nbytes
        seconds = clock(chain.conv(channels, channels, 1)) - inside - 2 * size * elementwise
        samples.append(Sample(f"{batch}x{channels} at {extent}", 0, 4 * size, seconds))
    return [s for s in samples if s.seconds > 0]


def small_nodes(clock: Clock) -> float:
    """Seconds of a node on next to nothing."""
    one, many = Chain(1, 4).then("Neg"), Chain(1, 4).then("Neg")
    for _ in range(50):
        many.then("Slice", np.array([0]), np.array([4]), np.array([1]))
    return (clock(many) - clock(one)) / 50


def pieces(clock: Clock) -> dict[str, float]:
    """Seconds per contiguous piece that is copied along the last axis."""
    rows = np.concatenate([[0], np.ones(126, np.int64), [2]])
    count = 2 * 32 * 128
    two = random(2, 32, 128, 1)
    return {
        "Gather": clock(Chain(2, 32, 128, 4).then("Gather", rows, axis=3)) / (count * 128),
        "Concat": clock(Chain(2, 32, 128, 1).then("Concat", two, two, two, axis=3)) / (count * 4),
        "Split": clock(Chain(2, 32, 128, 4).split(4)) / (count * 4),
    }


CONTRACTIONS: dict[str, Callable[[Clock], list[Sample]]] = {
    "blocked": partial(blocked, kernel=3),
    "blocked-1x1": partial(blocked, kernel=1),
    "plain": partial(plain, kernels=(3, 5, 7)),
    "plain-1x1": partial(plain, kernels=(1,)),
    "transposed": transposed,
    "product": products,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=3, help="fresh sessions for each case")
    parser.add_argument("--seconds", type=float, default=0.15, help="of runs in each session")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTRACTIONS,
        metavar="KIND",
        help="measure these contractions; the other results stay",
    )
    args = parser.parse_args()
    clock, when = Clock(args.sessions, args.seconds), conditions()
    command = f"python benchmarks/microbenchmarks.py --sessions {args.sessions} --seconds {args.seconds}"
    if args.only:
        write(remeasured(clock, args.only, command, when))
        return
    bytes_kinds = passes(clock)
    bytes_kinds["reorder"] = reorders(clock, fit(bytes_kinds["elementwise"])["byte"])
    reorder = fit(bytes_kinds["reorder"])["byte"]
    contractions = {
        "narrow": narrow(clock, 3, reorder),
        "narrow-1x1": narrow(clock, 1, reorder),
        **{kind: measure(clock) for kind, measure in CONTRACTIONS.items()},
    }
    result = {
        "command": command,
        "conditions": when,
        "node": small_nodes(clock),
        "piece": pieces(clock),
        "contractions": {kind: fit(samples) for kind, samples in contractions.items()},
        "bytes": {kind: fit(samples) for kind, samples in bytes_kinds.items()},
        "samples": {kind: as_data(samples) for kind, samples in {**contractions, **bytes_kinds}.items()},
    }
    write(result)


def as_data(samples: Sequence[Sample]) -> list[dict[str, object]]:
    return [{**vars(s), "seconds": float(f"{s.seconds:.4g}")} for s in samples]


def remeasured(clock: Clock, kinds: Sequence[str], command: str, when: dict[str, Any]) -> dict[str, Any]:
    """The last result with some contractions measured again."""
    result: dict[str, Any] = json.loads(RESULT.read_text())
    for kind in kinds:
        samples = CONTRACTIONS[kind](clock)
        result["contractions"][kind], result["samples"][kind] = fit(samples), as_data(samples)
    how = {"command": f"{command} --only {' '.join(kinds)}", "conditions": when}
    result.setdefault("remeasured", {}).update(dict.fromkeys(kinds, how))
    return result


def write(result: dict[str, Any]) -> None:
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("samples", "conditions")}, indent=1))


if __name__ == "__main__":
    main()
