"""`msconv diff`: which nodes and weights two models do not share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import ForceOption, JsonOption, QuietOption, VerboseOption, check_places, start
from msconv_deploy.cli.memory import bound_memory
from msconv_deploy.cli.terminal import cell, make_console

if TYPE_CHECKING:
    from msconv_deploy.reporting.diff import DiffReport

MAX_ROWS = 200


def command(
    a: Annotated[Path, typer.Argument(metavar="A.onnx", help="A model.")],
    b: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model to compare with it.")],
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show the nodes and tensors that were added, removed or changed from A to B.

    The exit code is 0 whether or not they differ (1 means different outputs: see msconv validate --reference).
    """
    start(quiet, verbose)
    bound_memory()
    check_places([a, b], [json], force)
    from msconv_deploy.optimizing import diff_files

    report = diff_files(a, b)
    if json is not None:
        report.write(json, force)
    _print(report, quiet)


def _print(report: DiffReport, quiet: bool) -> None:
    from rich.table import Table

    console = make_console()
    table = Table(title=cell(f"{report.a} → {report.b}"), title_justify="left")
    table.add_column("")
    for heading in ("what", "name", "details"):
        table.add_column(heading, overflow="fold")
    rows = [("~", "model", "", text) for text in report.interface]
    rows += [("-", node.op, node.output, node.name) for node in report.nodes_removed]
    rows += [("+", node.op, node.output, node.name) for node in report.nodes_added]
    rows += [("~", change.op, change.name, "\n".join(change.what)) for change in report.nodes_changed]
    rows += [("-", "weight", w.name, f"{w.dtype} {w.shape}") for w in report.tensors_removed]
    rows += [("+", "weight", w.name, f"{w.dtype} {w.shape}") for w in report.tensors_added]
    rows += [("~", "weight", change.name, "\n".join(change.what)) for change in report.tensors_changed]
    styles = {"-": "red", "+": "green", "~": "yellow"}
    for sign, what, name, details in rows[:MAX_ROWS]:
        table.add_row(f"[{styles[sign]}]{sign}[/]", cell(what), cell(name), cell(details))
    if rows and not quiet:
        console.print(table)
    if len(rows) > MAX_ROWS and not quiet:
        console.print(f"{len(rows) - MAX_ROWS} more rows: --json FILE has them all")
    counts = (
        f"nodes: {len(report.nodes_added)} added, {len(report.nodes_removed)} removed, {len(report.nodes_changed)} changed; "
        f"weights: {len(report.tensors_added)} added, {len(report.tensors_removed)} removed, "
        f"{len(report.tensors_changed)} changed"
    )
    console.print("no difference" if report.equal else counts, markup=False, soft_wrap=True)
