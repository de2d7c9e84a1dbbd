"""`msconv inspect`: what `msconv optimize` would find, without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msconv_deploy.cli.common import (
    AllowOption,
    ForceOption,
    InputShapeOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    check_places,
    start,
)
from msconv_deploy.cli.memory import bound_memory
from msconv_deploy.cli.site_tables import print_near_misses, print_sites
from msconv_deploy.cli.terminal import make_console


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to inspect.")],
    input_shape: InputShapeOption = None,
    allow: AllowOption = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show the sites of a model, how their uniformity was found, and why other contractions are no sites."""
    start(quiet, verbose)
    bound_memory()
    check_places([model], [json], force)
    from msconv_deploy.optimizing import inspect_file
    from msconv_deploy.reporting.numbers import bytes_text
    from msconv_deploy.validation.input_shapes import parse_input_shapes

    report = inspect_file(model, parse_input_shapes(input_shape or []), [rule.value for rule in allow or []])
    report.seed = seed
    if json is not None:
        report.write(json, force)
    console = make_console()
    if not quiet:
        print_sites(console, report.sites, decisions=False)
        print_near_misses(console, report.near_misses)
    console.print(
        f"{model}: {len(report.sites)} sites, {len(report.near_misses)} near-misses in {report.facts.nodes} nodes, "
        f"{bytes_text(report.facts.bytes)}",
        markup=False,
        soft_wrap=True,
    )
