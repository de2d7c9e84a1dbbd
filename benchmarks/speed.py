"""Does it pay? Original against optimized models, the other optimizers and rewrites by hand, in ONNX Runtime on one thread.

    python benchmarks/speed.py [FOLDER] [--pairs 8] [--only TEXT] [--others] [--always] [--two-threads] [--name NAME]

FOLDER holds ONNX files and a manifest.json (file -> {"inputs": {name: [dtype, shape]}, "allow": [rules], "source": text}; the
last two may be left out; the first word of the source, where a file comes from, is the table's last column). Without a folder,
the representative networks of benchmarks/networks.py are exported with both PyTorch exporters first.
Multiply-accumulates are counted over run-time shapes; memory is the peak of a run beside the model (benchmarks/peak_memory.py).
Every other number is a time over a time: pairs of fresh sessions, created in alternating order, runs alternating, the 20th
percentile of each, the geometric mean over the pairs; A/A is the same measurement of the original against itself. A file whose
outputs differ by more than 2e-4 fails the run. Writes benchmarks/results/speed_NAME.{json,md,png} and, with MACs and memory,
work_NAME.png; NAME is `networks` or the folder's name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import handwritten  # noqa: E402
from benchmarks.conditions import conditions, in_words  # noqa: E402
from benchmarks.other_optimizers import OPTIMIZERS, OtherOptimizers  # noqa: E402
from benchmarks.peak_memory import run_bytes  # noqa: E402
from msconv_deploy.model_files import read_model, serialized  # noqa: E402
from msconv_deploy.reporting.versions import distribution_version  # noqa: E402
from msconv_deploy.surgery.choice.timing import Comparison, Feeds, compare, random_feeds, session  # noqa: E402
from msconv_deploy.surgery.optimize import optimize_model  # noqa: E402
from msconv_deploy.validation.inputs import Inputs  # noqa: E402
from msconv_deploy.validation.macs import count_macs  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TOLERANCE = 2e-4
SLOWER = 0.97  # a file whose ratio is below this, less the half-width of its A/A control, has become slower
WORK = {"macs": "MACs", "run_bytes": "memory"}
MARKERS = {"onnxsim": "x", "onnxslim": "+", "onnxoptimizer": "1", "onnxscript": "2"}
Row = dict[str, Any]


def finite_feeds(model: onnx.ModelProto, folder: Path, shapes: dict[str, Sequence[int]]) -> Feeds:
    """Random inputs; where the original makes no finite outputs of normal ones, uniform ones in [0.5, 1)."""
    feeds = random_feeds(model, shapes)
    if all(np.isfinite(y).all() for y in outputs(model, folder, feeds) if y.dtype.kind == "f"):
        return feeds
    random = np.random.default_rng(0)
    return {n: random.uniform(0.5, 1, a.shape).astype(a.dtype) if a.dtype.kind == "f" else a for n, a in feeds.items()}


def outputs(model: onnx.ModelProto, folder: Path, feeds: Feeds) -> list[np.ndarray]:
    return session(model, folder).run(None, feeds)


def difference(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """The largest max|a-b| / max|b| over the outputs; infinite where shapes differ or something is not a number."""
    worst = 0.0
    for b, a in zip(expected, actual, strict=True):
        if a.shape != b.shape:
            return math.inf
        a, b = a.astype(np.float64), b.astype(np.float64)
        error = float(np.max(np.abs(a - b), initial=0) / max(float(np.max(np.abs(b), initial=0)), 1e-30))
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


class Benchmark:
    """Measures one file after the other."""

    def __init__(self, folder: Path, args: argparse.Namespace, others: OtherOptimizers | None) -> None:
        self.folder, self.args, self.others = folder, args, others

    def compare(self, first: onnx.ModelProto, second: onnx.ModelProto, feeds: Feeds, threads: int = 1) -> Comparison:
        seconds = self.args.seconds
        return compare(
            first, second, self.folder, feeds, pairs=self.args.pairs, seconds_per_pair=seconds, threads=threads
        )

    def measure(self, file: str, shapes: dict[str, Sequence[int]], allow: Sequence[str] = ()) -> Row:
        """Everything about one file, as plain data; with rules that have to be allowed by name."""
        original = read_model(self.folder / file)
        feeds = finite_feeds(original, self.folder, shapes)
        expected = outputs(original, self.folder, feeds)
        when = "always" if self.args.always else "faster"
        result = optimize_model(original, self.folder, when, input_shapes=shapes, allow=allow)
        control = self.compare(original, original, feeds)
        row: Row = {
            "file": file,
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "rewritten": sum(site.decision == "rewritten" for site in result.sites),
            "sites": len(result.sites),
            **({"allowed": list(allow)} if allow else {}),
            "control": as_data(control),
            "milliseconds": 1e3 * control.seconds[0],
            **pairs_of(self._work(file, original, feeds), self._work(file, result.model, feeds)),
        }
        if result.changed:
            row["optimized"] = self._against(original, result.model, feeds, expected)
        else:
            row["optimized"] = {"ratio": 1.0, "half_width": 0.0, "difference": 0.0, "note": "unchanged"}
        if self.args.two_threads and result.changed:
            row["two_threads"] = as_data(self.compare(original, result.model, feeds, threads=2))
        row["slower"] = row["optimized"]["ratio"] < SLOWER - control.half_width
        self._add_others(file, row, original, feeds, expected)
        rewrite = handwritten.rewrite_for(file)
        if rewrite is not None:
            hand = rewrite(onnx.load_model(self.folder / file))
            row["handwritten"] = self._against(original, hand, feeds, expected)
            row["optimized_over_handwritten"] = as_data(self.compare(hand, result.model, feeds))
        return row

    def _work(self, file: str, model: onnx.ModelProto, feeds: Feeds) -> Row:
        """Multiply-accumulates and peak memory of a run."""
        return {
            "macs": count_macs(self.folder / file, model, Inputs("feeds", {}, dict(feeds))),
            "run_bytes": run_bytes(serialized(model, self.folder), feeds),
        }

    def _against(
        self, original: onnx.ModelProto, other: onnx.ModelProto, feeds: Feeds, expected: list[np.ndarray]
    ) -> Row:
        error = difference(expected, outputs(other, self.folder, feeds))
        return as_data(self.compare(original, other, feeds)) | {"difference": error}

    def _add_others(
        self, file: str, row: Row, original: onnx.ModelProto, feeds: Feeds, expected: list[np.ndarray]
    ) -> None:
        if self.others is None:
            return
        content, row["others"] = serialized(original, self.folder), {}
        for name in OPTIMIZERS:
            made = self.others(name, content)
            if isinstance(made, str):
                row["others"][name] = {"note": made}
                continue
            try:
                other = onnx.load_model_from_string(made)
                row["others"][name] = self._against(original, other, feeds, expected) | self._work(file, other, feeds)
            except Exception as error:  # what another optimizer wrote may be no valid model
                row["others"][name] = {"note": f"failed: ONNX Runtime refuses the result: {error!s:.120}"}


def as_data(comparison: Comparison) -> Row:
    return {"ratio": comparison.ratio, "half_width": comparison.half_width}


def pairs_of(before: Row, after: Row) -> Row:
    return {key: [before[key], after[key]] for key in before}


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def summary(rows: list[Row]) -> Row:
    """The numbers over all files; another optimizer counts where its result runs and agrees."""
    ratios = [row["optimized"]["ratio"] for row in rows]
    lowest = min(rows, key=lambda row: row["optimized"]["ratio"])
    made: Row = {
        "files": len(rows),
        "geometric_mean": geometric_mean(ratios),
        "lowest": {"file": lowest["file"], "ratio": min(ratios)},
        "slower": [row["file"] for row in rows if row["slower"]],
        "differing": [row["file"] for row in rows if not row["optimized"]["difference"] <= TOLERANCE],
        "control_geometric_mean": geometric_mean([row["control"]["ratio"] for row in rows]),
        "control_range": [f([row["control"]["ratio"] for row in rows]) for f in (min, max)],
        "handwritten": {
            row["file"]: row["optimized_over_handwritten"]["ratio"]
            for row in rows
            if "optimized_over_handwritten" in row
        },
    }
    for key in WORK:
        made[key] = geometric_mean(work_ratios([row[key] for row in rows]))
    if not made["handwritten"]:
        made["handwritten_skipped"] = "none of these files has one (benchmarks/handwritten.py)"
    if "others" in rows[0]:
        made["others"] = {name: other_summary(rows, name) for name in OPTIMIZERS}
    return made


def other_summary(rows: list[Row], name: str) -> Row:
    cells = [row["others"][name] for row in rows]
    if all(cell.get("note") == "not installed" for cell in cells):
        return {"note": "not installed"}
    agreeing = [cell["ratio"] for cell in cells if "ratio" in cell and cell["difference"] <= TOLERANCE]
    return {
        "geometric_mean": geometric_mean(agreeing) if agreeing else None,
        "files": len(agreeing),
        "differing": sum("ratio" in cell and not cell["difference"] <= TOLERANCE for cell in cells),
        "failed": sum(cell.get("note", "").startswith("failed") for cell in cells),
        **{key: geometric_mean(work_ratios([other_work(row, name, key) for row in rows])) for key in WORK},
    }


def other_work(row: Row, name: str, key: str) -> list[int | None]:
    """Before and after of another optimizer whose outputs agree; nothing after otherwise."""
    cell = row["others"][name]
    return [row[key][0], cell.get(key) if cell.get("difference", math.inf) <= TOLERANCE else None]


def work_ratios(values: Sequence[Sequence[int | None]]) -> list[float]:
    return [after / before for before, after in values if before and after]


def cell_text(cell: Row | None) -> str:
    if cell is None:
        return ""
    if "ratio" not in cell:
        return str(cell["note"]).split(":")[0]
    text = f"{cell['ratio']:.2f}" + (f" ({cell['note']})" if "note" in cell else "")
    return text if cell.get("difference", 0.0) <= TOLERANCE else f"{text}, differs"


def fraction(before_and_after: Sequence[int | None]) -> str:
    found = quotient(before_and_after)
    return "" if math.isnan(found) else f"{found:.2f}"


def origin_text(source: str) -> str:
    """The first word of a manifest's ``source``: "reimplemented", "synthetic", or the name of a package."""
    found = re.match(r"[\w.-]+", source)
    return found[0] if found else ""


