"""The optimizer's own time and peak memory on a synthetic graph: 20,000 nodes, 500 MB of weights, 200 sites.

    python benchmarks/large_graph.py [--nodes 20000] [--megabytes 500] [--sizes]

Reads, optimizes (every valid site) and writes in a process of its own, without verification. With --sizes, several sizes
show how time grows with the graph. Writes benchmarks/results/large_graph.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from msconv_deploy.reporting.versions import installed_versions  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CHANNELS, LABELS = 64, 16

MEASURED = """
import json, sys, time
from pathlib import Path
from msconv_deploy.model_files import read_model, write_model
from msconv_deploy.surgery.optimize import optimize_model
source, target = map(Path, sys.argv[1:])
start = time.perf_counter()
result = optimize_model(read_model(source), source.parent, "always")
write_model(result.model, target, source.parent)
seconds = time.perf_counter() - start
# Not ru_maxrss: that remembers the parent, from which this process was forked.
peak = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "rewritten": sum(s.decision == "rewritten" for s in result.sites)}))
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


def measure(nodes: int, megabytes: float, sites: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        onnx.save_model(synthetic(nodes, megabytes, sites), source)
        command = [sys.executable, "-c", MEASURED, str(source), str(Path(folder) / "optimized.onnx")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        row = json.loads(done.stdout)
        size = source.stat().st_size
    assert row["rewritten"] == sites, row
    return {"nodes": nodes, "sites": sites, "file_bytes": size, **row, "memory_over_size": row["peak_bytes"] / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--sizes", action="store_true", help="also a half, a quarter and an eighth of it")
    args = parser.parse_args()
    parts = (8, 4, 2, 1) if args.sizes else (1,)
    rows = [measure(args.nodes // p, args.megabytes / p, 200 // p) for p in parts]
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = "python benchmarks/large_graph.py" + (" --sizes" if args.sizes else "")
    content = {"command": command, "versions": installed_versions(), "rows": rows}
    (RESULTS / "large_graph.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = ["| nodes | sites | file, MB | seconds | peak memory / file size |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['nodes']:,} | {r['sites']} | {r['file_bytes'] / 1e6:.0f} | {r['seconds']:.1f} | {r['memory_over_size']:.2f} |"
        for r in rows
    ]
    (RESULTS / "large_graph.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
