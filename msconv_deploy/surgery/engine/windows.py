"""Sliding windows: which tensor they slide over, with which kernel, stride, dilation and padding, and how they are laid out.

    windows[…, j, …, t, …] = x[…, j * stride + t * dilation - pad, …]       zero outside x

Whether a tensor is that is decided by its meaning: as a :class:`~.views.View` of a candidate source, every axis of the source
must be walked by one digit that stays in the result (the window's position), by one that is summed, reduced or weighted (the
tap), or by both; or be there as it is.

Where all extents are numbers, this is exact index arithmetic at the extents of the file, and so a proof. Where extents are
names, it is repeated with other numbers for each of them in turn: the base, its double, and as many consecutive numbers as
two strides. Extents that exporters write are sums of quotients ``floor((a*H + b) / c)`` with ``c`` dividing the stride; the
difference of two such expressions repeats with period ``c`` up to a multiple of the period, so agreeing on two periods
they agree for every extent, as long as an image holds at least one window. That the expressions are of this kind is
taken from the exporters, not proved: verification compares the result at several sizes again. At extents that hold no
window the original may compute an empty tensor, where a convolution or pooling refuses its input, as PyTorch's unfold does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols, operator
from msconv_deploy.surgery.engine.views import REARRANGING, Digit, ImpossibleError, Probe, View, data_operand
from msconv_deploy.surgery.sites import node_name

BASE = 3360
"""Numbers that stand for names are multiples of this one, which every usual patch size divides."""
_DIFFERENT = 8
"""How many different numbers names have at the base; names that share one are told apart when they change in turn."""
_MOST_ABOVE = 64
"""Operators above weights that are looked at."""
_MOST_PROBES = 1024
"""Consecutive numbers that are tried for one name, at most; twice a larger stride is refused."""

Use = Literal["kept", "summed", "weighted"]
"""What becomes of an operand's axis: it is kept, it is summed or reduced away, or it is kept with a weight per index."""


class Role(NamedTuple):
    """Meaning of a digit: position on, or all of, an axis of the source; tap on it; output channel (of no axis)."""

    kind: Literal["position", "tap", "out"]
    axis: int = -1


OUT = Role("out")
Layout = tuple[tuple[Role, ...], ...]
"""Roles along every axis of a tensor, outermost first; none where the extent is 1."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows over a source, as one operand of a node.

    Attributes:
        source: the tensor that they slide over.
        dims: its extents, None where they are dynamic.
        batch: axes of the source that are there as they are.
        channel: axis of the source that is summed as it is, None if there is none.
        spatial: the axes that the windows slide over, and what lies between them, in order.
        axes: their geometry; kernel 1 along those that are only in between.
        weighted: axes of the source that are kept, with a weight per tap or index.
        layout: roles along the axes of the operand.
        result: roles along the axes of the result, the output of ``last``.
        extents: of roles; those of dynamic axes are of no meaning.
        nodes: the operators that make the windows, nearest first.
        node: that reads them.
        behind: the operators that add a bias to its result or only rearrange it, in order.
        bias: a tensor added on the way, one value per output channel.
    """

    source: gs.Tensor
    dims: tuple[int | None, ...]
    batch: tuple[int, ...]
    channel: int | None
    spatial: tuple[int, ...]
    axes: tuple[Axis, ...]
    weighted: frozenset[int]
    layout: Layout
    result: Layout
    extents: Mapping[Role, int]
    nodes: tuple[gs.Node, ...]
    node: gs.Node
    behind: tuple[gs.Node, ...]
    bias: gs.Tensor | None = None

    @property
    def last(self) -> gs.Node:
        """The node whose output is computed otherwise."""
        return self.behind[-1] if self.behind else self.node

    @property
    def kernel(self) -> list[int]:
        return [axis.kernel for axis in self.axes]

    @property
    def tapped(self) -> frozenset[int]:
        """Axes of the source along which there are several taps."""
        return frozenset(a for a, axis in zip(self.spatial, self.axes, strict=True) if axis.kernel > 1)

    @property
    def padded(self) -> bool:
        return any(axis.padded for axis in self.axes)

    def pool_attributes(self) -> dict[str, list[int]]:
        """Kernel and strides, and dilations where there are any."""
        found = {"kernel_shape": self.kernel, "strides": [a.stride for a in self.axes]}
        if any(a.dilation != 1 for a in self.axes):
            found["dilations"] = [a.dilation for a in self.axes]
        return found

    @property
    def pads(self) -> list[int]:
        """As Conv and pooling have them: all before, then all after."""
        return [a.pad_before for a in self.axes] + [a.pad_after for a in self.axes]

    @property
    def pads_by_axis(self) -> dict[int, tuple[int, int]]:
        """Of a tensor with batch and channels before the spatial axes."""
        return {i + 2: (a.pad_before, a.pad_after) for i, a in enumerate(self.axes)}

    def found(self) -> list[str]:
        return [f"{node.op} {node_name(node)}" for node in self.nodes]


