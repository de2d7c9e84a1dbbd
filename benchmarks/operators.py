"""What do the lean operators save? Memory and time against the formulations that they stand for.

    python benchmarks/operators.py [--pairs 8]

Memory: DynamicConv2d on a 64x64 image with 3x3 patches and 32 outputs against all filters at once, as an elementwise
product and as einsum, without and with gradients. Measured twice: bytes of PyTorch's tensors (every allocation, by the
profiler), and how far the resident memory of a fresh process rises (VmHWM; with whatever libraries and the allocator
add), as it is and with glibc told to keep larger blocks out of its heap (MALLOC_MMAP_THRESHOLD_=65536), where freed
memory that small blocks divide is not used again.
Time: on one thread, pairs of runs in alternating order; a ratio is the geometric mean over pairs of medians. A pair of
the same function with itself (A/A) says how far to trust them. Writes benchmarks/results/operators.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.conditions import conditions, in_words  # noqa: E402
from msconv_deploy.nn import ChannelSumConv2d, DynamicConv2d, roi_conv2d, windowed_mean  # noqa: E402
from tests.nn.memory import expanded, peak_bytes  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MIB = 1 << 20
EXTENT, OUTPUTS, HIDDEN = 64, 32, 16


# -- memory ----------------------------------------------------------------------------------------------------------

FORMS = ("product", "einsum", "DynamicConv2d", "without checkpointing")


def dynamic_case(channels: int, form: str, train: bool) -> Callable[[int], Tensor]:
    """The operator on an image of some extent, with its backward pass in training."""
    torch.manual_seed(0)
    size = channels * 9
    network = nn.Sequential(nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS * size))
    checkpoint = form == "DynamicConv2d"
    lean = DynamicConv2d(channels, OUTPUTS, 3, network, padding=1, bias=False, checkpoint=checkpoint)

    def run(extent: int) -> Tensor:
        x = torch.randn(1, channels, extent, extent, requires_grad=train)
        with torch.set_grad_enabled(train):
            y = expanded(network, x, 3, form == "product", padding=1) if form in ("product", "einsum") else lean(x)
            if train:
                y.square().mean().backward()
        return y

    return run


def resident(name: str) -> int:
    """VmHWM or VmRSS of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def rise(run: Callable[[int], Any]) -> int:
    """How far resident memory rises above where a small image has left it."""
    run(4)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    run(EXTENT)
    return resident("VmHWM") - before


def in_process(*arguments: str) -> dict[str, int]:
    """The rise that a fresh process reports for a case (see `child`), as it is and with a fixed threshold."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *arguments]
    found = {}
    for name, variables in (("process", {}), ("process_fixed", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
        environment = {**os.environ, **variables}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        found[name] = int(done.stdout.split()[-1])
    return found


def child(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    kind, *rest = arguments
    if kind == "onnx":
        session, channels = session_of(Path(rest[0])), int(rest[1])
        random = np.random.default_rng(0)
        print(rise(lambda n: session.run(None, {"x": random.standard_normal((1, channels, n, n), np.float32)})))
    else:
        print(rise(dynamic_case(int(rest[0]), rest[1], rest[2] == "train")))


def memory(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for channels in (1, 3, 16):
        print(f"memory of DynamicConv2d, channels: {channels}", flush=True)
        for train in (False, True):
            found = {}
            for form in FORMS if train else FORMS[:3]:
                run = dynamic_case(channels, form, train)
                run(4)
                tensors = peak_bytes(lambda run=run: run(EXTENT))
                process = in_process("torch", str(channels), form, "train" if train else "infer")
                found[form] = {"tensors": tensors, **process}
            rows.append({"runtime": "PyTorch", "channels": channels, "train": train, "bytes": found})
        module = DynamicConv2d(
            channels,
            OUTPUTS,
            3,
            nn.Sequential(nn.Linear(channels * 9, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS * channels * 9)),
            padding=1,
        )
        exported = {}
        for exporter in ("legacy", "dynamo"):
            path = written(module, (torch.randn(1, channels, 12, 12),), folder / f"{exporter}{channels}.onnx", exporter)
            exported[exporter] = in_process("onnx", str(path), str(channels))
        rows.append({"runtime": "ONNX Runtime", "channels": channels, "train": False, "bytes": exported})
    return rows


# -- time ------------------------------------------------------------------------------------------------------------


def median_seconds(function: Callable[[], Any], least: float = 0.15) -> float:
    samples: list[float] = []
    end = time.perf_counter() + least
    while time.perf_counter() < end or len(samples) < 3:
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def ratio(slow: Callable[[], Any], fast: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Seconds of both (least median) and the geometric mean of slow/fast over pairs in alternating order."""
    slow(), fast()
    quotients, best = [], [math.inf, math.inf]
    for number in range(pairs):
        order = (0, 1) if number % 2 else (1, 0)
        seconds = [0.0, 0.0]
        for which in order:
            seconds[which] = median_seconds((slow, fast)[which])
        best = [min(b, s) for b, s in zip(best, seconds, strict=True)]
        quotients.append(seconds[0] / seconds[1])
    return {"slow": best[0], "fast": best[1], "ratio": math.exp(statistics.fmean(map(math.log, quotients)))}


