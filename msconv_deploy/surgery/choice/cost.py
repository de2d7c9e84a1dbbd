"""Estimated time of a list of operators in ONNX Runtime on one core, at given shapes.

    seconds = sum over nodes of  NODE + bytes * rate(kind)                          data movement and arithmetic
                               + pieces * PIECE(kind)                         Concat, Split and Gather, by contiguous piece
                               + MACs * rate(kind, layout)                          contractions
                               + im2col elements * rate(kind)                       Conv in NCHW with a kernel over 1x1
            + passes over a tensor for entering and leaving the NCHWc layout

What ONNX Runtime does to a graph decides the order of magnitude, so its rules are followed:

* a Conv takes the blocked layout (NCHWc) if it is 2d, float32, without groups, with constant weights, and its input
  channels are fewer than 16 or a multiple of 4; fewer than 16 are read in NCHW. Others run on im2col in NCHW;
* an activation right behind a Conv or Gemm is part of it, per-channel constant arithmetic behind a convolution or a
  product of matrices too if weights and bias are constant; an Add of a tensor of equal static shape behind a Conv too, in
  NCHW;
* an Add stays in the blocked layout only if both operands are in it;
* what depends on constants alone is computed once, at loading.

The constants are in ``constants``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from msconv_deploy.surgery.choice.constants import BYTES, CONTRACTIONS, NODE, PIECE
from msconv_deploy.surgery.choice.extents import Tensor, Tensors

BLOCK = 16
"""Channels of a block of the NCHWc layout (AVX-512; 8 on older processors)."""
ALIGNED = 4

ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid")
"""Activations that ONNX Runtime makes part of a Conv before them."""

CONTRACTION_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ALIASES = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"}
_HEAVY = {
    "Sigmoid", "Tanh", "Exp", "Log", "Erf", "Gelu", "Softplus", "Mish", "Elu", "Selu", "Sqrt", "Pow", "Sin", "Cos",
    "Softmax", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "ReduceMean", "ReduceSum",
    "ReduceMax", "Swish", "HardSwish",
}  # fmt: skip
_COPIES = {"Concat", "Expand", "Tile", "Slice", "Pad", "Gather", "Split", "ConstantOfShape", "Range", "Cast"}
_LAYOUT_KEEPING = {*ACTIVATIONS, "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}


@dataclass(frozen=True)
class Op:
    """A node, whichever library holds it."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(node: onnx.NodeProto) -> Op:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return Op(node.op_type, tuple(node.input), tuple(node.output), attributes)


@dataclass(frozen=True)
class Surroundings:
    """What is around the operators.

    Attributes:
        blocked: tensors from outside that ONNX Runtime has in the blocked layout.
        constants: tensors from outside that do not depend on inputs.
        scaled: whether per-channel constant arithmetic (BatchNormalization …) follows the last operator.
        activation: whether an activation follows that.
        wants_blocked, wants_plain: what those that read the result then want.
        static: whether all extents are numbers in the file, so that ONNX Runtime can compare shapes.
    """

    blocked: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    scaled: bool = False
    activation: bool = False
    wants_blocked: bool = False
    wants_plain: bool = True
    static: bool = False


@dataclass
class Cost:
    """Seconds, multiply-accumulates, and bytes read and written."""

    seconds: float = 0.0
    macs: int = 0
    bytes: int = 0


class UnknownShapeError(Exception):
    """A tensor's shape is needed for an estimate and not known."""


def macs_of(op: Op, tensors: Tensors) -> int:
    """Multiply-accumulates of a contraction, 0 for any other operator."""
    if op.kind not in CONTRACTION_OPS:
        return 0
    x, w, y = (_shape(tensors, name) for name in (op.inputs[0], op.inputs[1], op.outputs[0]))
    if op.kind == "Conv":
        return y.count * int(np.prod(w.shape[1:]))
    if op.kind == "ConvTranspose":
        return x.count * int(np.prod(w.shape[1:]))
    return y.count * x.shape[0 if op.attributes.get("transA", 0) else -1]


