"""Windows spelled by hand and by PyTorch's exporters, and the definition that rewrites of them are held to."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from msconv_deploy.surgery.optimize import Result, optimize_model
from tests.surgery.graphs import Net, feeds, optimized, reasons, session

LEGACY, DYNAMO = "legacy", "dynamo"


# -- the definition ----------------------------------------------------------------------------------------------------


def windows_of(x, kernel, stride, dilation, pads) -> np.ndarray:
    """[N, C, *kernel, *positions] of [N, C, *spatial] in float64, element by element of kernel and position.

    Args:
        pads: (before, after) per spatial axis.
    """
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (0, 0), *pads])
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    out = np.empty((*x.shape[:2], *kernel, *counts))
    for tap in np.ndindex(*kernel):
        for position in np.ndindex(*counts):
            at = tuple(j * s + t * d for j, s, t, d in zip(position, stride, tap, dilation, strict=True))
            out[(slice(None), slice(None), *tap, *position)] = x[(slice(None), slice(None), *at)]
    return out


# -- by hand -----------------------------------------------------------------------------------------------------------


def unfold(net: Net, x: str, extents: Sequence[Any], kernel, stride, dilation, pads) -> str:
    """[N, C, k1, out1, k2, out2, …]: a zero Pad and one Gather per spatial axis, as exporters write im2col.

    Args:
        extents: of x; names are dynamic: their indices come from a Range of the shape.
        pads: (before, after) per spatial axis.
    """
    if any(any(p) for p in pads):
        amounts = [0, 0, *(p[0] for p in pads), 0, 0, *(p[1] for p in pads)]
        x = net.node("Pad", x, net.ints(*amounts))
    for i, (k, s, d, p) in enumerate(zip(kernel, stride, dilation, pads, strict=True)):
        taps = np.arange(k)[:, None] * d
        room = sum(p) - d * (k - 1)
        extent = extents[i + 2]
        if isinstance(extent, str):
            number = net.with_axes("Squeeze", net.extent(extent), 0)
            limit = net.node("Add", number, net.constant(np.int64(room)))
            starts = net.node("Range", net.constant(np.int64(0)), limit, net.constant(np.int64(s)))
            indices = net.node("Add", net.with_axes("Unsqueeze", starts, 0), net.constant(taps))
        else:
            indices = net.constant(taps + np.arange(0, extent + room, s)[None])
        x = net.node("Gather", x, indices, axis=2 * i + 2)
    return x


def columns(net: Net, x: str, extents: Sequence[Any], kernel, stride, dilation, pads) -> str:
    """[N, C*taps, L], the result of F.unfold."""
    x = unfold(net, x, extents, kernel, stride, dilation, pads)
    spatial = len(kernel)
    order = [0, 1, *(2 + 2 * i for i in range(spatial)), *(3 + 2 * i for i in range(spatial))]
    x = net.node("Transpose", x, perm=order)
    return net.node("Reshape", x, net.ints(0, extents[1] * int(np.prod(kernel)), -1))


# -- by the exporters --------------------------------------------------------------------------------------------------


def export(
    function: Callable[..., Any],
    shape: Sequence[int],
    exporter: str,
    dynamic: bool,
    weight: Any = None,
    opset: int | None = None,
    dtype: Any = None,
) -> onnx.ModelProto:
    """A model of ``function(x, weight)`` for x of a shape; all axes but the second dynamic, or none."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if weight is not None:
                self.weight = torch.nn.Parameter(torch.as_tensor(weight))

        def forward(self, x):
            return function(x, self.weight) if weight is not None else function(x)

    axes = [a for a in range(len(shape)) if a != 1] if dynamic else []
    arguments: dict[str, Any]
    if exporter == DYNAMO:
        arguments = {"dynamo": True, "opset_version": opset or 18, "external_data": False, "verbose": False}
        arguments["dynamic_shapes"] = (dict.fromkeys(axes, torch.export.Dim.AUTO),) if axes else None
    else:
        arguments = {"dynamo": False, "opset_version": opset or 17}
        arguments["dynamic_axes"] = {"x": {a: f"axis{a}" for a in axes}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    file = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        example = torch.randn(*shape, dtype=dtype)
        program = torch.onnx.export(
            Module().eval(), (example,), None if exporter == DYNAMO else file, input_names=["x"], **arguments
        )
    return program.model_proto if exporter == DYNAMO else onnx.load_from_string(file.getvalue())


def check(model: onnx.ModelProto, rule: str, shapes: Sequence[Sequence[int]], tolerance: float = 2e-5) -> Result:
    """One site of a rule is rewritten in ``always`` mode and agrees with the original at every shape of ``x``."""
    result = optimized(model, sizes_of(model, shapes))
    assert [site.rule for site in result.sites if site.decision == "rewritten"] == [rule], reasons(result)
    before, after = session(model), session(result.model)
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    for number, shape in enumerate(shapes):
        x = np.random.default_rng(number).standard_normal(shape).astype(kind)
        (expected,), (got,) = before.run(None, {"x": x}), after.run(None, {"x": x})
        assert (expected.shape, expected.dtype) == (got.shape, got.dtype)
        assert expected.size, "a size at which nothing is computed proves nothing"
        difference = np.abs(expected.astype(np.float64) - got).max() / max(1.0, np.abs(expected).max())
        assert difference <= tolerance, (shape, difference)
    return result


def sizes_of(model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """The values of the names in the shape of the only input."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return [{d.dim_param: n for d, n in zip(dims, shape, strict=True) if d.dim_param} for shape in shapes]


def against(model: onnx.ModelProto, expected: Callable[[np.ndarray], np.ndarray], rule: str, sizes=()) -> Result:
    """One site is rewritten, and the result is what the definition says, in float64."""
    result = optimized(model, sizes)
    assert [site.rule for site in result.sites if site.decision == "rewritten"] == [rule], reasons(result)
    after = session(result.model)
    for number, size in enumerate(sizes or [{}]):
        given = feeds(model, size, number)
        (x,) = given.values()
        (got,) = after.run(None, given)
        wanted = expected(x)
        assert got.shape == wanted.shape, (got.shape, wanted.shape)
        limit = 5e-3 if got.dtype == np.float16 else 2e-5
        assert np.abs(got - wanted).max() <= limit * max(1.0, np.abs(wanted).max()), size
    return result


def operators(result: Result) -> list[str]:
    """Operators of the model that is left, without constants and what is computed of extents."""
    known = {tensor.name for tensor in result.model.graph.initializer} | {""}
    left = []
    for node in result.model.graph.node:
        if node.op_type in ("Constant", "Shape") or known.issuperset(node.input):
            known.update(node.output)
        else:
            left.append(node.op_type)
    return left


def left(model: onnx.ModelProto, reason: str | None) -> Result:
    """Nothing of these rules is rewritten: with this in the reason, or with no word about windows (None)."""
    result = optimize_model(model, Path(), "always")
    assert not [site for site in result.sites if site.rule.startswith("unfold")], reasons(result)
    if reason is None:
        assert not result.near_misses, reasons(result)
    else:
        assert reason in reasons(result), reasons(result)
    return result
