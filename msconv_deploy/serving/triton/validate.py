"""A packaged model is run before it is put in its place: what Triton will load is what is loaded here.

A plan runs only on the GPU and the TensorRT that built it. Of it, the ONNX file that it was built from is run (fused form
where that is in plugin form); the plan itself is checked by its sidecar.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from msconv_deploy.errors import BadInputError, MsconvError, UnverifiedError
from msconv_deploy.model_files import write_model
from msconv_deploy.ops.forms import Form, convert_form, form_of
from msconv_deploy.ops.symbolic import Size, size_text
from msconv_deploy.reporting.package import PackagedTensor
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.runtime import Arrays
from msconv_deploy.serving.triton.config import WARMUP_FOLDER, WarmupInput, check_config, read_config
from msconv_deploy.serving.triton.plan import CheckedPlan, why_not_joined
from msconv_deploy.validation.graph import TensorSpec, graph_inputs
from msconv_deploy.validation.input_shapes import size_of_shapes
from msconv_deploy.validation.inputs import (
    InputOptions,
    batch_symbols,
    complete_size,
    default_sizes,
    generate,
    mentioned_sizes,
)


@dataclass(frozen=True)
class Examined:
    """What running a model told.

    Attributes:
        not_joined: why its requests cannot be joined; empty if they can.
        sample: input -> array, for warm-up; a batch of 1 where requests can be joined.
    """

    inputs: list[PackagedTensor]
    outputs: list[PackagedTensor]
    not_joined: str
    sample: Arrays


def examine(
    path: Path,
    model: onnx.ModelProto,
    name: str,
    options: InputOptions,
    shapes: Mapping[str, Sequence[int]],
    plan: CheckedPlan | None = None,
) -> Examined:
    """Load a model in ONNX Runtime, find a sample that it runs on, and whether its samples may be joined.

    Args:
        path: the file, in any form; ``model`` was read from it.
        shapes: of the sample, as far as the user gave them.
        plan: the sample gets the shapes that it is tuned for.

    Raises:
        BadInputError: ONNX Runtime refuses the model, or a tensor is one that Triton cannot name.
        UnverifiedError: it runs on none of the inputs that were tried.
    """
    specs = graph_inputs(model, path)
    with _runnable(path, model) as file:
        served = Model(file, name, seed=options.seed)
        not_joined = served.batching or _why_not_by_rank(specs) or ("" if plan is None else _why_not_by_plan(plan))
        batch = batch_symbols(specs) if not not_joined else set()
        sizes = [
            {symbol: 1 if symbol in batch else extent for symbol, extent in size.items()}
            for size in _sizes(model, specs, shapes, plan)
        ]
        sample, results = _first_that_runs(served, specs, sizes, options)
        inputs = [PackagedTensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in served.inputs]
        outputs = [
            PackagedTensor(name=t.name, datatype=t.datatype, shape=_output_shape(path, t.name, t.shape, result))
            for t, result in zip(served.outputs, results, strict=True)
        ]
    for tensor in inputs:
        if not tensor.shape:
            raise _no_dimensions(path, tensor.name)
    return Examined(inputs, outputs, not_joined, sample)


@contextmanager
def _runnable(path: Path, model: onnx.ModelProto) -> Iterator[Path]:
    """The file itself, or a fused copy of a model in plugin form, which ONNX Runtime does not run."""
    if form_of(model) != Form.PLUGIN:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="msconv-") as folder:
        copy = Path(folder) / path.name
        write_model(convert_form(model, Form.FUSED), copy, source_folder=path.parent)
        yield copy


def _why_not_by_rank(inputs: Sequence[TensorSpec]) -> str:
    flat = [spec.name for spec in inputs if len(spec.dims) < 2]
    return f"input {flat[0]} has no dimension beside the batch, and Triton wants one" if flat else ""


def _why_not_by_plan(plan: CheckedPlan) -> str:
    low, _, high = plan.batches(list(plan.profile))
    return why_not_joined(low, high)


def _sizes(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], plan: CheckedPlan | None
) -> list[Size]:
    """Sizes of the sample, best first: the user's, what the plan is tuned for, or whatever the model accepts."""
    if shapes:
        return [complete_size(size_of_shapes(inputs, shapes), inputs)]
    if plan is not None and plan.profile:
        return [complete_size(size_of_shapes(inputs, {n: best for n, (_, best, _) in plan.profile.items()}), inputs)]
    return [*default_sizes(inputs), *default_sizes(inputs, larger=True), *mentioned_sizes(model, inputs)]


