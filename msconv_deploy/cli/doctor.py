"""`msconv doctor`: what is installed, what is not, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msconv_deploy.cli.common import ForceOption, JsonOption, QuietOption, VerboseOption, start
from msconv_deploy.cli.terminal import cell, make_console
from msconv_deploy.errors import ExitCode
from msconv_deploy.files import check_writable

if TYPE_CHECKING:
    from msconv_deploy.reporting import DoctorReport


def command(
    json: JsonOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> int:
    """Show versions, execution providers, GPU, TensorRT, compiler and plugin: found or not, and what to do."""
    start(quiet, verbose)
    if json is not None:
        check_writable(json, force)
    from msconv_deploy.reporting import DoctorReport
    from msconv_deploy.runtimes.environment import examine

    report = DoctorReport(findings=examine())
    if json is not None:
        report.write(json, force)
    _print(report, quiet)
    return int(ExitCode.OK if report.usable else ExitCode.NOT_AVAILABLE)


def _print(report: DoctorReport, quiet: bool) -> None:
    from rich.table import Table

    console = make_console()
    if not quiet:
        table = Table(
            title=f"msconv-deploy {report.tool_version}, Python {report.versions['python']}", title_justify="left"
        )
        for heading in ("", "what", "status", "version", "where", "what to do"):
            table.add_column(heading, overflow="fold")
        group = ""
        for f in report.findings:
            if f.group != group and group:
                table.add_section()
            style = {"found": "green", "problem": "bold red"}.get(f.status, "bold red" if f.required else "yellow")
            table.add_row(
                f.group if f.group != group else "",
                cell(f.name),
                f"[{style}]{f.status}[/]",
                f.version or "",
                cell(f.where),
                cell(f.advice),
            )
            group = f.group
        console.print(table)
    lacking = [f for f in report.findings if f.required and f.status != "found"]
    problems = [f for f in report.findings if f.status == "problem" and not f.required]
    for f in lacking:
        console.print(f"required, but {f.status}: {f.name}: {f.advice}", markup=False, soft_wrap=True)
    for f in problems:
        console.print(f"problem: {f.name}: {f.where}: {f.advice}", markup=False, soft_wrap=True)
    if not lacking and not problems:
        console.print("everything that export, conversion and validation on the CPU need is there")