def table_of_others(rows: list[Row]) -> list[str]:
    """The other optimizers and rewrites by hand beside ours, for the files that have any of them; nothing without them."""
    others = list(rows[0].get("others", {}))
    hand = any("handwritten" in row for row in rows)
    columns = [*others, *["by hand", "optimized / by hand"] * hand]
    if not columns:
        return []
    lines = [
        "",
        "The same files, other optimizers and rewrites by hand:" if hand else "The same files, other optimizers:",
    ]
    lines += ["", "| file | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = [cell_text(row["others"][name]) for name in others]
        cells += [cell_text(row.get("handwritten")), cell_text(row.get("optimized_over_handwritten"))] * hand
        if any(cells):
            lines.append(f"| {row['file'].removesuffix('.onnx')} | " + " | ".join(cells) + " |")
    return lines


def table(rows: list[Row], total: Row, command: str, when: Row) -> str:
    """The results as Markdown: ratios are time of the original over time of the other, above 1 it is faster."""
    two = any("two_threads" in row for row in rows)
    origin = any("source" in row for row in rows)
    columns = ["file", "sites rewritten", "MACs", "memory", "original, ms", "A/A", "optimized", "difference"]
    columns += ["2 threads"] * two + ["origin"] * origin
    lines = [
        f"`{command}`: time of the original over time of the result, ONNX Runtime, 1 thread. MACs and memory of a run are "
        f"those of the result over those of the original. {in_words(when)}",
        "",
    ]
    lines += ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1 - origin) + "---|" * origin]
    for row in rows:
        control = row["control"]
        cells = [row["file"].removesuffix(".onnx"), f"{row['rewritten']} of {row['sites']}"]
        cells += [fraction(row["macs"]), fraction(row["run_bytes"])]
        cells += [f"{row['milliseconds']:.1f}", f"{control['ratio']:.3f}\u00a0±\u00a0{control['half_width']:.3f}"]
        optimized = cell_text(row["optimized"])
        cells += [f"**{optimized}** (slower)" if row["slower"] else optimized]
        cells += [f"{row['optimized']['difference']:.0e}" if row["rewritten"] else ""]
        cells += [cell_text(row.get("two_threads"))] * two
        cells += [origin_text(row.get("source", ""))] * origin
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        *table_of_others(rows),
        "",
        f"- optimized: geometric mean {total['geometric_mean']:.3f} over {total['files']} files, lowest "
        f"{total['lowest']['ratio']:.2f} ({total['lowest']['file']}), slower: {', '.join(total['slower']) or 'none'};",
        f"- A/A control: geometric mean {total['control_geometric_mean']:.3f}, "
        f"from {total['control_range'][0]:.3f} to {total['control_range'][1]:.3f};",
        f"- MACs and memory of the result over those of the original: {total['macs']:.2f} and {total['run_bytes']:.2f};",
    ]
    for name, other in total.get("others", {}).items():
        mean = other.get("geometric_mean")
        if mean is None:
            lines.append(f"- {name}: {other.get('note', 'no result that runs and agrees')};")
        else:
            lines.append(
                f"- {name}: geometric mean {mean:.3f} over {other['files']} files, failed on {other['failed']}, "
                f"different outputs on {other['differing']}; MACs {other['macs']:.2f}, memory {other['run_bytes']:.2f};"
            )
    if total["handwritten"]:
        ratios = ", ".join(f"{file} {ratio:.2f}" for file, ratio in total["handwritten"].items())
        lines.append(f"- time of the rewrite by hand over time of the optimized file: {ratios}.")
    else:
        lines.append(f"- rewrites by hand: {total['handwritten_skipped']}.")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], total: Row, path: Path) -> None:
    """Horizontal bars, the fastest on top; whiskers are 95% intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["optimized"]["ratio"])
    places = np.arange(len(rows))
    ratios = np.array([row["optimized"]["ratio"] for row in rows])
    widths = np.array([row["optimized"]["half_width"] for row in rows])
    finite = np.where(np.isfinite(widths), widths, 0)
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.26 * len(rows)), layout="constrained")
    colors = ["tab:red" if row["slower"] else "tab:blue" if row["rewritten"] else "silver" for row in rows]
    axes.barh(places, ratios, color=colors, xerr=ratios * finite, error_kw={"elinewidth": 0.8, "capsize": 2})
    for name in rows[0].get("others", {}):
        cells = [row["others"][name].get("ratio", math.nan) for row in rows]
        axes.plot(cells, places, MARKERS[name], color="black", markersize=6, label=name)
    if any("handwritten" in row for row in rows):
        cells = [row["handwritten"]["ratio"] if "handwritten" in row else math.nan for row in rows]
        axes.plot(cells, places, "D", color="tab:orange", markersize=5, label="rewrite by hand")
    axes.axvline(1, color="black", linewidth=0.8)
    mean = total["geometric_mean"]
    axes.axvline(mean, color="tab:blue", linewidth=0.8, linestyle="--", label=f"geometric mean {mean:.2f}")
    axes.set_yticks(places, [row["file"].removesuffix(".onnx") for row in rows], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("time of the original / time of the optimized file (ONNX Runtime CPU, 1 thread; grey: unchanged)")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)


def plot_work(rows: list[Row], path: Path) -> None:
    """MACs and peak memory, optimized over original, in the order of the plot of times; the other optimizers as marks."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["optimized"]["ratio"])
    places = np.arange(len(rows))
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 1.6 + 0.26 * len(rows)), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (key, words) in zip(panels[0], WORK.items(), strict=True):
        ratios = [quotient(row[key]) for row in rows]
        axes.barh(places, ratios, color=["tab:blue" if row["rewritten"] else "silver" for row in rows])
        for name in rows[0].get("others", {}):
            cells = [quotient(other_work(row, name, key)) for row in rows]
            axes.plot(cells, places, MARKERS[name], color="black", markersize=5, label=name)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(f"{words if key == 'macs' else 'peak memory of a run'}, optimized / original (grey: unchanged)")
    panels[0][0].set_yticks(places, [row["file"].removesuffix(".onnx") for row in rows], fontsize=8)
    panels[0][0].set_ylim(-0.7, len(rows) - 0.3)
    if "others" in rows[0]:
        panels[0][1].legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=110)


