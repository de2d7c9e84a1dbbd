"""`msconv plugin`: compile the TensorRT plugin, and look into plugin libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    check_places,
    progress_line,
    start,
)
from msconv_deploy.cli.terminal import say
from msconv_deploy.files import sidecar_path

if TYPE_CHECKING:
    from msconv_deploy.reporting.plugin import PluginLibrary

app = typer.Typer(help="Compile the TensorRT plugin MSConv2d and look into plugin libraries.", no_args_is_help=True)


@app.command()
def build(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            metavar="CC",
            help="Compute capability to compile for, such as 86, 9.0 or sm_90; repeatable. Default: 75 to 120.",
        ),
    ] = None,
    tensorrt: Annotated[
        str | None,
        typer.Option(
            "--tensorrt", metavar="VERSION", help="Headers to compile against: 11, 10.16, 10.6.0. Default: newest."
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the headers of --tensorrt from github.com if they are not there.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="DIR", help="The folder plugins of a checkout. Default: this one's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="LIB.so", help="Default: build/plugins/libmsconv_trt<major>.so."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Compilers at once. Default: all cores.")
    ] = None,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Compile the plugin library. A second run compiles what has changed."""
    start(quiet, verbose)
    check_places([], [output, None if output is None else sidecar_path(output), json], force)
    from msconv_deploy.plugin.build import build_plugin

    with progress_line(quiet) as progress:
        report = build_plugin(output, tensorrt, arch, jobs, source, download, force, progress)
    if json is not None:
        report.write(json, force)
    if not quiet:
        say(
            f"{report.library}: {report.library_bytes / 1e6:.1f} MB for TensorRT {report.tensorrt_version.split('.')[0]}, "
            f"compute capabilities {', '.join(report.architectures)}, in {report.timings['build']:.0f} s"
        )
        say(f"look into it: msconv plugin check {report.library}")


@app.command()
def check(
    libraries: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[LIBRARY...]", help="Default: those of build/plugins and MSCONV_PLUGIN_PATH.", show_default=False
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Load plugin libraries into a TensorRT registry and list their creators, versions and fields. Needs no GPU."""
    start(quiet, verbose)
    check_places([], [json], force, others=libraries or [])
    from msconv_deploy.plugin.check import check_library, find_libraries
    from msconv_deploy.reporting.plugin import PluginCheckReport

    report = PluginCheckReport(libraries=[check_library(path) for path in libraries or find_libraries()])
    if json is not None:
        report.write(json, force)
    if not quiet:
        _print(report.libraries)


def _print(libraries: list[PluginLibrary]) -> None:
    for library in libraries:
        say(f"{library.library}, loaded into {library.registry}")
        for creator in library.creators:
            namespace = f", namespace {creator.namespace}" if creator.namespace else ""
            say(f"  {creator.name} version {creator.version}{namespace} ({creator.interface})")
            for field in creator.fields:
                say(f"    {field.name}: {field.type}" + (f"[{field.length}]" if field.length else ""))
