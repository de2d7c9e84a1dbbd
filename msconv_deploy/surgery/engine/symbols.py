"""Extents by name: which dimensions of which tensors are equal, whatever their value at run time.

An extent is an ``int`` where it is known and a ``str`` where only its identity is. Two extents are *known to be equal*
when they compare equal; two different names may still turn out equal at run time, so nothing may be concluded from
their being different. An extent that happens to be 1 at export time but is dynamic in the file has a name here, never 1.

Names come from the file (``dim_param``, through ONNX shape inference) and from following shapes through the operators
that keep or move them; a product of extents is named after its factors, so that merging axes keeps what is known of them.
The integer tensors that carry shapes (``Shape > Gather > Concat > Expand``) are followed by value, so that exporters'
arithmetic around shapes needs no pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.operators import BROADCASTING, SAME_SHAPE

Dim = int | str
Dims = tuple[Dim, ...]
Values = tuple[Dim, ...]
"""Elements of a one-dimensional (or scalar) integer tensor."""

_MAX_ELEMENTS = 64
"""Longer integer tensors are data, not shapes."""


TIMES = " × "
"""Stands between the factors of an extent that is a product, numbers multiplied out first: ``6 × R × S``."""
_OURS = ":[?÷×%"
"""What names that are made up here have in them: ``tensor:axis``, ``tensor[index]``, products, and marks."""


def monomial(dims: Sequence[Dim]) -> tuple[int, tuple[str, ...]]:
    """A product of extents as a number and the names that multiply it, sorted."""
    number, names = 1, []
    for dim in dims:
        if isinstance(dim, int):
            number *= dim
            continue
        first, *rest = dim.split(TIMES)
        if rest and first.isdecimal():
            number *= int(first)
        else:
            names.append(first)
        names.extend(rest)
    return number, tuple(sorted(names))


def product(dims: Sequence[Dim]) -> Dim:
    """The product of extents: a number, or its one name."""
    number, names = monomial(dims)
    if not names or number == 0:
        return number
    return TIMES.join(names if number == 1 else (str(number), *names))


def operator(node: gs.Node) -> str:
    """The operator of a node; empty for one of another domain, whatever its name means there."""
    return str(node.op) if node.domain in (None, "", "ai.onnx") else ""


class Symbols:
    """Extents and shape values of a graph's tensors, found on demand and remembered.

    Args:
        inferred: tensor name -> extents that ONNX shape inference found, None where it found none.
    """

    def __init__(self, inferred: dict[str, tuple[int | str | None, ...]]) -> None:
        self._inferred = inferred
        self._dims: dict[int, Dims | None] = {}
        self._values: dict[int, Values | None] = {}
        self._kept: list[gs.Tensor] = []  # ids stay unique while their tensors live

    # -- extents ---------------------------------------------------------------------------------------------------

    def dims(self, tensor: gs.Tensor) -> Dims | None:
        """Extents of a tensor, or None if not even its rank is known."""
        for item in _bottom_up(tensor, self._dims, lambda t: t.inputs[0].inputs if t.inputs else []):
            self._kept.append(item)
            self._dims[id(item)] = self._find_dims(item)
        return self._dims[id(tensor)]

    def declare(self, tensor: Any, dims: Dims | None, values: Values | None = None) -> None:
        """What is known of a tensor that is not part of the graph."""
        self._kept.append(tensor)
        self._dims[id(tensor)], self._values[id(tensor)] = dims, values

    def rank(self, tensor: gs.Tensor) -> int | None:
        dims = self.dims(tensor)
        return None if dims is None else len(dims)

    def _known(self, tensor: gs.Tensor) -> Dims | None:
        """Extents that are known already: operands are found before results."""
        return self._dims.get(id(tensor)) if id(tensor) in self._dims else self.dims(tensor)

    def _find_dims(self, tensor: gs.Tensor) -> Dims | None:
        if isinstance(tensor, gs.Constant):
            return tuple(int(n) for n in tensor.shape)
        inferred = self._inferred.get(tensor.name)
        followed = self._follow(tensor)
        if inferred is None and followed is None:
            return None
        if followed is None:
            assert inferred is not None
            return tuple(_named(d, tensor, i) for i, d in enumerate(inferred))
        if inferred is None or len(inferred) != len(followed):
            return followed
        # A number beats a name; a name that was followed through operators beats one that only this tensor has.
        return tuple(d if isinstance(d, int) else f for d, f in zip(inferred, followed, strict=True))

    def _follow(self, tensor: gs.Tensor) -> Dims | None:
        if not tensor.inputs:
            return None
        node = tensor.inputs[0]
        rule = _DIM_RULES.get(operator(node))
        if rule is None:
            return None
        found = rule(self, node, tensor)
        if found is None:
            return None
        return tuple(_named(d, tensor, i) for i, d in enumerate(found))

    # -- integer values --------------------------------------------------------------------------------------------

    def values(self, tensor: gs.Tensor) -> Values | None:
        """Elements of a small integer tensor, each a number or the name of an extent; None if unknown."""
        for item in _bottom_up(tensor, self._values, lambda t: t.inputs[0].inputs if t.inputs else []):
            self._kept.append(item)
            self._values[id(item)] = self._find_values(item)
        return self._values[id(tensor)]

    def _find_values(self, tensor: gs.Tensor) -> Values | None:
        if isinstance(tensor, gs.Constant):
            return _small_integers(tensor)
        if not tensor.inputs:
            return None
        node = tensor.inputs[0]
        rule = _VALUE_RULES.get(operator(node))
        return None if rule is None else rule(self, node)


def name_in_file(name: str) -> str:
    """The name of an extent in a file, as one that is none of those that are made up here."""
    return "".join(f"%{ord(c):x}" if c in _OURS else c for c in name)


def _named(dim: int | str | None, tensor: gs.Tensor, axis: int) -> Dim:
    return f"{tensor.name}:{axis}" if dim is None else dim


def _bottom_up(
    tensor: gs.Tensor, done: Mapping[int, object], operands: Callable[[gs.Tensor], Sequence[gs.Tensor]]
) -> list[gs.Tensor]:
    """The tensors below one that are not done yet, operands first: chains may be longer than Python's stack."""
    order: list[gs.Tensor] = []
    seen: set[int] = set()
    stack: list[tuple[gs.Tensor, bool]] = [(tensor, False)]
    while stack:
        item, expanded = stack.pop()
        if expanded:
            order.append(item)
        elif id(item) not in done and id(item) not in seen:
            seen.add(id(item))
            stack.append((item, True))
            stack.extend((operand, False) for operand in operands(item))
    return order


