"""The main job: a recipe's checkpoint becomes ONNX files in several forms and precisions, each validated."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from msconv_deploy.errors import BadInputError, BuildFailedError, UnverifiedError
from msconv_deploy.exporting.model import check_example, example_inputs, load_model
from msconv_deploy.exporting.recipe import FormName, Precision, Recipe
from msconv_deploy.exporting.tracing import trace
from msconv_deploy.files import check_outputs, sha256_of
from msconv_deploy.model_files import parameter_count, read_model, write_model
from msconv_deploy.ops.forms import Form, convert_form, default_opset
from msconv_deploy.reporting.export import Artefact, Sidecar
from msconv_deploy.runtimes.opsets import newest_onnxruntime_opset
from msconv_deploy.validation import InputOptions, ValidationOptions, validate_onnx_against_module

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


def artefact_path(recipe: Recipe, form: FormName, precision: Precision, output_dir: Path | str) -> Path:
    """``<output_dir>/<recipe>/<recipe>.<form>.<dtype>.onnx``."""
    return Path(output_dir) / recipe.name / f"{recipe.name}.{form}.{precision}.onnx"


def artefact_paths(recipe: Recipe, output_dir: Path | str) -> list[Path]:
    """Every ONNX file that a recipe becomes."""
    return [
        artefact_path(recipe, form, precision, output_dir)
        for precision in recipe.export.precision
        for form in recipe.export.forms
    ]


def recipe_files(recipe: Recipe) -> list[Path]:
    """What an export reads: the recipe, its checkpoint, and its module where that is a file."""
    place = recipe.model.module.rpartition(":")[0]
    module = [recipe.path.parent / place] if place.endswith(".py") else []
    return [recipe.path, recipe.checkpoint, *module]


def check_artefacts(recipes: Sequence[Recipe], output_dir: Path | str, json: Path | None, force: bool) -> None:
    """Refuse, before any work is done, places that cannot be written to, that hold an input, or that two files share.

    Args:
        json: the report over all artefacts.

    Raises:
        BadInputError: naming the place; or two recipes have one name, and so the same artefacts.
    """
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        other = named.setdefault(recipe.name, recipe)
        if other is not recipe:
            raise BadInputError(
                f"{recipe.path} and {other.path}: both are called {recipe.name}, and so would be their artefacts in "
                f"{Path(output_dir) / recipe.name}: export them one by one, each with its own --output-dir"
            )
    artefacts = [path for recipe in recipes for path in artefact_paths(recipe, output_dir)]
    check_outputs(
        [file for recipe in recipes for file in recipe_files(recipe)],
        [*artefacts, *(path.with_suffix(".json") for path in artefacts), json],
        force,
        possible=[path.with_name(f"{path.name}.data") for path in artefacts],
    )


def export_recipe(
    recipe: Recipe,
    output_dir: Path | str = "build/export",
    *,
    validate: bool = True,
    build_check: bool = True,
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda step: None,
) -> list[Sidecar]:
    """Export a recipe and compare every artefact with the PyTorch module in ONNX Runtime.

    Args:
        recipe: a checked recipe.
        output_dir: artefacts go to ``<output_dir>/<recipe>/``, each with a sidecar ``.json``.
        validate: without it the sidecars say ``unverified``.
        build_check: also let TensorRT-RTX parse and build portable and fused files on the CPU, where it is installed.
        force: replace artefacts that exist.
        progress: called with a line of text before each step.

    Returns:
        One sidecar per artefact, as written. An artefact that differs from the module is not kept.

    Raises:
        BadInputError: recipe, checkpoint or output folder are not right, or the network does not run at the example size.
        BuildFailedError: the exporter failed or wrote something else than was asked for.
    """
    forms, precisions, opset = recipe.export.forms, recipe.export.precision, recipe.export.opset
    if opset > (newest := newest_onnxruntime_opset()):
        raise BadInputError(
            f"{recipe.path}: opset {opset} is newer than the installed ONNX Runtime runs, which is {newest}: "
            "ask for that one, or install a newer onnxruntime"
        )
    check_artefacts([recipe], output_dir, None, force)
    sidecars = []
    for precision in precisions:
        progress(f"{recipe.name} {precision}: exporting ({recipe.export.exporter}, opset {opset})")
        network = load_model(recipe, precision)
        if precision == precisions[0]:
            check_example(recipe, network, seed)
        with tempfile.TemporaryDirectory(dir=Path(output_dir) / recipe.name, prefix=".export-") as folder:
            raw = Path(folder) / "raw.onnx"
            trace(network, recipe, example_inputs(recipe, precision, seed), raw)
            plugin = _read_back(recipe, raw)
            _name_output_dims(plugin, recipe, network, precision)
            for form in forms:
                path = artefact_path(recipe, form, precision, output_dir)
                staged = Path(folder) / path.name
                model = convert_form(plugin, Form(form))
                _stamp(model, recipe, form)
                files = write_model(model, staged, folder)
                sidecar = _sidecar(recipe, model, files, form, precision, seed, path.parent)
                sidecars.append(sidecar)
                if validate:
                    progress(f"{recipe.name} {precision}: validating the {form} form")
                    _validate(sidecar, recipe, network, staged, seed, build_check)
                _put_in_place(files, sidecar, path, force)
    return sidecars


def _put_in_place(files: list[Path], sidecar: Sidecar, path: Path, force: bool) -> None:
    """Move the artefact to its place with its sidecar, unless it differs: then no older one may pass for it either."""
    if sidecar.verdict == "differ":
        for stale in (path, path.with_name(f"{path.name}.data"), path.with_suffix(".json")):
            stale.unlink(missing_ok=True)
        return
    for file in reversed(files):  # external data first: the ONNX file is what others look for
        file.replace(path.with_name(file.name))
    sidecar.write(path.with_suffix(".json"), force)


def _read_back(recipe: Recipe, raw: Path) -> onnx.ModelProto:
    """Read what the exporter wrote and compare it with what was asked for."""
    model = read_model(raw)
    opset = recipe.export.opset
    found = default_opset(model)
    if found != opset:
        raise BuildFailedError(
            f"{recipe.path}: asked for opset {opset}, but the {recipe.export.exporter} exporter wrote {found}: it could not "
            f"convert {_newer_operators(model, opset)} down. Ask for opset {found}, or use the other exporter"
        )
    for value in model.graph.input:
        spec = recipe.inputs.get(value.name)
        dims = _dims(value)
        if spec is None or dims != list(spec.shape):
            expected = "nothing of that name" if spec is None else spec.shape
            raise BuildFailedError(
                f"{recipe.path}: the exporter wrote input {value.name} {dims}, but the recipe has {expected}: the network "
                "fixes an extent that the recipe calls dynamic (a Python number computed from a shape, or a comparison)"
            )
    if unused := set(recipe.inputs) - {value.name for value in model.graph.input}:
        raise BuildFailedError(f"{recipe.path}: input {', '.join(sorted(unused))} has no effect on any output")
    _drop_source_paths(model)
    return model


def _newer_operators(model: onnx.ModelProto, opset: int) -> str:
    """Operators whose definition changed after an opset: why a model cannot be converted down."""
    newer = set()
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx"):
            try:
                since = onnx.defs.get_schema(node.op_type, default_opset(model), "").since_version
            except onnx.defs.SchemaError:
                continue
            if since > opset:
                newer.add(node.op_type)
    return ", ".join(sorted(newer)) or "an operator"


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _name_output_dims(model: onnx.ModelProto, recipe: Recipe, network: nn.Module, precision: Precision) -> None:
    """Name the outputs' dynamic dims after the input dims that they equal.

    The legacy exporter invents a name for every dim behind an operator whose shapes it does not know. Which input dim an
    output dim equals is seen by running the network at three sizes; one that equals none is called <output>_dim_<i>.
    """
    if recipe.export.exporter != "legacy":
        return
    sizes = [{d: n + step * (i + 2) for i, (d, n) in enumerate(recipe.example.items())} for step in range(3)]
    try:
        with torch.no_grad():
            shapes = [_output_shapes(network(**example_inputs(recipe, precision, size=size))) for size in sizes]
    except (RuntimeError, ValueError, IndexError) as error:
        logger.info("output dims get neutral names: the network does not run at another size (%s)", error)
        shapes = []
    for number, value in enumerate(model.graph.output):
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_param or dim.dim_param in recipe.dynamic_dims:
                continue
            same = [
                d
                for d in recipe.dynamic_dims
                if shapes and all(shape[number][i] == size[d] for shape, size in zip(shapes, sizes, strict=True))
            ]
            dim.dim_param = same[0] if same else f"{value.name}_dim_{i}"


def _output_shapes(outputs: Any) -> list[torch.Size]:
    """Shapes of all output tensors, in the order in which the exporters flatten them."""
    return [t.shape for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def _drop_source_paths(model: onnx.ModelProto) -> None:
    """Remove the stack traces that the dynamo exporter attaches: they hold paths of the machine that exported."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        if len(kept) != len(node.metadata_props):
            del node.metadata_props[:]
            node.metadata_props.extend(kept)


