"""Inline SVG: graphs and bar charts. Colours come from the page's style sheet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from msconv_deploy.reporting.html.layout import layered
from msconv_deploy.reporting.optimize import View, ViewNode

_CHARACTER = 6.7  # pixels of a character at 12 px
_SMALL = 6.2  # at 10 px
_ROW = 62.0
_MARGIN = 8.0
_LONGEST = 34


def graph_svg(view: View, title: str) -> str:
    """A graph from top to bottom."""
    widths = {node.key: _width(node) for node in view.nodes}
    layout = layered(widths, view.edges)
    height = layout.rows * _ROW + 2 * _MARGIN - 14
    width = layout.width + 2 * _MARGIN
    heights = {node.key: _height(node) for node in view.nodes}

    def middle(row: int) -> float:
        return _MARGIN + row * _ROW + 24

    parts = [
        f'<svg class="graph" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for start, end in view.edges:
        points = [(layout.x[start] + _MARGIN, middle(layout.row[start]) + heights[start] / 2)]
        points += [(x + _MARGIN, middle(row)) for x, row in layout.bends[start, end]]
        points.append((layout.x[end] + _MARGIN, middle(layout.row[end]) - heights[end] / 2 - 5))
        parts.append(f'<path class="edge" d="{_curve(points)}"/>')
        tip_x, tip_y = points[-1]
        parts.append(f'<path class="tip" d="M{tip_x - 4:.1f} {tip_y:.1f}h8l-4 5z"/>')
    for node in view.nodes:
        parts.append(_box(node, layout.x[node.key] + _MARGIN, middle(layout.row[node.key]), widths[node.key]))
    parts.append("</svg>")
    return "".join(parts)


def _width(node: ViewNode) -> float:
    lines = (len(_short(node.label)) * _CHARACTER, len(_short(node.detail)) * _SMALL)
    return max(*lines, 34.0) + 18


def _height(node: ViewNode) -> float:
    return 40.0 if node.detail else 26.0


def _box(node: ViewNode, x: float, y: float, width: float) -> str:
    height = _height(node)
    radius = height / 2 if node.kind in ("input", "output") else 5
    title = " ".join(filter(None, (node.label, node.name, node.detail)))
    label_y = y - 3 if node.detail else y + 4
    detail = f'<text class="detail" x="{x:.1f}" y="{y + 12:.1f}">{escape(_short(node.detail))}</text>'
    return (
        f'<g class="box {node.kind}"><title>{escape(title)}</title>'
        f'<rect x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{radius:.0f}"/><text x="{x:.1f}" y="{label_y:.1f}">{escape(_short(node.label))}</text>'
        f"{detail if node.detail else ''}</g>"
    )


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Through the points, vertical at each of them."""
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        half = (y0 + y1) / 2
        path.append(f"C{x0:.1f} {half:.1f} {x1:.1f} {half:.1f} {x1:.1f} {y1:.1f}")
    return "".join(path)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


@dataclass(frozen=True)
class Bar:
    """One pair of bars: before and after, in the same unit."""

    label: str
    before: float
    after: float
    before_text: str
    after_text: str


def bars_svg(bars: Sequence[Bar], title: str) -> str:
    """Horizontal bars, two for each label, all on one scale."""
    if not bars:
        return ""
    label_width = 18 + min(max(len(_short(bar.label)) for bar in bars), _LONGEST) * _CHARACTER
    room, text_room, step = 420.0, 150.0, 46.0
    largest = max(max(bar.before, bar.after) for bar in bars) or 1.0
    width, height = label_width + room + text_room, step * len(bars) + 8
    parts = [
        f'<svg class="bars" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for number, bar in enumerate(bars):
        y = number * step + 8
        parts.append(
            f'<text class="label" x="{label_width - 10:.1f}" y="{y + 20:.1f}">{escape(_short(bar.label))}'
            f"<title>{escape(bar.label)}</title></text>"
        )
        for line, (kind, value, text) in enumerate(
            (("before", bar.before, bar.before_text), ("after", bar.after, bar.after_text))
        ):
            top = y + line * 17
            length = max(value / largest * room, 1.0)
            parts.append(
                f'<rect class="{kind}" x="{label_width:.1f}" y="{top:.1f}" width="{length:.1f}" height="14" rx="2"/>'
                f'<text class="value" x="{label_width + length + 6:.1f}" y="{top + 11:.1f}">{escape(text)}</text>'
            )
    parts.append("</svg>")
    return "".join(parts)