def _small_integers(constant: gs.Constant) -> Values | None:
    shape = tuple(constant.shape)
    if len(shape) > 1 or int(np.prod(shape, dtype=np.int64)) > _MAX_ELEMENTS:
        return None
    array = np.asarray(constant.values)
    if array.dtype.kind not in "iub" and not (array.size and np.all(array == np.round(array))):
        return None
    return tuple(int(v) for v in array.reshape(-1))


def broadcast(shapes: Sequence[Dims]) -> list[int | str | None]:
    """Extents of a broadcast: a name survives only where all others are 1 or the same name."""
    rank = max(len(s) for s in shapes)
    out: list[int | str | None] = []
    for axis in range(rank):
        found = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        numbers = [d for d in found if isinstance(d, int)]
        if not found:
            out.append(1)
        elif numbers:
            out.append(numbers[0])  # whatever is not a number must be this number or 1
        else:
            out.append(found.pop() if len(found) == 1 else None)
    return out


# -- extents through operators ---------------------------------------------------------------------------------------


def _same(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    return symbols.dims(node.inputs[0]) if tensor is node.outputs[0] else None


def _broadcasting(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    shapes = [symbols.dims(t) for t in node.inputs]
    return None if any(s is None for s in shapes) else broadcast([s for s in shapes if s is not None])


def axes_of(symbols: Symbols, node: gs.Node, position: int = 1) -> list[int] | None:
    """The ``axes`` of Squeeze, Unsqueeze and reductions: an attribute or an input, as written (may be negative)."""
    if "axes" in node.attrs:
        return [int(a) for a in node.attrs["axes"]]
    if len(node.inputs) > position and node.inputs[position].name:
        values = symbols.values(node.inputs[position])
        if values is None or not all(isinstance(v, int) for v in values):
            return None
        return [int(v) for v in values]
    return None


def squeezed_axes(symbols: Symbols, node: gs.Node, dims: Dims) -> list[int] | None:
    """The axes, in order, that a Squeeze takes from a tensor of these extents; None if they are known at run time only."""
    axes = axes_of(symbols, node)
    if axes is None:
        if len(node.inputs) > 1:
            return None
        return [i for i, d in enumerate(dims) if d == 1]
    return sorted(a % len(dims) for a in axes)


def _transpose(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    return [dims[p] for p in node.attrs.get("perm", range(len(dims))[::-1])]


def _unsqueeze(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims, axes = symbols.dims(node.inputs[0]), axes_of(symbols, node)
    if dims is None or axes is None:
        return None
    out: list[int | str | None] = list(dims)
    rank = len(dims) + len(axes)
    for axis in sorted(a % rank for a in axes):
        out.insert(axis, 1)
    return out


def _squeeze(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    gone = None if dims is None else squeezed_axes(symbols, node, dims)
    if dims is None or gone is None:
        return None
    if axes_of(symbols, node) is None and not all(isinstance(d, int) for d in dims):
        return None  # which of them are 1 is known at run time only
    return [d for i, d in enumerate(dims) if i not in gone]


def _concat(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    shapes = [symbols.dims(t) for t in node.inputs]
    known = [s for s in shapes if s is not None]
    if not known:
        return None
    rank = len(known[0])
    if any(len(s) != rank for s in known):  # an empty list beside others, which runtimes take
        return None
    at = int(node.attrs["axis"]) % rank
    out: list[int | str | None] = []
    for axis in range(rank):
        if axis == at:
            total = [s[axis] for s in known] if len(known) == len(shapes) else [None]
            out.append(sum(total) if all(isinstance(d, int) for d in total) else None)  # type: ignore[arg-type]
        else:  # the operands agree, so a number that one of them knows holds for all
            numbers = [s[axis] for s in known if isinstance(s[axis], int)]
            out.append(numbers[0] if numbers else known[0][axis])
    return out


def _expand(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims, shape = symbols.dims(node.inputs[0]), symbols.values(node.inputs[1])
    if dims is None or shape is None:
        return None
    return broadcast([dims, shape])


def _reshape(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims, shape = symbols.dims(node.inputs[0]), symbols.values(node.inputs[1])
    if shape is None:
        return None
    out: list[int | str | None] = []
    for axis, value in enumerate(shape):
        if value == 0 and not node.attrs.get("allowzero", 0):
            out.append(None if dims is None or axis >= len(dims) else dims[axis])
        else:
            out.append(None if value == -1 or is_unsure(value) else value)
    if dims is not None and list(shape).count(-1) == 1 and not any(is_unsure(v) for v in shape):
        out[list(shape).index(-1)] = _missing_extent(
            list(dims), [d for d, v in zip(out, shape, strict=True) if v != -1]
        )
    return out


def _missing_extent(whole: list[Dim], others: list[int | str | None]) -> int | str | None:
    """What -1 stands for: the product of ``whole`` over that of ``others``, where it divides evenly."""
    if any(other is None for other in others):
        return None
    number, names = monomial(whole)
    divisor, gone = monomial([other for other in others if other is not None])
    rest = list(names)
    for name in gone:
        if name not in rest:
            return None
        rest.remove(name)
    return None if divisor == 0 or number % divisor else product([number // divisor, *rest])


def _flatten(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(dims) if axis < 0 else axis
    return [_missing_extent(list(dims[:axis]), []), _missing_extent(list(dims[axis:]), [])]


def _tile(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims, repeats = symbols.dims(node.inputs[0]), symbols.values(node.inputs[1])
    if dims is None:
        return None
    if repeats is None or len(repeats) != len(dims):
        return [None] * len(dims)
    return [_product(d, r) for d, r in zip(dims, repeats, strict=True)]


def _product(a: Dim, b: Dim) -> int | str | None:
    if a == 1 or b == 1:
        return b if a == 1 else a
    return None if is_unsure(a, b) else product([a, b])


def _slice(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    ranges = slice_ranges(symbols, node, dims)
    if ranges is None:
        return None
    out: list[int | str | None] = list(dims)
    for axis, bounds in ranges.items():
        if bounds is WHOLE:
            continue
        dim = dims[axis]
        out[axis] = len(range(*bounds.indices(dim))) if isinstance(dim, int) and bounds is not None else None
    return out


WHOLE = slice(None)
_BEYOND = 10**9
"""No extent is this large; exporters write such ends for "to the end"."""


def slice_ranges(symbols: Symbols, node: gs.Node, dims: Dims) -> dict[int, slice | None] | None:
    """Axis -> Python slice of a Slice node; :data:`WHOLE` where nothing is cut, None where the bounds are not known."""
    if "starts" in node.attrs:
        starts: list[Any] = list(node.attrs["starts"])
        ends: list[Any] = list(node.attrs["ends"])
        axes: list[Any] = list(node.attrs.get("axes", range(len(starts))))
        steps: list[Any] = list(node.attrs.get("steps", [1] * len(starts)))
    else:
        parts = [symbols.values(t) if t.name else None for t in node.inputs[1:]]
        counts = [symbols.dims(t) for t in node.inputs[1:3]]
        axes_values = parts[2] if len(parts) > 2 else None
        if len(parts) > 2 and axes_values is None and node.inputs[3].name:
            return None
        length = next((c[0] for c in counts if c and isinstance(c[0], int)), None)
        if length is None:
            return None
        starts = list(parts[0]) if parts[0] is not None else [None] * length
        ends = list(parts[1]) if parts[1] is not None else [None] * length
        axes = list(axes_values) if axes_values is not None else list(range(length))
        steps = list(parts[3]) if len(parts) > 3 and parts[3] is not None else [1] * length
        if len(parts) > 3 and parts[3] is None and node.inputs[4].name:
            steps = [None] * length
    if len({len(part) for part in (starts, ends, axes, steps)}) > 1:
        return None  # a file that contradicts itself
    out: dict[int, slice | None] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(axis, int):
            return None
        axis %= len(dims)
        huge = isinstance(end, int) and end >= _BEYOND
        if start == 0 and step == 1 and (huge or (end is not None and end == dims[axis])):
            out[axis] = WHOLE
        elif all(isinstance(v, int) for v in (start, end, step)):
            out[axis] = slice(start, None if huge else end, step)
        else:
            out[axis] = None
    return out


def pad_amounts(symbols: Symbols, node: gs.Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """Axis -> (before, after) of a Pad node, where the amounts are constant."""
    if "pads" in node.attrs:
        values: Any = [int(p) for p in node.attrs["pads"]]
    else:
        values = symbols.values(node.inputs[1])
    if values is None or not all(isinstance(v, int) for v in values):
        return None
    axes: list[int] = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3].name:
        given = symbols.values(node.inputs[3])
        if given is None or not all(isinstance(v, int) for v in given):
            return None
        axes = [int(a) % rank for a in given]
    if len(values) != 2 * len(axes):
        return None
    return {a: (values[i], values[i + len(axes)]) for i, a in enumerate(axes)}


def _pad(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    amounts = pad_amounts(symbols, node, len(dims))
    if amounts is None:
        return [None] * len(dims)
    return [_plus(d, sum(amounts.get(i, (0, 0)))) for i, d in enumerate(dims)]


def _plus(dim: Dim, amount: int) -> int | str | None:
    if amount == 0:
        return dim
    return dim + amount if isinstance(dim, int) else None


def _split(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    axis = int(node.attrs.get("axis", 0)) % len(dims)
    sizes: Sequence[Any] | None = node.attrs.get("split")
    if len(node.inputs) > 1 and node.inputs[1].name:
        sizes = symbols.values(node.inputs[1])
    position = next(i for i, output in enumerate(node.outputs) if output is tensor)
    extent = sizes[position] if sizes is not None and len(sizes) == len(node.outputs) else None
    return [extent if i == axis else d for i, d in enumerate(dims)]


def _convolution_transposed(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    x, w = symbols.dims(node.inputs[0]), symbols.dims(node.inputs[1])
    if x is None or w is None or len(x) != len(w):
        return None
    channels = w[1] * int(node.attrs.get("group", 1)) if isinstance(w[1], int) else None
    return [x[0], channels, *[None] * (len(x) - 2)]


def _pool(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    return None if dims is None else [*dims[:2], *[None] * (len(dims) - 2)]


def _shape(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    values = symbols.values(node.outputs[0])
    return None if values is None else [len(values)]


def _constant_of_shape(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    return symbols.values(node.inputs[0])


def _reduce(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims, axes = symbols.dims(node.inputs[0]), axes_of(symbols, node)
    if dims is None or (axes is None and len(node.inputs) > 1 and node.inputs[1].name):
        return None
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return list(dims)
    gone = {a % len(dims) for a in axes} if axes else set(range(len(dims)))
    if node.attrs.get("keepdims", 1):
        return [1 if i in gone else d for i, d in enumerate(dims)]
    return [d for i, d in enumerate(dims) if i not in gone]


def _range(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    """ceil((limit - start) / delta) where all three are numbers; a limit that is only a name may be anything."""
    numbers = [symbols.values(t) for t in node.inputs]
    known = [v[0] for v in numbers if v is not None and len(v) == 1 and isinstance(v[0], int)]
    if len(known) != 3 or known[2] == 0:
        return None
    start, limit, delta = known
    return [max(0, -((start - limit) // delta))]


def _global_pool(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    return None if dims is None else [*dims[:2], *[1] * (len(dims) - 2)]


def _convolution(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    """Conv keeps an extent whose name is known where the stride is 1 and the padding makes up for the kernel."""
    x, w = symbols.dims(node.inputs[0]), symbols.dims(node.inputs[1])
    if x is None or w is None or len(x) != len(w):
        return None
    spatial = len(x) - 2
    kernel = node.attrs.get("kernel_shape", list(w[2:]))
    strides = node.attrs.get("strides", [1] * spatial)
    dilations = node.attrs.get("dilations", [1] * spatial)
    pads = node.attrs.get("pads", [0] * (2 * spatial))
    same = str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")
    out: list[int | str | None] = [x[0], w[0]]
    for i in range(spatial):
        reach = dilations[i] * (kernel[i] - 1) if isinstance(kernel[i], int) else None
        keeps = strides[i] == 1 and (same or reach == pads[i] + pads[i + spatial])
        out.append(x[i + 2] if keeps else None)
    return out


def _matmul(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    a, b = symbols.dims(node.inputs[0]), symbols.dims(node.inputs[1])
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    lead = broadcast([a[:-2], b[:-2]]) if len(a) > 2 or len(b) > 2 else []
    return [*lead, a[-2], b[-1]]


def _gemm(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    a, b = symbols.dims(node.inputs[0]), symbols.dims(node.inputs[1])
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    return [a[1] if node.attrs.get("transA", 0) else a[0], b[0] if node.attrs.get("transB", 0) else b[1]]


def _gather_dims(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    data, indices = symbols.dims(node.inputs[0]), symbols.dims(node.inputs[1])
    if data is None or indices is None:
        return None
    axis = int(node.attrs.get("axis", 0)) % len(data)
    return [*data[:axis], *indices, *data[axis + 1 :]]


def resize_scales(symbols: Symbols, node: gs.Node, rank: int) -> Any | None:
    """The scales of a Resize, one per axis, where it is given scales and they are known."""
    if len(node.inputs) < 3 or not node.inputs[2].name or "axes" in node.attrs:
        return None
    given = node.inputs[2]
    scales: Any = np.asarray(given.values).reshape(-1) if isinstance(given, gs.Constant) else symbols.values(given)
    return scales if scales is not None and len(scales) == rank else None


def _resize(symbols: Symbols, node: gs.Node, tensor: gs.Tensor) -> Sequence[int | str | None] | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if "axes" in node.attrs or policy not in ("stretch", b"stretch"):
        return [None] * len(dims)
    if len(node.inputs) > 3 and node.inputs[3].name:
        sizes = symbols.values(node.inputs[3])
        if sizes is not None and len(sizes) == len(dims):
            return sizes
    scales = resize_scales(symbols, node, len(dims))
    if scales is None:
        return [None] * len(dims)
    return [d if s == 1 else None for d, s in zip(dims, scales, strict=True)]


_DIM_RULES: dict[str, Callable[[Symbols, gs.Node, gs.Tensor], Sequence[int | str | None] | None]] = {
    **dict.fromkeys(SAME_SHAPE, _same),
    **dict.fromkeys(BROADCASTING, _broadcasting),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Expand": _expand,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Tile": _tile,
    "Slice": _slice,
    "Shape": _shape,
    "ConstantOfShape": _constant_of_shape,
    "Pad": _pad,
    "Split": _split,
    "Conv": _convolution,
    "ConvTranspose": _convolution_transposed,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Gather": _gather_dims,
    "Range": _range,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"), _reduce),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
}


# -- integer values through operators --------------------------------------------------------------------------------


def _values_same(symbols: Symbols, node: gs.Node) -> Values | None:
    return symbols.values(node.inputs[0])


def _values_reshaped(symbols: Symbols, node: gs.Node) -> Values | None:
    """Elements keep their order; of a matrix they are not followed, since other operators take them for a list."""
    rank = symbols.rank(node.outputs[0])
    return symbols.values(node.inputs[0]) if rank is not None and rank <= 1 else None


def _values_cast(symbols: Symbols, node: gs.Node) -> Values | None:
    """Numbers keep their value in every type that exporters compute shapes in; a truth value is 0 or 1.

    A quotient that may be a fraction keeps it in a floating type and loses it in any other, as Floor does.
    """
    values = symbols.values(node.inputs[0])
    to = int(node.attrs.get("to", 0))
    if values is None or to in _FLOATING:
        return values
    if to != onnx.TensorProto.BOOL:
        return tuple(_rounded(v, "floor") for v in values)
    return tuple(int(bool(v)) if isinstance(v, int) else f"{node.outputs[0].name}[{i}]" for i, v in enumerate(values))


def _values_rounded(symbols: Symbols, node: gs.Node) -> Values | None:
    values = symbols.values(node.inputs[0])
    return None if values is None else tuple(_rounded(v, str(node.op).lower()) for v in values)


_FLOATING = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_FRACTION = " ÷"
"""Ends the name of a number that need not be whole: what Floor and Ceil make of it are two more names."""


def is_fraction(*values: Dim) -> bool:
    """May one of these have a fraction, by its name?"""
    return any(isinstance(v, str) and _FRACTION in v for v in values)


def _rounded(value: Dim, how: str) -> Dim:
    """Floor or Ceil of a number that is not negative; names of whole numbers stay."""
    if not is_fraction(value):
        return value
    inner = str(value).replace(_FRACTION, "").replace(TIMES, " * ")
    return f"{_UNSURE}{how}({inner[1:]})" if is_unsure(value) else f"{how}({inner})"


def _values_shape(symbols: Symbols, node: gs.Node) -> Values | None:
    dims = symbols.dims(node.inputs[0])
    if dims is None:
        return None
    return dims[int(node.attrs.get("start", 0)) : node.attrs.get("end", None)]


def _values_gather(symbols: Symbols, node: gs.Node) -> Values | None:
    data, indices = symbols.values(node.inputs[0]), symbols.values(node.inputs[1])
    if data is None or indices is None or _is_matrix(symbols, node.inputs[0]):
        return None
    picked = [data[i] if isinstance(i, int) and -len(data) <= i < len(data) else None for i in indices]
    return None if any(p is None for p in picked) else tuple(p for p in picked if p is not None)


def _is_matrix(symbols: Symbols, tensor: gs.Tensor) -> bool:
    """Is it one row of a matrix (OneHot), whose elements are followed but which is no list?"""
    return (symbols.rank(tensor) or 0) > 1


def _values_concat(symbols: Symbols, node: gs.Node) -> Values | None:
    out: list[Dim] = []
    for tensor in node.inputs:
        values = symbols.values(tensor)
        if values is None:  # an unknown element keeps its place, so that its neighbours stay known
            dims = symbols.dims(tensor)
            if dims is None or len(dims) != 1 or not isinstance(dims[0], int) or dims[0] > _MAX_ELEMENTS:
                return None
            values = tuple(f"{_UNSURE}{tensor.name}[{i}]" for i in range(dims[0]))
        out.extend(values)
    return tuple(out)


def _values_slice(symbols: Symbols, node: gs.Node) -> Values | None:
    data = symbols.values(node.inputs[0])
    ranges = None if data is None else slice_ranges(symbols, node, (len(data),))
    if data is None or ranges is None or _is_matrix(symbols, node.inputs[0]):
        return None
    cut = ranges.get(0, WHOLE)
    return None if cut is None else data[cut]


def _values_constant_of_shape(symbols: Symbols, node: gs.Node) -> Values | None:
    shape = symbols.values(node.inputs[0])
    if shape is None or len(shape) > 1 or not all(isinstance(s, int) for s in shape):
        return None
    count = int(shape[0]) if shape else 1
    value = node.attrs.get("value")
    number = np.asarray(value.values).reshape(-1)[0] if value is not None else 0
    return (int(number),) * count if count <= _MAX_ELEMENTS and number == int(number) else None


_UNSURE = "?"
"""Starts the name of an integer that need not be an extent: it may be 0 or negative."""


def is_unsure(*values: Dim) -> bool:
    """May one of these integers be 0 or negative, by its name?"""
    return any(isinstance(v, str) and v.startswith(_UNSURE) for v in values)


def _values_one_hot(symbols: Symbols, node: gs.Node) -> Values | None:
    """One row: a value that differs at one place, as the exporter of PyTorch spells the repeats of ``repeat_interleave``."""
    indices, depth, pair = (symbols.values(t) for t in node.inputs)
    if indices is None or depth is None or pair is None or (len(indices), len(depth), len(pair)) != (1, 1, 2):
        return None
    place, count = indices[0], depth[0]
    if not isinstance(place, int) or not isinstance(count, int) or not 0 < count <= _MAX_ELEMENTS:
        return None
    return tuple(pair[int(i == place % count)] for i in range(count)) if -count <= place < count else None


def _values_arithmetic(function: Callable[[Dim, Dim, str], Dim]) -> Callable[[Symbols, gs.Node], Values | None]:
    def rule(symbols: Symbols, node: gs.Node) -> Values | None:
        operands = [values for t in node.inputs if (values := symbols.values(t)) is not None]
        lengths = {len(values) for values in operands} - {1}
        if len(operands) != len(node.inputs) or len(lengths) > 1:
            return None
        length = lengths.pop() if lengths else 1
        first, *others = (values * length if len(values) == 1 else values for values in operands)
        divides = node.op == "Div" and not _is_whole(node)
        for other in others:  # Max takes any number
            pairs = enumerate(zip(first, other, strict=True))
            first = tuple(function(x, y, _new_name(node, i, (x, y), divides)) for i, (x, y) in pairs)
        return first

    return rule


def _new_name(node: gs.Node, index: int, operands: Sequence[Dim], divides: bool = False) -> str:
    """The name of an element of a node's result, with what is not known of its operands."""
    # What is added to or multiplied by a negative number need not be an extent, as a difference.
    unsure = is_unsure(*operands) or any(isinstance(v, int) and v < 0 for v in operands)
    fraction = divides or is_fraction(*operands)
    return f"{_UNSURE if unsure else ''}{node.outputs[0].name}[{index}]{_FRACTION if fraction else ''}"


def _is_whole(node: gs.Node) -> bool:
    """Does a Div compute in integers? Its operands have one type."""
    types = [np.dtype(t.dtype) for t in (*node.inputs, *node.outputs) if t.dtype is not None]
    return any(kind.kind in "iu" for kind in types)


def _mul(a: Dim, b: Dim, name: str) -> Dim:
    if 0 in (a, b):
        return 0
    if isinstance(a, int) != isinstance(b, int) and min(x for x in (a, b) if isinstance(x, int)) < 0:
        return name
    found = _product(a, b)
    return name if found is None else found


def _add(a: Dim, b: Dim, name: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else a if b == 0 else name


def _sub(a: Dim, b: Dim, name: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return 0 if a == b else a if b == 0 else name if name.startswith(_UNSURE) else _UNSURE + name


def _div(a: Dim, b: Dim, name: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b  # with a remainder it depends on whether the numbers are integers or floats on the way
    return a if b == 1 else name


def _equal(a: Dim, b: Dim, name: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    number = a if isinstance(a, int) else b
    if isinstance(number, int) and number < 0 and not is_unsure(a, b):
        return 0  # an extent is never negative
    return 1 if a == b else name


def _max(a: Dim, b: Dim, name: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return a if a == b else name


def _values_where(symbols: Symbols, node: gs.Node) -> Values | None:
    condition, yes, no = (symbols.values(t) for t in node.inputs)
    if condition is None or yes is None or no is None:
        return None
    length = max(len(condition), len(yes), len(no))
    condition, yes, no = (v * length if len(v) == 1 else v for v in (condition, yes, no))
    if not len(condition) == len(yes) == len(no):
        return None
    out: list[Dim] = []
    for i, (c, y, n) in enumerate(zip(condition, yes, no, strict=True)):
        name = f"{_UNSURE}{node.outputs[0].name}[{i}]{_FRACTION if is_fraction(y, n) else ''}"
        out.append((y if c else n) if isinstance(c, int) else y if y == n else name)
    return tuple(out)


_VALUE_RULES: dict[str, Callable[[Symbols, gs.Node], Values | None]] = {
    **dict.fromkeys(("Identity", "Squeeze"), _values_same),
    **dict.fromkeys(("Unsqueeze", "Reshape", "Flatten"), _values_reshaped),
    **dict.fromkeys(("Floor", "Ceil"), _values_rounded),
    "Cast": _values_cast,
    "Shape": _values_shape,
    "Gather": _values_gather,
    "Concat": _values_concat,
    "Slice": _values_slice,
    "OneHot": _values_one_hot,
    "ConstantOfShape": _values_constant_of_shape,
    "Mul": _values_arithmetic(_mul),
    "Add": _values_arithmetic(_add),
    "Sub": _values_arithmetic(_sub),
    "Div": _values_arithmetic(_div),
    "Equal": _values_arithmetic(_equal),
    "Max": _values_arithmetic(_max),
    "Where": _values_where,
}