@dataclass(frozen=True, eq=False)
class Reading:
    """A node that reads windows, as the recognizer sees it.

    Attributes:
        node: the node.
        operand: what it reads.
        uses: of every axis of the operand.
        out: extent of the output channels.
        result: for every axis of the output: axes of the operand, or -1 for the output channels.
        bias: that the node adds by itself.
        takes_bias: whether a bias behind it can be absorbed.
        pooled: whether channels are kept and two axes before the spatial ones are wanted.
    """

    node: gs.Node
    operand: gs.Tensor
    uses: tuple[Use, ...]
    result: tuple[int | None, ...]
    out: int = 1
    bias: gs.Tensor | None = None
    takes_bias: bool = False
    pooled: bool = False


@dataclass(frozen=True)
class _Fit:
    """What one set of numbers says: all but ``pads`` must be the same for every set.

    ``pads`` is, per spatial axis, the range of padding behind that gives the number of windows at these numbers.
    """

    batch: tuple[int, ...]
    channel: int | None
    spatial: tuple[int, ...]
    sliding: tuple[int, ...]
    axes: tuple[Axis, ...]
    weighted: frozenset[int]
    layout: Layout
    pads: tuple[tuple[int, int], ...]


class WindowFinder:
    """Finds windows in one graph.

    Args:
        graph: not edited yet.
        symbols: its extents.
    """

    def __init__(self, graph: gs.Graph, symbols: Symbols) -> None:
        self._outputs = {id(tensor) for tensor in graph.outputs}
        self._symbols = symbols
        self._names: dict[str, int] = {}
        self._found: dict[tuple[int, int, tuple[Use, ...]], Windows | Refusal | None] = {}
        self.base = self._probe({})

    def _probe(self, changed: Mapping[str, int]) -> Probe:
        def number(name: str) -> int:
            return changed.get(name, self._base_of(name))

        return Probe(self._symbols, number)

    def _base_of(self, name: str) -> int:
        return BASE * (1 + self._names.setdefault(name, len(self._names)) % _DIFFERENT)

    def find(self, reading: Reading) -> Windows | Refusal | None:
        """The windows that a node reads, why they are not usable, or None if there are none."""
        key = (id(reading.node), id(reading.operand), reading.uses)
        if key not in self._found:
            self._found[key] = self._find(reading)
        return self._found[key]

    def _find(self, reading: Reading) -> Windows | Refusal | None:
        candidates = [reading.operand]
        while (above := data_operand(candidates[-1])) is not None:
            candidates.append(above)
        if len(candidates) == 1:
            return None
        refusal: Refusal | None = None
        fits: list[tuple[gs.Tensor, _Fit]] = []
        for source in candidates[1:]:
            fit = self._fit(self.base, reading, source)
            if isinstance(fit, Refusal):
                refusal = refusal or fit
            elif fit is not None:
                fits.append((source, fit))
        # Natural layouts first, and of those the farthest: padding in between is absorbed.
        fits.reverse()
        fits.sort(key=lambda found: not _natural(found[1], reading.pooled))
        for source, fit in fits:
            found = self._proved(reading, source, fit, candidates)
            if not isinstance(found, Refusal):
                return found
            refusal = found
        return refusal

    def is_fixed(self, tensor: gs.Tensor) -> bool:
        """Are the values of a tensor known and the same whatever the extents are?"""
        if is_constant(tensor):
            return True
        values = self.base.values(tensor)
        other = self._probe(dict.fromkeys(self._names, 2 * BASE + 1)).values(tensor)
        return values is not None and other is not None and np.array_equal(values, other)

    # -- one set of numbers ------------------------------------------------------------------------------------------

    def _fit(self, probe: Probe, reading: Reading, source: gs.Tensor) -> _Fit | Refusal | None:
        try:
            view = probe.view(reading.operand, source)
        except ImpossibleError:
            return None
        if view is None or len(view.axes) != len(reading.uses):
            return None
        return _fitted(view, reading)

    # -- all of them -------------------------------------------------------------------------------------------------

    def _proved(
        self, reading: Reading, source: gs.Tensor, fit: _Fit, candidates: Sequence[gs.Tensor]
    ) -> Windows | Refusal | None:
        nodes = [t.inputs[0] for t in itertools.takewhile(lambda t: t is not source, candidates)]
        if len(fit.sliding) == 1 and all(operator(node) in REARRANGING for node in nodes):
            return None  # an axis that is only cut into pieces, without a copy
        name = (node_name(reading.node),)
        probe = self._probe({})
        layout, behind, bias, extents = self._followed(probe, reading, source, fit)
        pads, shapes = [fit.pads], [probe.shape(source)]
        varied = set[str]()
        for changed in self._others(probe.asked, fit):
            other = self._probe(changed)
            try:
                view = other.view(reading.operand, source)
            except ImpossibleError:
                continue  # the model does not run there
            again = None if view is None or len(view.axes) != len(reading.uses) else _fitted(view, reading)
            if not isinstance(again, _Fit) or replace(again, pads=fit.pads) != fit:
                return Refusal("its windows are placed otherwise at other extents", name)
            there = self._followed(other, reading, source, again)
            if there[0] != layout or len(there[1]) != len(behind) or there[2] is not bias:
                return Refusal("its result is laid out otherwise at other extents", name)
            pads.append(again.pads)
            shapes.append(other.shape(source))
            varied |= set(changed)
        if varied != probe.asked:
            return Refusal("it runs at no other extents than those tried first", name)
        varying = [len(set(extent)) > 1 for extent in zip(*filter(None, shapes), strict=True)]
        if any(axis.stride * 2 > _MOST_PROBES for axis in fit.axes) and any(varying):
            return Refusal(f"a stride above {_MOST_PROBES // 2} is not proved for every extent", name)
        axes = []
        for i, axis in enumerate(fit.axes):
            low, high = max(p[i][0] for p in pads), min(p[i][1] for p in pads)
            if low > high or high < 0:
                return Refusal("the padding behind it depends on the extents", name)
            axes.append(replace(axis, pad_after=max(0, low)))
        known = shapes[0] or ()
        return Windows(
            source,
            tuple(None if varies else n for n, varies in zip(known, varying, strict=True)),
            fit.batch,
            fit.channel,
            fit.spatial,
            tuple(axes),
            fit.weighted,
            fit.layout,
            layout,
            extents,
            tuple(nodes),
            reading.node,
            tuple(behind),
            bias,
        )

    def _others(self, names: Iterable[str], fit: _Fit) -> list[dict[str, int]]:
        steps = min(_MOST_PROBES, 2 * max(axis.stride for axis in fit.axes))
        found = []
        for name in sorted(names):
            number = self._base_of(name)
            found += [{name: number + i} for i in range(1, steps + 1)]
            found.append({name: 2 * number})
        return found

    def _followed(
        self, probe: Probe, reading: Reading, source: gs.Tensor, fit: _Fit
    ) -> tuple[Layout, list[gs.Node], gs.Tensor | None, dict[Role, int]]:
        """The layout of the result behind the operators that only rearrange it, and the bias on the way."""
        view = probe.view(reading.operand, source)
        assert view is not None
        extents = {
            role: digit.extent
            for roles, axis in zip(fit.layout, view.axes, strict=True)
            for role, digit in zip(roles, axis, strict=True)
        }
        if reading.out > 1:
            extents[OUT] = reading.out
        roles = sorted(extents)
        layout: Layout = tuple(
            ((OUT,) if reading.out > 1 else ()) if axis == -1 else () if axis is None else fit.layout[axis]
            for axis in reading.result
        )
        node, behind, bias = reading.node, list[gs.Node](), reading.bias
        following = _of_roles(layout, roles, extents)
        while True:
            result = node.outputs[0]
            probe.know_shape(result, following.shape)
            if id(result) in self._outputs or len(result.outputs) != 1:
                break
            reader = result.outputs[0]
            if reading.takes_bias and bias is None and operator(reader) == "Add" and len(reader.inputs) == 2:
                other = reader.inputs[1] if reader.inputs[0] is result else reader.inputs[0]
                if not _is_bias(other, layout, reading.out):
                    break
                bias, node = other, reader
                behind.append(node)
                continue
            if operator(reader) not in REARRANGING or reader.inputs[0] is not result:
                break
            try:
                after = probe.follow(reader, [following], reader.outputs[0])
            except ImpossibleError:
                break
            moved = None if after is None else _roles_of(after, roles, extents)
            if after is None or moved is None:
                break
            node, following, layout = reader, after, moved
            behind.append(node)
        return layout, behind, bias, extents


