"""`msconv convert`: a model from one form to another."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from msconv_deploy.cli.common import (
    ForceOption,
    FormChoice,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    check_places,
    start,
)
from msconv_deploy.cli.memory import bound_memory
from msconv_deploy.cli.terminal import say
from msconv_deploy.errors import about
from msconv_deploy.files import atomic_write, sha256_of, sidecar_path


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
    from msconv_deploy.model_files import check_graph, read_model, staged_model
    from msconv_deploy.ops.forms import Form, convert_form, form_of, msconv_nodes
    from msconv_deploy.ops.schema import register_schema
    from msconv_deploy.reporting.convert import ConvertReport

    sidecar = sidecar_path(output)
    if json is not None and json.resolve() == sidecar.resolve():  # both are the same report
        json = None
    data = output.with_name(f"{output.name}.data")
    check_places([model], [output, sidecar, json], force, original=model, possible=[data])
    register_schema()
    source = read_model(model)
    before = form_of(source)
    check_graph(source, model)
    with about(model):
        converted = convert_form(source, Form(form.value))
    with ExitStack() as stack:  # the model and what is said of it appear together or not at all
        staged = stack.enter_context(staged_model(converted, output, model.parent, force))
        report = ConvertReport(
            seed=seed,
            model=str(model),
            model_sha256=sha256_of(model),
            files=[f.name for f in staged],
            from_form=before.value,
            to_form=form.value,
            layers=len(msconv_nodes(source)),
            nodes_before=len(source.graph.node),
            nodes_after=len(converted.graph.node),
            ir_version_before=source.ir_version,
            ir_version_after=converted.ir_version,
        )
        for place in filter(None, (sidecar, json)):
            stack.enter_context(atomic_write(place, force)).write_text(report.to_json(), encoding="utf-8")
    if not quiet:
        ir = "" if source.ir_version == converted.ir_version else f", IR version raised to {converted.ir_version}"
        say(
            f"{output}: {before.value} -> {form.value} form, {report.layers} MSConv2d layers, "
            f"{report.nodes_before} -> {report.nodes_after} nodes{ir}"
        )
        if form is FormChoice.portable:
            say(f"compare it with its origin: msconv validate {output} --reference {model}")
