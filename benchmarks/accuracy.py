"""Is an optimized model farther from the exact result than the original's own rounding?

    python benchmarks/accuracy.py [--zoo FOLDER] [--only TEXT]

Every valid site of every file is rewritten (`--when always`). Original and result run in ONNX Runtime in the file's own type;
the original also runs in float64 (benchmarks/float64.py, independent of the optimizer), with the same weights and inputs.
Differences are max|a-b| / max|b| over an output, the worst over the outputs. The networks of benchmarks/networks.py are
measured in fp32 and, with weights and inputs rounded to it, in fp16; files of a zoo in their own type.

A file fails the run if its result is farther from float64 than four times the original is and farther than a bound for its
type, or if the original itself is so far that the evaluation in float64 cannot be that of the same model. What the evaluation
or ONNX Runtime does not support is listed with the reason. Writes benchmarks/results/accuracy.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import model_sets  # noqa: E402
from benchmarks.conditions import conditions, in_words  # noqa: E402
from benchmarks.float64 import evaluate, retyped  # noqa: E402
from benchmarks.model_sets import Entry  # noqa: E402
from benchmarks.speed import difference, finite_feeds, outputs  # noqa: E402
from msconv_deploy.model_files import read_model, serialized  # noqa: E402
from msconv_deploy.surgery.optimize import optimize_model  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
FARTHER = 4
"""Times the original's own distance that a result may be from float64, as the optimizer's verification allows too."""
BOUNDS = {"fp32": 3e-6, "fp16": 3e-3}
"""Distance from float64 that is never too far: rounding of the type over a network."""
IMPLAUSIBLE = {"fp32": 1e-4, "fp16": 0.05}
"""Distance of the original from float64 that rounding does not explain."""
FP16 = "networks, fp16"
KEYS = ("difference", "original", "optimized", "rewrite")
Row = dict[str, Any]


def measure(entry: Entry, half: bool = False) -> Row:
    """Everything about one file, as plain data: the four distances, or a note on why there are none."""
    original = read_model(entry.folder / entry.file)
    if half:
        original = retyped(inlined(original, entry.folder), onnx.TensorProto.FLOAT16)
    row: Row = {
        "file": entry.file,
        "collection": FP16 if half else entry.collection,
        "type": "fp16" if half else "fp32",
    }
    try:
        feeds = finite_feeds(original, entry.folder, entry.shapes)
        rounded = outputs(original, entry.folder, feeds)
    except Exception as error:  # ONNX Runtime's have no common base
        return row | {"note": f"ONNX Runtime does not run the original: {_first_line(error)}"}
    try:
        exact = evaluate(inlined(original, entry.folder), feeds)
    except (NotImplementedError, RuntimeError) as error:
        return row | {"note": f"not evaluated in float64: {_first_line(error)}"}
    result = optimize_model(original, entry.folder, "always", input_shapes=entry.shapes, allow=entry.allow)
    optimized = outputs(result.model, entry.folder, feeds)
    row |= {
        "rewritten": sum(site.decision == "rewritten" for site in result.sites),
        "sites": len(result.sites),
        "difference": difference(rounded, optimized),
        "original": difference(exact, rounded),
        "optimized": difference(exact, optimized),
        "rewrite": difference(exact, evaluate(inlined(result.model, entry.folder), feeds)),
    }
    return row | {"wrong": wrong(row)}


def inlined(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """With its weights inside."""
    return onnx.load_model_from_string(serialized(model, folder))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def wrong(row: Row) -> str:
    """Why a row fails the run, or an empty text; a comparison that is not a number fails."""
    if not row["original"] <= IMPLAUSIBLE[row["type"]]:
        return "the original is too far from float64 for rounding"
    if not row["optimized"] <= max(FARTHER * row["original"], BOUNDS[row["type"]]):
        return "the result is farther from float64 than the original's rounding explains"
    return ""


def summary(rows: list[Row]) -> dict[str, Row]:
    """Median and worst of each distance over the rewritten files of each collection."""
    made: dict[str, Row] = {}
    for collection in dict.fromkeys(row["collection"] for row in rows):
        own = [row for row in rows if row["collection"] == collection]
        changed = [row for row in own if row.get("rewritten")]
        made[collection] = {
            "files": len(own),
            "rewritten": len(changed),
            "without": sum("note" in row for row in own),
            "farther": sum(row["optimized"] > row["original"] for row in changed),
            "twice": sum(row["optimized"] > 2 * row["original"] for row in changed),
            "wrong": [row["file"] for row in own if row.get("wrong")],
        }
        for key in ("difference", "original", "optimized", "rewrite") if changed else ():
            values = [row[key] for row in changed]
            made[collection][key] = {"median": statistics.median(values), "worst": max(values)}
    return made


def table(content: Row) -> str:
    """Summary and every file, as Markdown."""
    lines = [
        f"`{content['command']}`; {in_words(content['conditions'])} Every valid site rewritten; median and worst over the "
        "rewritten files of max|a-b| / max|b|.",
        "",
        "| files | rewritten | result - original | original - float64 | result - float64 | "
        "farther than the original, more than twice | rewrite itself, in float64 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, total in content["summary"].items():
        cells = [f"{total['rewritten']} of {total['files']}"]
        if total["rewritten"]:
            pair = {k: f"{total[k]['median']:.0e}, {total[k]['worst']:.0e}" for k in KEYS}
            counts = f"{total['farther']}, {total['twice']} of {total['rewritten']}"
            cells += [pair["difference"], pair["original"], pair["optimized"], counts, pair["rewrite"]]
        else:
            cells += [""] * 5
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| file | type | sites rewritten | result - original | original - float64 | result - float64 | ratio of the two | "
        "rewrite itself, in float64 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in content["rows"]:
        head = f"| {row['file'].removesuffix('.onnx')} | {row['type']} | "
        if "note" in row:
            lines.append(head + f"{row['note']} | | | | | |")
        elif not row["rewritten"]:
            lines.append(head + f"0 of {row['sites']} | | {row['original']:.1e} | | | |")
        else:
            ratio = f"{row['optimized'] / row['original']:.2f}" if row["original"] else ""
            cells = [f"{row['rewritten']} of {row['sites']}", *(f"{row[k]:.1e}" for k in KEYS[:3]), ratio]
            cells += [f"{row['rewrite']:.1e}" + (f" **{row['wrong']}**" if row["wrong"] else "")]
            lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(content: Row, path: Path) -> None:
    """Distance of the result over that of the original; on the diagonal they are equal."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    least = 1e-9
    for name, marker in zip(content["summary"], "osD^", strict=False):
        rows = [row for row in content["rows"] if row["collection"] == name and row.get("rewritten")]
        values = np.maximum([[row["original"], row["optimized"]] for row in rows], least).reshape(-1, 2)
        axes.loglog(values[:, 0], values[:, 1], marker, markersize=5, alpha=0.7, label=name)
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends, color="black", linewidth=0.8, label="equally far")
    axes.plot(ends, FARTHER * ends, color="tab:red", linewidth=0.8, linestyle="--", label=f"{FARTHER} times as far")
    axes.set_xlabel("original in ONNX Runtime, from float64 (max|a-b| / max|b|)")
    axes.set_ylabel("optimized in ONNX Runtime, from the original in float64")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_sets.add_arguments(parser)
    args = parser.parse_args()
    when = conditions()
    try:
        with model_sets.chosen(args) as entries:
            halves = [entry for entry in entries if entry.collection == model_sets.NETWORKS]
            work = [(entry, False) for entry in entries] + [(entry, True) for entry in halves]
            rows = []
            for index, (entry, half) in enumerate(work, 1):
                row = measure(entry, half)
                rows.append(row)
                said = (
                    row.get("note") or f"original {row['original']:.1e}, optimized {row['optimized']:.1e} from float64"
                )
                kind = row["type"]
                print(f"[{index}/{len(work)}] {entry.name} {kind}: {said} {row.get('wrong', '')}".rstrip(), flush=True)
    except FileNotFoundError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    if not rows:
        print(f"no file has {args.only!r} in its name", file=sys.stderr)
        return 2
    content: Row = {
        "command": " ".join(["python benchmarks/accuracy.py", *model_sets.as_options(args)]),
        "conditions": when,
        "summary": summary(rows),
        "rows": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps(content, indent=1) + "\n")
    text = table(content)
    (RESULTS / "accuracy.md").write_text(text)
    plot(content, RESULTS / "accuracy.png")
    print(text.split("\n\n")[1])
    failed = [f"{row['file']} ({row['type']}): {row['wrong']}" for row in rows if row.get("wrong")]
    for line in failed:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