def takes_blocks(op: Op, tensors: Tensors, constants: Iterable[str]) -> bool:
    """Does ONNX Runtime run this Conv in the blocked layout?"""
    weight = tensors.get(op.inputs[1]) if op.kind == "Conv" else None
    if weight is None or len(weight.shape) != 4 or weight.elem_type != onnx.TensorProto.FLOAT:
        return False
    if op.attributes.get("group", 1) != 1 or any(name and name not in constants for name in op.inputs[1:]):
        return False
    return weight.shape[1] < BLOCK or weight.shape[1] % ALIGNED == 0


def reads_blocks(op: Op, tensors: Tensors) -> bool:
    """Does a Conv in the blocked layout also read it? With few input channels it reads NCHW."""
    return tensors[op.inputs[1]].shape[1] >= BLOCK


def estimate(ops: Sequence[Op], tensors: Tensors, around: Surroundings, lower_bound: bool = False) -> Cost:
    """The cost of operators in topological order, the last of which makes the result.

    Args:
        lower_bound: leave out data movement of unknown size.

    Raises:
        UnknownShapeError: a shape is not known.
    """
    run = _Run(tensors, around)
    for op in ops:
        known = all(name in tensors for name in (*op.inputs, *op.outputs) if name)
        if known or not lower_bound or op.kind in CONTRACTION_OPS:
            run.add(op)
    run.finish(ops[-1])
    return run.cost


def _shape(tensors: Tensors, name: str) -> Tensor:
    found = tensors.get(name)
    if found is None:
        raise UnknownShapeError(name)
    return found