def is_constant(tensor: gs.Tensor) -> bool:
    """Does a tensor depend on constants only?"""
    stack, seen = [tensor], set[int]()
    while stack:
        item = stack.pop()
        if isinstance(item, gs.Constant) or id(item) in seen or not item.name:
            continue
        if not item.inputs or len(seen) > _MOST_ABOVE:
            return False
        seen.add(id(item))
        stack.extend(item.inputs[0].inputs)
    return True


def _natural(fit: _Fit, pooled: bool) -> bool:
    """Is the source laid out as convolutions and pooling want it?"""
    order = [*fit.batch, *([] if fit.channel is None else [fit.channel]), *fit.spatial]
    if len(fit.batch) != (2 if pooled else 1) or (fit.channel is None) is not pooled:
        return False
    return order == sorted(order)


def _fitted(view: View, reading: Reading) -> _Fit | Refusal | None:
    """The windows that a view is; a refusal where something slides, but not like windows."""
    kept: dict[int, Digit] = {}
    taps: dict[int, Digit] = {}
    weighted = set[int]()
    layout: list[tuple[Role, ...]] = []
    for digits, use in zip(view.axes, reading.uses, strict=True):
        roles = []
        for digit in digits:
            moving = [a for a, step in enumerate(digit.steps) if step]
            if len(moving) != 1 or digit.steps[moving[0]] < 1:
                return None
            axis = moving[0]
            mine = kept if use == "kept" else taps
            if axis in mine:
                return None
            mine[axis] = digit
            weighted |= {axis} if use == "weighted" else set()
            roles.append(Role("position" if use == "kept" else "tap", axis))
        layout.append(tuple(roles))
    rank = len(view.extents)
    whole = {a for a in range(rank) if not (a in kept and a in taps) and _is_whole(view, a, kept.get(a) or taps.get(a))}
    sliding = [a for a in range(rank) if a not in whole]
    if not any(a in taps and a in kept for a in sliding):
        return None
    name = (node_name(reading.node),)
    if any(view.offset[a] > 0 for a in sliding):
        return Refusal("its first windows are left out", name)
    channel, batch, between = _assigned(rank, whole, sliding, kept, taps, reading.pooled)
    spatial = tuple(sorted([*sliding, *between]))
    if len(spatial) > 3:
        return Refusal("its windows slide over more than three axes", name)
    axes: list[Axis] = []
    pads: list[tuple[int, int]] = []
    for a in spatial:
        position, tap = kept.get(a), taps.get(a)
        geometry = Axis(
            tap.extent if tap else 1,
            position.steps[a] if position else 1,
            tap.steps[a] if tap else 1,
            -view.offset[a],
        )
        count = position.extent if position else 1
        low = (count - 1) * geometry.stride + geometry.reach - geometry.pad_before - view.extents[a]
        if position is None and low < 0:  # one window: any stride that leaves no room for a second one
            geometry = replace(geometry, stride=1 - low)
        axes.append(geometry)
        pads.append((low, low + geometry.stride - 1))
        if max(pads[-1]) < 0:
            return Refusal("its last windows are left out", name)
    return _Fit(batch, channel, spatial, tuple(sliding), tuple(axes), frozenset(weighted), tuple(layout), tuple(pads))


