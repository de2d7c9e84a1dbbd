"""Draw docs/figures/border.png: which taps of a kernel fall inside the image, at every output, and the border classes.

python docs/figures/make_border.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from msconv_deploy.ops.border_classes import Axis, axis_classes

sys.path.insert(0, str(Path(__file__).parent))
from make_idea import OUT, text

CLASS_COLORS = ("#d98c4a", "#5b8db8", "#7aa95c", "#b06fa8", "#c9a227")
CASES = (
    ("kernel 3, padding 1,1, extent 7", Axis(3, 1, 1, 1, 1), 7),
    ("kernel 5, stride 2, padding 2,2, extent 8", Axis(5, 2, 1, 2, 2), 8),
    ("kernel 3, dilation 2, padding 2,2, extent 3", Axis(3, 1, 2, 2, 2), 3),
)


def axis_panel(ax, title: str, axis: Axis, extent: int) -> None:
    """One row per output: the positions that its taps read, filled where they are inside the input."""
    classes = axis_classes(axis, extent)
    count = len(classes.index)
    ax.set(xlim=(-axis.pad_before - 1.6, extent + axis.pad_after + 3.4), ylim=(count + 0.6, -2.0), aspect="equal")
    ax.axis("off")
    text(ax, (extent - axis.pad_before) / 2 + 1, -1.65, title, 10, fontweight="bold")
    for position in range(-axis.pad_before, extent + axis.pad_after):
        inside = 0 <= position < extent
        ax.add_patch(
            Rectangle(
                (position, -1.1), 0.9, 0.6, facecolor="#dddddd" if inside else "white", edgecolor="#999999", lw=0.7
            )
        )
        if not inside:
            text(ax, position + 0.45, -0.8, "0", 7, color="#999999")
    for j, number in enumerate(classes.index):
        color = CLASS_COLORS[number % len(CLASS_COLORS)]
        text(ax, -axis.pad_before - 0.35, j + 0.35, str(j), 8, ha="right")
        for tap in range(axis.kernel):
            position = j * axis.stride - axis.pad_before + tap * axis.dilation
            inside = 0 <= position < extent
            box = Rectangle((position, j), 0.9, 0.7, edgecolor=color, facecolor=color if inside else "white", lw=1.1)
            ax.add_patch(box)
            text(ax, position + 0.45, j + 0.36, str(tap), 7, color="white" if inside else color)
        first, last = classes.ranges[number]
        label = f"taps {first}..{last - 1}" if last - first > 1 else f"tap {first}" if last > first else "no tap"
        text(ax, extent + axis.pad_after + 0.4, j + 0.36, label, 8, ha="left", color=color, fontweight="bold")


def table_panel(ax, axis: Axis, extent: int) -> None:
    """Both axes together: the class of every pixel of a square image."""
    classes = axis_classes(axis, extent)
    size, count = len(classes.index), len(classes.ranges)
    ax.set(xlim=(-0.6, size + 0.6), ylim=(size + 1.5, -1.4), aspect="equal")
    ax.axis("off")
    text(ax, size / 2, -0.9, f"both axes: {count * count} classes, one table entry each", 10, fontweight="bold")
    inside = classes.membership().sum(1)
    for i in range(size):
        for j in range(size):
            taps = int(inside[classes.index[i]] * inside[classes.index[j]])
            share = taps / axis.kernel**2
            color = tuple(1 - (1 - np.array(mpl.colors.to_rgb("#5b8db8"))) * share)
            ax.add_patch(Rectangle((j, i), 0.94, 0.94, facecolor=color, edgecolor="white"))
            text(ax, j + 0.47, i + 0.48, str(taps), 9, color="white" if share > 0.6 else OUT)
    text(ax, size / 2, size + 0.6, "how many of the 9 taps are inside, at every pixel", 8.5, style="italic")


def main(folder: Path = Path(__file__).parent) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), dpi=130, width_ratios=(1.15, 1))
    for ax, case in zip((axes[0, 0], axes[1, 0], axes[0, 1]), CASES, strict=True):
        axis_panel(ax, *case)
    table_panel(axes[1, 1], Axis(3, 1, 1, 1, 1), 5)
    figure.tight_layout()
    figure.savefig(folder / "border.png", bbox_inches="tight", pad_inches=0.12, facecolor="white")


if __name__ == "__main__":
    main()