def _stamp(model: onnx.ModelProto, recipe: Recipe, form: FormName) -> None:
    from msconv_deploy import __version__

    model.producer_name = "msconv-deploy"
    model.producer_version = __version__
    model.graph.name = recipe.name
    for key, value in (("msconv.recipe", recipe.name), ("msconv.form", form)):
        entry = next((e for e in model.metadata_props if e.key == key), None) or model.metadata_props.add(key=key)
        entry.value = value


def _sidecar(
    recipe: Recipe,
    model: onnx.ModelProto,
    files: list[Path],
    form: FormName,
    precision: Precision,
    seed: int,
    folder: Path,
) -> Sidecar:
    graph = model.graph
    artefact = Artefact(
        recipe=recipe.name,
        form=form,
        precision=precision,
        files=[f.name for f in files],
        bytes=sum(f.stat().st_size for f in files),
        sha256=sha256_of(files[0]),
        exporter=recipe.export.exporter,
        opset=default_opset(model),
        ir_version=model.ir_version,
        nodes=len(graph.node),
        parameters=parameter_count(model),
        inputs={v.name: _dims(v) for v in graph.input},
        outputs={v.name: _dims(v) for v in graph.output},
    )
    return Sidecar(
        artefact=artefact,
        recipe=os.path.relpath(recipe.path, folder),
        recipe_sha256=sha256_of(recipe.path),
        checkpoint_sha256=sha256_of(recipe.checkpoint),
        seed=seed,
        verdict="unverified",
        reason="validation was not asked for",
        largest_difference={},
    )