class _Run:
    """Adds operators up while following which tensors are constants and which are blocked."""

    def __init__(self, tensors: Tensors, around: Surroundings) -> None:
        self.tensors = tensors
        self.around = around
        self.constants = set(around.constants)
        self.blocked = set(around.blocked)
        self.plain: set[str] = set()  # blocked tensors that were also written out in NCHW
        self.reordered: set[str] = set()  # and the other way round
        self.cost = Cost()
        self.fused: str | None = None  # the result of the Conv that what follows may become part of
        self.fuses_activation = False
        self.fuses_scale = False

    def add(self, op: Op) -> None:
        inputs = [name for name in op.inputs if name]
        if all(name in self.constants for name in inputs):
            self.constants.update(op.outputs)
            return
        self.cost.seconds += NODE
        if op.kind in _ALIASES or self._is_index(op):
            self._alias(op)
            return
        moved = sum(_shape(self.tensors, name).nbytes for name in (*inputs, *op.outputs) if name)
        self.cost.bytes += moved
        if op.kind in CONTRACTION_OPS:
            self._contraction(op, moved)
        elif self._added_into_conv(op):
            self.fused = op.outputs[0]
            self.cost.seconds += BYTES["copy"] * _shape(self.tensors, op.outputs[0]).nbytes
        else:
            self._data(op, moved)

    def _is_index(self, op: Op) -> bool:
        """Arithmetic on integers is about shapes: it costs its nodes."""
        found = self.tensors.get(op.outputs[0])
        return found is not None and found.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)

    def _alias(self, op: Op) -> None:
        if op.inputs and op.inputs[0] in self.blocked and op.kind == "Identity":
            self.blocked.add(op.outputs[0])

    def _contraction(self, op: Op, moved: int) -> None:
        macs, columns = macs_of(op, self.tensors), 0
        self.cost.macs += macs
        kind = {"ConvTranspose": "transposed", "Gemm": "product", "MatMul": "product"}.get(op.kind)
        if kind is None:
            weight = _shape(self.tensors, op.inputs[1])
            blocked = takes_blocks(op, self.tensors, self.constants)
            kind = "plain"
            if blocked:
                kind = "blocked" if reads_blocks(op, self.tensors) else "narrow"
                macs = macs * (-(-weight.shape[0] // BLOCK) * BLOCK) // weight.shape[0]
                self.blocked.add(op.outputs[0])
            (self._enter if kind == "blocked" else self._leave)(op.inputs[0])
            if set(weight.shape[2:]) == {1}:
                kind += "-1x1"
            else:
                columns = macs * int(op.attributes.get("group", 1)) // weight.shape[0]
        else:
            self._leave(op.inputs[0])
        rate = CONTRACTIONS[kind]
        self.cost.seconds += macs * rate.mac + moved * rate.byte + columns * rate.column
        matrices = op.kind == "MatMul" and len(_shape(self.tensors, op.outputs[0]).shape) == 2
        self.fused = op.outputs[0] if op.kind != "MatMul" or matrices else None
        self.fuses_activation = op.kind in ("Conv", "Gemm") or (matrices and self.around.scaled)
        self.fuses_scale = op.kind != "Gemm" and all(name in self.constants for name in op.inputs[1:] if name)

    def _added_into_conv(self, op: Op) -> bool:
        if op.kind != "Add" or not self.around.static or self.fused not in op.inputs or self.fused in self.blocked:
            return False
        shapes = [_shape(self.tensors, name).shape for name in op.inputs]
        return self.fuses_activation and len(shapes[0]) == 4 and shapes[0] == shapes[1]

    def _data(self, op: Op, moved: int) -> None:
        keeps = op.kind in _LAYOUT_KEEPING or (
            op.kind in ("Add", "Sum", "Concat") and all(name in self.blocked for name in op.inputs if name)
        )
        if keeps and op.inputs[0] in self.blocked:
            self.blocked.add(op.outputs[0])
        else:
            for name in op.inputs:
                self._leave(name)
        self.cost.seconds += moved * BYTES[_kind(op.kind)] + self._pieces(op) * PIECE.get(op.kind, 0.0)

    def _pieces(self, op: Op) -> int:
        """Pieces of contiguous memory that a copying operator copies."""
        axis = int(op.attributes.get("axis", 0))
        if op.kind == "Concat":
            return sum(_outer(_shape(self.tensors, name), axis) for name in op.inputs)
        if op.kind == "Split":
            return sum(_outer(_shape(self.tensors, name), axis) for name in op.outputs if name)
        if op.kind == "Gather":
            indices = _shape(self.tensors, op.inputs[1])
            return _outer(_shape(self.tensors, op.inputs[0]), axis) * indices.count
        return 0

    def _enter(self, name: str) -> None:
        if name not in self.blocked and name not in self.reordered:
            self.reordered.add(name)
            self._pass(name, "reorder")

    def _leave(self, name: str) -> None:
        if name in self.blocked and name not in self.around.blocked and name not in self.plain:
            self.plain.add(name)
            self._pass(name, "reorder")

    def _pass(self, name: str, kind: str) -> None:
        moved = 2 * _shape(self.tensors, name).nbytes
        self.cost.seconds += NODE + moved * BYTES[kind]
        self.cost.bytes += moved

    def finish(self, last: Op) -> None:
        """What follows the result: arithmetic that is or is not part of the last operator, and the next layout."""
        result = last.outputs[0]
        inside = self.fused == result
        if self.around.scaled and not (inside and self.fuses_scale):
            self._leave(result)
            self.blocked.discard(result)
            self._pass(result, "elementwise")
            inside = False
        if self.around.activation and not (inside and self.fuses_activation):
            self._pass(result, "elementwise")
        if result in self.blocked and self.around.wants_plain:
            self._leave(result)
        if result not in self.blocked and self.around.wants_blocked:
            self._pass(result, "reorder")


def _outer(tensor: Tensor, axis: int) -> int:
    return int(np.prod(tensor.shape[: axis % max(1, len(tensor.shape))], dtype=np.int64))


def _kind(op: str) -> str:
    if op in _COPIES:
        return "copy"
    if op in _HEAVY:
        return "heavy"
    return {"Transpose": "transpose", "Resize": "resize", "Upsample": "resize"}.get(op, "elementwise")
