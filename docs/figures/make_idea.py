"""Draw docs/figures/idea.png: what is computed with a tile, and what is computed without it.

python docs/figures/make_idea.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

IMAGE, ROW, COLUMN, SCALAR, OUT = "#5b8db8", "#d98c4a", "#7aa95c", "#b06fa8", "#444444"
N = 7


def plane(ax, x, y, size, colors, edge="white", line=0.6):
    """A grid of cells; colors [rows, columns] of RGB(A)."""
    rows, columns = len(colors), len(colors[0])
    w, h = size * columns / N, size * rows / N
    for i in range(rows):
        for j in range(columns):
            cell = Rectangle((x + j * w / columns, y + h - (i + 1) * h / rows), w / columns, h / rows)
            cell.set(facecolor=colors[i][j], edgecolor=edge, linewidth=line)
            ax.add_patch(cell)


def shades(color, values):
    base = np.array(mpl.colors.to_rgb(color))
    return [[tuple(1 - (1 - base) * v) for v in row] for row in values]


def arrow(ax, start, end):
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=OUT, linewidth=1.3))


def text(ax, x, y, words, size=10, **kwargs):
    ax.text(
        x, y, words, fontsize=size, ha=kwargs.pop("ha", "center"), va="center", color=kwargs.pop("color", OUT), **kwargs
    )


def main(folder: Path = Path(__file__).parent) -> None:
    rng = np.random.default_rng(4)
    image = shades(IMAGE, 0.35 + 0.65 * rng.random((N, N)))
    rows, columns = 0.3 + 0.7 * rng.random(N), 0.3 + 0.7 * rng.random(N)
    row_core, column_core = shades(ROW, rows[:, None]), shades(COLUMN, columns[None, :])
    scalar_core = shades(SCALAR, [[0.75]])
    tiled = {
        ROW: shades(ROW, np.repeat(rows[:, None], N, 1)),
        COLUMN: shades(COLUMN, np.repeat(columns[None, :], N, 0)),
        SCALAR: shades(SCALAR, np.full((N, N), 0.75)),
    }
    figure, ax = plt.subplots(figsize=(11.5, 4.5), dpi=150)
    ax.set(xlim=(-0.6, 23.2), ylim=(-1.5, 9.3), aspect="equal")
    ax.axis("off")

    text(ax, 4.4, 8.95, "tile, concatenate, convolve", 11.5, fontweight="bold")
    for k, (colors, label) in enumerate(
        [
            (image, "image"),
            (tiled[ROW], "rows, tiled"),
            (tiled[COLUMN], "columns, tiled"),
            (tiled[SCALAR], "scalars, tiled"),
        ]
    ):
        y = 6.55 - 2.15 * k
        plane(ax, 2.6, y, 1.8, colors)
        text(ax, 2.35, y + 0.9, label, ha="right")
    arrow(ax, (4.8, 4.2), (6.3, 4.2))
    text(ax, 5.55, 4.85, "conv")
    smooth = 0.35 + 0.5 * rng.random((N, N))
    plane(ax, 6.6, 3.3, 1.8, shades("#777777", smooth))
    text(ax, 7.5, 2.8, "output")
    text(ax, 4.4, -0.9, "the same numbers are read, multiplied\nand summed at every pixel", 8.5, style="italic")

    ax.plot([9.55, 9.55], [0.2, 8.6], color="#cccccc", linewidth=1)

    text(ax, 16.9, 8.95, "MSConv2d: compute on the core, spread the result", 11.5, fontweight="bold")
    labels = ["image", "rows", "columns", "scalars"]
    for k, (colors, label) in enumerate(zip([image, row_core, column_core, scalar_core], labels, strict=True)):
        y = 6.55 - 2.15 * k
        height = 1.8 * len(colors) / N
        plane(ax, 13.1, y + 0.9 - height / 2, 1.8, colors)
        text(ax, 12.85, y + 0.9, label, ha="right")
        arrow(ax, (15.1, y + 0.9), (16.4, y + 0.9))
    for k, word in enumerate(("conv 2d", "conv 1d", "conv 1d", "linear")):
        text(ax, 15.75, 7.8 - 2.15 * k, word, 9)
    plane(ax, 16.7, 6.55, 1.8, shades("#777777", smooth))
    three = np.array([0.55, 0.9, 0.65])
    plane(ax, 16.7, 4.4, 1.8, shades(ROW, rows[:, None] * three[None, :]))
    plane(ax, 16.7, 3.15 - 0.39, 1.8, shades(COLUMN, three[:, None] * columns[None, :]))
    plane(ax, 16.7, 1.0 - 0.39, 1.8, shades(SCALAR, three[:, None] * three[None, :]))
    for y, word in ((7.45, ""), (5.3, "R"), (3.15, "K"), (1.0, "S")):
        text(ax, 18.75 if word != "K" else 18.95, y, word, 10, ha="left")
        arrow(ax, (19.3, y), (20.4, 4.9 if y > 4 else 3.6))
    text(
        ax,
        16.9,
        -0.9,
        "tables with one entry per border class:\nzero padding is exact at every pixel",
        8.5,
        style="italic",
    )
    plane(ax, 20.7, 3.3, 1.8, shades("#777777", smooth))
    text(ax, 21.6, 2.8, "output")
    text(ax, 21.6, 2.25, "(the same)", 9)
    figure.savefig(folder / "idea.png", bbox_inches="tight", pad_inches=0.08, facecolor="white")


if __name__ == "__main__":
    main()
