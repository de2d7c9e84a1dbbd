"""`msconv package`: a model repository for NVIDIA Triton."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    InputShapeOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    check_places,
    progress_line,
    start,
)
from msconv_deploy.cli.terminal import say
from msconv_deploy.errors import NotAvailableError

if TYPE_CHECKING:
    from msconv_deploy.reporting.package import PackageReport


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model, in portable or fused form.")],
    triton: Annotated[Path, typer.Option("--triton", metavar="DIR", help="The model repository, made or added to.")],
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE.plan", help="Serve this TensorRT engine, built from MODEL.onnx."),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            "--plugin", metavar="LIB.so", help="Library that the plan was built with; default: as its sidecar says."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What clients call it. Default: the file's stem.")] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Version folder. Default: that of the same file, else 1.")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            "--max-batch", min=0, help="Join requests up to this many samples; 0: never. Default: 8 if it can."
        ),
    ] = None,
    preferred_batch: Annotated[
        list[int] | None,
        typer.Option("--preferred-batch", min=1, help="Batch size that is sent off at once; repeatable."),
    ] = None,
    queue_delay: Annotated[
        int, typer.Option("--queue-delay", metavar="MICROSECONDS", min=0, help="How long a request waits for others.")
    ] = 100,
    instances: Annotated[int, typer.Option("--instances", min=1, help="Executions at once, on each device.")] = 1,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="TAG", help="Of nvcr.io/nvidia/tritonserver, in the compose file and manifest."
        ),
    ] = None,
    storage_uri: Annotated[
        str | None, typer.Option("--storage-uri", metavar="URI", help="Where KServe finds the repository.")
    ] = None,
    input_shape: InputShapeOption = None,
    input_range: Annotated[
        list[str] | None,
        typer.Option(
            "--input-range", metavar="NAME:LOW:HIGH", help="Range of the warm-up sample's values; repeatable."
        ),
    ] = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Make a Triton model repository, or add to one: configuration, warm-up, launch line, compose file, KServe manifest.

    Everything is checked against the model and run before it is put in its place. The same model again updates its folder; a
    folder that holds another model is refused.
    """
    start(quiet, verbose)
    check_places([model], [json], force, others=[*([plan] if plan else []), *(plugin or [])])
    try:
        from msconv_deploy.serving.triton.package import PackageOptions, package_model
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("tritonclient", "grpc"):
            raise
        raise NotAvailableError(
            f"this verb needs {error.name} for Triton's configuration format: pip install 'msconv-deploy[serve]'"
        ) from error
    from msconv_deploy.validation import InputOptions, parse_ranges
    from msconv_deploy.validation.input_shapes import parse_input_shapes

    options = PackageOptions(
        plan=plan,
        plugins=plugin or [],
        name=name,
        version=version,
        max_batch=max_batch,
        preferred=preferred_batch,
        max_queue_delay_us=queue_delay,
        instances=instances,
        image=image,
        storage_uri=storage_uri,
        input_shapes=parse_input_shapes(input_shape or []),
        inputs=InputOptions(seed=seed, ranges=parse_ranges(input_range or [])),
        force=force,
    )
    with progress_line(quiet) as progress:
        report = package_model(model, triton, options, progress)
    if json is not None:
        report.write(json, force)
    _print(report, quiet)


def _print(report: PackageReport, quiet: bool) -> None:
    if not quiet:
        for kind, tensors in (("input", report.inputs), ("output", report.outputs)):
            for tensor in tensors:
                say(f"{kind} {tensor.name}: {tensor.datatype} {tensor.shape}")
        joined = f"joined up to {report.max_batch_size} samples" if report.max_batch_size else "not joined"
        say(f"requests are {joined}; {report.instances} instance{'s' if report.instances > 1 else ''}")
        for text in report.checks:
            say(f"checked: {text}")
        for text in report.notes:
            say(f"note: {text}")
    say(f"{report.repository}/{report.name}: version {report.version} {report.action}, {report.backend} backend")
    if not quiet:
        say(f"start it: {shlex.join(report.launch)}")
        say(f"or: docker compose -f {shlex.quote(report.repository + '/compose.yaml')} up   ({report.image})")