def _is_whole(view: View, axis: int, digit: Digit | None) -> bool:
    """Is an axis of the source there as it is?"""
    extent, step = (1, 1) if digit is None else (digit.extent, digit.steps[axis])
    return view.offset[axis] == 0 and extent == view.extents[axis] and step == 1


def _assigned(
    rank: int,
    whole: set[int],
    sliding: Sequence[int],
    kept: Mapping[int, Digit],
    taps: Mapping[int, Digit],
    pooled: bool,
) -> tuple[int | None, tuple[int, ...], list[int]]:
    """The channel axis, the batch axes and the axes between the sliding ones, among those that are there as they are."""
    summed = [a for a in sorted(whole) if a in taps]
    rest = [a for a in sorted(whole) if a not in taps]
    if pooled:
        return (summed[0] if summed else None), tuple(rest[:2]), [*rest[2:], *summed[1:]]
    channel = summed[0] if summed else None
    if channel is None and len(rest) == 2 and 1 in rest and 1 not in kept:  # of extent 1
        channel, rest = 1, [0]
    behind = [] if channel is None or channel > min(sliding) else [a for a in rest if a > channel]
    return channel, tuple(a for a in rest if a not in behind), [*behind, *summed[1:]]


def _of_roles(layout: Layout, roles: Sequence[Role], extents: Mapping[Role, int]) -> View:
    """A tensor of this layout as a view of one with an axis per role."""
    digits = {role: Digit(extents[role], tuple(int(r == role) for r in roles)) for role in roles}
    axes = tuple(tuple(digits[role] for role in axis) for axis in layout)
    return View(tuple(extents[r] for r in roles), axes, (0,) * len(roles))