def _first_that_runs(
    served: Model, inputs: Sequence[TensorSpec], sizes: Sequence[Size], options: InputOptions
) -> tuple[Arrays, list[np.ndarray]]:
    refused = []
    for size in sizes:
        try:
            sample = generate(inputs, size, options).arrays
            return sample, served.run(sample, [tensor.name for tensor in served.outputs])
        except MsconvError as error:
            refused.append(f"  {size_text(size)}: {error}")
    raise UnverifiedError(
        f"{served.path}: nothing was written: it runs on none of the inputs that were tried for its warm-up:\n"
        + "\n".join(refused)
        + "\nGive shapes that it accepts (--input-shape NAME:1x3x64x64), or ranges of values (--input-range)"
    )


def _output_shape(path: Path, name: str, declared: list[int], result: np.ndarray) -> list[int]:
    """The declared shape; where a file declares none, the rank that was seen."""
    if result.ndim == 0:
        raise _no_dimensions(path, name)
    if not declared:
        return [-1] * result.ndim
    if len(declared) != result.ndim or any(d not in (-1, e) for d, e in zip(declared, result.shape, strict=True)):
        raise BadInputError(f"{path}: declares output {name} as {declared}, but computes {list(result.shape)}")
    return declared


def _no_dimensions(path: Path, name: str) -> BadInputError:
    return BadInputError(
        f"{path}: {name} has no dimensions, and Triton's tensors have at least one: export it with shape [1] or [N, 1]"
    )


# -- the sample on disk ----------------------------------------------------------------------------------------------


def write_sample(folder: Path, sample: Arrays) -> dict[str, WarmupInput]:
    """Write the warm-up sample into a model's folder: raw values, one file for each input."""
    files = {}
    (folder / WARMUP_FOLDER).mkdir()
    for index, (name, array) in enumerate(sample.items()):
        readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        files[name] = WarmupInput(f"{index}-{readable}.bin", array.shape)
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        (folder / WARMUP_FOLDER / files[name].file).write_bytes(little_endian.tobytes())
    return files


def check_folder(
    folder: Path,
    version: int,
    inputs: Sequence[PackagedTensor],
    outputs: Sequence[PackagedTensor],
    warmup: Mapping[str, WarmupInput],
) -> list[str]:
    """Read a staged model folder back as Triton will; what was verified, one sentence each.

    Raises:
        BadInputError: the configuration is not of the model, or the model does not run on its warm-up sample.
        OutputsDifferError: it answers other shapes or types than the configuration says.
    """
    config = read_config(folder / "config.pbtxt")
    check_config(config, inputs, outputs, folder / "config.pbtxt")
    checks = ["config.pbtxt parses, and its names, types and dims are the model's"]
    file = folder / str(version) / config.default_model_filename
    if config.backend != "onnxruntime":
        return [*checks, f"{file.name} is of the model, by its sidecar and SHA-256"]
    served = Model(file, config.name)
    feeds = {
        tensor.name: np.fromfile(folder / WARMUP_FOLDER / warmup[tensor.name].file, tensor.dtype).reshape(
            warmup[tensor.name].shape
        )
        for tensor in served.inputs
    }
    results = served.run(feeds, [tensor.name for tensor in outputs])
    for tensor, result in zip(outputs, results, strict=True):
        _output_shape(file, tensor.name, tensor.shape, result)
    return [*checks, f"{file.name} loads in ONNX Runtime and runs on the warm-up sample"]
