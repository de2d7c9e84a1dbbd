"""The two validations: an ONNX file against a PyTorch module, and against another ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msconv_deploy.errors import BadInputError
from msconv_deploy.reporting import Divergence, ValidationReport
from msconv_deploy.runtimes import Settings, get_runtime
from msconv_deploy.validation.cases import Reference, tensor_tolerance
from msconv_deploy.validation.difference import is_float
from msconv_deploy.validation.graph import OnnxGraph, TensorSpec, read_graph
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.options import ValidationOptions
from msconv_deploy.validation.session import Validation

if TYPE_CHECKING:
    from torch import nn


def validate_onnx_against_module(
    onnx_path: Path | str,
    module: nn.Module,
    options: ValidationOptions | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ValidationReport:
    """Compare an ONNX file with the PyTorch module that it was exported from.

    The reference is a float64 copy of the module (weights widened, not rounded); if the module cannot run in float64,
    the module itself. ``torch`` in the result is the module in its own dtype against that reference: its rounding
    noise.

    Args:
        onnx_path: the file.
        module: in the dtype of the file; evaluated in eval mode.
        options: see :class:`ValidationOptions`.
        input_names: inputs of ``forward``, in order; default: those of the file. Passed by keyword if all of them are
            its parameters.
        output_names: outputs in the order that ``forward`` returns them; default: those of the file.

    Returns:
        The report; ``verdict`` is never raised (see ``ValidationReport.raise_for_verdict``).

    Raises:
        BadInputError: the file, a name, a size or an input file is wrong.
        NotAvailableError: a runtime is not installed.
        UnverifiedError: the reference runs on none of the inputs.
    """
    options = options or ValidationOptions()
    torch_runtime = get_runtime("torch")
    from msconv_deploy.runtimes.pytorch import NamedModule

    graph = read_graph(onnx_path)
    _check_names(graph, input_names, output_names)
    types = {spec.name: (spec.dtype, len(spec.dims)) for spec in graph.inputs}
    own = NamedModule(module, {n: types[n] for n in input_names or types}, list(output_names or _names(graph.outputs)))
    wide = own if own.dtype_name == "float64" else own.in_float64()
    noise = None if wide is own else torch_runtime.make_runner(own, options.settings, f"torch {own.dtype_name}")
    reference = Reference(torch_runtime.make_runner(wide, options.settings, "torch float64"), noise)
    work = Validation(graph, options, reference, ("torch", "ort"))
    if not work.usable and noise is not None:
        reason = work.refused[-1].reason if work.refused else ""
        work.use_reference(Reference(noise))
        if work.usable:
            work.notes.append(f"the module does not run in float64 ({reason}); the reference is it in {own.dtype_name}")
            wide = own

    def search(inputs: Inputs) -> Divergence:
        from msconv_deploy.validation.divergence import diverges_from_module

        noisy = own if work.knows_noise else None
        tolerance = partial(tensor_tolerance, graph, options)
        return diverges_from_module(graph, wide, noisy, inputs, options.settings, tolerance)

    return work.report(f"PyTorch module {type(module).__qualname__}", search)


def validate_onnx_against_onnx(
    onnx_path: Path | str, reference_path: Path | str, options: ValidationOptions | None = None
) -> ValidationReport:
    """Compare an ONNX file with another one that has the same inputs and outputs.

    The reference is the other file in ONNX Runtime without graph optimizations; its noise is the difference that
    optimizations make to it. Floating types may differ in width (float16 against float32).

    Returns:
        The report; ``verdict`` is never raised.

    Raises:
        BadInputError: a file is wrong, or their inputs or outputs do not match.
        NotAvailableError: a runtime is not installed, or cannot run an ONNX file.
        UnverifiedError: the reference runs on none of the inputs.
    """
    options = options or ValidationOptions()
    ort = get_runtime("ort")
    graph, other = read_graph(onnx_path), read_graph(reference_path)
    _check_same_interface(graph, other)
    # Both sides round, and the reference may be the narrower one.
    graph.at_least = {name: other.tolerance(name) for name in other.errors}
    plain = Settings(options.settings.threads, "none", options.settings.provider)
    optimized = Settings(options.settings.threads, "all", options.settings.provider)
    reference = Reference(
        ort.make_runner(Path(reference_path), plain, "reference"),
        ort.make_runner(Path(reference_path), optimized, "reference, optimized"),
        {spec.name: spec.dtype for spec in other.inputs},
    )
    work = Validation(graph, options, reference, ("ort",))

    def search(inputs: Inputs) -> Divergence:
        from msconv_deploy.validation.divergence import diverges_from_onnx

        tolerance = partial(tensor_tolerance, graph, options)
        return diverges_from_onnx(graph, Path(reference_path), inputs, options.settings, tolerance)

    return work.report(str(reference_path), search)


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _check_names(graph: OnnxGraph, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> None:
    for what, given, known in (("input", input_names, graph.inputs), ("output", output_names, graph.outputs)):
        missing = sorted(set(_names(known)) ^ set(given)) if given is not None else []
        if missing:
            raise BadInputError(
                f"{graph.path}: {what} names do not match: the file has {', '.join(_names(known))}; "
                f"in only one of the two: {', '.join(missing)}"
            )


def _check_same_interface(graph: OnnxGraph, other: OnnxGraph) -> None:
    for what, mine, theirs in (("inputs", graph.inputs, other.inputs), ("outputs", graph.outputs, other.outputs)):
        if set(_names(mine)) != set(_names(theirs)):
            raise BadInputError(
                f"{graph.path} has the {what} {', '.join(_names(mine))}, but the reference {other.path} has "
                f"{', '.join(_names(theirs))}: they cannot be compared"
            )
        dtypes = {spec.name: spec.dtype for spec in theirs}
        for spec in mine:
            one, two = spec.dtype, dtypes[spec.name]
            if one != two and not (is_float(one) and is_float(two)):
                raise BadInputError(
                    f"{graph.path}: {spec.name} is {one.name}, but {two.name} in the reference {other.path}"
                )