def quotient(before_and_after: Sequence[int | None]) -> float:
    before, after = before_and_after
    return after / before if before and after is not None else math.nan


def run(folder: Path, args: argparse.Namespace) -> list[Row]:
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [file for file in manifest if args.only in file]
    rows = []
    with OtherOptimizers() if args.others else nullcontext() as others:
        benchmark = Benchmark(folder, args, others)
        for index, file in enumerate(files, 1):
            shapes = {name: shape for name, (_, shape) in manifest[file]["inputs"].items()}
            row = benchmark.measure(file, shapes, manifest[file].get("allow", ()))
            row |= {key: manifest[file][key] for key in ("source",) if key in manifest[file]}
            rows.append(row)
            print(
                f"[{index}/{len(files)}] {file:48} optimized {cell_text(row['optimized']):18} A/A {row['control']['ratio']:.3f}"
                + "".join(f"  {name} {cell_text(cell)}" for name, cell in row.get("others", {}).items())
                + (f"  by hand {cell_text(row['handwritten'])}" if "handwritten" in row else ""),
                flush=True,
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="with a manifest.json; default: the project's own networks"
    )
    parser.add_argument("--pairs", type=int, default=8, help="of fresh sessions; fewer than 8 only for a quick look")
    parser.add_argument("--seconds", type=float, default=0.6, help="of runs in each pair, at least 5 runs are made")
    parser.add_argument("--only", default="", metavar="TEXT", help="only files with this in their name")
    parser.add_argument("--others", action="store_true", help="also the other optimizers that are installed")
    parser.add_argument("--always", action="store_true", help="rewrite every valid site, not only where it should pay")
    parser.add_argument("--two-threads", action="store_true", help="also at 2 threads: reported, not judged")
    parser.add_argument("--name", help="of the results; default: networks, or the folder's name")
    args = parser.parse_args()
    when = conditions()
    name = args.name or ("networks" if args.folder is None else args.folder.resolve().name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder
        if folder is None:
            from benchmarks.networks import export_networks

            folder = Path(temporary)
            export_networks(folder, args.only)
        elif not (folder / "manifest.json").is_file():
            print(f"{folder}: there is no manifest.json", file=sys.stderr)
            return 2
        rows = run(folder, args)
    if not rows:
        print(f"no file has {args.only!r} in its name", file=sys.stderr)
        return 2
    total = summary(rows)
    options = [f"--pairs {args.pairs}"] + [f"--seconds {args.seconds:g}"] * (args.seconds != 0.6)
    options += [f"--only {args.only}"] * bool(args.only)
    options += [f"--{o.replace('_', '-')}" for o in ("others", "always", "two_threads") if getattr(args, o)]
    options += [f"--name {name}"] * bool(args.name)
    command = " ".join(
        ["python benchmarks/speed.py", *([os.path.relpath(args.folder, ROOT)] if args.folder else []), *options]
    )
    when["versions"] |= {o: v for o in OPTIMIZERS if args.others and (v := distribution_version(o)) is not None}
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "conditions": when, "summary": total, "rows": rows}
    (RESULTS / f"speed_{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    text = table(rows, total, command, when)
    (RESULTS / f"speed_{name}.md").write_text(text)
    plot(rows, total, RESULTS / f"speed_{name}.png")
    plot_work(rows, RESULTS / f"work_{name}.png")
    print(text.split("\n\n")[-1])
    return 1 if total["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
