"""Tables of sites and near-misses, which inspect and optimize print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msconv_deploy.cli.terminal import cell

if TYPE_CHECKING:
    from rich.console import Console

    from msconv_deploy.reporting.optimize import NearMissReport, SiteReport

MAX_ROWS = 60


def print_sites(console: Console, sites: Sequence[SiteReport], decisions: bool) -> None:
    """One row a site.

    Args:
        decisions: with what was decided and why, else with the way the uniformity was found.
    """
    from rich.table import Table

    from msconv_deploy.reporting.numbers import bytes_text, count_text, ratio_text

    if not sites:
        console.print("no sites: no contraction of this model reads copies, and no other rule matches")
        return
    table = Table(title="sites", title_justify="left")
    for heading in ("site", "operator", "uniform channels"):
        table.add_column(heading, overflow="fold")
    for heading in ("MACs", "bytes", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("decision" if decisions else "segments", overflow="fold")

    def change(before: int | None, after: int | None, text: type[str] | object) -> str:
        assert callable(text)
        return "–" if before is None or after is None else f"{text(before)} → {text(after)}"

    for site in sites[:MAX_ROWS]:
        what = (
            site.decision
            + (f": {site.lowering}" if site.lowering else "")
            + (f": {site.reason}" if site.reason else "")
        )
        table.add_row(
            cell(site.node),
            cell(f"{site.op} {site.geometry}"),
            f"{site.uniform_channels} of {site.channels}",
            change(site.macs_before, site.macs_after, count_text),
            change(site.bytes_before, site.bytes_after, bytes_text),
            ratio_text(site.estimated_gain),
            cell(what if decisions else _segments(site)),
        )
    console.print(table)
    _rest(console, len(sites))


def _segments(site: SiteReport) -> str:
    lines = []
    for segment in site.segments:
        channels = f"{segment.start} to {segment.start + segment.size - 1}"
        if segment.uniform:
            axes = ", ".join(map(str, segment.uniform))
            found = " < ".join(segment.found) or "its values"
            lines.append(f"{channels}: uniform along {axes}, by {found}")
        else:
            made = f", windows by {' < '.join(segment.found)}" if segment.found else ""
            lines.append(f"{channels}: dense{made}")
    return "\n".join(lines)


def print_near_misses(console: Console, near_misses: Sequence[NearMissReport]) -> None:
    """One row a near-miss, with the reason."""
    from rich.table import Table

    if not near_misses:
        return
    table = Table(title="near-misses: nodes that a rule matches but for one condition", title_justify="left")
    for heading in ("node", "operator", "reason", "because of"):
        table.add_column(heading, overflow="fold")
    for miss in near_misses[:MAX_ROWS]:
        table.add_row(cell(miss.node), cell(miss.op), cell(miss.reason), cell(", ".join(miss.nodes)))
    console.print(table)
    _rest(console, len(near_misses))


def _rest(console: Console, count: int) -> None:
    if count > MAX_ROWS:
        console.print(f"{count - MAX_ROWS} more rows: --json FILE has them all")
