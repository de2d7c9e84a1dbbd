"""Draw plugins/how_it_works.png: class tables first, then one pass over the output.

python docs/figures/make_plugin.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

sys.path.insert(0, str(Path(__file__).parent))
from make_idea import COLUMN, IMAGE, OUT, ROW, SCALAR, N, arrow, plane, shades, text


def box(ax, x, y, width, height, words, color):
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.15", facecolor=color, edgecolor=OUT, linewidth=1
    )
    ax.add_patch(patch)
    text(ax, x + width / 2, y + height / 2, words, 9)


def main() -> None:
    rng = np.random.default_rng(4)
    figure, ax = plt.subplots(figsize=(12, 5.2), dpi=150)
    ax.set(xlim=(-0.8, 24.5), ylim=(-0.6, 10.2), aspect="equal")
    ax.axis("off")

    plane(ax, 0, 6.2, 3, shades(IMAGE, 0.35 + 0.65 * rng.random((N, N))))
    text(ax, 1.5, 9.6, "image")
    rows = 0.3 + 0.7 * rng.random(N)
    columns = 0.3 + 0.7 * rng.random(N)
    plane(ax, 0, 1.6, 3, shades(ROW, rows[:, None]))
    plane(ax, 1.0, 2.9, 3, shades(COLUMN, columns[None, :]))
    plane(ax, 2.3, 1.7, 3, shades(SCALAR, [[0.75]]))
    text(ax, 1.6, 0.9, "rows, columns, scalars, bias", 9)

    box(ax, 5.6, 2.2, 2.6, 1.7, "projection\n(small)", "#f2e6d8")
    arrow(ax, (4.3, 3.0), (5.3, 3.0))

    tables = shades(ROW, np.clip(rows[:, None] * np.array([0.7, 1.0, 0.8]), 0, 1))
    plane(ax, 10.0, 1.3, 3.4, tables)
    text(ax, 10.7, 0.65, "row table\n[H', column classes]", 8)
    column_tables = shades(COLUMN, np.clip(columns[None, :] * np.array([[0.7], [1.0], [0.8]]), 0, 1))
    plane(ax, 13.0, 2.4, 3.4, column_tables)
    text(ax, 14.7, 1.8, "column table\n[row classes, W']", 8)
    text(ax, 12.2, 5.2, "first, interior, last: one entry per border class", 8, style="italic")
    arrow(ax, (8.5, 3.0), (9.7, 3.0))

    box(ax, 5.6, 6.6, 2.6, 2.2, "convolution\n(tensor cores\nor FFMA)", "#dce8f2")
    arrow(ax, (3.3, 7.7), (5.3, 7.7))
    box(ax, 9.8, 6.6, 3.0, 2.2, "+ row[i, cj(j)]\n+ column[ci(i), j]", "#e6efdf")
    box(ax, 14.2, 6.6, 2.4, 2.2, "activation,\none rounding", "#ecdfea")
    arrow(ax, (8.5, 7.7), (9.5, 7.7))
    arrow(ax, (13.05, 7.7), (13.9, 7.7))
    arrow(ax, (11.3, 5.6), (11.3, 6.3))
    text(ax, 11.1, 9.6, "in registers, 8 neighbouring pixels per thread")
    arrow(ax, (16.9, 7.7), (19.0, 7.7))
    output = shades(OUT, 0.15 + 0.5 * rng.random((N, N)))
    plane(ax, 19.5, 6.2, 3, output)
    text(ax, 21.0, 9.6, "output, written once")
    figure.savefig(Path(__file__).parents[2] / "plugins" / "how_it_works.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
