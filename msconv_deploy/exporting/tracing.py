"""Module -> ONNX through PyTorch's two exporters, every MSConv2d as one ``msconv::MSConv2d`` node."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msconv_deploy.errors import BuildFailedError, NotAvailableError
from msconv_deploy.exporting.recipe import Recipe
from msconv_deploy.nn import operator
from msconv_deploy.nn.msconv2d import as_single_nodes
from msconv_deploy.ops.configuration import DOMAIN, DOMAIN_VERSION, OP_TYPE
from msconv_deploy.ops.schema import register_schema

logger = logging.getLogger(__name__)


def trace(network: nn.Module, recipe: Recipe, inputs: dict[str, Tensor], path: Path) -> None:
    """Write the network to ``path`` in plugin form, dynamic dims by the recipe's names.

    Weights beyond protobuf's 2 GB go to external data beside it.

    Raises:
        BuildFailedError: the exporter failed; the message is its own first line.
        NotAvailableError: the dynamo exporter needs onnxscript.
    """
    register_schema()
    exporter = recipe.export.exporter
    write = _trace_dynamo if exporter == "dynamo" else _trace_legacy
    said = io.StringIO()
    try:
        with torch.no_grad(), as_single_nodes(network), _quiet(said):
            write(network, recipe, inputs, recipe.export.opset, path)
    except ImportError as error:
        raise NotAvailableError(
            f"the {exporter} exporter needs {error.name}: pip install 'msconv-deploy[torch]'"
        ) from error
    except Exception as error:  # exporters raise whatever the network's code and their own raise
        logger.debug("%s exporter said:\n%s", exporter, said.getvalue())
        raise BuildFailedError(
            f"{recipe.path}: the {exporter} exporter failed: {_first_cause(error)}. "
            f"Try the other exporter (export.exporter), or -vv for all that it said"
        ) from error
    finally:
        logger.info("%s exporter said:\n%s", exporter, said.getvalue())


def _trace_dynamo(network: nn.Module, recipe: Recipe, inputs: dict[str, Tensor], opset: int, path: Path) -> None:
    import onnxscript

    domain = onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION)

    def translate(sources: Sequence[Any], weights: Sequence[Any], bias: Any, *geometry: Any) -> Any:
        config = operator.configuration_of(bias is not None, *geometry)
        operands = [*sources, *weights, *([] if bias is None else [bias])]
        return getattr(domain, OP_TYPE)(*operands, **config.attributes())

    dims = {name: torch.export.Dim(name) for name in recipe.dynamic_dims}
    shapes = {
        name: {i: dims[d] for i, d in enumerate(spec.shape) if isinstance(d, str)}
        for name, spec in recipe.inputs.items()
    }
    program = torch.onnx.export(
        network,
        (),
        kwargs=inputs,
        dynamo=True,
        opset_version=opset,
        input_names=list(inputs),
        output_names=list(recipe.export.outputs),
        dynamic_shapes=shapes,
        custom_translation_table={torch.ops.msconv.msconv2d.default: translate},
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _trace_legacy(network: nn.Module, recipe: Recipe, inputs: dict[str, Tensor], opset: int, path: Path) -> None:
    from torch.onnx import symbolic_helper

    def translate(graph: Any, sources: Any, weights: Any, bias: Any, *geometry: Any) -> Any:
        constants = [symbolic_helper._maybe_get_const(g, "is" if i < 5 else "i") for i, g in enumerate(geometry)]
        has_bias = not symbolic_helper._is_none(bias)
        config = operator.configuration_of(has_bias, *constants)
        operands = [*symbolic_helper._unpack_list(sources), *symbolic_helper._unpack_list(weights)]
        suffix = {"activation_params": "f"}
        attributes = {f"{k}_{suffix.get(k, 'i')}": v for k, v in config.attributes().items()}
        first = operands[0]
        result = graph.op(f"{DOMAIN}::{OP_TYPE}", *operands, *([bias] if has_bias else []), **attributes)
        out_channels = symbolic_helper._get_tensor_sizes(operands[len(config.source_names)])[0]
        result.setType(first.type().with_sizes([None, out_channels, None, None]))
        return result

    axes = {
        name: {i: d for i, d in enumerate(spec.shape) if isinstance(d, str)} for name, spec in recipe.inputs.items()
    }
    symbolics: Any = torch.onnx
    symbolics.register_custom_op_symbolic("msconv::msconv2d", translate, opset)
    try:
        torch.onnx.export(
            network,
            (),
            str(path),
            kwargs=inputs,
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(recipe.export.outputs),
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
            custom_opsets={DOMAIN: DOMAIN_VERSION},
        )
    finally:
        symbolics.unregister_custom_op_symbolic("msconv::msconv2d", opset)


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    """Collect what the exporters print, log and warn about matters that we check ourselves."""
    handler = logging.StreamHandler(said)
    talkative = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [(log, log.propagate, list(log.handlers)) for log in talkative]
    for log in talkative:
        log.propagate = False
        log.handlers = [handler]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, propagate, handlers in before:
            log.propagate, log.handlers = propagate, handlers


def _first_cause(error: BaseException) -> str:
    """The first line of the innermost exception, which is what went wrong; the outer ones say that exporting failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