def _roles_of(view: View, roles: Sequence[Role], extents: Mapping[Role, int]) -> Layout | None:
    """The other way round; None where an axis holds a part of a role."""
    layout = []
    for axis in view.axes:
        found = []
        for digit in axis:
            moving = [role for role, step in zip(roles, digit.steps, strict=True) if step]
            if len(moving) != 1 or sum(digit.steps) != 1 or digit.extent != extents[moving[0]]:
                return None
            found.append(moving[0])
        layout.append(tuple(found))
    return tuple(layout)


def _is_bias(tensor: gs.Tensor, layout: Layout, out: int) -> bool:
    """A constant of one value per output channel, or one for all."""
    if not isinstance(tensor, gs.Constant) or len(tensor.shape) > len(layout):
        return False
    lead = len(layout) - len(tensor.shape)
    return all(n == 1 or (layout[lead + i] == (OUT,) and n == out) for i, n in enumerate(tensor.shape))


# -- writing -----------------------------------------------------------------------------------------------------------


class Arranger:
    """Writes the transpositions and reshapes between a tensor's layout and another one.

    Args:
        builder: for the nodes.
        extent: of a role: a number, or (tensor, axis) that has it at run time.
    """

    def __init__(self, builder: GraphBuilder, extent: Callable[[Role], int | tuple[str, int]]) -> None:
        self._builder = builder
        self._extent = extent

    def arrange(self, x: str, have: Layout, want: Layout, output: str | None = None) -> str:
        """The same elements in another layout; the tensor itself where that is no difference."""
        if have == want:
            return x if output is None else self._builder.add("Identity", x, output=output)
        if [axis for axis in have if axis] == [axis for axis in want if axis]:
            return self._without_ones(x, have, want, output)
        order = [role for axis in want for role in axis]
        if [role for axis in have for role in axis] != order:
            if any(len(axis) > 1 for axis in have):
                single: Layout = tuple((role,) for axis in have for role in axis)
                x, have = self._reshape(x, have, single), single
            permutation, have = _permutation(have, order, want)
            x = self._builder.add(
                "Transpose", x, perm=permutation, output=output if have == want else None, hint="order"
            )
        return x if have == want else self._reshape(x, have, want, output)

    def _without_ones(self, x: str, have: Layout, want: Layout, output: str | None) -> str:
        """Axes of extent 1 taken out and put in."""
        builder = self._builder
        gone, new = ([i for i, axis in enumerate(layout) if not axis] for layout in (have, want))
        if gone:
            last = None if new else output
            if builder.opset < 13:
                x = builder.add("Squeeze", x, output=last, axes=gone)
            else:
                x = builder.add("Squeeze", x, builder.ints(gone), output=last)
        if new:
            if builder.opset < 13:
                x = builder.add("Unsqueeze", x, output=output, axes=new)
            else:
                x = builder.add("Unsqueeze", x, builder.ints(new), output=output)
        return x

    def _reshape(self, x: str, have: Layout, want: Layout, output: str | None = None) -> str:
        builder = self._builder
        shape: list[int | str] = []
        unknown: list[int] = []
        for position, axis in enumerate(want):
            extents = [self._extent(role) for role in axis]
            if all(isinstance(e, int) for e in extents):
                shape.append(math.prod(e for e in extents if isinstance(e, int)))
            elif position < len(have) and have[position] == axis:
                shape.append(0)  # as it is
            else:
                unknown.append(position)
                shape.append(-1)
        # -1 cannot be worked out beside an extent that may be 0, such as that of an empty batch
        if len(unknown) > 1 or 0 in shape:
            for position in unknown:
                shape[position] = self._product([self._extent(role) for role in want[position]])
        if all(isinstance(n, int) for n in shape):
            target = builder.ints(shape)
        else:
            parts = [builder.ints([n]) if isinstance(n, int) else n for n in shape]
            target = builder.add("Concat", *parts, axis=0, hint="shape")
        return builder.add("Reshape", x, target, output=output, hint="arranged")

    def _product(self, extents: Iterable[int | tuple[str, int]]) -> str:
        """As a tensor of one element."""
        builder, extents = self._builder, list(extents)
        named = [e for e in extents if not isinstance(e, int)]
        first = named[0] if named else ("", 0)
        if len(named) == len(extents) > 1 and named == [(first[0], first[1] + i) for i in range(len(named))]:
            return self._product_of_neighbours(*first, len(named))
        factors = [
            builder.ints([e])
            if isinstance(e, int)
            else builder.add("Gather", builder.add("Shape", e[0]), builder.ints([e[1]]))
            for e in extents
        ]
        total = factors[0]
        for factor in factors[1:]:
            total = builder.add("Mul", total, factor)
        return total

    def _product_of_neighbours(self, tensor: str, start: int, count: int) -> str:
        """Of extents that follow each other: one reduction instead of a node for each."""
        builder, end = self._builder, start + count
        if builder.opset < 15:
            shape = builder.add("Slice", builder.add("Shape", tensor), builder.ints([start]), builder.ints([end]))
        else:
            shape = builder.add("Shape", tensor, start=start, end=end)
        return builder.add("ReduceProd", shape, keepdims=1)


