"""`msconv validate`: does an ONNX file compute what its PyTorch module, or another ONNX file, computes?"""

from __future__ import annotations

import math
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    JsonOption,
    PluginOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    check_places,
    progress_line,
    start,
)
from msconv_deploy.cli.memory import bound_memory
from msconv_deploy.cli.terminal import cell, make_console, say_on, verdict_text
from msconv_deploy.errors import BadInputError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from msconv_deploy.reporting import ValidationReport
    from msconv_deploy.validation import ValidationOptions

MAX_ROWS = 60
BUILD_FOLDER = "build"
"""Where exports go, below the folder that the program is started in."""


class Optimization(str, Enum):
    """Graph optimization level of ONNX Runtime."""

    none = "none"
    basic = "basic"
    extended = "extended"
    all = "all"


def _finite(value: float | None) -> float | None:
    """A tolerance that everything passes verifies nothing."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a tolerance: give a finite number")
    return value


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The file to validate.")],
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="OTHER.onnx", help="Compare with this ONNX file.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE.toml",
            help="Compare with the PyTorch module of this recipe; default, for a MODEL in build/: the "
            "one of this folder that MODEL.json names.",
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="Instead of the recipe's.")] = None,
    runtimes: Annotated[
        str | None,
        typer.Option(
            "--runtimes",
            metavar="NAME,NAME",
            help="torch (the module in its own dtype), ort, trt (an engine, on a GPU); default: torch,ort.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="N=1,H=17,W=23", help="Extents of the dynamic dims; repeatable. Default: several."
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", min=0.0, callback=_finite, help="Largest max|a-b| / max|b|; default: from dtype and depth."
        ),
    ] = None,
    inputs: Annotated[
        list[Path] | None, typer.Option("--inputs", metavar="FILE.npz", help="Inputs by name; repeatable.")
    ] = None,
    input_range: Annotated[
        list[str] | None,
        typer.Option("--input-range", metavar="NAME:LO:HI", help="Uniform values instead; repeatable."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Save inputs and results in Polygraphy's format.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of ONNX Runtime.")] = None,
    optimization: Annotated[
        Optimization, typer.Option("--optimization", help="Graph optimizations of ONNX Runtime.")
    ] = Optimization.all,
    plugin: PluginOption = None,
    rtx: Annotated[
        bool | None,
        typer.Option("--rtx/--no-rtx", help="Let TensorRT-RTX parse and build the file; default: if it is installed."),
    ] = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> int:
    """Compare an ONNX file with its PyTorch module or with another ONNX file, at several sizes."""
    start(quiet, verbose)
    if "trt" not in (runtimes or ""):  # a GPU's driver reserves more addresses than there is memory
        bound_memory()
    others = [path for path in (recipe, checkpoint, *(inputs or [])) if path is not None]
    read = [model, *([reference] if reference is not None else [])]
    sidecars = [model.with_name(f"{model.stem}.json")] if model.name else []
    check_places(read, [json], force, others=[*others, *sidecars])
    if save is not None:
        _check_results(save, [*read, *others], json)
    if reference is not None and (recipe is not None or checkpoint is not None):
        raise BadInputError("--reference compares two ONNX files: leave out --recipe and --checkpoint")
    from msconv_deploy.runtimes import Settings
    from msconv_deploy.validation import InputOptions, ValidationOptions, parse_ranges, parse_size

    options = ValidationOptions(
        runtimes=[name.strip() for name in runtimes.split(",")] if runtimes is not None else None,
        inputs=InputOptions(
            sizes=[parse_size(text) for text in size or []],
            seed=seed,
            ranges=parse_ranges(input_range or []),
            files=inputs or [],
        ),
        settings=Settings(threads=threads, optimization=optimization.value, plugins=plugin or []),
        tolerance=tolerance,
        save_to=save,
        force=force,
        build_check=rtx is not False,  # where it is not installed the report says so
    )
    with progress_line(quiet) as progress:
        if reference is not None:
            from msconv_deploy.validation import validate_onnx_against_onnx

            progress(f"comparing {model} with {reference}")
            report = validate_onnx_against_onnx(model, reference, options)
        else:
            report = _against_recipe(model, recipe, checkpoint, options, progress)
    if json is not None:
        report.write(json, force)
    _print(report, quiet)
    return int(_exit_code(report, rtx))


def _check_results(folder: Path, inputs: list[Path], json: Path | None) -> None:
    """What is saved replaces neither an input nor the report."""
    from msconv_deploy.validation.results import is_result

    for path in (*inputs, *([json] if json is not None else [])):
        if is_result(path, folder):
            raise BadInputError(f"{path}: results are saved under such names in {folder}; choose another --save DIR")


def _against_recipe(
    model: Path,
    recipe_path: Path | None,
    checkpoint: Path | None,
    options: ValidationOptions,
    progress: Callable[[str], None],
) -> ValidationReport:
    import numpy as np

    from msconv_deploy.cli.torch_needed import import_exporting
    from msconv_deploy.validation import validate_onnx_against_module
    from msconv_deploy.validation.graph import read_graph

    graph = read_graph(model)  # what is wrong with the file is said before anything else is looked for
    if recipe_path is None:
        recipe_path = _recipe_of(model)
        progress(f"recipe: {recipe_path} (named by {model.stem}.json)")
    exporting = import_exporting()
    recipe = exporting.load_recipe(recipe_path)
    if checkpoint is not None:
        recipe = recipe.replaced(checkpoint=checkpoint)
    precision = "fp16" if any(spec.dtype == np.float16 for spec in graph.inputs) else "fp32"
    progress(f"loading {recipe.checkpoint} in {precision}")
    module = exporting.load_model(recipe, precision)
    progress(f"comparing {model} with {recipe.model.module}")
    return validate_onnx_against_module(
        model, module, options, input_names=list(recipe.inputs), output_names=list(recipe.export.outputs)
    )


def _recipe_of(model: Path) -> Path:
    """The recipe that the sidecar ``<stem>.json`` of an exported file names, relative to itself.

    A recipe names code, which is run, and files that lie beside a model may come from strangers. So the sidecar is believed
    only where `msconv export` puts it: in build/ of the folder that the program is started in. And the recipe must be one of
    that folder's own: below it, outside of build/, and no link leads out.
    """
    import json

    sidecar = model.with_name(f"{model.stem}.json")
    advice = "give --reference OTHER.onnx or --recipe RECIPE.toml"
    if not sidecar.is_file():
        raise BadInputError(f"{model}: nothing to compare with: there is no {sidecar.name} beside it; {advice}")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except RecursionError:
        raise BadInputError(f"{sidecar}: is nested too deeply to be the sidecar of an export; {advice}") from None
    except (ValueError, OSError) as error:
        raise BadInputError(f"{sidecar}: is not a JSON file ({error}); {advice}") from None
    named = content.get("recipe") if isinstance(content, dict) else None
    if not isinstance(named, str):
        raise BadInputError(f"{sidecar}: names no recipe; {advice}")
    here = Path.cwd().resolve()
    built = here / BUILD_FOLDER
    try:
        path = (sidecar.parent / named).resolve()
        present = path.is_file()
        own = sidecar.resolve().is_relative_to(built) and path.is_relative_to(here) and not path.is_relative_to(built)
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a zero byte
        raise BadInputError(f"{sidecar}: its recipe cannot be looked for ({error}); {advice}") from None
    if not own:
        raise BadInputError(
            f"{sidecar}: names the recipe {named}, which is not followed unasked: a recipe runs the code that it names, and a "
            f"sidecar is believed only in {BUILD_FOLDER}/ of the folder that msconv is started in, about a recipe in that "
            "folder. If you trust it, pass --recipe PATH to compare with PyTorch; or give --reference OTHER.onnx"
        )
    if not present:
        raise BadInputError(f"{sidecar}: its recipe {named} is not there any more; {advice}")
    return path.relative_to(here)


def _exit_code(report: ValidationReport, rtx: bool | None) -> ExitCode:
    if report.verdict == "differ":
        return ExitCode.OUTPUTS_DIFFER
    if report.verdict == "unverified":
        return ExitCode.NOT_AVAILABLE
    if any(check.status == "failed" for check in report.build_checks):
        return ExitCode.BUILD_FAILED
    if rtx and any(check.status == "not available" for check in report.build_checks):
        return ExitCode.NOT_AVAILABLE
    return ExitCode.OK


# -- printing --------------------------------------------------------------------------------------------------------


def _print(report: ValidationReport, quiet: bool) -> None:
    console = make_console()
    if not quiet:
        _print_comparisons(console, report)
        _print_notes(console, report)
    console.print(f"{verdict_text(report.verdict)}: ", end="")
    say_on(console, _summary(report))


def _summary(report: ValidationReport) -> str:
    if report.reason:
        return f"{report.model}: {report.reason}"
    largest = [v for v in report.largest_difference.values() if v is not None]
    amount = f", largest difference {max(largest):.1e}" if largest else ""
    return f"{report.model} agrees with {report.reference} at {len(report.cases)} sizes{amount}"


def _print_comparisons(console: Console, report: ValidationReport) -> None:
    from rich.table import Table

    from msconv_deploy.validation import size_text

    table = Table(title=f"{cell(report.model)} against {cell(report.reference_runtime)}", title_justify="left")
    for heading in ("runtime", "size", "output", "dtype", "border", "interior", "tolerance", "verdict"):
        table.add_column(heading, justify="right" if heading in ("border", "interior", "tolerance") else "left")
    for row in sorted(report.comparisons, key=lambda c: c.verdict == "passed")[:MAX_ROWS]:
        whole = row.border is None
        table.add_row(
            cell(row.runtime),
            cell(size_text(row.size)),
            cell(row.output),
            row.dtype,
            "exact" if row.exact and row.difference is not None else _number(row.difference if whole else row.border),
            "" if whole else "none" if row.interior is None else _number(row.interior),
            _number(row.tolerance),
            verdict_text(row.verdict, row.reason),
        )
    console.print(table)
    console.print("border, interior: max|a-b| over these pixels / max|b| over the tensor, b the reference")
    if len(report.comparisons) > MAX_ROWS:
        console.print(f"{len(report.comparisons) - MAX_ROWS} more rows: --json FILE has them all")


def _print_notes(console: Console, report: ValidationReport) -> None:
    from msconv_deploy.validation import size_text

    say = partial(say_on, console)

    for refused in report.refused:
        say(f"not compared: the reference does not run at {size_text(refused.size)}: {refused.reason}")
    for name in report.insensitive_inputs:
        say(f"insensitive: changing input {name} moves no output by more than rounding does; its use is not verified")
    for note in report.notes:
        say(f"note: {note}")
    if report.divergence is not None:
        say(report.divergence.text)
    if report.verdict == "differ" and report.needed_tolerance is not None:
        say(f"tolerance that would have been needed: {report.needed_tolerance:.2e}")
    for check in report.build_checks:
        size = f", engine of {check.engine_bytes:,} bytes" if check.engine_bytes else ""
        reason = f": {check.reason}" if check.reason else ""
        say(f"TensorRT-RTX {check.version or ''} parse and build: {check.status}{size}{reason}")
    for line in report.polygraphy_commands:
        say(line)
    if not report.polygraphy_commands:
        say("the same with polygraphy: --save DIR writes the inputs and results, and prints the lines")
    if report.trtexec_command:
        say(report.trtexec_command)


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"
