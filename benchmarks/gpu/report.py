"""The results of a GPU check as tables, a plot and a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.names import ADDS, BARE, SUFFIX_LAST, TILE

Row = dict[str, Any]


def wrong(content: Row, tolerance: Mapping[str, float]) -> list[str]:
    """What is not right, in sentences; empty if all is well. What did not run is not right or wrong: the tables say so."""
    found = []
    for row in content["random"]:
        for region in ("border", "interior"):
            if not row[region] <= tolerance[row["dtype"]]:
                found.append(f"random problems, {row['path']}, {row['dtype']}: {region} differs by {row[region]:.1e}")
    for layer in content.get("layers", ()):
        for row in layer["difference"]:
            for region in ("border", "interior"):
                if not row[region] <= tolerance[layer["dtype"]]:
                    found.append(f"{layer['layer']}, {row['path']}: {region} differs by {row[region]:.1e}")
    for row in (*content["sanitizer"], *content["registry"]):
        if row["result"].startswith("failed"):
            found.append(f"{row['tool']}: {row['result']}")
    return found


def random_table(rows: list[Row]) -> str:
    lines = ["| path | type | runs | worst at the border | worst inside |", "|---|---|---:|---:|---:|"]
    lines += [f"| {r['path']} | {r['dtype']} | {r['cases']} | {r['border']:.1e} | {r['interior']:.1e} |" for r in rows]
    return "\n".join(lines)


def checks_table(*groups: list[Row]) -> str:
    lines = ["| check | result |", "|---|---|"]
    lines += [f"| {row['tool']} | {row['result']} |" for rows in groups for row in rows]
    return "\n".join(lines)


def layers_table(rows: list[Row]) -> str:
    """Microseconds; the best of a baseline's memory formats and of torch.compile stands for it."""
    lines = [
        "| layer | path | difference | us | of copy bandwidth | convolution + additions, us | tile, concatenate, convolve, us "
        "| image alone, us |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        worst = max(max(d["border"], d["interior"]) for d in row["difference"])
        cells = [f"{cell:.0f}" if (cell := best(row, name)) is not None else "failed" for name in (ADDS, TILE, BARE)]
        ours = row["microseconds"][row["chosen"]]
        lines.append(
            f"| {row['layer']} | {row['chosen']} | {worst:.1e} | {ours:.0f} | {row['of_copy_bandwidth']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def best(row: Row, baseline: str) -> float | None:
    """The least time of a baseline over its spellings; None where all failed."""
    times = [t for name, t in row["microseconds"].items() if name.startswith(baseline) and isinstance(t, float)]
    return min(times, default=None)


def claims(rows: list[Row]) -> list[str]:
    """What was hoped for, and whether this run bears it out."""
    lines = []
    for text, baseline, chosen in (
        ("never slower than the convolution with separate additions (in NCHW, as given)", ADDS, rows),
        (
            "on layers with few channels at least as fast as cuDNN's convolution of the image alone",
            BARE,
            [r for r in rows if r["few_channels"]],
        ),
    ):
        slower = []
        for row in chosen:
            spellings = [baseline] if baseline == ADDS else [baseline, baseline + SUFFIX_LAST]
            other = [t for s in spellings if isinstance(t := row["microseconds"].get(s), float)]
            ours = row["microseconds"][row["chosen"]]
            if other and ours > min(other):
                slower.append(f"{row['layer']} ({ours:.0f} against {min(other):.0f} us)")
        lines.append(
            f"- {text}: "
            + (f"no, of {len(chosen)} layers not for {'; '.join(slower)}" if slower else f"yes, {len(chosen)} layers")
        )
    wanted = "3 + 4 scalars -> 64, 3x3, 1080x1920, N 1, float16"
    for row in rows:
        if row["layer"] == wanted:
            verdict = "yes" if row["of_copy_bandwidth"] >= 0.75 else "no"
            lines.append(f"- at least 0.75 of copy bandwidth for {wanted}: {verdict}, {row['of_copy_bandwidth']:.2f}")
    return lines


def markdown(content: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    parts = [
        f"`{content['command'].strip()}`, {content['date']}, {content['gpu']} (compute capability "
        f"{content['compute_capability']}); {versions}.",
        "Difference from float64, max|a-b| / max|b|, random problems:",
        random_table(content["random"]),
        checks_table(content["sanitizer"], content["registry"]),
    ]
    if "layers" in content:
        parts += [
            f"Layers, padded, tiled semantics, ReLU; a copy on the device moved {content['copy_bandwidth'] / 1e12:.2f} TB/s. "
            "`Of copy bandwidth` counts the image read once and the output written once.",
            layers_table(content["layers"]),
            "\n".join(claims(content["layers"])),
        ]
    return "\n\n".join(parts) + "\n"


def plot(content: Row, path: Path) -> None:
    """Bars: time of the baselines over ours, per layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = content["layers"]
    figure, axes = pyplot.subplots(figsize=(10, 0.42 * len(rows) + 1.5))
    height = 0.8 / 3
    for offset, (name, label) in enumerate(
        ((ADDS, "convolution + additions"), (TILE, "tile, concatenate, convolve"), (BARE, "cuDNN, image alone"))
    ):
        ratios = [(best(row, name) or 0) / row["microseconds"][row["chosen"]] for row in rows]
        places = [i + (offset - 1) * height for i in range(len(rows))]
        axes.barh(places, ratios, height, label=label)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"time over that of the fused kernel, {content['gpu']} (best spelling of each)")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def write(content: Row, folder: Path, name: str) -> None:
    """NAME.json, NAME.md and, where layers were measured and matplotlib is there, NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / f"{name}.md").write_text(markdown(content))
    if content.get("layers"):
        try:
            plot(content, folder / f"{name}.png")
        except ModuleNotFoundError:
            print("no plot: pip install matplotlib")
