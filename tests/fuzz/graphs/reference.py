"""What a model computes in float64, and whether rounding explains a difference.

Two results of a model in float32 or float16 may differ because a sum cancels, and then no fixed tolerance is right. So a
difference above the tolerance of the type is judged by a third opinion: the model with every tensor in float64, run by ONNX's
reference evaluator with convolutions of our own, written from their definition.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

TOLERANCE = {"float16": 1e-2, "float32": 2e-5, "float64": 1e-12}
"""Of two evaluations of a model whose least precise floating type this is, relative to its largest value."""
UNIT_ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
FLOOR = 0.1
"""Outputs of order 1 that cancel almost to nothing keep the rounding errors of their parts."""
_ROUNDING = 16.0
"""A rewrite may round by this much more than the original does."""
_DRAWS = 4
"""How often inputs and weights are moved by a rounding, to see what that does."""
_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16)


class NotEvaluatedError(Exception):
    """The reference evaluator cannot run a model."""


# -- convolutions by their definition ----------------------------------------------------------------------------------


def _pads(spatial, kernel, strides, dilations, pads, auto_pad, extents):
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for n, k, s, d in zip(extents, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            found.append((before, total - before))
        return found
    if auto_pad == "VALID" or not pads:
        return [(0, 0)] * spatial
    return list(zip(pads[:spatial], pads[spatial:], strict=True))


class Conv(OpRun):
    """Tap by tap."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):
        spatial, kernel = x.ndim - 2, w.shape[2:]
        strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
        widths = _pads(spatial, kernel, strides, dilations, pads, auto_pad, x.shape[2:])
        x = np.pad(x, [(0, 0), (0, 0), *widths])
        counts = [
            (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        y = np.zeros((len(x), len(w), *counts), x.dtype)
        outputs, inputs = len(w) // group, w.shape[1]
        for tap in np.ndindex(*kernel):
            cut = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(tap, dilations, strides, counts, strict=True)
            )
            seen = x[(slice(None), slice(None), *cut)]
            for g in range(group):
                rows = slice(g * outputs, (g + 1) * outputs)
                own = seen[:, g * inputs : (g + 1) * inputs]
                y[:, rows] += np.moveaxis(np.tensordot(w[(rows, slice(None), *tap)], own, (1, 1)), 0, 1)
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


class ConvTranspose(OpRun):
    """Every input adds its taps to the outputs that they reach."""

    def _run(
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, output_padding=None,
        output_shape=None, pads=None, strides=None,
    ):  # fmt: skip
        if output_shape or auto_pad not in (None, "NOTSET", "VALID"):
            raise NotImplementedError("computed padding")
        spatial, kernel = x.ndim - 2, w.shape[2:]
        strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
        extra = output_padding or [0] * spatial
        widths = _pads(spatial, kernel, strides, dilations, pads, auto_pad, x.shape[2:])
        full = [
            (n - 1) * s + d * (k - 1) + 1 + e
            for n, s, d, k, e in zip(x.shape[2:], strides, dilations, kernel, extra, strict=True)
        ]
        inputs, outputs = x.shape[1] // group, w.shape[1]
        y = np.zeros((len(x), outputs * group, *full), x.dtype)
        for g, tap in itertools.product(range(group), np.ndindex(*kernel)):
            own = x[:, g * inputs : (g + 1) * inputs]
            part = np.moveaxis(
                np.tensordot(w[(slice(g * inputs, (g + 1) * inputs), slice(None), *tap)], own, (0, 1)), 0, 1
            )
            cut = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(tap, dilations, strides, x.shape[2:], strict=True)
            )
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *cut)] += part
        crop = tuple(slice(before, n - after) for (before, after), n in zip(widths, full, strict=True))
        y = y[(slice(None), slice(None), *crop)]
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


# -- a model in float64 ------------------------------------------------------------------------------------------------


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 and float16 tensors in float64, functions and subgraphs included."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    for function in wide.functions:
        for node in function.node:
            _widen_node(node)
    return wide


