"""Reading a model that shall be inspected or optimized, and saying what is wrong with it before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from msconv_deploy.errors import BadInputError
from msconv_deploy.model_files import all_tensors, check_graph, check_size, external_location, model_bytes, read_model
from msconv_deploy.ops.forms import default_opset
from msconv_deploy.ops.symbolic import Size
from msconv_deploy.reporting.optimize import ModelFacts
from msconv_deploy.validation.graph import TensorSpec, graph_inputs
from msconv_deploy.validation.input_shapes import size_of_shapes

MIN_OPSET, MAX_OPSET = 11, 28


@dataclass(frozen=True)
class Source:
    """A model that has been read and found valid.

    Attributes:
        path: its file; external data lies beside it.
        model: without external data.
        inputs: those that are no initializers.
        size: extents of dynamic dimensions that the given input shapes imply.
    """

    path: Path
    model: onnx.ModelProto
    inputs: list[TensorSpec]
    size: Size

    @cached_property
    def files(self) -> set[Path]:
        """The ONNX file and its external data, resolved."""
        found = {self.path.resolve()}
        for tensor in all_tensors(self.model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                found.add(external_location(tensor, self.path.parent)[0])
        return found


def read_source(path: Path, input_shapes: Mapping[str, Sequence[int]]) -> Source:
    """Read and check a model.

    Raises:
        BadInputError: it is no valid ONNX model, its opset is not supported, external data is missing or elsewhere, or
            an input shape does not fit.
    """
    model = read_model(path)
    try:
        opset = default_opset(model)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise BadInputError(
            f"{path}: opset {opset} is not supported, only {MIN_OPSET} to {MAX_OPSET}: export the model anew, or convert "
            "it with onnx.version_converter"
        )
    check_graph(model, path)
    check_size(model, path)
    inputs = graph_inputs(model, path)
    return Source(path, model, inputs, size_of_shapes(inputs, input_shapes))


def facts_of(model: onnx.ModelProto, path: Path, macs: int | None = None) -> ModelFacts:
    """Counts of a model whose file is ``path``."""
    return ModelFacts(
        nodes=len(model.graph.node),
        bytes=model_bytes(model, path),
        macs=macs,
        opset=default_opset(model),
        ir_version=model.ir_version,
    )
