"""`tiled-distance`: pairwise squared distances by tiling become a product of matrices.

    sum over k of (a[i, k] - b[j, k])^2  =  max(0, |a[i]|^2 - 2 sum over k of a[i, k]*b[j, k] + |b[j]|^2)

for ReduceSum of a square (Pow by 2, Mul by itself), ReduceSumSquare and ReduceL2 (then its root) of a difference of which
either operand lacks an axis that the other one has, be it by broadcasting, Expand or Tile. A number added to the difference,
as ``torch.nn.functional.pairwise_distance`` adds its epsilon, is added to ``a``; one that is added to the sum stays behind it.

Valid wherever the extents of both operands are known to be equal or 1, in float32 and float64. Costs one product of matrices
and a pass over the result; saves the difference and its square, k times as large as the result.

*It is not exact, so it is applied only where it is allowed by name.* With unit roundoff u and D terms, g(n) = n*u / (1 - n*u)
and T = |a + shift|^2 + |b|^2 + D*shift^2: both norms are wrong by at most g(D) of themselves, the product by g(D) *
sum |a_k*b_k| <= g(D) * T/2, and two sums follow, so that the result is within

    2 g(D + 2) * T        with a rounded shift:  2 g(D + 6) * T

of the true square (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1; clamping at zero brings it
nearer). That is relative to the *operands*, where the difference first keeps digits relative to the *distance*: of points
that are near each other and far from the origin nothing may be left, and the distance of a point to itself need not be zero.
The original is within 2 g(D + 6) * T too, so the two differ by at most 4 g(D + 6) * T. A root takes that to
min(sqrt(4 g(D + 6) * T), 4 g(D + 6) * T / distance): near zero half of the digits, whatever the sum of them is. Values whose
squares leave the type's range are not covered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.surgery.engine.contraction import Refusal, constant_array
from msconv_deploy.surgery.engine.cores import (
    Core,
    CoreEmitter,
    Literal,
    Made,
    existing,
    squeezed,
    transposed,
    unsqueezed,
)
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.engine.element_types import element_type
from msconv_deploy.surgery.engine.symbols import Dims, Symbols, axes_of, operator

ID = "tiled-distance"
LOWERING = "product"

_REDUCTIONS = ("ReduceSum", "ReduceSumSquare", "ReduceL2")
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_SAME_SQUARE = ("Identity", "Abs", "Neg")


@dataclass(frozen=True, eq=False)
class Match:
    """A pairwise distance.

    Attributes:
        node: the reduction.
        first, second: operands of the difference, as they are in the graph.
        cores: both without their copies, of the difference's rank.
        rows, columns: an axis that only the first core has, and one that only the second one has.
        axis: that is summed.
        terms: its extent.
        shift: number that is added to the difference.
        root: whether the root is taken.
        keepdims: whether the summed axis stays, with extent 1.
        dtype: element type.
    """

    node: gs.Node
    first: gs.Tensor
    second: gs.Tensor
    cores: tuple[Core, Core]
    rows: int
    columns: int
    axis: int
    terms: int
    shift: float
    root: bool
    keepdims: bool
    dtype: np.dtype

    @property
    def rank(self) -> int:
        return len(self.cores[0].dims)


def match(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Match | Refusal | None:
    """The pairwise distance that ends at a node, why it is left, or None if it is none."""
    if operator(node) not in _REDUCTIONS:
        return None
    squared = _same_square(node.inputs[0])
    if operator(node) == "ReduceSum":
        base = _squared(squared)
        if base is None:
            return None
        squared = _same_square(base)
    difference, shift = _without_shift(squared)
    if not difference.inputs or operator(difference.inputs[0]) != "Sub":
        return None
    first, second = difference.inputs[0].inputs
    dims, axes = symbols.dims(difference), axes_of(symbols, node)
    if dims is None or axes is None or len(axes) != 1:
        return None
    if symbols.rank(node.inputs[0]) != len(dims):
        return None  # an exponent or a shift of a higher rank adds axes
    axis, rank = axes[0] % len(dims), len(dims)
    cores = [_core(tensor, rank, axis, symbols, decomposer) for tensor in (first, second)]
    if any(core is None for core in cores):
        return None
    one, two = (core for core in cores if core is not None)
    alone = [
        [i for i in range(rank) if i != axis and x.dims[i] != 1 and y.dims[i] == 1] for x, y in ((one, two), (two, one))
    ]
    if not alone[0] or not alone[1]:
        return None  # nothing is paired: a distance from one thing to others
    name = (str(node.name),)
    problem = _problem(dims, one.dims, two.dims, axis)
    if problem:
        return Refusal(problem, name)
    types = [found for found in (element_type(first), element_type(second)) if found is not None]
    dtype = types[0] if types else None
    if dtype is None or dtype not in _FLOATS:  # to NumPy, None is float64
        what = "its element type is not known" if dtype is None else f"{dtype.name} has too few digits for what cancels"
        return Refusal(what, name)
    terms = dims[axis]
    assert isinstance(terms, int)
    keepdims = bool(node.attrs.get("keepdims", 1))
    root = operator(node) == "ReduceL2"
    return Match(node, first, second, (one, two), alone[0][-1], alone[1][-1], axis, terms, shift, root, keepdims, dtype)


def _same_square(tensor: gs.Tensor) -> gs.Tensor:
    """A tensor with the same squares, above operators that only change signs."""
    while tensor.inputs and operator(tensor.inputs[0]) in _SAME_SQUARE:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _squared(tensor: gs.Tensor) -> gs.Tensor | None:
    """What a tensor is the square of."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and operator(node) == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    if node is not None and operator(node) == "Pow" and _number(node.inputs[1]) == 2:
        return node.inputs[0]
    return None


