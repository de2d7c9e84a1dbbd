"""`msconv convert`: a model from one form to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msconv_deploy.cli.common import ForceOption, FormChoice, JsonOption, QuietOption, SeedOption, VerboseOption, start
from msconv_deploy.cli.memory import bound_memory
from msconv_deploy.cli.terminal import say
from msconv_deploy.errors import BadInputError, about
from msconv_deploy.files import check_writable, sha256_of


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to convert.")],
    form: Annotated[FormChoice, typer.Option("--form", help="The form to write.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="The file to write.")],
    seed: SeedOption = 0,
    force: ForceOption = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Convert between portable, fused and plugin form (portable is one way: its layers are no longer known)."""
    start(quiet, verbose)
    bound_memory()
    from msconv_deploy.model_files import check_graph, read_model, write_model
    from msconv_deploy.ops.forms import Form, convert_form, form_of, msconv_nodes
    from msconv_deploy.ops.schema import register_schema
    from msconv_deploy.reporting.convert import ConvertReport

    if output.exists() and model.exists() and output.samefile(model) and not force:
        raise BadInputError(f"{output}: is the input; it is replaced only with --force")
    sidecar = output.with_suffix(".json")
    for path in (output, sidecar, *([json] if json else [])):
        check_writable(path, force)
    register_schema()
    source = read_model(model)
    before = form_of(source)
    check_graph(source, model)
    with about(model):
        converted = convert_form(source, Form(form.value))
        files = write_model(converted, output, model.parent, force)
    report = ConvertReport(
        seed=seed,
        model=str(model),
        model_sha256=sha256_of(model),
        files=[f.name for f in files],
        from_form=before.value,
        to_form=form.value,
        layers=len(msconv_nodes(source)),
        nodes_before=len(source.graph.node),
        nodes_after=len(converted.graph.node),
        ir_version_before=source.ir_version,
        ir_version_after=converted.ir_version,
    )
    report.write(sidecar, force)
    if json is not None:
        report.write(json, force)
    if not quiet:
        ir = "" if source.ir_version == converted.ir_version else f", IR version raised to {converted.ir_version}"
        say(
            f"{output}: {before.value} -> {form.value} form, {report.layers} MSConv2d layers, "
            f"{report.nodes_before} -> {report.nodes_after} nodes{ir}"
        )
        if form is FormChoice.portable:
            say(f"compare it with its origin: msconv validate {output} --reference {model}")
