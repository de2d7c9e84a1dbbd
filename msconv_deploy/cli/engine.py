"""`msconv engine`: TensorRT engines from ONNX files, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    JsonOption,
    PluginOption,
    QuietOption,
    VerboseOption,
    check_places,
    start,
)
from msconv_deploy.cli.terminal import cell, make_console, say_on, verdict_text
from msconv_deploy.errors import BadInputError, ExitCode
from msconv_deploy.files import check_distinct, sidecar_path

if TYPE_CHECKING:
    from rich.console import Console

    from msconv_deploy.reporting.engine import EngineInspectReport, EngineLayer, EngineReport, PrecisionCheck
    from msconv_deploy.runtimes.tensorrt.api import BuildStep, ProgressCallback

MAX_ROWS = 60
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

app = typer.Typer(help="Build TensorRT engines and look into them.", no_args_is_help=True)


class EngineForm(str, Enum):
    """The forms that TensorRT takes."""

    portable = "portable"
    plugin = "plugin"


@app.command()
def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model, in any form.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL.plan", help="The engine to write.")],
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shapes",
            metavar="NAME:MIN:OPT:MAX",
            help="Shapes of a dynamic input, such as image:1x3x16x16:1x3x256x256:4x3x1080x1920; repeatable. Equal symbolic "
            "dimensions of other inputs follow. Default: batch 1:1:4, other extents 16:256:1024.",
        ),
    ] = None,
    plugin: PluginOption = None,
    form: Annotated[
        EngineForm | None,
        typer.Option("--form", help="What TensorRT gets. Default: plugin for a fused model if its library is found."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="Read and extended. Default: one in the cache folder."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Finished engines. Default: ~/.cache/msconv-deploy/engines."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor fill the cache.")] = False,
    optimization_level: Annotated[
        int | None, typer.Option("--optimization-level", min=0, max=5, help="0 builds fast, 5 searches longest.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", metavar="SIZE", help="Limit of scratch memory, such as 512M or 4G.")
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let fp32 convolutions round to TF32. TensorRT's default; here it is off.")
    ] = False,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Keep an engine of the wrong precision as MODEL.failed.plan.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> int:
    """Build an engine (a plan) from an ONNX file, and read its precision back.

    Needs an NVIDIA GPU and TensorRT 8.6, 10 or 11; engines run on the version and the kind of GPU that built them.
    """
    start(quiet, verbose)
    sidecar_path(output)  # a folder has no name for one
    if output.exists() and model.exists() and output.samefile(model):
        raise BadInputError(f"{output}: is the model itself; name another file")
    check_distinct([model, *(plugin or [])], [output, output.with_name(f"{output.name}.json"), json, timing_cache])
    check_places([model], [json], force, others=plugin or [])
    if cache is not None and no_cache:
        raise BadInputError("--cache and --no-cache contradict each other")
    from msconv_deploy.ops.forms import Form
    from msconv_deploy.runtimes.tensorrt.bindings import require
    from msconv_deploy.runtimes.tensorrt.build import BuildOptions
    from msconv_deploy.runtimes.tensorrt.engine import ENGINE_CACHE, EngineRequest, build_engine, read_source
    from msconv_deploy.runtimes.tensorrt.profiles import parse_all_shapes

    request = EngineRequest(
        form=None if form is None else Form(form.value),
        shapes=parse_all_shapes(shapes or []),
        plugins=plugin or [],
        options=BuildOptions(
            optimization_level=optimization_level,
            workspace_bytes=None if workspace is None else parse_bytes(workspace),
            tf32=tf32,
        ),
        cache=None if no_cache else cache or ENGINE_CACHE,
        timing_cache=timing_cache,
    )
    source = read_source(model, request)  # what is wrong with the model is said before anything else is looked for
    tensorrt = require()
    with _build_progress(quiet) as progress:
        report = build_engine(source, output, tensorrt, force=force, keep_failed=keep_failed, progress=progress)
    if json is not None:
        report.write(json, force)
    _print_build(report, quiet)
    return int(ExitCode.OK)


@app.command()
def inspect(
    plan: Annotated[Path, typer.Argument(metavar="MODEL.plan", help="The engine.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="MODEL.onnx", help="Compare precision and plugin layers with this file."),
    ] = None,
    plugin: PluginOption = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="TF32 counts as fp32.")] = False,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> int:
    """Show the layers of an engine: precision, formats, tactics, and whether they are what the graph asks for."""
    start(quiet, verbose)
    check_places([] if model is None else [model], [json], force, others=[plan, *(plugin or [])])
    from msconv_deploy.runtimes.tensorrt.bindings import require
    from msconv_deploy.runtimes.tensorrt.engine import inspect_plan, read_plan, read_source

    read_plan(plan)  # a missing or damaged file is said before anything else is looked for
    source = None if model is None else read_source(model)
    report = inspect_plan(plan, require(), plugin or [], source, tf32)
    if json is not None:
        report.write(json, force)
    _print_inspect(report, quiet)
    check = report.precision_check
    if check is None or check.verdict == "passed":
        return int(ExitCode.OK)
    return int(ExitCode.OUTPUTS_DIFFER if check.verdict == "differ" else ExitCode.NOT_AVAILABLE)


def parse_bytes(text: str) -> int:
    """``512M`` -> bytes; K, M and G are powers of 1024.

    Raises:
        BadInputError: the text is not of that form.
    """
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M", "G") else (text, "")
    if not number.isdecimal() or int(number) == 0:
        raise BadInputError(f"size {text!r}: write a number of bytes with K, M or G, such as 512M or 4G")
    return int(number) * _UNITS[unit]


# -- printing --------------------------------------------------------------------------------------------------------


@contextmanager
def _build_progress(quiet: bool) -> Iterator[ProgressCallback | None]:
    """Bars for the builder's phases on a terminal, one line for each outermost phase elsewhere."""
    console = make_console(stderr=True)
    if quiet:
        yield None
    elif console.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
            yield _Bars(bars)
    else:

        def say(step: BuildStep) -> None:
            if step.parent is None and step.step == 0 and not step.finished:
                console.print(step.phase, markup=False, soft_wrap=True)

        yield say