def _number(tensor: gs.Tensor) -> float | None:
    """The value of a constant of one element."""
    array = constant_array(tensor)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _without_shift(tensor: gs.Tensor) -> tuple[gs.Tensor, float]:
    """What a number was added to, and the number; (the tensor itself, 0) otherwise."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and operator(node) == "Add":
        for operand, other in (node.inputs, node.inputs[::-1]):
            number = _number(other)
            if number is not None and len(other.shape or ()) <= 1:
                return operand, number
    return tensor, 0.0


def _core(tensor: gs.Tensor, rank: int, axis: int, symbols: Symbols, decomposer: Decomposer) -> Core | None:
    """An operand without its copies, as a tensor of this rank."""
    dims = symbols.dims(tensor)
    segments = decomposer.segments(tensor, None)
    if dims is None or segments is None or len(segments) != 1:
        return None
    core = segments[0].core
    summed = axis - rank + len(dims)
    if summed < 0 or core.dims[summed] == 1:  # copies along the summed axis itself
        core = existing(tensor, dims)
    return unsqueezed(core, list(range(rank - len(dims))), decomposer.opset)


def _problem(dims: Dims, first: Dims, second: Dims, axis: int) -> str:
    """Why the cores do not give the result its extents; empty if they do."""
    if not isinstance(dims[axis], int) or not dims[axis] == first[axis] == second[axis]:
        return "the number of terms is not known, or one operand is copied along them"
    for extent, one, two in zip(dims, first, second, strict=True):
        if {one, two} - {1} not in ({extent}, set()) or (one == two == 1 and extent != 1):
            return f"extent {extent} of its result is not known to be that of its operands"
    return ""


# -- writing -----------------------------------------------------------------------------------------------------------


def rewrite(builder: GraphBuilder, found: Match) -> None:
    """The norms, the product, the sums and the clamp; into a builder."""
    (left, right), (rows, columns) = found.cores, (found.rows, found.columns)
    if found.shift:
        left = _shifted(left, np.asarray(found.shift, found.dtype))
    if rows > columns:  # so that the product's last two axes are in the result's order
        left, right, rows, columns = right, left, columns, rows
    outer = [i for i in range(found.rank) if i not in (rows, columns, found.axis)]
    left = _matrix(left, columns, [*outer, rows, found.axis], builder.opset)
    right = _matrix(right, rows, [*outer, columns, found.axis], builder.opset)
    if all(extent == 1 for extent in right.dims[: len(outer)]):
        right = squeezed(right, list(range(len(outer))), builder.opset)  # one matrix for all
    emitter = CoreEmitter(builder)
    norms = _norms(builder, emitter, left), _norms(builder, emitter, right)
    total = builder.add(
        "Add", _product(builder, emitter, left, right, found.dtype), builder.unsqueeze(norms[0], len(outer) + 1)
    )
    total = builder.add("Add", total, builder.unsqueeze(norms[1], len(right.dims) - 2))
    steps: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        ("Max", (builder.constant(np.asarray(0, found.dtype), "zero"),), {})
    ]
    if found.root:
        steps.append(("Sqrt", (), {}))
    order = [*outer, rows, columns]
    if order != sorted(order):
        steps.append(("Transpose", (), {"perm": [order.index(i) for i in sorted(order)]}))
    if found.keepdims and builder.opset < 13:
        steps.append(("Unsqueeze", (), {"axes": [found.axis]}))
    elif found.keepdims:
        steps.append(("Unsqueeze", (builder.ints([found.axis]),), {}))
    for position, (op, operands, attributes) in enumerate(steps):
        output = str(found.node.outputs[0].name) if position == len(steps) - 1 else None
        total = builder.add(op, total, *operands, output=output, **attributes)


def _shifted(core: Core, number: NDArray[Any]) -> Core:
    if isinstance(core, Literal):
        return Literal(core.dims, core.array + number)
    return Made(core.dims, "Add", (core, Literal((), number)), {})


def _matrix(core: Core, lacking: int, order: list[int], opset: int) -> Core:
    """A core without the axis that it lacks, the others in this order."""
    left = [i for i in range(len(core.dims)) if i != lacking]
    return transposed(squeezed(core, [lacking], opset), [left.index(i) for i in order])


def _product(builder: GraphBuilder, emitter: CoreEmitter, left: Core, right: Core, dtype: np.dtype) -> str:
    """-2 times the product; the factor is a power of two, so it rounds nothing."""
    rank = len(right.dims)
    columns = transposed(right, [*range(rank - 2), rank - 1, rank - 2])
    if isinstance(columns, Literal):
        return builder.add("MatMul", emitter.emit(left), builder.constant(columns.array * dtype.type(-2)))
    two = builder.constant(np.asarray(-2, dtype), "two")
    return builder.add("MatMul", builder.add("Mul", emitter.emit(left), two), emitter.emit(columns))


def _norms(builder: GraphBuilder, emitter: CoreEmitter, matrix: Core) -> str:
    """Sums of squares along the last axis, which is gone then."""
    if isinstance(matrix, Literal):
        squares = np.square(matrix.array.astype(np.float64)).sum(-1)
        return builder.constant(squares.astype(matrix.array.dtype), "norms")
    x = emitter.emit(matrix)
    return builder.reduce_sum(builder.add("Mul", x, x, hint="squares"), len(matrix.dims) - 1)
