"""Products: the nodes that multiply a tensor by constant weights and sum, under one description.

MatMul and Gemm with the weights on either side, Einsum of two operands, and ReduceSum of a Mul.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.symbols import operator
from msconv_deploy.surgery.engine.views import Probe
from msconv_deploy.surgery.engine.windows import Reading, Use, Windows

OUT_AXIS = -1
"""Stands for the output channels among the axes of weights and results."""


@dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies and sums.

    Attributes:
        reading: how it reads the operand that is not the weights.
        weight: the weights, constant or not.
        weight_axes: for every axis of them the axis of the operand that it belongs to, :data:`OUT_AXIS` or None (extent 1).
        scale: factor of the product.
        refusal: why it cannot be rewritten, whatever it reads; None if it can.
    """

    reading: Reading
    weight: gs.Tensor
    weight_axes: tuple[int | None, ...]
    scale: float = 1.0
    refusal: Refusal | None = None


def describe_products(node: gs.Node, probe: Probe) -> list[Product]:
    """The node as a product, once for each operand that may be the one with the windows."""
    describe = {"MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "ReduceSum": _reduced}.get(operator(node))
    return [] if describe is None else describe(node, probe)


def weights_by_role(product: Product, windows: Windows, probe: Probe) -> NDArray[Any] | None:
    """The weights as [outputs, channels, *kernel]; None if their values are not known."""
    values = probe.values(product.weight)
    if values is None:
        return None
    used = [i for i, use in enumerate(product.reading.uses) if use != "kept"]
    order, shape = [], []
    for wanted in (OUT_AXIS, *used):
        at = [i for i, axis in enumerate(product.weight_axes) if axis == wanted]
        order += at
        shape.append(values.shape[at[0]] if at else 1)
    gone = [i for i in range(values.ndim) if i not in order]
    values = values.transpose([*order, *gone]).reshape(shape)
    roles = [role for i in used for role in windows.layout[i]]
    extents = [windows.extents[role] for role in roles]
    full = [int(np.prod([windows.extents[role] for role in windows.layout[i]], dtype=np.int64)) for i in used]
    values = np.broadcast_to(values, (values.shape[0], *full)).reshape(values.shape[0], *extents)
    axes = [windows.channel, *windows.spatial]
    at_role = {role.axis: i + 1 for i, role in enumerate(roles)}
    present = [a for a in axes if a in at_role]
    values = values.transpose(0, *(at_role[a] for a in present))
    missing = [i + 1 for i, a in enumerate(axes) if a not in at_role]
    values = np.expand_dims(values, missing) if missing else values
    if product.scale != 1.0:
        values = (values.astype(np.float64) * product.scale).astype(values.dtype)
    return np.ascontiguousarray(values)


def _matmul(node: gs.Node, probe: Probe) -> list[Product]:
    shapes = [probe.shape(t) for t in node.inputs]
    found = []
    for side in (0, 1):
        own, other = shapes[side], shapes[1 - side]
        if own is None or other is None or len(own) < 2 or isinstance(node.inputs[side], gs.Constant):
            continue
        rank, wide = len(own), len(other)
        summed = rank - 1 if side == 0 else rank - 2
        uses: list[Use] = ["kept"] * rank
        uses[summed] = "summed"
        refusal = None
        if wide > max(2, rank) or any(n != 1 for n in other[:-2]):
            refusal = Refusal("its weights are not one matrix", (str(node.name),))
            axes: tuple[int | None, ...] = ()
        elif wide == 1:
            axes = (summed,)
        else:
            axes = (*[None] * (wide - 2), *((summed, OUT_AXIS) if side == 0 else (OUT_AXIS, summed)))
        kept = range(rank - 2)
        result: tuple[int | None, ...] = (*kept, rank - 2, OUT_AXIS) if side == 0 else (*kept, OUT_AXIS, rank - 1)
        if wide == 1:
            result = tuple(axis for axis in result if axis != OUT_AXIS)
        out = _out(other, axes)
        reading = Reading(node, node.inputs[side], tuple(uses), result, out, takes_bias=True)
        found.append(Product(reading, node.inputs[1 - side], axes, refusal=refusal))
    return found


def _gemm(node: gs.Node, probe: Probe) -> list[Product]:
    found = []
    for side in (0, 1):
        own, other = (probe.shape(node.inputs[i]) for i in (side, 1 - side))
        if (
            own is None
            or other is None
            or len(own) != 2
            or len(other) != 2
            or isinstance(node.inputs[side], gs.Constant)
        ):
            continue
        flipped = [bool(node.attrs.get(name, 0)) for name in ("transA", "transB")]
        summed = 1 - side if not flipped[side] else side
        uses: tuple[Use, ...] = ("summed", "kept") if summed == 0 else ("kept", "summed")
        other_summed = side if not flipped[1 - side] else 1 - side
        axes = (summed, OUT_AXIS) if other_summed == 0 else (OUT_AXIS, summed)
        bias = node.inputs[2] if len(node.inputs) > 2 and (node.inputs[2].name or node.inputs[2].inputs) else None
        refusal = None
        out = _out(other, axes)
        if bias is not None:
            shape = tuple(bias.shape) if isinstance(bias, gs.Constant) else None
            per_output = shape is not None and (
                shape in ((), (1,), (1, 1)) or (side == 0 and shape in ((out,), (1, out)))
            )
            if not per_output or float(node.attrs.get("beta", 1.0)) != 1.0:
                refusal = Refusal("its bias is scaled or not one constant per output", (str(node.name),))
        result = (1 - summed, OUT_AXIS) if side == 0 else (OUT_AXIS, 1 - summed)
        reading = Reading(node, node.inputs[side], uses, result, out, bias, takes_bias=True)
        scale = float(node.attrs.get("alpha", 1.0))
        found.append(Product(reading, node.inputs[1 - side], axes, scale, refusal))
    return found


def _einsum(node: gs.Node, probe: Probe) -> list[Product]:
    terms = _terms(node)
    if terms is None:
        return []
    *letters, wanted = terms
    found = []
    for side in (0, 1):
        own, other = letters[side], letters[1 - side]
        weight, operand = node.inputs[1 - side], node.inputs[side]
        shape, own_shape = probe.shape(weight), probe.shape(operand)
        if shape is None or len(shape) != len(other) or isinstance(operand, gs.Constant) or own_shape is None:
            continue
        outs = [c for c in other if c not in own and c in wanted]
        alone = [c for c in other if c not in own and c not in wanted]
        # A letter of one operand alone that is summed has a different meaning in each: neither is a window's.
        if len(outs) > 1 or alone or any(c not in other and c not in wanted for c in own):
            continue
        uses: tuple[Use, ...] = tuple(
            "summed" if c not in wanted else "weighted" if c in other else "kept" for c in own
        )
        axes = tuple(OUT_AXIS if c in outs else own.index(c) for c in other)
        result = tuple(OUT_AXIS if c in outs else own.index(c) for c in wanted)
        broadcast = any(
            n == 1 and a not in (None, OUT_AXIS) and own_shape[a] != 1 for n, a in zip(shape, axes, strict=True)
        )
        refusal = Refusal("its weights are broadcast", (str(node.name),)) if broadcast else None
        reading = Reading(node, operand, uses, result, _out(shape, axes), takes_bias="weighted" not in uses)
        found.append(Product(reading, weight, axes, refusal=refusal))
    return found


def _terms(node: gs.Node) -> list[str] | None:
    """Letters of both operands and of the result; None for what is not a plain product of two."""
    equation = node.attrs.get("equation", "")
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    operands, arrow, wanted = text.partition("->")
    letters = operands.split(",")
    if len(letters) != 2 or "." in text or len(node.inputs) != 2:
        return None
    if not arrow:
        wanted = "".join(sorted(c for c in set("".join(letters)) if operands.count(c) == 1))
    terms = [*letters, wanted]
    return terms if all(len(set(t)) == len(t) for t in terms) else None


def _reduced(node: gs.Node, probe: Probe) -> list[Product]:
    product = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    shape = probe.shape(node.inputs[0])
    if product is None or operator(product) != "Mul" or shape is None:
        return []
    reduced = reduced_axes(node, probe, len(shape))
    if reduced is None:
        return []
    found = []
    for side in (0, 1):
        operand, weight = product.inputs[side], product.inputs[1 - side]
        own, other = probe.shape(operand), probe.shape(weight)
        if own is None or other is None or len(own) != len(shape) or isinstance(operand, gs.Constant):
            continue
        lead = len(own) - len(other)
        weights = (*[1] * lead, *other)
        spread = [a for a, n in enumerate(own) if n == 1 and weights[a] > 1]
        if len(spread) > 1 or any(a in reduced for a in spread):
            continue
        uses: tuple[Use, ...] = tuple(
            "summed" if a in reduced else "weighted" if weights[a] > 1 and a not in spread else "kept"
            for a in range(len(own))
        )
        axes = tuple(None if n == 1 else OUT_AXIS if lead + i in spread else lead + i for i, n in enumerate(other))
        result = reduced_result(node, reduced, tuple(OUT_AXIS if a in spread else a for a in range(len(own))))
        reading = Reading(node, operand, uses, result, _out(other, axes), takes_bias="weighted" not in uses)
        found.append(Product(reading, weight, axes))
    return found


def reduced_axes(node: gs.Node, probe: Probe, rank: int) -> frozenset[int] | None:
    """Axes of a reduction, where it names them."""
    if "axes" in node.attrs:
        return frozenset(int(a) % rank for a in node.attrs["axes"])
    if len(node.inputs) < 2 or not node.inputs[1].name:
        return None
    values = probe.values(node.inputs[1])
    return None if values is None or not values.size else frozenset(int(a) % rank for a in values.reshape(-1))


def reduced_result(node: gs.Node, reduced: frozenset[int], axes: Sequence[int | None]) -> tuple[int | None, ...]:
    """What is left of some axes behind a reduction."""
    if node.attrs.get("keepdims", 1):
        return tuple(None if i in reduced else a for i, a in enumerate(axes))
    return tuple(a for i, a in enumerate(axes) if i not in reduced)


def _out(shape: Sequence[int], axes: Sequence[int | None]) -> int:
    return next((n for n, axis in zip(shape, axes, strict=False) if axis == OUT_AXIS), 1)
