"""Views: tensors that hold nothing but elements of another one, rearranged, as arithmetic on indices.

    view[i1, i2, …] = source[offset + sum over digits of digit * steps],   zero outside the source

Every axis of a view is a mixed-radix number: its digits, outermost first, each with an extent and the steps that it makes
along the axes of the source. Reshape splits and joins digits, Transpose moves them, Slice, Pad and Gather change offsets,
steps and extents, and a Concat of views that differ by a constant step is one more digit. So whichever way an exporter spells
a view, what is left is its meaning.

Extents are numbers here. A :class:`Probe` gives every extent that is only a name a number and follows shapes, indices and
views at these numbers, exactly; whatever it cannot follow is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.surgery.engine.editing import constant_values
from msconv_deploy.surgery.engine.symbols import Dim, Symbols, monomial, operator

_DEEPEST = 128
"""Operators that are followed one below another; longer chains are not arithmetic of windows."""
_REMEMBERED = 1 << 16
"""Elements up to which values are kept: larger ones are weights."""


class ImpossibleError(Exception):
    """At these numbers the model itself does not run: a Reshape does not fit its input."""


@dataclass(frozen=True)
class Digit:
    """One digit of an axis: its extent, at least 2, and its step along each axis of the source."""

    extent: int
    steps: tuple[int, ...]

    def scaled(self, extent: int, factor: int) -> Digit:
        return Digit(extent, tuple(s * factor for s in self.steps))


@dataclass(frozen=True)
class View:
    """A tensor as a view.

    Attributes:
        extents: of the source.
        axes: digits of every axis of the view; none for an axis of extent 1.
        offset: index into the source of the view's first element.
    """

    extents: tuple[int, ...]
    axes: tuple[tuple[Digit, ...], ...]
    offset: tuple[int, ...]

    @staticmethod
    def identity(extents: Sequence[int]) -> View:
        rank = len(extents)
        axes = tuple(
            (Digit(extent, tuple(int(a == axis) for a in range(rank))),) if extent > 1 else ()
            for axis, extent in enumerate(extents)
        )
        return View(tuple(extents), axes, (0,) * rank)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(d.extent for d in axis) for axis in self.axes)

    def with_axis(self, axis: int, *digits: Sequence[Digit], moved: Sequence[int] = ()) -> View:
        """The view with an axis replaced by axes of these digits, and the offset moved."""
        axes = (*self.axes[:axis], *(_merged(d) for d in digits), *self.axes[axis + 1 :])
        offset = tuple(o + m for o, m in zip(self.offset, moved, strict=True)) if moved else self.offset
        return View(self.extents, axes, offset)

    def transposed(self, permutation: Sequence[int]) -> View:
        return replace(self, axes=tuple(self.axes[p] for p in permutation))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """None where an axis of the result would cut through a digit unevenly.

        Raises:
            ImpossibleError: the number of elements differs.
        """
        if math.prod(shape) != math.prod(self.shape):
            raise ImpossibleError
        left = list(_merged([d for axis in self.axes for d in axis]))[::-1]
        axes = []
        for extent in shape:
            digits: list[Digit] = []
            while extent > 1:
                digit = left.pop()
                if extent % digit.extent:
                    inner, rest = divmod(digit.extent, extent)
                    if rest:
                        return None
                    left.append(digit.scaled(inner, 1))
                    digit = digit.scaled(extent, inner)
                digits.append(digit)
                extent //= digit.extent
            axes.append(tuple(digits))
        return replace(self, axes=tuple(axes))

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View | None:
        """Elements start, start + step, …; several digits are cut only between whole runs of the inner ones."""
        digits = self.axes[axis]
        if count < 1 or not digits:
            return self if count == 1 else None
        inner = math.prod(d.extent for d in digits[1:])
        if inner > 1 and (step != 1 or start % inner or count % inner):
            return None
        outer = digits[0].scaled(count // inner, step)
        kept = [outer] if outer.extent > 1 else []
        return self.with_axis(axis, [*kept, *digits[1:]], moved=[start // inner * s for s in digits[0].steps])

    def gathered(self, axis: int, indices: NDArray[Any]) -> View | None:
        """Elements by index, where the index is a sum of one multiple of each of its digits.

        Raises:
            ImpossibleError: an index is outside.
        """
        digits, extent = self.axes[axis], self.shape[axis]
        if len(digits) > 1 or not indices.size:
            return None
        indices = np.where(indices < 0, indices + extent, indices)
        if indices.min() < 0 or indices.max() >= extent:
            raise ImpossibleError
        first = int(indices.flat[0])
        steps = digits[0].steps if digits else (0,) * len(self.extents)
        rebuilt = np.full((), first, np.int64)
        axes = []
        for position in range(indices.ndim):
            line = indices[(0,) * position + (slice(None),) + (0,) * (indices.ndim - position - 1)]
            found = _affine(line.reshape(-1, 1))
            if found is None:
                return None
            axes.append([Digit(n, tuple(int(by[0]) * s for s in steps)) for n, by in found])
            rebuilt = rebuilt[..., None] + (line - first)
        if not np.array_equal(rebuilt, indices):
            return None
        return self.with_axis(axis, *axes, moved=[first * s for s in steps])

    def padded(self, axis: int, before: int, after: int) -> View | None:
        """Zeros in front and behind; None where the elements beyond the view's ends are not all outside the source."""
        if before < 0 or after < 0:
            cropped = self.sliced(axis, max(0, -before), self.shape[axis] + min(0, before) + min(0, after))
            return cropped and cropped.padded(axis, max(0, before), max(0, after))
        if not before and not after:
            return self
        digits = self.axes[axis]
        moving = [a for a, step in enumerate(digits[0].steps) if step] if len(digits) == 1 else []
        if len(moving) != 1:
            return None
        at, step, extent = moving[0], digits[0].steps[moving[0]], digits[0].extent
        others = [
            d.steps[at] * (d.extent - 1) for i, axis_digits in enumerate(self.axes) if i != axis for d in axis_digits
        ]
        highest = self.offset[at] + sum(max(0, way) for way in others)
        lowest = self.offset[at] + sum(min(0, way) for way in others)
        if step < 1 or (before and highest - step >= 0) or (after and lowest + step * extent < self.extents[at]):
            return None
        grown = digits[0].scaled(extent + before + after, 1)
        return self.with_axis(axis, [grown], moved=[-before * s for s in digits[0].steps])