class Regional(nn.Module):
    """64 -> 64 channels, 3x3, padding 1: all of it, or a region."""

    def __init__(self, region: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.region = region
        self.conv = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        if self.region == "full":
            return self.conv(x)
        size = {"size": (40, 41)} if self.region == "corners" else {}
        region: dict[str, Any] = {self.region: where, **size}
        found = roi_conv2d(x, self.conv.weight, self.conv.bias, padding=1, **region)
        assert isinstance(found, Tensor)
        return found


def regions() -> dict[str, tuple[str, Tensor]]:
    """10% of 256x256 outputs in several shapes."""
    scattered = torch.rand(256, 256, generator=torch.Generator().manual_seed(0)) < 0.1
    block = torch.zeros(256, 256, dtype=torch.bool)
    block[60:141, 100:181] = True
    return {
        "one box of 81x81": ("box", torch.tensor([60, 100, 141, 181])),
        "one box of 256x26 at the border": ("box", torch.tensor([0, 230, 256, 256])),
        "four boxes of 40x41": ("corners", torch.tensor([[0, 0], [10, 180], [120, 99], [216, 215]])),
        "mask of 81x81": ("mask", block),
        "mask, scattered": ("mask", scattered),
    }


def written(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, exporter: str) -> Path:
    """Export with dynamic extents of the image (first input)."""
    names = ["x", "where"][: len(inputs)]
    if exporter == "legacy":
        torch.onnx.export(
            module, inputs, str(path), dynamo=False, input_names=names, dynamic_axes={"x": {2: "H", 3: "W"}}
        )
        return path
    dims = {2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    shapes = (dims, *({} for _ in inputs[1:]))
    program = torch.onnx.export(
        module, inputs, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False, opset_version=18
    )
    assert program is not None
    program.save(path)
    return path


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def regional(pairs: int, folder: Path) -> list[dict[str, Any]]:
    print("roi_conv2d", flush=True)
    x = torch.randn(1, 64, 256, 256)
    full, rows = Regional("full").eval(), []
    box = torch.tensor([0, 0, 1, 1])
    torch.onnx.export(full, (x, box), str(folder / "full.onnx"), dynamo=False, input_names=["x", "where"])
    whole = session_of(folder / "full.onnx")
    with torch.no_grad():
        rows.append({"region": "A/A", "runtime": "PyTorch", **ratio(lambda: full(x, box), lambda: full(x, box), pairs)})
        for name, (kind, where) in regions().items():
            module = Regional(kind).eval()
            found = ratio(lambda: full(x, box), lambda module=module, where=where: module(x, where), pairs)
            rows.append({"region": name, "runtime": "PyTorch", **found})
    feed = {"x": x.numpy()}
    same = ratio(lambda: whole.run(None, feed), lambda: whole.run(None, feed), pairs)
    rows.append({"region": "A/A", "runtime": "ONNX Runtime", **same})
    sessions = {}
    for name, (kind, where) in regions().items():
        if kind not in sessions:
            path = written(Regional(kind).eval(), (x, where), folder / f"{kind}.onnx", "dynamo")
            sessions[kind] = session_of(path)
        own = {**feed, "where": where.numpy()}
        found = ratio(lambda: whole.run(None, feed), lambda s=sessions[kind], own=own: s.run(None, own), pairs)
        rows.append({"region": name, "runtime": "ONNX Runtime", **found})
    return rows


def others(pairs: int) -> list[dict[str, Any]]:
    """ChannelSumConv2d and windowed_mean: time and tensors."""
    print("ChannelSumConv2d and windowed_mean", flush=True)
    torch.manual_seed(0)
    x = torch.randn(1, 64, 128, 128)
    module = ChannelSumConv2d(64, 3, padding=1, bias=False)

    def unfolded() -> Tensor:
        patches = F.unfold(x, 3, padding=1).unflatten(1, (64, 9))
        return (patches * module.weight.flatten(1)[:, :, None]).sum(1).transpose(1, 2)

    volume, index = torch.randn(1, 64, 256, 256), torch.randint(0, 64, (1, 256, 256))

    def masked() -> Tensor:
        depth = torch.arange(64)[:, None, None]
        near = ((depth - index[:, None]).abs() <= 4).float()
        return (volume * near).sum(1) / near.sum(1)

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "ChannelSumConv2d, 64 channels, 3x3, 128x128, against unfold": (unfolded, lambda: module(x)),
        "windowed_mean, 9 of 64 slices, 256x256, against a mask of slices": (masked, lambda: windowed_mean(volume, index, 9)),
    }  # fmt: skip
    rows = []
    with torch.no_grad():
        for name, (slow, fast) in cases.items():
            used = {"slow_bytes": peak_bytes(slow), "fast_bytes": peak_bytes(fast)}
            rows.append({"case": name, **ratio(slow, fast, pairs), **used})
    return rows


# -- report ----------------------------------------------------------------------------------------------------------


def processes(used: dict[str, int]) -> str:
    return f"({used['process'] / MIB:.1f} / {used['process_fixed'] / MIB:.1f})"


def report(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`; {in_words(content['conditions'])}",
        "",
        f"DynamicConv2d, {EXTENT}x{EXTENT} image, 3x3 patches, {OUTPUTS} outputs. Peak MiB of tensors (of the process / with a "
        "fixed mmap threshold); times less tensors than product, than einsum",
        "",
        "| channels | | product | einsum | DynamicConv2d | times less | without checkpointing |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["memory"]:
        if row["runtime"] != "PyTorch":
            continue
        used = row["bytes"]
        cells = [f"{u['tensors'] / MIB:.1f} {processes(u)}" for u in used.values()]
        lean = used["DynamicConv2d"]["tensors"]
        less = f"{used['product']['tensors'] / lean:.1f}, {used['einsum']['tensors'] / lean:.1f}"
        cells = [*cells[:3], less, *(cells[3:] or ["as with"])]
        lines.append(f"| {row['channels']} | {'training' if row['train'] else 'inference'} | {' | '.join(cells)} |")
    lines += ["", "| channels | exported, in ONNX Runtime | legacy: all filters | dynamo: Scan |", "|---|---|---|---|"]
    for row in content["memory"]:
        if row["runtime"] != "PyTorch":
            cells = [processes(used) for used in row["bytes"].values()]
            lines.append(f"| {row['channels']} | inference | {' | '.join(cells)} |")
    lines += [
        "",
        "roi_conv2d, 10% of the outputs, 64 -> 64 channels, 3x3, 256x256, one thread",
        "",
        "| region | runtime | full convolution | region | times faster |",
        "|---|---|---|---|---|",
    ]
    for row in content["regions"]:
        times = f"{row['slow'] * 1e3:.1f} ms | {row['fast'] * 1e3:.1f} ms | {row['ratio']:.2f}"
        lines.append(f"| {row['region']} | {row['runtime']} | {times} |")
    lines += ["", "| operator | time | times faster | MiB of tensors | times less |", "|---|---|---|---|---|"]
    for row in content["others"]:
        times = f"{row['slow'] * 1e3:.1f} -> {row['fast'] * 1e3:.1f} ms | {row['ratio']:.1f}"
        used = f"{row['slow_bytes'] / MIB:.1f} -> {row['fast_bytes'] / MIB:.1f} | {row['slow_bytes'] / row['fast_bytes']:.1f}"
        lines.append(f"| {row['case']} | {times} | {used} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of runs for each ratio")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        content = {
            "command": f"python benchmarks/operators.py --pairs {args.pairs}",
            "conditions": conditions(),
            "memory": memory(Path(folder)),
            "regions": regional(args.pairs, Path(folder)),
            "others": others(args.pairs),
        }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "operators.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "operators.md").write_text(report(content))
    print(report(content))
    return None


if __name__ == "__main__":
    main()
