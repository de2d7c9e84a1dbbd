"""`msconv`: the program. Verbs import what they need when they run, so that `msconv --help` answers at once."""

from __future__ import annotations

import logging
import signal
import sys
from functools import partial
from typing import Annotated, Any

import typer

from msconv_deploy import __version__
from msconv_deploy.cli import convert, diff, doctor, engine, export, inspect, optimize, package, plugin, serve, validate
from msconv_deploy.cli.guard import guarded
from msconv_deploy.cli.memory import limits_kept
from msconv_deploy.cli.terminal import Streams, say
from msconv_deploy.errors import ExitCode, MsconvError

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error"
"""What the message of an exception says that nobody expected."""

# Typer brings its own copy of click from some version on; its exceptions are reached through the names it exports.
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_READS_MODELS = frozenset({"export", "inspect", "optimize", "convert", "validate", "diff", "engine", "package"})
"""Verbs that give models to native code and then end; a server has somebody who watches it."""

app = typer.Typer(
    name="msconv",
    help="Export, rewrite and validate image-plus-metadata CNNs: convolutions that never convolve a tile.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would have to be imported, with Markdown, before the first line of help
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (export, inspect, optimize, convert, validate, diff, serve, package, doctor):
    app.command(name=verb.__name__.rpartition(".")[2])(verb.command)
app.add_typer(engine.app, name="engine")
app.add_typer(plugin.app, name="plugin")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"msconv-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None) -> None:
    """Entry point: runs a verb and turns every expected error into one message and its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in _READS_MODELS:
        sys.exit(guarded(partial(_run, given), given))
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    """A verb in this process, with the program's signals and streams."""
    signal.signal(signal.SIGTERM, _terminated)
    streams = Streams()
    code = main(arguments)
    failure = streams.failure()
    if failure is not None:
        say(f"msconv: standard output cannot be written: {failure.strerror or failure}", err=True)
        code = code or int(ExitCode.BAD_INPUT)
    return code


def _terminated(number: int, frame: object) -> None:
    """Leave through the ordinary way, so that temporary files are removed."""
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (``docs/spec.md``)."""
    try:
        with limits_kept():
            code = app(args=arguments, standalone_mode=False)
    except MsconvError as error:
        say(f"msconv: {error}", err=True)
        return int(error.exit_code)
    except typer.Exit as done:
        return done.exit_code
    except _ClickError as error:
        error.show()
        return int(ExitCode.BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        say("msconv: interrupted", err=True)
        return 130
    except BrokenPipeError:  # not of the program's own streams, which `run` makes tolerant: as the signal has it
        return 141
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        say(f"msconv: {error.strerror or error}:{where}", err=True)
        return int(ExitCode.BAD_INPUT)
    except Exception as error:  # a fault of ours; Python's own exit code 1 would say that outputs differ
        logger.info("the traceback", exc_info=not isinstance(error, MemoryError))
        given = " ".join(sys.argv[1:] if arguments is None else arguments)
        what = (
            "not enough memory"
            if isinstance(error, MemoryError)
            else f"{INTERNAL_ERROR} ({type(error).__name__}: {error})"
        )
        advice = "" if isinstance(error, MemoryError) else "; please report it with the file, and with what -v prints"
        say(f"msconv {given}: {what}{advice}", err=True)
        return int(ExitCode.NOT_AVAILABLE)
    return int(code or 0)
