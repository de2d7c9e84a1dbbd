"""Draw docs/figures/segments.png: a graph with copies, its tensors as segments, and what is left of it.

python docs/figures/make_segments.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

sys.path.insert(0, str(Path(__file__).parent))
from make_idea import IMAGE, OUT, ROW, SCALAR, arrow, text

SEGMENTS = (("image", 3, IMAGE, "dense", "[N,3,H,W]"), ("rows", 2, ROW, "uniform along W", "[N,2,H,1]"),
            ("code", 4, SCALAR, "uniform along H, W", "[N,4,1,1]"))  # fmt: skip


def operator(ax, x, y, words, color="#f2f2f2", width=2.3):
    patch = FancyBboxPatch((x - width / 2, y - 0.38), width, 0.76, boxstyle="round,pad=0.1", facecolor=color)
    patch.set(edgecolor=OUT, linewidth=1)
    ax.add_patch(patch)
    text(ax, x, y, words, 9)


def main(folder: Path = Path(__file__).parent) -> None:
    figure, ax = plt.subplots(figsize=(14, 5.2), dpi=130)
    ax.set(xlim=(-0.4, 28.4), ylim=(-0.4, 10.2), aspect="equal")
    ax.axis("off")

    text(ax, 4.2, 9.8, "the file", 12, fontweight="bold")
    columns = {"image": 1.2, "rows": 4.2, "code": 7.2}
    for name, x in columns.items():
        text(ax, x, 9.0, name, 9.5)
    for name, steps in (("rows", ("Unsqueeze", "Expand")), ("code", ("Expand", "Sigmoid"))):
        for k, step in enumerate(steps):
            y = 7.7 - 1.7 * k
            operator(ax, columns[name], y, step, "#f7e9d7" if step == "Expand" else "#f2f2f2")
            arrow(ax, (columns[name], y + 1.1 - 0.05 * k), (columns[name], y + 0.5))
        arrow(ax, (columns[name], 5.5), (4.4 if name == "rows" else 5.3, 4.35))
    arrow(ax, (columns["image"], 8.8), (3.2, 4.35))
    operator(ax, 4.2, 3.8, "Concat", width=3.4)
    arrow(ax, (4.2, 3.3), (4.2, 2.35))
    operator(ax, 4.2, 1.8, "Conv 3x3, padding 1", "#dce8f2", 4.2)
    arrow(ax, (4.2, 1.3), (4.2, 0.3))

    ax.plot([9.6, 9.6], [0.2, 9.6], color="#cccccc", linewidth=1)
    text(ax, 14.1, 9.8, "what the Conv reads", 12, fontweight="bold")
    y = 8.7
    start = 0
    for name, size, color, uniform, core in SEGMENTS:
        for k in range(size):
            ax.add_patch(Rectangle((10.4, y - 0.62), 1.5, 0.55, facecolor=color, edgecolor="white", linewidth=1.2))
            text(ax, 11.15, y - 0.35, str(start + k), 8, color="white")
            y -= 0.62
        middle = y + 0.31 * size
        text(ax, 12.3, middle + 0.22, f"{uniform}", 9.5, ha="left", fontweight="bold", color=color)
        what = {"image": "image", "rows": "Unsqueeze(rows)", "code": "Sigmoid(code)"}[name]
        text(ax, 12.3, middle - 0.32, f"core {what}  {core}", 8.5, ha="left")
        start += size
        y -= 0.45
    text(
        ax,
        14.1,
        0.9,
        "three segments; a core is written only if it is needed,\nthe Sigmoid then runs on 4 numbers",
        9,
        style="italic",
    )

    ax.plot([18.9, 18.9], [0.2, 9.6], color="#cccccc", linewidth=1)
    text(ax, 23.8, 9.8, "the rewrite", 12, fontweight="bold")
    for x, name, color, words in (
        (20.8, "image", "#dce8f2", "Conv 3x3\n3 channels"),
        (23.8, "rows", "#f7e9d7", "1d product\n3 classes"),
        (26.8, "Sigmoid(code)", "#ecdfea", "product\n3 x 3 classes"),
    ):
        text(ax, x, 9.0, name, 9.5)
        arrow(ax, (x, 8.75), (x, 8.0))
        operator(ax, x, 7.5, words, color)
    arrow(ax, (26.8, 7.0), (26.8, 5.95))
    arrow(ax, (23.8, 7.0), (25.2, 5.85))
    operator(ax, 26.3, 5.4, "Gather rows\nand columns", width=2.6)
    arrow(ax, (26.3, 4.9), (24.6, 3.9))
    arrow(ax, (20.8, 7.0), (22.8, 3.9))
    operator(ax, 23.8, 3.4, "Add", width=2.8)
    arrow(ax, (23.8, 2.9), (23.8, 1.9))
    text(ax, 23.8, 1.4, "the same output, at every pixel", 9.5, style="italic")
    figure.savefig(folder / "segments.png", bbox_inches="tight", pad_inches=0.12, facecolor="white")


if __name__ == "__main__":
    main()
