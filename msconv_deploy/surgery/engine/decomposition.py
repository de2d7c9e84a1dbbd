"""Decomposition: a tensor as a list of segments, found backwards from the tensor, by meaning.

A *segment* is a range of channels (indices along one axis) with one set of uniform axes and one core. What makes a
tensor uniform is a broadcast, wherever it stands: Expand, Tile, Resize from extent 1, ConstantOfShape, arithmetic with a
small operand, a constant whose values repeat. Operators that keep copies copies (elementwise, BatchNormalization,
permutations, reshapes that do not mix, no-op slices and pads) carry the knowledge on; every other operator ends it, and
its output is one dense segment.

Only structure counts: an extent is 1 because the file says so, never because an example had it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.cores import (
    Core,
    Literal,
    Made,
    concatenated,
    existing,
    sliced,
    squeezed,
    transposed,
    unsqueezed,
)
from msconv_deploy.surgery.engine.operators import BROADCASTING, UNARY, trains
from msconv_deploy.surgery.engine.symbols import (
    WHOLE,
    Dim,
    Dims,
    Symbols,
    axes_of,
    broadcast,
    monomial,
    operator,
    pad_amounts,
    resize_scales,
    slice_ranges,
    squeezed_axes,
)

MAX_DEPTH = 150
"""Operators between a tile and its contraction; what lies behind more of them is taken for dense."""

LARGEST_TESTED_CONSTANT = 1 << 26


@dataclass(frozen=True, eq=False)
class Segment:
    """A range of channels.

    Attributes:
        size: number of channels.
        core: the information without the copies, extent 1 on the uniform axes.
        uniform: axes along which all slices are equal. The channel axis itself is one of them where all channels of the
            segment are equal.
        found: how the uniformity was found: the nodes that make the copies, outermost first.
    """

    size: int
    core: Core
    uniform: frozenset[int]
    found: tuple[str, ...] = ()

    def part(self, start: int, stop: int, axis: Channels) -> Segment:
        """Channels ``start`` to ``stop`` of it."""
        if (start, stop) == (0, self.size):
            return self
        core = self.core if axis is None or axis in self.uniform else sliced(self.core, {axis: slice(start, stop)})
        return replace(self, size=stop - start, core=core)


Segments = tuple[Segment, ...]
Channels = int | None
"""The axis along which a tensor is decomposed; None for a tensor that has no channels yet: it is one segment of size 1."""


def _size(dims: Dims, axis: Channels) -> int | None:
    extent = 1 if axis is None else dims[axis]
    return extent if isinstance(extent, int) else None


class Decomposer:
    """Finds and remembers decompositions.

    Args:
        symbols: extents of the graph's tensors.
        opset: of the default domain; cores are written for it.
    """

    def __init__(self, symbols: Symbols, opset: int) -> None:
        self.symbols = symbols
        self.opset = opset
        self._found: dict[tuple[int, Channels], Segments | None] = {}
        self._kept: list[gs.Tensor] = []
        self._stand_ins: dict[int, Core] = {}
        self._depth = 0

    def declare(self, tensor: Any, core: Core) -> None:
        """A tensor that is not part of the graph, and how to compute it where nothing is known of it."""
        self._kept.append(tensor)
        self._stand_ins[id(tensor)] = core

    def whole(self, tensor: Any, dims: Dims) -> Core:
        """A tensor with all of its copies."""
        return self._stand_ins.get(id(tensor)) or existing(tensor, dims)

    def segments(self, tensor: gs.Tensor, axis: Channels) -> Segments | None:
        """The segments of a tensor along an axis; None if its rank or its extent along the axis is not known.

        A tensor of which nothing is known is one dense segment whose core is the tensor itself.
        """
        key = (id(tensor), axis)
        if key in self._found:
            return self._found[key]
        dims = self.symbols.dims(tensor)
        found = None if dims is None or _size(dims, axis) is None else self._look(tensor, axis, dims)
        self._kept.append(tensor)
        self._found[key] = found
        return found

    def _look(self, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments:
        size = _size(dims, axis)
        assert size is not None
        found: Segments | None = None
        if isinstance(tensor, gs.Constant):
            found = _constant_segments(tensor, axis, dims)
        elif tensor.inputs and self._depth < MAX_DEPTH:
            rule = RULES.get(operator(tensor.inputs[0]))
            if rule is not None:
                self._depth += 1
                try:
                    found = rule(self, tensor.inputs[0], tensor, axis, dims)
                finally:
                    self._depth -= 1
        if found is None or not any(s.uniform for s in found):
            return (Segment(size, self.whole(tensor, dims), frozenset()),)
        assert sum(s.size for s in found) == size, (tensor.name, axis, dims, found)
        return found


# -- constants -------------------------------------------------------------------------------------------------------


def _constant_segments(tensor: gs.Constant, axis: Channels, dims: Dims) -> Segments | None:
    """Test a constant by value, channel by channel; neighbours with the same uniform axes form a segment."""
    if int(np.prod([d for d in dims if isinstance(d, int)], dtype=np.int64)) > LARGEST_TESTED_CONSTANT:
        return None
    array = np.asarray(tensor.values)
    if array.size == 0:
        return None
    channels = 1 if axis is None else array.shape[axis]
    sets: list[set[int]] = [set() for _ in range(channels)]
    for other in range(array.ndim):
        if other == axis or array.shape[other] == 1:
            continue
        equal = (array == np.take(array, [0], other)).all(axis=tuple(i for i in range(array.ndim) if i != axis))
        for channel in np.flatnonzero(np.atleast_1d(equal)):
            sets[channel].add(other)
    segments: list[Segment] = []
    start = 0
    for stop in range(1, channels + 1):
        if stop < channels and sets[stop] == sets[start]:
            continue
        uniform = frozenset(sets[start])
        cut = [slice(0, 1) if i in uniform else slice(None) for i in range(array.ndim)]
        if axis is not None:
            cut[axis] = slice(start, stop)
        part = array[tuple(cut)]
        segments.append(Segment(stop - start, Literal(tuple(part.shape), part), uniform, (f"constant {tensor.name}",)))
        start = stop
    return tuple(segments)


# -- helpers of the rules --------------------------------------------------------------------------------------------

Rule = Callable[[Decomposer, gs.Node, gs.Tensor, Channels, Dims], Segments | None]


def _aligned(parts: list[Segments], axes: Sequence[Channels]) -> list[list[Segment]] | None:
    """Cut several lists of segments at all of their boundaries; result[k] are the k-th pieces of every list.

    None if they are not equally long, as in a model whose shapes contradict each other.
    """
    if len({sum(segment.size for segment in segments) for segments in parts}) > 1:
        return None
    bounds: set[int] = set()
    for segments in parts:
        at = 0
        for segment in segments:
            at += segment.size
            bounds.add(at)
    ordered = sorted(bounds)
    columns: list[list[Segment]] = []
    for segments, axis in zip(parts, axes, strict=True):
        pieces: list[Segment] = []
        at, index = 0, 0
        for segment in segments:
            stop = at + segment.size
            start = at
            while index < len(ordered) and ordered[index] <= stop:
                pieces.append(segment.part(start - at, ordered[index] - at, axis))
                start = ordered[index]
                index += 1
            at = stop
        columns.append(pieces)
    return [list(pieces) for pieces in zip(*columns, strict=True)]


def _names(*found: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in found for name in names))


def describe(node: gs.Node) -> str:
    return f"{node.op} {node.name or node.outputs[0].name}"


def _attributes(node: gs.Node) -> dict[str, Any]:
    return dict(node.attrs)


# -- elementwise -----------------------------------------------------------------------------------------------------


def _elementwise(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """op(a, b, ...) with broadcasting: a segment is uniform where every operand is uniform, or has extent 1."""
    if tensor is not node.outputs[0] or any(len(o.outputs) for o in node.outputs[1:]):
        return None
    operands = [t for t in node.inputs if t.name]
    shapes = [this.symbols.dims(t) for t in operands]
    if any(s is None for s in shapes):
        return None
    known: list[Dims] = [s for s in shapes if s is not None]
    spanning: list[tuple[int, Segments, Channels]] = []  # operand, segments, its channel axis
    whole: dict[int, tuple[Core, frozenset[int], tuple[str, ...]]] = {}
    for position, (operand, shape) in enumerate(zip(operands, known, strict=True)):
        shift = len(dims) - len(shape)
        own = None if axis is None or axis < shift else axis - shift
        segments = this.segments(operand, own)
        if segments is None:
            return None
        if axis is None or (own is not None and shape[own] == dims[axis]):
            spanning.append((position, segments, own))
        elif own is None or shape[own] == 1:  # one channel, or none, beside all of the others
            whole[position] = (segments[0].core, _spread(segments[0].uniform, shape, shift, dims), segments[0].found)
        else:
            return None
    if not spanning:
        return None
    segments_out = []
    aligned = _aligned([s for _, s, _ in spanning], [own for _, _, own in spanning])
    if aligned is None:
        return None
    for pieces in aligned:
        cores: dict[int, Core] = {position: core for position, (core, _, _) in whole.items()}
        sets = {position: uniform for position, (_, uniform, _) in whole.items()}
        found = [names for _, _, names in whole.values()]
        for (position, _, _), piece in zip(spanning, pieces, strict=True):
            cores[position] = piece.core
            shift = len(dims) - len(known[position])
            sets[position] = _spread(piece.uniform, known[position], shift, dims)
            found.append(piece.found)
        if any(_extent_is_lost(at, known, sets, len(dims)) for at in range(len(dims)) if at != axis):
            return None
        uniform = frozenset.intersection(*sets.values())
        inputs, position = [], 0
        for t in node.inputs:
            inputs.append(cores[position] if t.name else None)
            position += bool(t.name)
        core_dims = _core_dims([c.dims for c in cores.values()], dims, uniform, axis, pieces[0].size)
        core: Core = Made(core_dims, node.op, tuple(inputs), _attributes(node))
        if node.op == "PRelu" and not _broadcasts_to(cores[1].dims, cores[0].dims):
            core = _leaky(cores[0], cores[1], core_dims)
        names = _names(*found) or ((describe(node),) if uniform else ())
        segments_out.append(Segment(pieces[0].size, core, uniform, names))
    return tuple(segments_out)


def _leaky(x: Core, slope: Core, dims: Dims) -> Core:
    """PRelu of a core that lacks extents which its slope has: relu(x) - slope * relu(-x), which broadcasts both ways."""
    negative = Made(x.dims, "Relu", (Made(x.dims, "Neg", (x,), {}),), {})
    return Made(dims, "Sub", (Made(x.dims, "Relu", (x,), {}), Made(dims, "Mul", (slope, negative), {})), {})


def _broadcasts_to(dims: Dims, target: Dims) -> bool:
    """Is every extent 1 or that of the target?"""
    shift = len(target) - len(dims)
    return shift >= 0 and all(d in (1, target[i + shift]) for i, d in enumerate(dims))


def _spread(uniform: frozenset[int], shape: Dims, shift: int, dims: Dims) -> frozenset[int]:
    """Uniform axes of an operand as axes of the result: broadcasting makes an axis of extent 1, or a missing one, uniform."""
    out = {a + shift for a in uniform}
    for i, dim in enumerate(dims):
        if dim != 1 and (i < shift or shape[i - shift] == 1):
            out.add(i)
    return frozenset(out)


def _extent_is_lost(axis: int, shapes: Sequence[Dims], uniform: Mapping[int, frozenset[int]], rank: int) -> bool:
    """May copies along an axis of the result be what gives it its extent, beside an operand that is no copy there?

    Such an operand keeps its own extent in the core, while the copies are at extent 1 there. If its extent is 1 at run time,
    only the copies knew the result's.

    Args:
        shapes: of the operands.
        uniform: operand -> its uniform axes, as axes of the result.
        rank: of the result.
    """
    copied, kept = set[Dim](), set[Dim]()
    for operand, shape in enumerate(shapes):
        own = axis - rank + len(shape)
        if own >= 0 and shape[own] != 1:
            (copied if axis in uniform[operand] else kept).add(shape[own])
    return bool(kept and copied - kept) and not any(isinstance(extent, int) for extent in kept)


def _core_dims(shapes: list[Dims], dims: Dims, uniform: frozenset[int], axis: Channels, size: int) -> Dims:
    found = broadcast(shapes)
    out: list[Dim] = []
    for i, dim in enumerate(found):
        at = i + len(dims) - len(found)
        if at in uniform:
            out.append(1)
        elif at == axis:
            out.append(size)
        else:
            out.append(dims[at] if dim is None else dim)
    return tuple(out)


def _unary(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """op(a, rest...): the rest are scalars or settings, passed on as they are."""
    if tensor is not node.outputs[0] or any(o.outputs for o in node.outputs[1:]):
        return None
    if node.op == "Dropout" and (_training(node)):
        return None
    segments = this.segments(node.inputs[0], axis)
    if segments is None:
        return None
    if node.op in ("Identity", "Dropout"):
        return segments
    rest = []
    for t in node.inputs[1:]:
        shape = this.symbols.dims(t) if t.name else ()
        if shape is None or any(d != 1 for d in shape):
            return None
        rest.append(existing(t, shape) if t.name else None)
    return tuple(replace(s, core=Made(s.core.dims, node.op, (s.core, *rest), _attributes(node))) for s in segments)


def _training(node: gs.Node) -> bool:
    """Does a Dropout node drop? Only where it is told to train, which is an input from opset 12."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    flag = node.inputs[2]
    return not (isinstance(flag, gs.Constant) and not np.asarray(flag.values).any())