def concatenated(views: Sequence[View], axis: int) -> View | None:
    """Views of one source side by side; None unless they differ by regular steps only."""
    first = views[0]
    if any((v.extents, v.axes) != (first.extents, first.axes) for v in views):
        return None
    found = _affine(np.array([v.offset for v in views], np.int64))
    if found is None:
        return None
    outer = [Digit(n, tuple(int(b) for b in by)) for n, by in found]
    return first.with_axis(axis, [*outer, *first.axes[axis]])


def _merged(digits: Sequence[Digit]) -> tuple[Digit, ...]:
    """Digits that count on from one to the next as one digit."""
    out: list[Digit] = []
    for digit in digits:
        if out and out[-1].steps == tuple(s * digit.extent for s in digit.steps):
            out[-1] = Digit(out[-1].extent * digit.extent, digit.steps)
        else:
            out.append(digit)
    return tuple(out)


def _affine(rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]] | None:
    """[n, k] rows as (extent, step) per digit, outermost first: row = first + sum of digit * step. None if they are not."""
    count = len(rows)
    if count == 1:
        return []
    step = rows[1] - rows[0]
    regular = (rows == rows[0] + np.arange(count)[:, None] * step).all(axis=1)
    run = count if regular.all() else int(np.argmin(regular))
    if count % run:
        return None
    outer = _affine(rows[::run])
    inside = rows.reshape(count // run, run, -1)
    if outer is None or not (inside == inside[:, :1] + np.arange(run)[:, None] * step).all():
        return None
    return [*outer, (run, step)]


class Probe:
    """Shapes, integer tensors and views of a graph at one set of numbers.

    Args:
        symbols: extents of the graph.
        number: of an extent that is only a name.
    """

    def __init__(self, symbols: Symbols, number: Callable[[str], int]) -> None:
        self._symbols = symbols
        self._number = number
        self.asked: set[str] = set()
        self._shapes: dict[int, tuple[int, ...] | None] = {}
        self._values: dict[int, NDArray[Any] | None] = {}
        self._views: dict[tuple[int, int], View | None] = {}
        self._depth = 0

    # -- shapes ----------------------------------------------------------------------------------------------------

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """Extents of a tensor; those of a view are followed, those of anything else get numbers by their names."""
        if id(tensor) not in self._shapes:
            self._shapes[id(tensor)] = self._deeper(self._find_shape, tensor)
        return self._shapes[id(tensor)]

    def know_shape(self, tensor: gs.Tensor, shape: tuple[int, ...]) -> None:
        """Tell the shape of a tensor that cannot be followed."""
        self._shapes[id(tensor)] = shape

    def _find_shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        node = tensor.inputs[0] if tensor.inputs else None
        if node is not None and node.inputs and operator(node) in _FOLLOWED:
            followed = self._followed_shape(node, tensor)
            if followed is not None:
                return followed
        if node is not None and operator(node) in _ELEMENTWISE:
            return self.shape(node.inputs[0])
        dims = self._symbols.dims(tensor)
        if dims is None:
            return None
        return tuple(self._extent(d) for d in dims)

    def _extent(self, dim: Dim) -> int:
        factor, names = monomial([dim])
        self.asked.update(names)
        return factor * math.prod(self._number(name) for name in names)

    def _followed_shape(self, node: gs.Node, tensor: gs.Tensor) -> tuple[int, ...] | None:
        if operator(node) == "Concat":
            return self._concatenated_shape(node)
        before = self.shape(node.inputs[0])
        try:
            view = None if before is None else self.follow(node, [View.identity(before)], tensor)
        except ImpossibleError:  # whoever asks for the view is told
            return None
        return None if view is None else view.shape

    def _concatenated_shape(self, node: gs.Node) -> tuple[int, ...] | None:
        shapes = [self.shape(t) for t in node.inputs]
        known = [s for s in shapes if s is not None]
        if len(known) != len(shapes):
            return None
        axis = int(node.attrs["axis"]) % len(known[0])
        return (*known[0][:axis], sum(s[axis] for s in known), *known[0][axis + 1 :])

    # -- values ----------------------------------------------------------------------------------------------------

    def values(self, tensor: gs.Tensor) -> NDArray[Any] | None:
        """The values of a tensor that depends on constants and shapes only."""
        if id(tensor) in self._values:
            return self._values[id(tensor)]
        found: NDArray[Any] | None = self._deeper(self._find_values, tensor)
        if found is None or found.size <= _REMEMBERED:
            self._values[id(tensor)] = found
        return found

    def _find_values(self, tensor: gs.Tensor) -> NDArray[Any] | None:
        if isinstance(tensor, gs.Constant):
            return constant_values(tensor)
        if not tensor.inputs or not tensor.name:
            return None
        node = tensor.inputs[0]
        op = operator(node)
        if op in ("Shape", "Size"):
            shape = self.shape(node.inputs[0])
            if shape is None:
                return None
            if op == "Size":
                return np.array(math.prod(shape), np.int64)
            return np.array(shape[int(node.attrs.get("start", 0)) : node.attrs.get("end")], np.int64)
        rule = _VALUES.get(op)
        if rule is None:
            return None
        present = [bool(t.name) or isinstance(t, gs.Constant) for t in node.inputs]
        operands = [self.values(t) if there else None for t, there in zip(node.inputs, present, strict=True)]
        if any(there and value is None for there, value in zip(present, operands, strict=True)):
            return None  # not known is not the same as absent
        try:
            return np.asarray(rule(node.attrs, *operands))
        except (ArithmeticError, IndexError, TypeError, ValueError):  # not what exporters write about shapes
            return None

    def _numbers(self, node: gs.Node, position: int, attribute: str = "") -> list[int] | None:
        """A list of integers: an attribute in older opsets, an input in newer ones. None if it is not there or not known."""
        if attribute in node.attrs:
            value = node.attrs[attribute]
            return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
        if len(node.inputs) <= position or not node.inputs[position].name:
            return None
        values = self.values(node.inputs[position])
        return None if values is None else [int(v) for v in values.reshape(-1)]

    # -- views -----------------------------------------------------------------------------------------------------

    def view(self, tensor: gs.Tensor, source: gs.Tensor) -> View | None:
        """A tensor as a view of another one; None if it is none, as far as can be seen.

        Raises:
            ImpossibleError: the model does not run at these numbers.
        """
        key = (id(tensor), id(source))
        if key not in self._views:
            self._views[key] = self._deeper(self._find_view, tensor, source)
        return self._views[key]

    def _find_view(self, tensor: gs.Tensor, source: gs.Tensor) -> View | None:
        if tensor is source:
            shape = self.shape(tensor)
            return View.identity(shape) if shape is not None and 0 not in shape else None
        if not tensor.inputs or operator(tensor.inputs[0]) not in _FOLLOWED:
            return None
        node = tensor.inputs[0]
        operands = node.inputs if operator(node) == "Concat" else node.inputs[:1]
        views = []
        for operand in operands:
            view = self.view(operand, source)
            if view is None:
                return None
            views.append(view)
        return self.follow(node, views, tensor)

    def follow(self, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
        """A result of a node whose data operands are these views."""
        rule = _FOLLOWED.get(operator(node))
        if rule is None:
            return None
        found = rule(self, node, views, result)
        return found if found is None or 0 not in found.shape else None

    def _deeper(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._depth >= _DEEPEST:
            return None
        self._depth += 1
        try:
            return function(*arguments)
        finally:
            self._depth -= 1


def data_operand(tensor: gs.Tensor) -> gs.Tensor | None:
    """What a view is a view of, one operator up; None if the tensor is no result of an operator on views."""
    if not tensor.inputs or operator(tensor.inputs[0]) not in _FOLLOWED:
        return None
    operand = tensor.inputs[0].inputs[0]
    return None if isinstance(operand, gs.Constant) else operand


# -- operators on views ----------------------------------------------------------------------------------------------

_Follow = Callable[[Probe, gs.Node, Sequence[View], gs.Tensor], View | None]


def _same(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    return views[0] if result is node.outputs[0] else None


def _transpose(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    rank = len(views[0].axes)
    return views[0].transposed(node.attrs.get("perm", range(rank)[::-1]))


def _reshape(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    wanted, shape = probe._numbers(node, 1, "shape"), views[0].shape
    if wanted is None:
        return None
    if not node.attrs.get("allowzero", 0):
        wanted = [shape[i] if n == 0 and i < len(shape) else n for i, n in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(n for n in wanted if n != -1)
        if rest < 1 or math.prod(shape) % rest:
            raise ImpossibleError
        wanted = [math.prod(shape) // rest if n == -1 else n for n in wanted]
    return views[0].reshaped(wanted)


def _flatten(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    shape, axis = views[0].shape, int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return views[0].reshaped([math.prod(shape[:axis]), math.prod(shape[axis:])])


def _unsqueeze(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    axes, digits = probe._numbers(node, 1, "axes"), list(views[0].axes)
    if axes is None:
        return None
    rank = len(digits) + len(axes)
    for axis in sorted(a % rank for a in axes):
        digits.insert(axis, ())
    return replace(views[0], axes=tuple(digits))


def _squeeze(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    axes, view = probe._numbers(node, 1, "axes"), views[0]
    if axes is None:
        if len(node.inputs) > 1:
            return None
        axes = [i for i, digits in enumerate(view.axes) if not digits]
    gone = {a % len(view.axes) for a in axes}
    if any(view.axes[a] for a in gone):
        raise ImpossibleError
    return replace(view, axes=tuple(d for i, d in enumerate(view.axes) if i not in gone))


def _slice(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    view: View | None = views[0]
    starts, ends = probe._numbers(node, 1, "starts"), probe._numbers(node, 2, "ends")
    if starts is None or ends is None:
        return None
    axes, steps = probe._numbers(node, 3, "axes"), probe._numbers(node, 4)
    if (axes is None and len(node.inputs) > 3 and node.inputs[3].name) or (steps is None and len(node.inputs) > 4):
        return None
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        assert view is not None
        at = axis % len(view.axes)
        extent = view.shape[at]
        cut = range(*slice(start, end, step).indices(extent))
        if step < 1:
            return None
        if len(cut) < extent:
            view = view.sliced(at, cut.start, len(cut), step)
        if view is None:
            return None
    return view


def _split(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    view, count = views[0], len(node.outputs)
    axis = int(node.attrs.get("axis", 0)) % len(view.axes)
    sizes = probe._numbers(node, 1, "split")
    if sizes is None:
        if len(node.inputs) > 1 and node.inputs[1].name:
            return None
        each = -(-view.shape[axis] // count)
        sizes = [min(each, view.shape[axis] - i * each) for i in range(count)]
    position = next(i for i, output in enumerate(node.outputs) if output is result)
    return view.sliced(axis, sum(sizes[:position]), sizes[position]) if min(sizes) > 0 else None


def _gather(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    view, indices = views[0], probe.values(node.inputs[1])
    if indices is None:
        return None
    return view.gathered(int(node.attrs.get("axis", 0)) % len(view.axes), indices.astype(np.int64))


def _concat(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    return concatenated(views, int(node.attrs["axis"]) % len(views[0].axes))


def _pad(probe: Probe, node: gs.Node, views: Sequence[View], result: gs.Tensor) -> View | None:
    view: View | None = views[0]
    if node.attrs.get("mode", "constant") not in ("constant", b"constant") or not _pads_with_zero(probe, node):
        return None
    amounts = probe._numbers(node, 1, "pads")
    axes = probe._numbers(node, 3)
    if amounts is None or (axes is None and len(node.inputs) > 3 and node.inputs[3].name):
        return None
    axes = list(range(len(views[0].axes))) if axes is None else axes
    for axis, before, after in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        view = view and view.padded(axis % len(views[0].axes), before, after)
    return view


def _pads_with_zero(probe: Probe, node: gs.Node) -> bool:
    if node.attrs.get("value", 0.0) != 0.0:
        return False
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    value = probe.values(node.inputs[2])
    return value is not None and not value.any()


_FOLLOWED: Mapping[str, _Follow] = {
    "Identity": _same,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Pad": _pad,
}

_ELEMENTWISE = {"Cast", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Neg", "Abs", "Gelu", "Erf", "Exp", "Softmax"}
"""Some operators that keep the shape of their input, which may be a view."""

REARRANGING = ("Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze")
"""Operators whose result has every element of their input once."""


# -- values ----------------------------------------------------------------------------------------------------------


def _axes(attributes: Mapping[str, Any], axes: Any) -> tuple[int, ...] | None:
    given = attributes.get("axes") if axes is None else axes
    return None if given is None else tuple(int(a) for a in np.asarray(given).reshape(-1))


def _reshape_values(attributes: Mapping[str, Any], data: Any, shape: Any) -> Any:
    wanted = [int(n) for n in np.asarray(shape).reshape(-1)]
    if not attributes.get("allowzero", 0):
        wanted = [data.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return data.reshape(wanted)


def _unsqueeze_values(attributes: Mapping[str, Any], data: Any, axes: Any = None) -> Any:
    return np.expand_dims(data, _axes(attributes, axes) or ())


def _slice_values(attributes: Mapping[str, Any], data: Any, *given: Any) -> Any:
    parts: list[Any] = [attributes.get(n) for n in ("starts", "ends", "axes")] if "starts" in attributes else [*given]
    lists = [None if p is None else [int(v) for v in np.asarray(p).reshape(-1)] for p in parts]
    starts, ends = lists[0], lists[1]
    if starts is None or ends is None or any(p is None for p in given):
        raise ValueError("unknown bounds")
    axes = lists[2] if len(lists) > 2 and lists[2] is not None else list(range(len(starts)))
    steps = lists[3] if len(lists) > 3 and lists[3] is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut: list[slice] = [slice(None)] * data.ndim
        cut[axis] = slice(start, end, step)
        data = data[tuple(cut)]
    return data


def _divided(attributes: Mapping[str, Any], a: Any, b: Any) -> Any:
    """Integers are divided towards zero."""
    if np.asarray(a).dtype.kind not in "iu":
        return np.divide(a, b)
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _cast_values(attributes: Mapping[str, Any], data: Any) -> Any:
    return data.astype(onnx.helper.tensor_dtype_to_np_dtype(int(attributes["to"])))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda attributes, a, b: function(a, b)


def _constant_of_shape(attributes: Mapping[str, Any], shape: Any) -> Any:
    value = attributes.get("value")
    number = np.float32(0) if value is None else np.asarray(value.values).reshape(-1)[0]
    return np.full(tuple(int(n) for n in shape), number)


_VALUES: Mapping[str, Callable[..., Any]] = {
    "Identity": lambda attributes, x: x,
    "Cast": _cast_values,
    "Reshape": _reshape_values,
    "Flatten": lambda attributes, x: x.reshape(math.prod(x.shape[: attributes.get("axis", 1)]), -1),
    "Unsqueeze": _unsqueeze_values,
    "Squeeze": lambda attributes, x, axes=None: np.squeeze(x, _axes(attributes, axes)),
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
    "Concat": lambda attributes, *parts: np.concatenate(parts, int(attributes["axis"])),
    "Gather": lambda attributes, x, indices: np.take(x, indices, int(attributes.get("axis", 0))),
    "Slice": _slice_values,
    "Range": lambda attributes, start, limit, delta: np.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype
    ),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _divided,
    "Mod": lambda attrs, a, b: (np.fmod if attrs.get("fmod") else np.mod)(a, b),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Neg": lambda attributes, x: -x,
    "Floor": lambda attributes, x: np.floor(x),
    "Ceil": lambda attributes, x: np.ceil(x),
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "Greater": _binary(np.greater),
    "Where": lambda attributes, condition, yes, no: np.where(condition, yes, no),
    "Expand": lambda attributes, x, shape: x * np.ones([int(n) for n in shape], x.dtype),
    "ConstantOfShape": _constant_of_shape,
}