def _validate(sidecar: Sidecar, recipe: Recipe, network: nn.Module, path: Path, seed: int, build_check: bool) -> None:
    """Compare an artefact with the module and note the result in its sidecar.

    The plugin form has no body that a runtime here could run; what is run is the fused form made from that very file,
    which carries its nodes' attributes and weights.
    """
    form = sidecar.artefact.form
    options = ValidationOptions(
        inputs=InputOptions(sizes=recipe.validation.sizes, seed=seed), build_check=build_check and form != "plugin"
    )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".validate-") as folder:
        subject = path
        if form == "plugin":
            subject = Path(folder) / path.name
            write_model(convert_form(read_model(path), Form.FUSED), subject, path.parent)
        try:
            report = validate_onnx_against_module(
                subject, network, options, input_names=list(recipe.inputs), output_names=recipe.export.outputs
            )
        except UnverifiedError as error:
            sidecar.reason = str(error)
            return
    sidecar.verdict = report.verdict
    sidecar.reason = report.reason
    sidecar.validated_as = "fused" if form == "plugin" else form
    sidecar.largest_difference = report.largest_difference
    sidecar.tolerance = max((c.tolerance for c in report.comparisons if c.runtime == "ort"), default=None)
    sidecar.sizes = [case.size for case in report.cases]
    sidecar.refused = report.refused
    sidecar.build_checks = {check.runtime: check.status for check in report.build_checks}
    sidecar.timings = report.timings
    if report.divergence is not None and report.divergence.found:
        sidecar.reason += f"; {report.divergence.text}"
    if any(check.status == "failed" for check in report.build_checks):
        failed = next(check for check in report.build_checks if check.status == "failed")
        sidecar.verdict, sidecar.reason = "unverified", f"{failed.runtime} does not build it: {failed.reason}"