def _widen_graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _widen_graph(attribute.g)
        elif attribute.HasField("t"):
            _widen_tensor(attribute.t)
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name == "value_float":
            wide = numpy_helper.from_array(np.float64(attribute.f))
            attribute.Clear()
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(wide)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _disturbed(model: onnx.ModelProto, unit: float, rng: np.random.Generator) -> onnx.ModelProto:
    """The model with every weight off by about one rounding."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    for tensor in moved.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array * (1 + unit * rng.choice([-1, 1], array.shape)), tensor.name))
    return moved


class Exact:
    """Evaluations of one model in float64.

    Args:
        model: the original.
        unit: unit roundoff of its least precise type.
    """

    def __init__(self, model: onnx.ModelProto, unit: float) -> None:
        self._unit, self._rng = unit, np.random.default_rng(0)
        wide = in_float64(model)
        try:
            self._exact = ReferenceEvaluator(wide, new_ops=[Conv, ConvTranspose])
            moved = [_disturbed(wide, unit, self._rng) for _ in range(_DRAWS)]
            self._moved = [ReferenceEvaluator(model, new_ops=[Conv, ConvTranspose]) for model in moved]
        except Exception as error:
            raise NotEvaluatedError(str(error)) from error

    def run(self, feeds: Mapping[str, NDArray]) -> list[tuple[NDArray, float]]:
        """Every output with how far a rounding of the inputs and weights moves it.

        Raises:
            NotEvaluatedError: an operator is not there in float64.
        """
        wide = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                exact = [np.asarray(value) for value in self._exact.run(None, wide)]
                others = [each.run(None, self._off(wide)) for each in self._moved]
        except Exception as error:
            raise NotEvaluatedError(str(error)) from error
        return [(e, max(_largest(e - np.asarray(o[i], np.float64)) for o in others)) for i, e in enumerate(exact)]

    def _off(self, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Inputs that are off by about one rounding."""
        return {
            name: a * (1 + self._unit * self._rng.choice([-1, 1], a.shape)) if a.dtype.kind == "f" else a
            for name, a in feeds.items()
        }


def _largest(array: NDArray) -> float:
    finite = np.abs(array[np.isfinite(array)]) if array.size else np.zeros(0)
    return float(finite.max()) if finite.size else 0.0


# -- judging -----------------------------------------------------------------------------------------------------------


def precision(model: onnx.ModelProto) -> str:
    """The least precise floating type of inputs, weights and outputs."""
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    kinds |= {t.data_type for t in model.graph.initializer}
    if TensorProto.FLOAT16 in kinds:
        return "float16"
    return "float64" if TensorProto.FLOAT not in kinds and TensorProto.DOUBLE in kinds else "float32"


def difference(expected: NDArray, got: NDArray, tolerance: float, floor: float = FLOOR) -> str:
    """How two tensors differ by more than the tolerance, in words; empty if they do not."""
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return f"{expected.dtype}{list(expected.shape)} became {got.dtype}{list(got.shape)}"
    if expected.dtype.kind not in "fV":
        return "" if np.array_equal(expected, got) else "other whole numbers"
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return "finite numbers and others at different places"
    if not finite.any():
        return ""
    e, g = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    error, scale = np.abs(e - g).max(), max(np.abs(e).max(), floor)
    return (
        "" if error <= tolerance * scale else f"off by {error / scale:.1e} of the largest value {np.abs(e).max():.3g}"
    )


def explained(exact: NDArray, moved: float, original: NDArray, rewritten: NDArray, tolerance: float) -> bool:
    """Is a result as near to the exact one as rounding lets the original be?

    An original that is far from it itself is wrong in the runtime, and excuses nothing.
    """
    if exact.shape != rewritten.shape:
        return False
    finite = np.isfinite(exact)
    if not np.array_equal(finite, np.isfinite(rewritten)):
        return False
    own = _largest(original.astype(np.float64) - exact) if original.shape == exact.shape else 0.0
    got = _largest(rewritten.astype(np.float64) - exact)
    usual = tolerance * max(_largest(exact), FLOOR)
    return got <= _ROUNDING * max(min(own, _ROUNDING * usual), moved) + usual
