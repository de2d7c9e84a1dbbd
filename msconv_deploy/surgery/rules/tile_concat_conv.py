"""`tile-concat-conv`: a contraction that reads copies is computed on their cores.

    contract(concat(x, tile(v)), W) + b  =  contract(x, W_x) + b + spread(contract(v, table(W_v)))

for Conv (1d, 2d, 3d), ConvTranspose, Gemm and MatMul, where ``tile(v)`` is any range of channels that is uniform along the
batch or along spatial axes, however it was spelled, and ``table(W_v)`` are its weights summed over the taps that fall
inside the input, one entry per border class of each uniform axis (``ops.border_classes``). It is exact at every pixel: a
contraction is linear in its channels, and a uniform axis contributes the same core at every tap that is inside.

Valid wherever the weights are constant and the padding does not depend on a run-time extent. Costs the contraction of the
cores, which is small, and one addition over the output for each of: the sum of all terms that are spread to full size,
the terms that broadcast. Saves the uniform channels' share of the contraction, the tile and the concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.errors import BadInputError
from msconv_deploy.surgery.engine.axis_tables import AxisTable, axis_table, transposed_extent
from msconv_deploy.surgery.engine.contraction import CONTRACTIONS, Contraction, Refusal, describe_contraction
from msconv_deploy.surgery.engine.cores import Core, CoreEmitter, Existing, concatenated
from msconv_deploy.surgery.engine.decomposition import Decomposer, Segment
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Dim, Symbols, operator
from msconv_deploy.surgery.engine.terms import ONE, Term, combine, emit_term

ID = "tile-concat-conv"

BROADCAST_ADD, BORDER_GATHER = "broadcast-add", "border-gather"
DYNAMIC_BIAS, EXPANDED_ADD = "dynamic-bias", "expanded-add"
CORES_ONLY = "cores-only"


@dataclass(frozen=True, eq=False)
class Match:
    """A site.

    Attributes:
        contraction: the node and its geometry.
        segments: of its input, in order, with at least one that is uniform.
        starts: first channel of each segment.
    """

    contraction: Contraction
    segments: tuple[Segment, ...]
    starts: tuple[int, ...]

    @property
    def node(self) -> gs.Node:
        return self.contraction.node

    @property
    def uniform_segments(self) -> list[tuple[int, Segment]]:
        """(first channel, segment) of the segments that the rule computes on their cores."""
        return [(start, s) for start, s in zip(self.starts, self.segments, strict=True) if s.uniform]

    @property
    def dense_segments(self) -> list[tuple[int, Segment]]:
        return [(start, s) for start, s in zip(self.starts, self.segments, strict=True) if not s.uniform]

    @property
    def channels_per_group(self) -> int:
        """Input channels of each group of a convolution."""
        size = self.contraction.dims[self.contraction.channel_axis]
        assert isinstance(size, int)
        return size // self.contraction.group

    def dense_per_group(self) -> list[int]:
        """How many dense input channels each group of a convolution reads."""
        per_group = self.channels_per_group
        dense = [0] * self.contraction.group
        for start, segment in self.dense_segments:
            for group in range(self.contraction.group):
                low, high = max(start, group * per_group), min(start + segment.size, (group + 1) * per_group)
                dense[group] += max(0, high - low)
        return dense

    def grouped_weight(self, channels: list[int], groups: range | None = None) -> NDArray[Any]:
        """[outputs of the groups, channels per group, *kernel]: a Conv's weight for some input channels, groups kept."""
        contraction = self.contraction
        outputs, per_group = contraction.out_channels // contraction.group, self.channels_per_group
        parts, weight = [], contraction.weight
        for group in range(contraction.group) if groups is None else groups:
            own = [c % per_group for c in channels if c // per_group == group]
            parts.append(weight[group * outputs : (group + 1) * outputs][:, own])
        return np.concatenate(parts)


def match(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Match | Refusal | None:
    """The site at a node, why it is none, or None if nothing suggests one."""
    if operator(node) not in CONTRACTIONS or len(node.inputs) < 2:
        return None
    contraction = describe_contraction(node, symbols)
    if isinstance(contraction, Refusal):
        return contraction if _near_miss(node, symbols, decomposer) is not None else None
    segments = decomposer.segments(contraction.source, contraction.channel_axis)
    if segments is None or not any(s.uniform for s in segments):
        return _near_miss(node, symbols, decomposer)
    starts = tuple(int(n) for n in np.cumsum([0, *(s.size for s in segments[:-1])]))
    found = Match(contraction, segments, starts)
    try:
        _tables(found)
    except BadInputError as reason:
        return Refusal(f"it has no output: {reason}", (str(node.name),))
    return found


_LOOK = 200
"""Tensors above a contraction that are searched for the shape which made an extent."""

_SHAPED = ("Expand", "Reshape", "Resize")
"""Operators with a shape as an input, whose entries with a name are extents of the result."""

_NEAR = 24
"""Tensors above a contraction that are looked at for copies, only to decide what is worth reporting."""

_RESHAPES = ("Unsqueeze", "Squeeze", "Reshape", "Transpose", "Cast", "Identity")
"""Operators that leave open whether an extent of a graph input is 1."""


def _near_miss(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Refusal | None:
    """Copies stand above the contraction, but what lies between ends the knowledge of them."""
    frontier: list[tuple[gs.Tensor, tuple[gs.Node, ...]]] = [(node.inputs[0], ())]
    seen = 0
    while frontier and seen < _NEAR:
        tensor, path = frontier.pop(0)
        seen += 1
        if not tensor.inputs:
            continue
        above = tensor.inputs[0]
        if operator(above) in ("Expand", "Tile") or _resizes_unknown(above, symbols):
            return _end_of_knowledge(above, path, symbols, decomposer)
        if operator(above) not in CONTRACTIONS:
            frontier.extend((t, (*path, above)) for t in above.inputs[:3] if t.inputs)
    return None


def _end_of_knowledge(copies: gs.Node, path: tuple[gs.Node, ...], symbols: Symbols, decomposer: Decomposer) -> Refusal:
    """The first node below the copies whose result is not known to be uniform, or the copies themselves.

    Args:
        path: the nodes between, the one next to the contraction first.
    """
    if not _known_uniform(copies.outputs[0], symbols, decomposer):
        if operator(copies) == "Resize":
            reason = "Resize copies only where it starts from extent 1, and from which extents it starts is not known"
        else:
            reason = f"which axes {copies.op} copies does not follow from the file's structure"
        return Refusal(reason, (str(copies.name),))
    for blocking in reversed(path):
        if not _known_uniform(blocking.outputs[0], symbols, decomposer):
            reason = f"{blocking.op} between the copies and the contraction is not computed per copy"
            return Refusal(reason, (str(copies.name), str(blocking.name)))
    return Refusal("the channels that are copied do not reach the contraction", (str(copies.name),))


def _known_uniform(tensor: gs.Tensor, symbols: Symbols, decomposer: Decomposer) -> bool:
    dims = symbols.dims(tensor)
    if dims is None:
        return False
    axes = [None, *(axis for axis, dim in enumerate(dims) if isinstance(dim, int))]
    return any(s.uniform for axis in axes for s in decomposer.segments(tensor, axis) or ())


def _resizes_unknown(node: gs.Node, symbols: Symbols) -> bool:
    """A Resize to given sizes of a graph input, reshaped or not, of which some extent is not a number."""
    if operator(node) != "Resize" or len(node.inputs) < 4 or not node.inputs[3].name:
        return False
    dims, source = symbols.dims(node.inputs[0]), node.inputs[0]
    if dims is not None and all(isinstance(dim, int) for dim in dims[2:]):
        return False
    while source.inputs and operator(source.inputs[0]) in _RESHAPES:
        source = source.inputs[0].inputs[0]
    return not source.inputs


# -- rewriting -------------------------------------------------------------------------------------------------------


def lowerings(symbols: Symbols, found: Match) -> list[str]:
    """The ways to spell a site, the one that is always right first.

    * ``broadcast-add``, ``border-gather``: the sum of the terms is added to the dense contraction; in the latter some
      term differs at the border;
    * ``dynamic-bias``: the sum is the bias of the dense convolution: no pass over the output, and an activation behind it
      stays part of it. Where the terms have one value per channel for all samples;
    * ``expanded-add``: the sum is written out to full size before it is added, which lets ONNX Runtime make the addition
      and an activation behind it part of the convolution. Where it knows all extents;
    * ``cores-only``: nothing is dense.
    """
    contraction = found.contraction
    if not found.dense_segments:
        return [CORES_ONLY]
    spatial = set(range(2, 2 + len(contraction.axes)))
    uniform = [s for _, s in found.uniform_segments]
    border = any(a + 2 in s.uniform for a, table in _tables(found).items() if table is not None for s in uniform)
    names = [BORDER_GATHER if border else BROADCAST_ADD]
    if contraction.axes and contraction.group == 1 and contraction.merged is None:
        if not border and all(spatial <= s.uniform and s.core.dims[0] == 1 for s in uniform):
            names.append(DYNAMIC_BIAS)
        dims = symbols.dims(found.node.outputs[0])
        known = dims is not None and all(isinstance(d, int) for d in dims)
        if not border and known and not contraction.transposed:
            names.append(EXPANDED_ADD)
    return names


def rewrite(
    editable: EditableModel, symbols: Symbols, found: Match, prefix: str, lowering: str = ""
) -> GraphBuilder | Refusal:
    """The nodes that compute the site's output without its copies; the graph is not changed yet.

    Args:
        lowering: one of :func:`lowerings`; the one that is always right if empty.
    """
    builder = GraphBuilder(prefix, editable.opset)
    writer = _Writer(builder, symbols, found, editable.graph, lowering)
    try:
        writer.write()
    except _UnknownError as reason:
        return Refusal(str(reason), (found.node.name,))
    return builder


class _UnknownError(Exception):
    """Something that is needed to write the site is not known."""


@dataclass(frozen=True)
class _Run:
    """Neighbouring groups with the same number of dense channels each: one convolution."""

    groups: range
    dense: int  # dense channels of each group


def _runs(found: Match) -> list[_Run] | None:
    """The groups of a convolution as runs. None if a run's dense channels are not the same number in each group."""
    contraction, dense = found.contraction, found.dense_per_group()
    runs, start = [], 0
    for stop in range(1, contraction.group + 1):
        if stop == contraction.group or dense[stop] != dense[start]:
            runs.append(_Run(range(start, stop), dense[start]))
            start = stop
    return runs


def _tables(found: Match) -> dict[int, AxisTable | None]:
    """Table of every spatial axis along which some segment is uniform."""
    contraction = found.contraction
    tables: dict[int, AxisTable | None] = {}
    for i, axis in enumerate(contraction.axes):
        if not any(i + 2 in s.uniform for _, s in found.uniform_segments):
            continue
        extent = contraction.dims[i + 2]
        padding = contraction.output_padding[i] if contraction.transposed else 0
        tables[i] = axis_table(axis, extent if isinstance(extent, int) else None, contraction.transposed, padding)
    return tables


class _Writer:
    """Writes one site."""

    def __init__(self, builder: GraphBuilder, symbols: Symbols, found: Match, graph: gs.Graph, lowering: str) -> None:
        self.builder = builder
        self.symbols = symbols
        self.found = found
        self.graph = graph
        self.lowering = lowering
        self.contraction = found.contraction
        self.emitter = CoreEmitter(builder)
        self.output = found.node.outputs[0].name
        self.first_spatial = 2 if self.contraction.axes else 0
        self.indices: dict[int, str] = {}
        self.dense_input: str | None = None
        self.reference: str | None = None  # a tensor with the output's spatial extents

    def write(self) -> None:
        runs = _runs(self.found) if self.contraction.axes else [_Run(range(1), len(self._dense_channels()))]
        assert runs is not None
        self.tables = _tables(self.found)
        if len(runs) == 1:
            self._write_run(runs[0], self._name_of_result())
        else:
            parts = []
            for run in sorted(runs, key=lambda r: not r.dense):  # dense ones first: they know the output's extents
                parts.append((run.groups.start, self._write_run(run, None)))
            self.builder.add("Concat", *(name for _, name in sorted(parts)), axis=1, output=self._name_of_result())
        if self.contraction.merged is not None:
            self._merge_axes()

    def _name_of_result(self) -> str | None:
        return None if self.contraction.merged is not None else self.output

    # -- parts ---------------------------------------------------------------------------------------------------

    def _dense_channels(self, groups: range | None = None) -> list[int]:
        channels = [start + i for start, s in self.found.dense_segments for i in range(s.size)]
        if groups is None or self.contraction.group == 1:
            return channels
        return [c for c in channels if c // self.found.channels_per_group in groups]

    def _write_run(self, run: _Run, output: str | None) -> str:
        if self.lowering == DYNAMIC_BIAS:
            self.last = self._write_with_bias(run, output)
            return self.last
        dense = self._write_dense(run, self._bias(run)) if run.dense else None
        members = self._members(run)
        if not members:
            assert dense is not None
            self.last = self._finish(dense, output)
            return self.last
        terms = self._terms(members)
        if dense is None:
            terms.extend(self._bias_term(run))
        total = combine(self.builder, terms, self.tables, self._index)
        if dense is not None:
            name = self.builder.add("Add", dense, self._full_size(total), output=output, hint="sum")
        else:
            batch_lacks = all(segment.core.dims[0] == 1 for segment, _ in members)
            name = self._without_dense(run, total, batch_lacks, output)
        self.last = name
        return name

    def _write_with_bias(self, run: _Run, output: str | None) -> str:
        """The dense convolution with the terms, one value per output channel, as its bias."""
        members = self._members(run)
        bias = self._bias(run)
        if members:
            total = combine(self.builder, self._terms(members), self.tables, self._index)
            flat = self.builder.add("Reshape", total.name, self.builder.ints([-1]), hint="term_bias")
            bias = self.builder.add("Add", flat, bias, hint="bias") if bias else flat
        return self._finish(self._write_dense(run, bias), output)

    def _full_size(self, total: Term) -> str:
        if self.lowering != EXPANDED_ADD:
            return total.name
        dims = self.symbols.dims(self.found.node.outputs[0])
        return self.builder.add("Expand", total.name, self.builder.ints(list(dims or ())), hint="expanded")

    def _finish(self, name: str, output: str | None) -> str:
        return name if output is None else self.builder.add("Identity", name, output=output)

    def _write_dense(self, run: _Run, bias: str | None, output: str | None = None) -> str:
        """The contraction of what is not uniform, with the original attributes."""
        contraction = self.contraction
        channels = self._dense_channels(run.groups)
        x = self._dense_source(run, channels)
        node = contraction.node
        if not contraction.axes:
            matrix = np.ascontiguousarray(contraction.weight[channels])
            y = self.builder.add("MatMul", x, self.builder.constant(matrix), hint="dense")
            if contraction.bias is not None:
                y = self.builder.add("Add", y, contraction.bias.name)
            self.reference = y
            return y
        attributes = dict(node.attrs)
        if contraction.group > 1:
            attributes["group"] = len(run.groups)
        for name in ("auto_pad", "pads"):
            attributes.pop(name, None)
        attributes["pads"] = [a.pad_before for a in contraction.axes] + [a.pad_after for a in contraction.axes]
        weight = self._dense_weight(run, channels)
        operands = [x, self.builder.constant(weight), *([bias] if bias else [])]
        y = self.builder.add(node.op, *operands, output=output, hint="dense", **attributes)
        self.reference, self.dense_input = y, x
        return y

    def _dense_weight(self, run: _Run, channels: list[int]) -> np.ndarray:
        contraction = self.contraction
        outputs = contraction.out_channels // contraction.group
        if contraction.transposed:
            return np.ascontiguousarray(contraction.weight[channels])
        rows = slice(run.groups.start * outputs, run.groups.stop * outputs)
        if contraction.group == 1:
            return np.ascontiguousarray(contraction.weight[rows][:, channels])
        return np.ascontiguousarray(self.found.grouped_weight(channels, run.groups))

    def _dense_source(self, run: _Run, channels: list[int]) -> str:
        """The dense channels as one tensor; the original one where they are all of it."""
        wanted = set(channels)
        cores: list[Core] = []
        for start, segment in self.found.dense_segments:
            inside = [i for i in range(segment.size) if start + i in wanted]
            if inside:
                cores.append(segment.part(inside[0], inside[-1] + 1, self.contraction.channel_axis).core)
        return self.emitter.emit(concatenated(cores, self.contraction.channel_axis))

    def _bias(self, run: _Run) -> str | None:
        bias = self.contraction.bias
        if bias is None:
            return None
        if len(run.groups) == self.contraction.group:
            return str(bias.name)
        outputs = self.contraction.out_channels // self.contraction.group
        start, stop = run.groups.start * outputs, run.groups.stop * outputs
        return self.builder.add(
            "Slice", bias.name, self.builder.ints([start]), self.builder.ints([stop]), self.builder.ints([0])
        )

    # -- terms ---------------------------------------------------------------------------------------------------

    def _members(self, run: _Run) -> list[tuple[Segment, NDArray[Any]]]:
        """The uniform segments that a run reads, each with its weights; one at least where there is nothing dense."""
        axis = self.contraction.channel_axis
        members: list[tuple[Segment, NDArray[Any]]] = []
        idle: list[tuple[Segment, NDArray[Any]]] = []
        for start, segment in self.found.uniform_segments:
            weight = self.contraction.weight_of(list(range(start, start + segment.size)), run.groups)
            if axis in segment.uniform:  # equal channels: one channel with the sum of their weights
                weight = weight.astype(np.float64).sum(1, keepdims=True).astype(weight.dtype)
            (members if weight.any() else idle).append((segment, weight))
        return members or ([] if run.dense else idle[:1])

    def _terms(self, members: list[tuple[Segment, NDArray[Any]]]) -> list[Term]:
        """One term per set of uniform axes (and batch): their cores joined, their weights side by side."""
        axis = self.contraction.channel_axis
        sets: dict[tuple[frozenset[int], Dim], list[tuple[Core, NDArray[Any]]]] = {}
        for segment, weight in members:
            sets.setdefault((segment.uniform - {axis}, segment.core.dims[0]), []).append((segment.core, weight))
        terms = []
        for (uniform, _), parts in sets.items():
            joined = self.emitter.emit(concatenated([core for core, _ in parts], axis))
            spatial = {a - self.first_spatial for a in uniform if a >= self.first_spatial}
            weight = np.concatenate([w for _, w in parts], axis=1)
            terms.append(emit_term(self.builder, self.contraction, joined, weight, spatial, self.tables))
        return terms

    def _index(self, axis: int) -> str:
        """Rows of the table of a spatial axis at every output index."""
        if axis not in self.indices:
            table = self.tables[axis]
            assert table is not None
            if table.index is not None:
                self.indices[axis] = table.emit_index(self.builder, "", "")
            else:
                self.indices[axis] = table.emit_index(self.builder, self._output_extent(axis), self._input_extent(axis))
        return self.indices[axis]

    def _input_extent(self, axis: int) -> str:
        dim = self.contraction.dims[axis + 2]
        if isinstance(dim, int):
            return self.builder.ints(dim)
        if self.dense_input is not None:
            return self.builder.extent(self.dense_input, axis + 2)
        return self._extent_by_name(dim, axis)

    def _extent_by_name(self, dim: Dim, axis: int) -> str:
        """An extent that only copies have, read from a tensor that has it too and is there anyway."""
        for _, segment in self.found.uniform_segments:
            for i, own in enumerate(segment.core.dims):
                if own == dim and isinstance(segment.core, Existing):
                    return self.builder.extent(segment.core.tensor.name, i)
        for tensor in self.graph.inputs:
            dims = self.symbols.dims(tensor)
            if dims is not None and dim in dims:
                return self.builder.extent(tensor.name, dims.index(dim))
        asked = self._asked_for(dim)
        if asked is None:
            raise _UnknownError(f"the extent along spatial axis {axis} is known to the copies only")
        shape, position = asked
        if self.symbols.rank(shape) == 0:
            return str(shape.name)
        return self.builder.add("Gather", shape.name, self.builder.ints(position), hint="extent")

    def _asked_for(self, dim: Dim) -> tuple[gs.Tensor, int] | None:
        """The shape with which a node above made the extent: that of an Expand, for instance."""
        frontier, seen = [self.contraction.source], set[int]()
        while frontier and len(seen) < _LOOK:
            tensor = frontier.pop(0)
            if id(tensor) in seen or not tensor.inputs:
                continue
            seen.add(id(tensor))
            node = tensor.inputs[0]
            for operand in node.inputs[1:] if operator(node) in _SHAPED else ():
                values = self.symbols.values(operand) if operand.name else None
                if values is not None and dim in values:
                    return operand, values.index(dim)
            frontier.extend(node.inputs)
        return None

    def _output_extent(self, axis: int) -> str:
        geometry = self.contraction.axes[axis]
        if self.reference is not None:
            return self.builder.extent(self.reference, axis + 2)
        extent = self._input_extent(axis)
        builder = self.builder
        if self.contraction.transposed:
            scaled = builder.add("Mul", extent, builder.ints(geometry.stride))
            rest = transposed_extent(geometry, 0, self.contraction.output_padding[axis])
            return builder.add("Add", scaled, builder.ints(rest))
        if geometry.stride == 1 and geometry.pad_before + geometry.pad_after + 1 == geometry.reach:
            return extent
        room = builder.add("Add", extent, builder.ints(geometry.pad_before + geometry.pad_after - geometry.reach))
        return builder.add("Add", builder.add("Div", room, builder.ints(geometry.stride)), builder.ints(1))

    # -- without anything dense ----------------------------------------------------------------------------------

    def _bias_term(self, run: _Run) -> list[Term]:
        """The bias as a term, so that it is added while the sum is small."""
        bias, spatial = self._bias(run), len(self.contraction.axes)
        if bias is None:
            return []
        if not spatial:
            return [Term(bias, (ONE,) * (len(self.contraction.dims) - 1))]
        return [Term(self.builder.unsqueeze(bias, 0, *range(2, 2 + spatial)), (ONE,) * spatial)]

    def _without_dense(self, run: _Run, total: Term, batch_lacks: bool, output: str | None) -> str:
        """All channels are uniform: write out the axes that every core lacks."""
        name = total.name
        lacking = [a for a, state in enumerate(total.states) if state == ONE]
        batch_lacks = batch_lacks and bool(self.contraction.axes) and self.contraction.dims[0] != 1
        if not lacking and not batch_lacks:
            return self._finish(name, output)
        return self._expanded(name, total, lacking, batch_lacks, output)

    def _expanded(self, name: str, total: Term, lacking: list[int], batch_lacks: bool, output: str | None) -> str:
        builder, contraction = self.builder, self.contraction
        shape = []
        rank = len(contraction.dims)
        for position in range(rank):
            if contraction.axes:
                spatial = position - 2
                if position == 0 and batch_lacks:
                    shape.append(self._vector(self._batch()))
                elif spatial in lacking:
                    shape.append(self._vector(self._output_extent(spatial)))
                else:
                    shape.append(builder.ints([1]))
            elif position in lacking:
                dim = contraction.dims[position]
                shape.append(
                    builder.ints([dim]) if isinstance(dim, int) else self._vector(self._extent_by_name(dim, position))
                )
            else:
                shape.append(builder.ints([1]))
        return builder.add("Expand", name, builder.add("Concat", *shape, axis=0), output=output, hint="expanded")

    def _batch(self) -> str:
        dim = self.contraction.dims[0]
        return self.builder.ints(dim) if isinstance(dim, int) else self._extent_by_name(dim, -2)

    def _vector(self, scalar: str) -> str:
        return self.builder.unsqueeze(scalar, 0)

    # -- behind a Reshape that merges axes -------------------------------------------------------------------------

    def _merge_axes(self) -> None:
        """The result has the axes that the Reshape before the node merged: merge them now."""
        after = self.symbols.dims(self.contraction.node.inputs[0])
        assert after is not None
        shape = [-1, self.contraction.out_channels] if len(after) == 2 else None
        if shape is None:
            raise _UnknownError("a Reshape before it merges axes in a way that cannot be repeated behind it")
        self.builder.add("Reshape", self.last, self.builder.ints(shape), output=self.output)