def _permutation(have: Layout, order: Sequence[Role], want: Layout) -> tuple[list[int], Layout]:
    """How to transpose axes of one role each into an order; axes of extent 1 go where the wanted layout has them."""
    at = {axis[0]: i for i, axis in enumerate(have) if axis}
    ones = [i for i, axis in enumerate(have) if not axis]
    permutation: list[int] = []
    for axis in want:
        if axis:
            permutation += [at[role] for role in axis]
        elif ones:
            permutation.append(ones.pop(0))
    permutation += ones
    return permutation, tuple(have[p] for p in permutation)


class WindowWriter:
    """Writes what a rule computes of a source, from the source's layout to the result's.

    Args:
        builder: for the nodes.
        windows: that the rule replaces.
        pooled: see :class:`Reading`.
    """

    def __init__(self, builder: GraphBuilder, windows: Windows, pooled: bool = False) -> None:
        self._builder = builder
        self._windows = windows
        self._pooled = pooled
        self._computed: tuple[str, Layout] | None = None
        self._arranger = Arranger(builder, self._extent)

    def source(self) -> str:
        """The source as [N, C, *spatial]."""
        windows = self._windows
        have: Layout = tuple(self._role(a) for a in range(len(windows.dims)))
        return self._arranger.arrange(str(windows.source.name), have, self._input_layout())

    def output_layout(self, channels: tuple[Role, ...]) -> Layout:
        """[N, channels, *positions], as a convolution or pooling makes it."""
        batch, own = self._leading()
        spatial = [Role("position", a) for a in self._windows.spatial]
        held = {role for axis in self._windows.result for role in axis}
        return (batch, own or channels, *((role,) if role in held else () for role in spatial))

    def finish(self, op: str, *operands: str, channels: tuple[Role, ...] = (), **attributes: Any) -> None:
        """The operator that computes [N, channels, *positions], and its result arranged as the original's."""
        have, want = self.output_layout(channels), self._windows.result
        output = str(self._windows.last.outputs[0].name)
        direct = have == want
        computed = self._builder.add(op, *operands, output=output if direct else None, **attributes)
        self._computed = (computed, have)
        if not direct:
            self._arranger.arrange(computed, have, want, output)

    def _role(self, axis: int) -> tuple[Role, ...]:
        """The axis of the source; roles of axes that are summed or slid over are theirs alone."""
        role = Role("tap", axis) if axis == self._windows.channel else Role("position", axis)
        return () if self._windows.dims[axis] == 1 else (role,)

    def _leading(self) -> tuple[tuple[Role, ...], tuple[Role, ...]]:
        """Roles of the batch axis, and of the channels where they are kept."""
        roles = [self._role(a) for a in self._windows.batch]
        if self._pooled and len(roles) == 2:
            return roles[0], roles[1]
        return tuple(role for axis in roles for role in axis), ()

    def _input_layout(self) -> Layout:
        windows = self._windows
        batch, own = self._leading()
        channel = own if windows.channel is None else self._role(windows.channel)
        return (batch, channel, *(self._role(a) for a in windows.spatial))

    def _extent(self, role: Role) -> int | tuple[str, int]:
        windows = self._windows
        if role == OUT or (role.kind == "tap" and role.axis != windows.channel):
            return windows.extents[role]
        dim = windows.dims[role.axis]
        if isinstance(dim, int):
            slides = role.kind == "position" and role.axis in windows.spatial
            return windows.extents.get(role, 1) if slides and self._computed is not None else dim
        if self._computed is not None and role.axis in windows.spatial:
            name, layout = self._computed
            return name, layout.index((role,))
        return str(windows.source.name), role.axis
