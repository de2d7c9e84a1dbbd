"""`msconv optimize`: rewrite the sites of a model, verify the result, and write it."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    AllowOption,
    ForceOption,
    FormChoice,
    InputShapeOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    progress_line,
    start,
)
from msconv_deploy.cli.memory import bound_memory
from msconv_deploy.cli.site_tables import MAX_ROWS, print_near_misses, print_sites
from msconv_deploy.cli.terminal import cell, make_console, say_on, verdict_text
from msconv_deploy.errors import ExitCode
from msconv_deploy.files import check_distinct, sidecar_path

if TYPE_CHECKING:
    from rich.console import Console

    from msconv_deploy.reporting import OptimizeReport, Verification


class WhenChoice(str, Enum):
    """Which sites are rewritten."""

    faster = "faster"
    always = "always"


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to optimize.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="The file to write.")],
    when: Annotated[
        WhenChoice, typer.Option("--when", help="Rewrite where it is estimated to be faster, or every valid site.")
    ] = WhenChoice.faster,
    form: Annotated[FormChoice, typer.Option("--form", help="The form to write.")] = FormChoice.portable,
    allow: AllowOption = None,
    tune: Annotated[bool, typer.Option("--tune", help="Measure the candidates on this machine.")] = False,
    input_shape: InputShapeOption = None,
    inputs: Annotated[
        list[Path] | None, typer.Option("--inputs", metavar="FILE.npz", help="Inputs by name; repeatable.")
    ] = None,
    input_range: Annotated[
        list[str] | None,
        typer.Option("--input-range", metavar="NAME:LOW:HIGH", help="Range of random values; repeatable."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the result with the original before it is written.")
    ] = True,
    keep_failed: Annotated[
        bool,
        typer.Option("--keep-failed", help="Keep a result that differs or cannot be verified as OUT.failed.onnx."),
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as a page that opens offline.")
    ] = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> int:
    """Rewrite convolutions of tiled inputs, verify the result, and write it with its sidecar OUT.json.

    A result that differs (exit code 1) or cannot be verified (exit code 3) is not written; --no-verify writes it unseen.
    """
    start(quiet, verbose)
    bound_memory()
    sidecar = sidecar_path(output)
    reports = [sidecar, html, None if json is not None and json.resolve() == sidecar.resolve() else json]
    check_distinct(inputs or [], [output, *reports], force)  # the model's own files are looked at with it
    from msconv_deploy.optimizing import OptimizeOptions, optimize_file
    from msconv_deploy.validation import parse_ranges
    from msconv_deploy.validation.input_shapes import parse_input_shapes

    options = OptimizeOptions(
        when=when.value,
        allow=[rule.value for rule in allow or []],
        form=form.value,
        tune=tune,
        input_shapes=parse_input_shapes(input_shape or []),
        input_files=inputs or [],
        input_ranges=parse_ranges(input_range or []),
        seed=seed,
        verify=verify,
        keep_failed=keep_failed,
        html=html,
        json=json,
        force=force,
    )
    with progress_line(quiet) as progress:
        report = optimize_file(model, output, options, progress)
    _print(report, quiet)
    if report.verdict == "differ":
        return int(ExitCode.OUTPUTS_DIFFER)
    return int(ExitCode.NOT_AVAILABLE if report.verdict == "unverified" and verify else ExitCode.OK)


# -- printing --------------------------------------------------------------------------------------------------------


def _print(report: OptimizeReport, quiet: bool) -> None:
    from msconv_deploy.reporting.numbers import bytes_text, count_text, saving_text

    console = make_console()
    if not quiet:
        print_sites(console, report.sites, decisions=True)
        print_near_misses(console, report.near_misses)
        if report.verification is not None:
            _print_verification(console, report.verification)
        before, after = report.before, report.after
        lines = [f"nodes {before.nodes} → {after.nodes}"]
        if after.bytes is not None:
            lines.append(f"size {bytes_text(before.bytes)} → {bytes_text(after.bytes)}")
        if before.macs is not None:
            saving = saving_text(before.macs, after.macs)
            counts = f"MACs {count_text(before.macs)} → {count_text(after.macs)}"
            lines.insert(0, f"{counts} ({saving})" if saving else counts)
        say_on(console, "; ".join(lines))
        for note in report.notes:
            say_on(console, f"note: {note}")
    console.print(f"{verdict_text(report.verdict)}: ", end="")
    say_on(console, _summary(report))


def _summary(report: OptimizeReport) -> str:
    from msconv_deploy.reporting.numbers import difference_text

    written = f"wrote {', '.join(report.written)}" if report.written else "no model was written"
    if report.reason:
        return f"{report.model}: {report.reason}; {written}"
    check = report.verification
    assert check is not None
    return (
        f"{report.model}: {len(report.rewritten)} of {len(report.sites)} sites rewritten, agrees with the original on "
        f"{len(check.cases)} sets of inputs, largest difference {difference_text(check.largest_difference)}; {written}"
    )


def _print_verification(console: Console, check: Verification) -> None:
    """The worst comparison of every tensor; all that did not pass."""
    from rich.table import Table

    from msconv_deploy.reporting.numbers import difference_text
    from msconv_deploy.validation import size_text

    table = Table(title="verification: the largest difference of every tensor", title_justify="left")
    for heading in ("tensor", "what", "size", "dtype", "border", "interior", "difference", "tolerance", "verdict"):
        numeric = heading in ("border", "interior", "difference", "tolerance")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    rows = []
    for what, comparisons in (("site", check.sites), ("output", check.outputs)):
        for tensor in dict.fromkeys(row.output for row in comparisons):
            mine = [row for row in comparisons if row.output == tensor]
            shown = [row for row in mine if row.verdict != "passed"]
            if not shown:
                shown = [max(mine, key=lambda row: (row.difference or 0.0) / (row.tolerance or 1.0))]
            rows += [(what, row) for row in shown]
    for what, row in rows[:MAX_ROWS]:
        table.add_row(
            cell(row.output),
            what,
            cell(size_text(row.size)),
            row.dtype,
            difference_text(row.border),
            difference_text(row.interior),
            difference_text(row.difference),
            difference_text(row.tolerance),
            verdict_text(row.verdict, row.reason),
        )
    if rows:
        console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"{len(rows) - MAX_ROWS} more rows: --json FILE has them all")

    say = partial(say_on, console)

    if check.cases:
        say("compared at: " + "; ".join(size_text(case.size) for case in check.cases))
    if check.refused:
        say(
            "refused by the original, or not defined there: "
            + "; ".join(size_text(case.size) for case in check.refused)
        )
    for name in check.insensitive_sites:
        say(f"insensitive: moving the tiled operand does not move {name}: agreement there proves nothing")
    for name in check.insensitive_inputs:
        say(f"insensitive: changing input {name} moves no output by more than rounding does")
    for name in check.not_computed:
        say(f"not compared: {name} is not computed any more: what read it is rewritten too")
    if check.divergence is not None:
        say(check.divergence.text)
