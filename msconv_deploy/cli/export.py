"""`msconv export`: recipes -> ONNX files, validated, with a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    progress_line,
    start,
)
from msconv_deploy.cli.terminal import cell, make_console, say_on, verdict_text
from msconv_deploy.errors import BadInputError, ExitCode

if TYPE_CHECKING:
    from msconv_deploy.exporting import Recipe
    from msconv_deploy.reporting.export import ExportReport, Sidecar

RECIPE_FOLDER = Path("export")


def command(
    recipes: Annotated[
        list[Path] | None, typer.Argument(metavar="[RECIPE.toml]...", help="Recipes; default: all of export/.")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("-o", "--output-dir", help="Artefacts go to OUTPUT_DIR/<recipe>/.")
    ] = Path("build/export"),
    form: Annotated[list[str] | None, typer.Option("--form", help="portable, fused or plugin; repeatable.")] = None,
    precision: Annotated[list[str] | None, typer.Option("--precision", help="fp32 or fp16; repeatable.")] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="Instead of the recipe's: 17 to 28.")] = None,
    exporter: Annotated[
        str | None, typer.Option("--exporter", help="Instead of the recipe's: dynamo or legacy.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Instead of the recipe's; for a single recipe.")
    ] = None,
    validate: Annotated[bool, typer.Option(help="Compare every artefact with the PyTorch module.")] = True,
    rtx: Annotated[bool, typer.Option(help="Let TensorRT-RTX parse and build the portable form, if installed.")] = True,
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> int:
    """Export checkpoints to ONNX as recipes say, and validate the files."""
    start(quiet, verbose)
    from msconv_deploy.cli.torch_needed import import_exporting

    exporting = import_exporting()
    from msconv_deploy.reporting.export import ExportReport

    paths = recipes or sorted(RECIPE_FOLDER.glob("*.toml"))
    if not paths:
        raise BadInputError(f"no recipes: give RECIPE.toml files, or put them in the folder {RECIPE_FOLDER}/")
    if checkpoint is not None and len(paths) != 1:
        raise BadInputError("--checkpoint needs exactly one recipe")
    loaded: list[Recipe] = [
        exporting.load_recipe(path).replaced(
            checkpoint=checkpoint, forms=form, precision=precision, opset=opset, exporter=exporter
        )
        for path in paths
    ]
    exporting.check_artefacts(loaded, output_dir, json, force)
    sidecars = []
    with progress_line(quiet) as progress:
        for recipe in loaded:
            sidecars += exporting.export_recipe(
                recipe, output_dir, validate=validate, build_check=rtx, seed=seed, force=force, progress=progress
            )
    report = ExportReport(artefacts=sidecars, seed=seed)
    if json is not None:
        report.write(json, force)
    if not quiet:
        _print_table(report, output_dir)
    return int({"passed": ExitCode.OK, "differ": ExitCode.OUTPUTS_DIFFER}.get(report.verdict, _unverified(validate)))


def _unverified(validate: bool) -> ExitCode:
    """Without a verdict the exit code is 3, unless the user said that none is wanted."""
    return ExitCode.NOT_AVAILABLE if validate else ExitCode.OK


def _print_table(report: ExportReport, output_dir: Path) -> None:
    from rich.table import Table

    from msconv_deploy.ops.symbolic import size_text

    table = Table(title=cell(f"exported to {output_dir}"), title_justify="left")
    runtimes = sorted({name for s in report.artefacts for name in s.largest_difference})
    for heading in ("model", "file", "MB", "opset", "nodes", "parameters"):
        table.add_column(heading, justify="right" if heading in ("MB", "opset", "nodes", "parameters") else "left")
    for name in runtimes:
        table.add_column(f"difference: {name}", justify="right")
    for heading in ("tolerance", "TensorRT-RTX", "verdict"):
        table.add_column(heading)
    for sidecar in report.artefacts:
        a = sidecar.artefact
        differences = [_number(sidecar.largest_difference.get(name)) for name in runtimes]
        table.add_row(
            a.recipe,
            f"{a.form}.{a.precision}",
            f"{a.bytes / 1e6:.2f}",
            str(a.opset),
            str(a.nodes),
            f"{a.parameters:,}",
            *differences,
            _number(sidecar.tolerance),
            ", ".join(sidecar.build_checks.values()) or "-",
            _verdict(sidecar),
        )
    console = make_console()
    console.print(table)
    console.print("largest difference: max|a-b| / max|b| over the outputs and all sizes, b from PyTorch in float64")
    for recipe in dict.fromkeys(sidecar.artefact.recipe for sidecar in report.artefacts):
        refused = {
            size_text(case.size): case.reason
            for sidecar in report.artefacts
            if sidecar.artefact.recipe == recipe
            for case in sidecar.refused
        }
        for size, reason in refused.items():
            text = f"not compared: the PyTorch module of {recipe} does not run at {size}: {reason}"
            say_on(console, text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _verdict(sidecar: Sidecar) -> str:
    compared, refused = len(sidecar.sizes), len(sidecar.refused)
    where = f" at {compared} of {compared + refused} sizes" if refused else ""
    return f"{verdict_text(sidecar.verdict)}{where}" + (f": {cell(sidecar.reason)}" if sidecar.reason else "")
