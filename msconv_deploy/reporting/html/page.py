"""The page of ``msconv optimize``."""

from __future__ import annotations

from collections.abc import Sequence

from msconv_deploy.reporting.html.drawing import Bar, bars_svg, graph_svg
from msconv_deploy.reporting.numbers import bytes_text, count_text, difference_text, ratio_text, saving_text
from msconv_deploy.reporting.optimize import OptimizeReport, SiteReport, SiteView


def optimize_page(report: OptimizeReport, views: Sequence[SiteView]) -> str:
    """The report as one HTML page.

    Args:
        views: neighbourhoods of the rewritten sites.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("msconv_deploy.reporting.html"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count_text, bytes=bytes_text, difference=difference_text, channels=_channels, size=_size
    )
    drawings = {
        view.node: (
            graph_svg(view.before, f"{view.node} before"),
            graph_svg(view.after, f"{view.node} after") if view.after else "",
            view.before.cut,
            bool(view.after and view.after.cut),
        )
        for view in views
    }
    return environment.get_template("optimize.html.jinja").render(
        report=report,
        drawings=drawings,
        macs_chart=bars_svg(_mac_bars(report), "multiply-accumulates before and after"),
        time_chart=bars_svg(_time_bars(report), "measured time before and after"),
        saving=saving_text(report.before.macs, report.after.macs),
        ratio=ratio_text,
    )


def _mac_bars(report: OptimizeReport) -> list[Bar]:
    """The whole model, then the rewritten sites where their estimates are known."""
    bars = []
    if report.before.macs is not None and report.after.macs is not None:
        bars.append(_bar("whole model", report.before.macs, report.after.macs))
    bars += [
        _bar(site.node, site.macs_before, site.macs_after)
        for site in report.rewritten
        if site.macs_before is not None and site.macs_after is not None
    ]
    return bars


def _time_bars(report: OptimizeReport) -> list[Bar]:
    if report.measured is None:
        return []
    found = report.measured
    before, after = (f"{1e3 * seconds:.3g} ms" for seconds in (found.seconds_before, found.seconds_after))
    ratio = f"{ratio_text(found.ratio)} ± {found.half_width:.2f}"
    return [Bar("whole model", found.seconds_before, found.seconds_after, before, f"{after}  {ratio}")]


def _bar(label: str, before: int, after: int) -> Bar:
    return Bar(label, before, after, count_text(before), f"{count_text(after)}  {saving_text(before, after)}")


def _channels(site: SiteReport) -> str:
    return f"{site.uniform_channels} of {site.channels}"


def _size(size: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in size.items()) or "static"