def _batch_normalization(
    this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims
) -> Segments | None:
    """Per channel, so each segment takes its channels' parameters."""
    if axis != 1 or trains(node):
        return None
    segments = this.segments(node.inputs[0], axis)
    shapes = [this.symbols.dims(t) for t in node.inputs[1:]]
    if segments is None or any(s is None for s in shapes):
        return None
    out, at = [], 0
    for segment in segments:
        if axis in segment.uniform:  # equal channels get different parameters
            return None
        cut = {0: slice(at, at + segment.size)}
        parameters = [
            sliced(existing(t, s), cut) for t, s in zip(node.inputs[1:], shapes, strict=True) if s is not None
        ]
        attributes = {k: v for k, v in node.attrs.items() if k in ("epsilon", "momentum", "spatial")}
        core = Made(segment.core.dims, "BatchNormalization", (segment.core, *parameters), attributes)
        out.append(replace(segment, core=core))
        at += segment.size
    return tuple(out)


# -- copies ----------------------------------------------------------------------------------------------------------


def _expand(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    source = this.symbols.dims(node.inputs[0])
    if source is None:
        return None
    target = this.symbols.values(node.inputs[1])
    shift = len(dims) - len(source)
    copied: set[int] = set(range(shift))
    for i, extent in enumerate(source):
        out = i + shift
        if extent == 1:
            copied.add(out)
        elif (
            extent != dims[out]
            and not (target is not None and _entry(target, out, len(dims)) in (1, -1, extent))
            and out
        ):
            return None  # it may be 1 at run time, and be copied or not; only a batch may be either
    unsure = shift == 0 and source[0] not in (1, dims[0]) and (target is None or _entry(target, 0, len(dims)) != 1)
    copied = {i for i in copied if dims[i] != 1}
    segments = _copied(this, node, node.inputs[0], source, axis, dims, shift, copied)
    if not unsure or segments is None:
        return segments
    wanted = this.symbols.dims(node.inputs[1])
    if wanted != (len(dims),) or any(0 in s.uniform for s in segments):
        return None  # a batch of copies already: the larger of both extents, by no name
    # The core may have to be copied along the batch: it gets the extent that the shape asks for.
    batch = sliced(existing(node.inputs[1], wanted), {0: slice(0, 1)})
    shape = concatenated([batch, Literal((len(dims) - 1,), np.ones(len(dims) - 1, np.int64))], 0)
    return tuple(replace(s, core=Made((dims[0], *s.core.dims[1:]), "Expand", (s.core, shape), {})) for s in segments)


def _entry(target: tuple[Dim, ...], axis: int, rank: int) -> Dim | None:
    position = axis - rank + len(target)
    return target[position] if position >= 0 else None


def _copied(
    this: Decomposer,
    node: gs.Node,
    source: gs.Tensor,
    source_dims: Dims,
    axis: Channels,
    dims: Dims,
    shift: int,
    copied: set[int],
) -> Segments | None:
    """The segments of a tensor whose axes ``copied`` repeat what ``source`` has once."""
    size = _size(dims, axis)
    assert size is not None
    names = (describe(node),) if copied else ()
    own = None if axis is None or axis < shift else axis - shift
    segments = this.segments(source, own)
    if segments is None:
        return None
    if own is None or (source_dims[own] == 1 and size != 1):  # the channels themselves are copies, or the only one
        segments = (replace(segments[0], size=size),)
    added = list(range(shift))
    return tuple(
        Segment(
            s.size,
            unsqueezed(s.core, added, this.opset),
            frozenset({a + shift for a in s.uniform} | copied),
            _names(names, s.found),
        )
        for s in segments
    )


def _tile(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    source, repeats = this.symbols.dims(node.inputs[0]), this.symbols.values(node.inputs[1])
    if source is None or len(source) != len(dims) or (repeats is not None and len(repeats) != len(dims)):
        return None
    copied = set()
    for i, extent in enumerate(source):
        if extent == 1:
            if dims[i] != 1:
                copied.add(i)
        elif not (extent == dims[i] or (repeats is not None and repeats[i] == 1)):
            return None  # repeated blocks are periodic, not uniform
    return _copied(this, node, node.inputs[0], source, axis, dims, 0, copied)


def _resize(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """From extent 1 every mode and coordinate transform is a pure broadcast, unless it crops beyond the image."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    source = this.symbols.dims(node.inputs[0])
    if source is None or len(source) != len(dims):
        return None
    scales = resize_scales(this.symbols, node, len(dims))
    plain = node.attrs.get("keep_aspect_ratio_policy", "stretch") in ("stretch", b"stretch")
    by_sizes = len(node.inputs) > 3 and bool(node.inputs[3].name) and plain
    copied = set()
    for i, extent in enumerate(source):
        if extent == 1:
            if dims[i] != 1:
                copied.add(i)
        elif extent != dims[i] or not (by_sizes or (scales is not None and scales[i] == 1)):
            return None  # even where the extent stays: a scale of 1.1 moves the samples
    return _copied(this, node, node.inputs[0], source, axis, dims, 0, copied)


def _constant_of_shape(
    this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims
) -> Segments | None:
    value = node.attrs.get("value")
    number = np.asarray(value.values if value is not None else np.zeros(1, np.float32))
    if number.size != 1:
        return None
    core = Literal((1,) * len(dims), number.reshape((1,) * len(dims)))
    uniform = frozenset(i for i, d in enumerate(dims) if d != 1)
    size = _size(dims, axis)
    assert size is not None
    return (Segment(size, core, uniform, (describe(node),)),)


def _gather(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """A lookup of whole slices: what is uniform in every slice stays so, and equal indices give equal slices."""
    data, indices = this.symbols.dims(node.inputs[0]), this.symbols.dims(node.inputs[1])
    if data is None or indices is None:
        return None
    single = operator(node) == "GatherND"  # its indices have an axis of their own, which says where in the first axes
    if single and (not indices or indices[-1] != 1 or node.attrs.get("batch_dims", 0)):
        return None
    at = 0 if single else int(node.attrs.get("axis", 0)) % len(data)
    count = len(indices) - single

    def outer(i: int) -> int:
        return i if i < at else i + count - 1

    origin = next((i for i in range(len(data)) if i != at and outer(i) == axis), None)
    if origin is None and axis is not None:
        return None
    segments, lookups = this.segments(node.inputs[0], origin), this.segments(node.inputs[1], None)
    if segments is None or lookups is None or any(at in s.uniform for s in segments):
        return None
    (lookup,) = lookups
    equal = {at + i for i in lookup.uniform}
    names = (describe(node),) if equal else ()
    attributes = {} if single else {"axis": at}
    out = []
    for s in segments:
        extents = (*s.core.dims[:at], *lookup.core.dims[:count], *s.core.dims[at + 1 :])
        core = Made(extents, node.op, (s.core, lookup.core), attributes)
        uniform = frozenset({outer(a) for a in s.uniform} | equal)
        out.append(Segment(s.size, core, uniform, _names(names, lookup.found, s.found)))
    return tuple(out)


# -- moving and joining ----------------------------------------------------------------------------------------------


def _concat(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    at = int(node.attrs["axis"]) % len(dims)
    parts = [this.segments(t, axis) for t in node.inputs]
    if any(p is None for p in parts):
        return None
    known = [p for p in parts if p is not None]
    if at == axis:
        return tuple(s for p in known for s in p)
    out = []
    aligned = _aligned(known, [axis] * len(known))
    if aligned is None:
        return None
    for pieces in aligned:
        uniform = frozenset.intersection(*(p.uniform for p in pieces)) - {at}
        if any(p.uniform - {at} != uniform or at in p.uniform for p in pieces):
            return None  # one part has copies where another has not: they cannot be joined as cores
        core = concatenated([p.core for p in pieces], at)
        out.append(Segment(pieces[0].size, core, uniform, _names(*(p.found for p in pieces))))
    return tuple(out)


def _split(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    source = this.symbols.dims(node.inputs[0])
    if source is None or int(node.attrs.get("axis", 0)) % len(source) != axis:
        return None
    sizes: list[int] = []
    for output in node.outputs:
        shape = this.symbols.dims(output)
        extent = None if shape is None else shape[axis]
        if not isinstance(extent, int):
            return None
        sizes.append(extent)
    position = next(i for i, o in enumerate(node.outputs) if o is tensor)
    start = sum(sizes[:position])
    return cut_segments(this.segments(node.inputs[0], axis), start, start + sizes[position], axis)


def cut_segments(segments: Segments | None, start: int, stop: int, axis: Channels) -> Segments | None:
    """Channels ``start`` to ``stop`` of a list of segments."""
    if segments is None:
        return None
    out, at = [], 0
    for segment in segments:
        low, high = max(start - at, 0), min(stop - at, segment.size)
        if low < high:
            out.append(segment.part(low, high, axis))
        at += segment.size
    return tuple(out)


def _slice(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    source = this.symbols.dims(node.inputs[0])
    if source is None:
        return None
    ranges = slice_ranges(this.symbols, node, source)
    if ranges is None:
        return None
    segments = this.segments(node.inputs[0], axis)
    own = WHOLE if axis is None else ranges.pop(axis, WHOLE)
    if own is not WHOLE:
        extent = _size(source, axis)
        if own is None or extent is None or (own.step or 1) != 1:
            return None
        bounds = range(*own.indices(extent))
        segments = cut_segments(segments, bounds.start, bounds.stop, axis)
    if segments is None:
        return None
    out = []
    for s in segments:
        cuts: dict[int, slice] = {}
        for a, cut in ranges.items():
            if cut is WHOLE or a in s.uniform:
                continue  # one slice of a uniform axis is like another
            if cut is None:
                return None
            cuts[a] = cut
        out.append(replace(s, core=sliced(s.core, cuts)))
    return tuple(out)


def _transpose(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    perm = [int(p) for p in node.attrs.get("perm", range(len(dims))[::-1])]
    segments = this.segments(node.inputs[0], None if axis is None else perm[axis])
    if segments is None:
        return None
    back = {p: i for i, p in enumerate(perm)}
    return tuple(
        replace(s, core=transposed(s.core, perm), uniform=frozenset(back[a] for a in s.uniform)) for s in segments
    )


def _unsqueeze(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    axes = axes_of(this.symbols, node)
    if axes is None:
        return None
    return _regrouped(this, node.inputs[0], axis, sorted(a % len(dims) for a in axes), None)


def _squeeze(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    source = this.symbols.dims(node.inputs[0])
    axes = None if source is None else squeezed_axes(this.symbols, node, source)
    return None if axes is None else _regrouped(this, node.inputs[0], axis, None, axes)


def _regrouped(
    this: Decomposer, source: gs.Tensor, axis: Channels, added: list[int] | None, removed: list[int] | None
) -> Segments | None:
    """Axes of extent 1 inserted at, or removed from, these positions."""
    dims = this.symbols.dims(source)
    if dims is None:
        return None
    forward: dict[int, int] = {}
    if added is not None:
        free = [i for i in range(len(dims) + len(added)) if i not in added]
        forward = dict(enumerate(free))
    elif removed is not None:
        kept = [i for i in range(len(dims)) if i not in removed]
        forward = {old: new for new, old in enumerate(kept)}
    # An axis that is added here is not in the source: there it has no channels yet.
    origin = next((old for old, new in forward.items() if new == axis), None)
    segments = this.segments(source, origin)
    if segments is None:
        return None

    def moved(core: Core) -> Core:
        if added is not None:
            return unsqueezed(core, added, this.opset)
        return squeezed(core, removed or [], this.opset)

    return tuple(
        replace(s, core=moved(s.core), uniform=frozenset(forward[a] for a in s.uniform if a in forward))
        for s in segments
    )


def _pad(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """No-op pads, and pads that continue copies with the same copies (reflect, edge, wrap)."""
    source = this.symbols.dims(node.inputs[0])
    amounts = pad_amounts(this.symbols, node, len(dims))
    if source is None or amounts is None:
        return None
    if axis is not None and amounts.get(axis, (0, 0)) != (0, 0):
        return None
    segments = this.segments(node.inputs[0], axis)
    if segments is None:
        return None
    mode = node.attrs.get("mode", "constant")
    out = []
    for s in segments:
        rest = {a: p for a, p in amounts.items() if p != (0, 0)}
        if mode != "constant":
            rest = {a: p for a, p in rest.items() if a not in s.uniform}
        elif any(a in s.uniform for a in rest):
            return None  # the border is another value
        core = s.core
        if rest:
            pads = [rest.get(a, (0, 0))[side] for side in (0, 1) for a in range(len(dims))]
            shape = tuple(dims[a] if a in rest else d for a, d in enumerate(core.dims))
            if this.opset < 11:
                return None
            value = (existing(node.inputs[2], ()),) if len(node.inputs) > 2 and node.inputs[2].name else ()
            literal = Literal((len(pads),), np.asarray(pads, np.int64))
            core = Made(shape, "Pad", (core, literal, *value), {"mode": mode})
        out.append(replace(s, core=core))
    return tuple(out)


# -- reshapes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Axes of a reshape's input and output that have the same elements: ``inner`` becomes ``outer``."""

    inner: tuple[int, ...]
    outer: tuple[int, ...]


def reshape_groups(source: Dims, target: Dims) -> list[Group] | None:
    """Match the axes of a reshape from the left; None where it cannot be told which belong together.

    Axes that stay are groups of one axis each; axes of extent 1 are groups of their own with nothing on the other side.
    In a tensor without elements the products of all runs with its empty axis are equal, so nothing can be told.
    """
    if 0 in (*source, *target):
        return None
    groups: list[Group] = []
    i = j = 0
    while i < len(source) or j < len(target):
        if i < len(source) and j < len(target) and source[i] == target[j]:
            groups.append(Group((i,), (j,)))
            i, j = i + 1, j + 1
        elif i < len(source) and source[i] == 1:
            groups.append(Group((i,), ()))
            i += 1
        elif j < len(target) and target[j] == 1:
            groups.append(Group((), (j,)))
            j += 1
        else:
            found = _smallest_group(source, target, i, j)
            if not found.inner or not found.outer:
                return None  # what is left over has extent 1 at run time, which the names do not say
            groups.append(found)
            i, j = found.inner[-1] + 1, found.outer[-1] + 1
    return groups


def _smallest_group(source: Dims, target: Dims, i: int, j: int) -> Group:
    """The shortest runs from ``i`` and ``j`` with equal products; numbers and names have to match for themselves.

    If the runs cannot be matched by value but what follows them on both sides is equal, they are the rest: the product of
    all extents is the same on both sides.
    """
    for a in range(i + 1, len(source) + 1):
        for b in range(j + 1, len(target) + 1):
            if (a - i > 1 or b - j > 1) and monomial(source[i:a]) == monomial(target[j:b]):
                return Group(tuple(range(i, a)), tuple(range(j, b)))
    a, b = len(source), len(target)
    while a > i + 1 and b > j + 1 and source[a - 1] == target[b - 1]:
        a, b = a - 1, b - 1
    # An extent of 1 that could belong to either side is no reason to match more than needed.
    return Group(tuple(range(i, a)), tuple(range(j, b)))


def _reshape(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """Axes that stay, splits and merges of uniform axes, and copies that are merged behind the channels.

    In each group of axes: a single axis stays; a group whose inner axes are all uniform gives uniform outer axes; in the
    channels' group the channels come first, so that segments stay ranges, and uniform axes that are merged behind them
    are written out (a channel that is uniform over a 2x2 block becomes four equal channels).
    """
    source = this.symbols.dims(node.inputs[0])
    if source is None:
        return None
    groups = reshape_groups(source, dims)
    if groups is None:
        return None
    home = next((g for g in groups if axis in g.outer), None)
    origin = home.inner[0] if home is not None and home.inner else None
    if home is not None and home.inner and home.outer[0] != axis:
        return None
    channels, size = _size(source, origin), _size(dims, axis)
    segments = this.segments(node.inputs[0], origin)
    if segments is None or channels is None or size is None:
        return None
    out = [_reshaped(this, s, groups, source, dims, axis, origin) for s in segments]
    return None if any(s is None for s in out) else tuple(s for s in out if s is not None)


def _merging_reshape(this: Decomposer, node: gs.Node, tensor: gs.Tensor, axis: Channels, dims: Dims) -> Segments | None:
    """A Reshape that merges axes, in a view that does not: the copies below it are known by it as well."""
    segments = _reshape(this, node, tensor, axis, dims)
    if segments is None:
        return None
    names = (f"Reshape {node.name}",)
    return tuple(replace(s, found=_names(names, s.found)) if s.uniform else s for s in segments)


def _reshaped(
    this: Decomposer, segment: Segment, groups: list[Group], source: Dims, dims: Dims, axis: Channels, origin: Channels
) -> Segment | None:
    channels, size = _size(source, origin), _size(dims, axis)
    assert channels is not None
    assert size is not None
    if (segment.size * size) % channels:
        return None
    uniform: set[int] = set()
    core = segment.core
    wanted: list[Dim] = [1] * len(dims)  # the core's extents after the reshape
    written: dict[int, int] = {}  # inner axis -> extent to which copies are written out
    new_size = segment.size * size // channels
    for group in groups:
        inside = [i for i in group.inner if source[i] != 1]
        if origin is not None and origin in group.inner:
            assert axis is not None
            if len(group.outer) > 1 and any(dims[o] != 1 for o in group.outer[1:]):
                return None  # channels that are split
            if origin in segment.uniform:
                if inside != [origin]:
                    return None  # channels that are equal, merged with others
                uniform.add(axis)
                continue
            for i in inside:
                extent = source[i]
                if i == origin:
                    continue
                if not isinstance(extent, int):
                    return None
                if i in segment.uniform:
                    written[i] = extent
            wanted[axis] = new_size
        elif all(i in segment.uniform for i in inside):
            uniform |= {o for o in group.outer if dims[o] != 1}
        elif not any(i in segment.uniform for i in inside):
            for o in group.outer:
                wanted[o] = dims[o]
        else:
            return None  # copies and information are mixed into one axis
    if written:
        shape = tuple(written.get(i, 1) for i in range(len(source)))
        full = tuple(written.get(i, d) for i, d in enumerate(core.dims))
        core = Made(full, "Expand", (core, Literal((len(shape),), np.asarray(shape, np.int64))), {})
    shaped = _reshape_core(this, core, tuple(wanted))
    return None if shaped is None else Segment(new_size, shaped, frozenset(uniform), segment.found)


def _reshape_core(this: Decomposer, core: Core, wanted: Dims) -> Core | None:
    """A core as another shape with at most one extent that has to be worked out at run time."""
    if core.dims == wanted:
        return core
    if isinstance(core, Literal) and all(isinstance(d, int) for d in wanted):
        array = core.array.reshape([int(d) for d in wanted])
        return Literal(tuple(array.shape), array)
    if monomial(core.dims) == monomial(wanted) and [d for d in core.dims if d != 1] == [d for d in wanted if d != 1]:
        return _move_ones(this, core, wanted)
    shape: list[int] = []
    for position, dim in enumerate(wanted):
        if isinstance(dim, int):
            shape.append(dim)
        elif position < len(core.dims) and core.dims[position] == dim:
            shape.append(0)
        elif -1 in shape:
            return None
        else:
            shape.append(-1)
    return Made(wanted, "Reshape", (core, Literal((len(shape),), np.asarray(shape, np.int64))), {})


def _move_ones(this: Decomposer, core: Core, wanted: Dims) -> Core:
    """Only axes of extent 1 come and go: squeeze and unsqueeze need no extents."""
    plain = squeezed(core, [i for i, d in enumerate(core.dims) if d == 1], this.opset)
    return unsqueezed(plain, [i for i, d in enumerate(wanted) if d == 1], this.opset)


ELEMENTWISE = (*BROADCASTING, "PRelu")

MERGING_RESHAPE = "MergingReshape"
"""No operator of ONNX: see ``split_views``."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "BatchNormalization": _batch_normalization,
    "Expand": _expand,
    "Tile": _tile,
    "Resize": _resize,
    "Upsample": _resize,
    "ConstantOfShape": _constant_of_shape,
    **dict.fromkeys(("Gather", "GatherND"), _gather),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Pad": _pad,
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    MERGING_RESHAPE: _merging_reshape,
}
