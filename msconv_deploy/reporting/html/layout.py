"""A layered layout of small directed graphs (after Sugiyama, Tagawa and Toda, 1981).

Nodes go into rows by their longest path from a source; an edge that crosses rows gets a bend in each of them; rows are
ordered by the mean position of their neighbours to avoid crossings; then every node moves towards its neighbours as far
as its row has room.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SWEEPS = 12
_GAP = 18.0
_BEND_WIDTH = 10.0


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Attributes:
        x: node -> middle.
        row: node -> row, from the top.
        bends: edge -> (middle, row) of its bends, from the top.
        width: of the whole.
        rows: number of rows.
    """

    x: dict[str, float]
    row: dict[str, int]
    bends: dict[tuple[str, str], list[tuple[float, int]]]
    width: float
    rows: int


def layered(widths: Mapping[str, float], edges: Sequence[tuple[str, str]]) -> Layout:
    """Lay a graph out.

    Args:
        widths: node -> width of its box.
        edges: (from, to); without cycles.
    """
    row = _rows(list(widths), edges)
    chains: dict[tuple[str, str], list[str]] = {}
    sizes = dict(widths)
    level = dict(row)
    for start, end in edges:
        bends = [f"{start}\0{end}\0{number}" for number in range(row[start] + 1, row[end])]
        for number, bend in enumerate(bends, row[start] + 1):
            sizes[bend], level[bend] = _BEND_WIDTH, number
        chains[start, end] = bends
    up: dict[str, list[str]] = defaultdict(list)
    down: dict[str, list[str]] = defaultdict(list)
    for (start, end), bends in chains.items():
        path = [start, *bends, end]
        for one, two in itertools.pairwise(path):
            up[two].append(one)
            down[one].append(two)
    rows: list[list[str]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for node, number in level.items():
        rows[number].append(node)
    _order(rows, up, down)
    x = _place(rows, sizes, up, down)
    left = min((x[n] - sizes[n] / 2 for n in x), default=0.0)
    x = {node: value - left for node, value in x.items()}
    return Layout(
        x={node: x[node] for node in widths},
        row=row,
        bends={edge: [(x[bend], level[bend]) for bend in bends] for edge, bends in chains.items()},
        width=max((x[n] + sizes[n] / 2 for n in x), default=0.0),
        rows=len(rows),
    )


def _rows(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Longest path from a source; then sources move down to just above their first reader."""
    row = dict.fromkeys(nodes, 0)
    for _ in nodes:
        moved = False
        for start, end in edges:
            if row[end] <= row[start]:
                row[end], moved = row[start] + 1, True
        if not moved:
            break
    readers: dict[str, list[str]] = defaultdict(list)
    has_source = {end for _, end in edges}
    for start, end in edges:
        readers[start].append(end)
    for node in nodes:
        if node not in has_source and readers[node]:
            row[node] = min(row[reader] for reader in readers[node]) - 1
    return row


def _order(rows: list[list[str]], up: Mapping[str, list[str]], down: Mapping[str, list[str]]) -> None:
    """Sort each row by the mean place of its neighbours, sweeping down and up."""
    place = {node: float(index) for row in rows for index, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = up if downwards else down
        for row in rows if downwards else reversed(rows):
            row.sort(key=lambda node: _mean([place[n] for n in neighbours.get(node, [])], place[node]))
            place.update({node: float(index) for index, node in enumerate(row)})


def _place(
    rows: list[list[str]], sizes: Mapping[str, float], up: Mapping[str, list[str]], down: Mapping[str, list[str]]
) -> dict[str, float]:
    x: dict[str, float] = {}
    for row in rows:
        at = 0.0
        for node in row:
            x[node] = at + sizes[node] / 2
            at += sizes[node] + _GAP
    for sweep in range(2 * _SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows if downwards else reversed(rows):
            neighbours = up if downwards else down
            if sweep >= _SWEEPS:  # at last both sides count
                wanted = [_mean([x[n] for n in (*up.get(v, []), *down.get(v, []))], x[v]) for v in row]
            else:
                wanted = [_mean([x[n] for n in neighbours.get(v, [])], x[v]) for v in row]
            x.update(zip(row, _separated(wanted, [sizes[v] for v in row]), strict=True))
    return x


def _separated(wanted: list[float], sizes: list[float]) -> list[float]:
    """Positions in the same order, as near to the wanted ones (in squares) as the boxes allow.

    With the widths taken out this is isotonic regression, solved by pooling neighbours that are out of order.
    """
    offset, offsets = 0.0, []
    for index, size in enumerate(sizes):
        if index:
            offset += (sizes[index - 1] + size) / 2 + _GAP
        offsets.append(offset)
    pools: list[tuple[float, int]] = []
    for value in (w - o for w, o in zip(wanted, offsets, strict=True)):
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, count), (two, other) = pools[-2], pools[-1]
            pools[-2:] = [((one * count + two * other) / (count + other), count + other)]
    flat = [value for value, count in pools for _ in range(count)]
    return [value + o for value, o in zip(flat, offsets, strict=True)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