class _Bars:
    """One bar for each phase that is running, indented below its parent."""

    def __init__(self, bars: object) -> None:
        from rich.progress import Progress, TaskID

        assert isinstance(bars, Progress)
        self.bars = bars
        self.tasks: dict[str, tuple[TaskID, int]] = {}

    def __call__(self, step: BuildStep) -> None:
        if step.phase not in self.tasks and not step.finished:
            depth = self.tasks[step.parent][1] + 1 if step.parent in self.tasks else 0
            self.tasks[step.phase] = (self.bars.add_task("  " * depth + step.phase, total=step.steps), depth)
        if step.phase in self.tasks:
            task, _ = self.tasks[step.phase]
            self.bars.update(task, completed=step.step)
            if step.finished:
                self.bars.remove_task(self.tasks.pop(step.phase)[0])


def _print_build(report: EngineReport, quiet: bool) -> None:
    from msconv_deploy.runtimes.tensorrt.inspect import precisions

    console = make_console()
    how = {"built": "built", "cache": "taken from the cache", "up to date": "is up to date already"}[report.source]
    seconds = f" in {report.timings['build']:.1f} s" if report.source == "built" and "build" in report.timings else ""
    console.print(
        f"{report.plan}: {how}{seconds}, {report.plan_bytes:,} bytes, {report.model_form} file as {report.form} form, "
        f"TensorRT {report.tensorrt_version}, {report.gpu} (compute capability {report.compute_capability})",
        markup=False,
        soft_wrap=True,
    )
    if not quiet:
        layers = ", ".join(f"{count} {precision}" for precision, count in precisions(report.layers).items())
        console.print(f"layers: {layers or 'none'}", markup=False, soft_wrap=True)
        for text in report.warnings:
            console.print(f"TensorRT warns: {text}", markup=False, soft_wrap=True)
    _print_check(console, report.precision_check)


def _print_inspect(report: EngineInspectReport, quiet: bool) -> None:
    console = make_console()
    if not quiet:
        _print_layers(console, report.layers)
        for kind, tensors in (("input", report.inputs), ("output", report.outputs)):
            for name, text in tensors.items():
                console.print(f"{kind} {name}: {text}", markup=False, soft_wrap=True)
    layers = ", ".join(f"{count} {precision}" for precision, count in report.precisions.items())
    console.print(
        f"{report.plan}: {report.plan_bytes:,} bytes, TensorRT {report.tensorrt_version}; layers: {layers or 'none'}",
        markup=False,
        soft_wrap=True,
    )
    if report.precision_check is not None:
        _print_check(console, report.precision_check)


def _print_layers(console: Console, layers: list[EngineLayer]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("layer", "type", "precision", "in", "out", "tactic"):
        table.add_column(heading, overflow="fold")
    for layer in layers[:MAX_ROWS]:
        table.add_row(
            cell(layer.name),
            cell(f"{layer.type} (plugin)" if layer.plugin else layer.type),
            layer.precision or "unknown",
            cell(", ".join(dict.fromkeys(layer.inputs))),
            cell(", ".join(dict.fromkeys(layer.outputs))),
            cell(layer.tactic),
        )
    console.print(table)
    if len(layers) > MAX_ROWS:
        console.print(f"{len(layers) - MAX_ROWS} more layers: --json FILE has them all")


def _print_check(console: Console, check: PrecisionCheck) -> None:
    asked = ", ".join(f"{count} {precision}" for precision, count in check.asked.items()) or "no contractions"
    plugin = f", {check.plugin_layers} of {check.plugin_nodes} plugin layers" if check.plugin_nodes else ""
    console.print(f"precision {verdict_text(check.verdict)}: ", end="")
    say_on(console, check.reason or f"{asked} computed as asked{plugin}")
