"""What every verb shares: its common options, its console, its log level, and how an error becomes an exit code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from msconv_deploy.cli.terminal import PrintableFormatter, make_console, printable
from msconv_deploy.files import check_outputs

_LARGEST_SEED = 2**63 - 1
"""What every generator takes that is seeded."""


def _seed(value: int) -> int:
    if value > _LARGEST_SEED:
        raise typer.BadParameter(f"is larger than {_LARGEST_SEED}")
    return value


JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the report as JSON to FILE.", dir_okay=False),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace output files that exist.")]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, callback=_seed, help="Seed of all random numbers; it is recorded in the report."),
]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors and the verdict only.")]
VerboseOption = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more; twice for debugging.")]
InputShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", metavar="NAME:1x3x64x64", help="Shape of an input with dynamic dimensions; repeatable."
    ),
]

PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="LIB.so",
        help="TensorRT plugin library, beside those in build/plugins and MSCONV_PLUGIN_PATH; repeatable.",
    ),
]


class AllowChoice(str, Enum):
    """Rules that are applied only where they are allowed by name."""

    tiled_distance = "tiled-distance"


AllowOption = Annotated[
    list[AllowChoice] | None,
    typer.Option(
        "--allow",
        help="Also apply this rule, whose result rounds otherwise than the original within a stated bound; repeatable.",
    ),
]


class FormChoice(str, Enum):
    """The three forms of a model, as an option."""

    portable = "portable"
    fused = "fused"
    plugin = "plugin"


def start(quiet: bool, verbose: int) -> None:
    """Configure logging for this run. Library code only ever logs; nothing is configured on import."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def check_places(
    models: Iterable[Path],
    outputs: Iterable[Path | None],
    force: bool = False,
    *,
    others: Iterable[Path] = (),
    original: Path | None = None,
    possible: Iterable[Path] = (),
) -> None:
    """Refuse output places before any work is done: see :func:`msconv_deploy.files.check_outputs`.

    Args:
        models: ONNX files that are read, whose external data is no output place either.
        outputs: what will be written, the main output first; None is left out.
        others: further files that are read.

    Raises:
        BadInputError: naming the place.
    """
    places = [place for place in outputs if place is not None]
    possible = list(possible)
    models = list(models)
    inputs = [*models, *others]
    if any(place.exists() for place in (*places, *possible)):  # only then can a place be a file that a model refers to
        from msconv_deploy.model_files import input_files

        inputs += [file for model in models if model.is_file() for file in input_files(model)]
    check_outputs(inputs, places, force, original=original, possible=possible)


@contextmanager
def progress_line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the present step: a spinner with the time on a terminal, plain lines elsewhere."""
    from rich.markup import escape

    console = make_console(stderr=True)
    if quiet:
        yield lambda step: None
    elif console.is_terminal:
        with console.status("") as status:
            yield lambda step: status.update(escape(printable(step)))
    else:
        yield lambda step: console.print(step, markup=False, soft_wrap=True)
