"""The optimizer's own time and peak memory on a synthetic graph: 20,000 nodes, 500 MB of weights, 200 sites.

    python benchmarks/large_graph.py [--nodes 20000] [--megabytes 500] [--sizes] [--repeats 3]

Reads, optimizes (every valid site) and writes in a process of its own, without verification; of several runs the one with the
median time. With --sizes, several sizes show how time grows with the graph: the exponent e of seconds = c * nodes^e, fitted in
logarithms. Fails if a site is not rewritten. Writes benchmarks/results/large_graph.{json,md} and, with --sizes, the plot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.conditions import conditions, in_words  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CHANNELS, LABELS = 64, 16

PHASES = ("read", "tile-concat-conv", "unfold", "merge-convs", "tiled-distance", "broadcast", "write")
"""In the order in which they run; the passes of ``surgery.optimize`` between reading and writing."""

MEASURED = """
import functools, json, sys, time
from pathlib import Path
from msconv_deploy.model_files import read_model, write_model
from msconv_deploy.surgery import optimize
seconds = dict.fromkeys(json.loads(sys.argv[3]), 0.0)
def timed(phase, function):
    @functools.wraps(function)
    def run(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[phase] += time.perf_counter() - start
    return run
for phase, name in (("tile-concat-conv", "_contractions"), ("unfold", "unfold_pass"), ("merge-convs", "merge_pass"),
                    ("tiled-distance", "distance_pass"), ("broadcast", "broadcast_pass")):
    setattr(optimize, name, timed(phase, getattr(optimize, name)))
source, target = map(Path, sys.argv[1:3])
start = time.perf_counter()
model = timed("read", read_model)(source)
result = optimize.optimize_model(model, source.parent, "always")
del model
timed("write", write_model)(result.model, target, source.parent)
total = time.perf_counter() - start
# Not ru_maxrss: that remembers the parent, from which this process was forked.
peak = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
rewritten = sum(s.decision == "rewritten" for s in result.sites)
print(json.dumps({"seconds": total, "phases": seconds, "peak_bytes": peak, "rewritten": rewritten}))
"""


def synthetic(nodes: int, megabytes: float, sites: int) -> onnx.ModelProto:
    """A chain of blocks: pointwise operators, a label tiled over the image, a concatenation, two convolutions."""
    rng = np.random.default_rng(0)
    per_block = nodes // sites - 12
    # Weights of a block: [width, channels + labels, 3, 3] and [channels, width, 1, 1].
    width = int(megabytes * 1e6 / 4 / sites / (9 * (CHANNELS + LABELS) + CHANNELS))
    made: list[onnx.NodeProto] = []
    weights = [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (
            ("spatial", [2, 3]),
            ("n_h_w", [0, 2, 3]),
            ("c0", [0]),
            ("c1", [1]),
            ("c3", [3]),
            ("labels", [LABELS]),
        )
    ]

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        made.append(helper.make_node(op, inputs, [output], f"{output}_node", **attributes))
        return output

    x = "x"
    for s in range(sites):
        trunk = x
        for k in range(per_block):
            trunk = add("Tanh" if k % 2 else "Relu", [trunk], f"b{s}_p{k}")
        label = add("Unsqueeze", ["z", "spatial"], f"b{s}_label")
        shape = add("Gather", [add("Shape", [trunk], f"b{s}_shape"), "n_h_w"], f"b{s}_nhw")
        batch = add("Slice", [shape, "c0", "c1", "c0"], f"b{s}_n")
        extents = add("Slice", [shape, "c1", "c3", "c0"], f"b{s}_hw")
        target = add("Concat", [batch, "labels", extents], f"b{s}_target", axis=0)
        joined = add("Concat", [trunk, add("Expand", [label, target], f"b{s}_tile")], f"b{s}_concat", axis=1)
        first = rng.standard_normal((width, CHANNELS + LABELS, 3, 3), np.float32) * 0.01
        second = rng.standard_normal((CHANNELS, width, 1, 1), np.float32) * 0.01
        weights += [numpy_helper.from_array(first, f"b{s}_w1"), numpy_helper.from_array(second, f"b{s}_w2")]
        y = add("Conv", [joined, f"b{s}_w1"], f"b{s}_conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        y = add("Conv", [add("Relu", [y], f"b{s}_relu"), f"b{s}_w2"], f"b{s}_conv2", kernel_shape=[1, 1])
        x = add("Add", [y, x], f"b{s}_sum")
    add("Identity", [x], "y")
    inputs = [("x", ["N", CHANNELS, "H", "W"]), ("z", ["N", LABELS])]
    graph = helper.make_graph(
        made,
        "synthetic",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS, "H", "W"])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def measure(nodes: int, megabytes: float, sites: int, repeats: int) -> dict[str, Any]:
    """One size: the run with the median time of several, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx.save_model(synthetic(nodes, megabytes, sites), source)
        command = [
            sys.executable,
            "-c",
            MEASURED,
            str(source),
            str(Path(folder) / "optimized.onnx"),
            json.dumps(PHASES),
        ]
        runs = []
        for _ in range(repeats):
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            runs.append(json.loads(done.stdout))
        size = source.stat().st_size
    row = sorted(runs, key=lambda run: run["seconds"])[repeats // 2]
    spread = [f(run["seconds"] for run in runs) for f in (min, max)]
    return {
        "nodes": nodes,
        "sites": sites,
        "file_bytes": size,
        **row,
        "seconds_range": spread,
        "memory_over_size": row["peak_bytes"] / size,
    }


def exponent(rows: list[dict[str, Any]], seconds: str = "seconds") -> float | None:
    """Of the power law that fits best in logarithms; None with less than two sizes or for what takes no time."""
    times = [row[seconds] if seconds == "seconds" else row["phases"][seconds] for row in rows]
    if len(rows) < 2 or min(times) <= 0:
        return None
    slope, _ = np.polyfit(np.log([row["nodes"] for row in rows]), np.log(times), 1)
    return float(slope)


def table(content: dict[str, Any]) -> str:
    rows = content["rows"]
    lines = [f"`{content['command']}`; {in_words(content['conditions'])}"]
    if content["exponent"] is not None:
        lines[0] += f" Time grows with the {content['exponent']:.2f}th power of the nodes."
    head = [
        "nodes",
        "sites",
        "file, MB",
        "seconds",
        "from, to",
        *(f"{phase}, s" for phase in PHASES),
        "peak memory / file size",
    ]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for r in rows:
        low, high = r["seconds_range"]
        cells = [f"{r['nodes']:,}", f"{r['sites']}", f"{r['file_bytes'] / 1e6:.0f}", f"{r['seconds']:.1f}"]
        cells += [f"{low:.1f}, {high:.1f}", *(f"{r['phases'][phase]:.2f}" for phase in PHASES)]
        lines.append("| " + " | ".join([*cells, f"{r['memory_over_size']:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def plot(content: dict[str, Any], path: Path) -> None:
    """Seconds over nodes in logarithms, the whole with its fit and each phase; beside it peak memory over the file's size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = content["rows"]
    nodes = np.array([row["nodes"] for row in rows])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(2, 1))
    total = np.array([row["seconds"] for row in rows])
    ends = np.array([row["seconds_range"] for row in rows]).T
    fitted, middle = content["exponent"], np.exp(np.mean(np.log(total)))
    left.errorbar(
        nodes, total, [total - ends[0], ends[1] - total], fmt="o", color="black", capsize=3, label="all of it"
    )
    line = middle * (nodes / np.exp(np.mean(np.log(nodes)))) ** fitted
    left.plot(nodes, line, color="black", linewidth=0.8, label=f"seconds ~ nodes^{fitted:.2f}")
    for phase in PHASES:
        slope = exponent(rows, phase)
        times = [row["phases"][phase] for row in rows]
        if slope is not None and max(times) > 0.01 * total[-1]:
            left.plot(nodes, times, marker=".", linewidth=0.8, linestyle="--", label=f"{phase}, ^{slope:.2f}")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xticks(nodes, [f"{n:,}" for n in nodes])
    left.minorticks_off()
    left.set_xlabel("nodes (weights grow with them)")
    left.set_ylabel("seconds")
    left.set_ylim(top=6 * total.max())
    left.legend(fontsize=8, ncols=2, loc="upper left")
    right.plot([row["file_bytes"] / 1e6 for row in rows], [row["memory_over_size"] for row in rows], "o-")
    right.set_ylim(0)
    right.set_xlabel("file, MB")
    right.set_ylabel("peak memory / file size")
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--sizes", action="store_true", help="also a half, a quarter and an eighth of it")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each size")
    args = parser.parse_args()
    when, rows = conditions(), []
    for part in (8, 4, 2, 1) if args.sizes else (1,):
        row = measure(args.nodes // part, args.megabytes / part, args.sites // part, args.repeats)
        rows.append(row)
        print(f"{row['nodes']:,} nodes: {row['seconds']:.1f} s, {row['rewritten']} of {row['sites']} sites", flush=True)
    given = {"--nodes": (args.nodes, 20_000), "--megabytes": (args.megabytes, 500), "--sites": (args.sites, 200)}
    options = [f"{name} {value:g}" for name, (value, default) in given.items() if value != default]
    options += ["--sizes"] * args.sizes + [f"--repeats {args.repeats}"]
    content = {
        "command": " ".join(["python benchmarks/large_graph.py", *options]),
        "conditions": when,
        "exponent": exponent(rows),
        "rows": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "large_graph.json").write_text(json.dumps(content, indent=2) + "\n")
    (RESULTS / "large_graph.md").write_text(table(content))
    if args.sizes:
        plot(content, RESULTS / "large_graph.png")
    print(table(content))
    left = [row for row in rows if row["rewritten"] != row["sites"]]
    for row in left:
        print(
            f"WRONG: {row['rewritten']} of {row['sites']} sites rewritten with {row['nodes']:,} nodes", file=sys.stderr
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
