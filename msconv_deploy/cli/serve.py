"""`msconv serve`: a model as an endpoint, over HTTP and gRPC."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    check_places,
    progress_line,
    start,
)
from msconv_deploy.cli.terminal import make_console
from msconv_deploy.errors import BadInputError, NotAvailableError, OutputsDifferError, UnverifiedError
from msconv_deploy.files import sha256_of

if TYPE_CHECKING:
    from msconv_deploy.reporting.serve import ServeReport
    from msconv_deploy.serving.model import Model
    from msconv_deploy.serving.server import Server

_MIB = 1 << 20
_MOST_SECONDS = 86400.0
_NO_NAME = "stats"  # /v2/models/stats is the place of the statistics


def _number(value: float) -> float:
    """Not NaN, which is neither below nor above any limit."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


class ProviderChoice(str, Enum):
    """Where ONNX Runtime computes. A plan is served by TensorRT."""

    cpu = "cpu"
    cuda = "cuda"


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, or a TensorRT plan (*.plan).")],
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call it; the file's stem by default.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. There is no authentication: 0.0.0.0 serves everybody.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="HTTP; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc-port", min=0, max=65535, help="gRPC; 0 takes a free one.")] = 8001,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Optimize the model first, and serve the result if it is verified.")
    ] = False,
    provider: Annotated[
        ProviderChoice | None,
        typer.Option("--provider", help="Where ONNX Runtime computes; the CPU by default."),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            "--plugin", metavar="LIB.so", help="Library that the plan was built with; default: as its sidecar says."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads within an operator; all cores by default.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Most samples of several requests in one run; 1 joins none.")
    ] = 16,
    max_delay: Annotated[
        float,
        typer.Option(
            "--max-delay", min=0, max=1000, callback=_number, help="Milliseconds that a request waits for others."
        ),
    ] = 0.0,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Most requests that are accepted and not yet answered.")
    ] = 128,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="MIB", min=1, max=2047, help="Largest request, in MiB.")
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.001,
            max=_MOST_SECONDS,
            callback=_number,
            help="Seconds for a request once its header is read; and for a header.",
        ),
    ] = 30.0,
    connections: Annotated[int, typer.Option("--connections", min=1, help="Most connections of HTTP at a time.")] = 512,
    access_log: Annotated[
        Path | None,
        typer.Option("--access-log", metavar="FILE", help="Append the access log to FILE instead of standard error."),
    ] = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Serve a model: the Open Inference Protocol (KServe v2) over HTTP and gRPC, for the clients of NVIDIA Triton.

    The access log has one JSON object a line. SIGTERM finishes what is accepted; --json tells the ports.
    """
    start(quiet, verbose)
    # the access log is appended to: only what is read or written otherwise is no place for it
    check_places([model], [json], force, others=plugin or [], possible=[access_log] if access_log else [])
    _require_packages()
    from msconv_deploy.serving.model import Model
    from msconv_deploy.serving.server import Server, serve
    from msconv_deploy.serving.service import Limits

    name = _checked_name(name, model)
    _configure_access_log(access_log, quiet)
    limits = Limits(max_body * _MIB, timeout, queue, max_batch, max_delay / 1e3, connections)
    with _optimized(model, optimize, seed, quiet) as (path, what):
        chosen = None if provider is None else provider.value
        loaded = Model(path, name, chosen, threads, seed, plugin or [])
        server = Server(loaded, limits, host, port, grpc_port)

        def started(server: Server) -> None:
            report = _report(server, model, what)
            report.seed = seed
            if json is not None:
                report.write(json, force)
            _print(report, quiet)

        serve(server, started)


def _require_packages() -> None:
    """The extra, all of it, before any work is done."""
    import importlib.util

    for package in ("starlette", "uvicorn", "grpc", "tritonclient", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise NotAvailableError(f"msconv serve needs {package}: pip install 'msconv-deploy[serve]'")


def _checked_name(name: str | None, model: Path) -> str:
    """The model's name, which is a part of addresses.

    Raises:
        BadInputError: it is not fit for that.
    """
    from msconv_deploy.serving.triton.repository import check_name

    if name is None:
        name = model.absolute().stem
    if name == _NO_NAME:
        raise BadInputError(
            f"model name {name!r}: /v2/models/{name} is the statistics' place; give another with --name"
        )
    return check_name(name)


@contextmanager
def _optimized(model: Path, wanted: bool, seed: int, quiet: bool) -> Iterator[tuple[Path, str]]:
    """The file to serve, and what was done to it; a result that is not verified is not served."""
    if not wanted:
        yield model, ""
        return
    from msconv_deploy.serving.tensorrt_plan import is_plan

    if is_plan(model):
        raise BadInputError(
            f"--optimize is for ONNX files, and {model} is a plan: optimize the file that it is built from"
        )
    import tempfile

    from msconv_deploy.optimizing import OptimizeOptions, optimize_file

    with tempfile.TemporaryDirectory(prefix="msconv-serve-") as folder:
        output = Path(folder) / "model.onnx"
        with progress_line(quiet) as progress:
            report = optimize_file(model, output, OptimizeOptions(seed=seed), progress)
        if report.verdict != "passed":
            error = OutputsDifferError if report.verdict == "differ" else UnverifiedError
            raise error(f"{model}: the optimized model is not served: {report.reason}; without --optimize it can be")
        yield output, f"{len(report.rewritten)} of {len(report.sites)} sites rewritten and verified"


def _configure_access_log(file: Path | None, quiet: bool) -> None:
    from msconv_deploy.serving.access_log import LOGGER

    try:
        handler = logging.FileHandler(file, encoding="utf-8") if file is not None else logging.StreamHandler()
    except OSError as error:
        raise BadInputError(f"{file}: the access log cannot be written: {error.strerror or error}") from None
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.WARNING if quiet and file is None else logging.INFO)


def _report(server: Server, file: Path, optimized: str) -> ServeReport:
    from msconv_deploy.reporting.serve import ServeReport

    model: Model = server.service.model
    host = f"[{server.host}]" if ":" in server.host else server.host
    return ServeReport(
        model=str(file),
        model_sha256=sha256_of(file),
        optimized=optimized,
        name=model.name,
        http=f"{host}:{server.http_port}",
        grpc=f"{host}:{server.grpc_port}",
        pid=os.getpid(),
        provider=model.runtime.provider,
        inputs={tensor.name: tensor.text for tensor in model.inputs},
        outputs={tensor.name: tensor.text for tensor in model.outputs},
        batching=model.batching,
    )


def _print(report: ServeReport, quiet: bool) -> None:
    console = make_console()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if not quiet:
        for kind, tensors in (("input", report.inputs), ("output", report.outputs)):
            for name, text in tensors.items():
                say(f"{kind} {name}: {text}")
        if report.optimized:
            say(f"optimized: {report.optimized}")
        say(f"requests are not joined: {report.batching}" if report.batching else "requests of equal shapes are joined")
    say(f"{report.model}: served as {report.name!r} on http://{report.http} and grpc://{report.grpc}")
    console.file.flush()
