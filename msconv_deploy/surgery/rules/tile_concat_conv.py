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

import numpy as np
import onnx_graphsurgeon as gs

from msconv_deploy.surgery.engine.axis_tables import AxisTable, axis_table, transposed_extent
from msconv_deploy.surgery.engine.contraction import CONTRACTIONS, Contraction, Refusal, describe_contraction
from msconv_deploy.surgery.engine.cores import Core, CoreEmitter, Existing, concatenated
from msconv_deploy.surgery.engine.decomposition import RULES, Decomposer, Segment
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Dim, Symbols
from msconv_deploy.surgery.engine.terms import ONE, Term, combine, emit_term

ID = "tile-concat-conv"


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


def match(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Match | Refusal | None:
    """The site at a node, why it is none, or None if nothing suggests one."""
    if node.op not in CONTRACTIONS or len(node.inputs) < 2:
        return None
    contraction = describe_contraction(node, symbols)
    if isinstance(contraction, Refusal):
        return contraction if _near_miss(node) is not None else None
    segments = decomposer.segments(contraction.source, contraction.channel_axis)
    if segments is None or not any(s.uniform for s in segments):
        return _near_miss(node)
    starts = tuple(int(n) for n in np.cumsum([0, *(s.size for s in segments[:-1])]))
    return Match(contraction, segments, starts)


_NEAR = 24
"""Tensors above a contraction that are looked at for copies, only to decide what is worth reporting."""


def _near_miss(node: gs.Node) -> Refusal | None:
    """Copies stand above the contraction, but what lies between ends the knowledge of them."""
    frontier: list[tuple[gs.Tensor, tuple[gs.Node, ...]]] = [(node.inputs[0], ())]
    seen = 0
    while frontier and seen < _NEAR:
        tensor, blocking = frontier.pop(0)
        seen += 1
        if not tensor.inputs:
            continue
        above = tensor.inputs[0]
        if above.op in ("Expand", "Tile"):
            if blocking:
                reason = f"{blocking[0].op} between the copies and the contraction is not computed per copy"
                return Refusal(reason, (str(above.name), str(blocking[0].name)))
            return Refusal("which axes are copied does not follow from the file's structure", (str(above.name),))
        if above.op not in CONTRACTIONS:
            ends = blocking if above.op in RULES else (*blocking, above)
            frontier.extend((t, ends) for t in above.inputs[:3] if t.inputs)
    return None


# -- rewriting -------------------------------------------------------------------------------------------------------


def rewrite(editable: EditableModel, symbols: Symbols, found: Match, prefix: str) -> GraphBuilder | Refusal:
    """The nodes that compute the site's output without its copies; the graph is not changed yet."""
    builder = GraphBuilder(prefix, editable.opset)
    writer = _Writer(builder, symbols, found, editable.graph)
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
    contraction = found.contraction
    size = contraction.dims[contraction.channel_axis]
    assert isinstance(size, int)
    per_group = size // contraction.group
    dense = np.zeros(contraction.group, np.int64)
    for start, segment in found.dense_segments:
        for group in range(contraction.group):
            low, high = max(start, group * per_group), min(start + segment.size, (group + 1) * per_group)
            dense[group] += max(0, high - low)
    runs, start = [], 0
    for stop in range(1, contraction.group + 1):
        if stop == contraction.group or dense[stop] != dense[start]:
            runs.append(_Run(range(start, stop), int(dense[start])))
            start = stop
    return runs


class _Writer:
    """Writes one site."""

    def __init__(self, builder: GraphBuilder, symbols: Symbols, found: Match, graph: gs.Graph) -> None:
        self.builder = builder
        self.symbols = symbols
        self.found = found
        self.graph = graph
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
        self.tables = self._tables()
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
        size = self.contraction.dims[self.contraction.channel_axis]
        assert isinstance(size, int)
        per_group = size // self.contraction.group
        return [c for c in channels if c // per_group in groups]

    def _write_run(self, run: _Run, output: str | None) -> str:
        dense = self._write_dense(run) if run.dense else None
        terms = self._terms(run)
        if not terms:
            assert dense is not None
            return self._finish(dense, output)
        total = combine(self.builder, terms, self.tables, self._index)
        if dense is not None:
            name = self.builder.add("Add", dense, total.name, output=output, hint="sum")
        else:
            name = self._without_dense(run, total, output)
        self.last = name
        return name

    def _finish(self, name: str, output: str | None) -> str:
        return name if output is None else self.builder.add("Identity", name, output=output)

    def _write_dense(self, run: _Run) -> str:
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
        bias = self._bias(run)
        operands = [x, self.builder.constant(weight), *([bias] if bias else [])]
        y = self.builder.add(node.op, *operands, hint="dense", **attributes)
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
        size = contraction.dims[contraction.channel_axis]
        assert isinstance(size, int)
        per_group = size // contraction.group
        parts = []
        for group in run.groups:
            own = [c % per_group for c in channels if c // per_group == group]
            parts.append(contraction.weight[group * outputs : (group + 1) * outputs][:, own])
        return np.ascontiguousarray(np.concatenate(parts))

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

    def _terms(self, run: _Run) -> list[Term]:
        """One term per set of uniform axes: their cores joined, their weights summed."""
        axis = self.contraction.channel_axis
        sets: dict[frozenset[int], list[tuple[int, Segment]]] = {}
        for start, segment in self.found.uniform_segments:
            sets.setdefault(segment.uniform - {axis}, []).append((start, segment))
        terms = []
        for uniform, members in sets.items():
            cores, weights = [], []
            for start, segment in members:
                weight = self.contraction.weight_of(list(range(start, start + segment.size)), run.groups)
                if axis in segment.uniform:  # equal channels: one channel with the sum of their weights
                    weight = weight.astype(np.float64).sum(1, keepdims=True).astype(weight.dtype)
                if not weight.any():
                    continue
                cores.append(segment.core)
                weights.append(weight)
            if not cores:
                continue
            joined = self._joined(cores, axis, uniform)
            spatial = {a - self.first_spatial for a in uniform if a >= self.first_spatial}
            if not self.contraction.axes:
                spatial = set(uniform)
            weight = np.concatenate(weights, axis=1)
            terms.append(emit_term(self.builder, self.contraction, joined, weight, spatial, self.tables))
        return terms

    def _joined(self, cores: list[Core], axis: int, uniform: frozenset[int]) -> str:
        """Cores of one set of uniform axes as one tensor; batches of 1 beside batches of N are made equal."""
        batches = {c.dims[0] for c in cores}
        if len(cores) > 1 and len(batches) > 1 and axis != 0:
            names = [self.emitter.emit(c) for c in cores]
            # Broadcasting against zeros of the other's batch needs no extent: sum of first channels times nothing.
            raise _UnknownError(
                f"cores with different batches ({', '.join(map(str, batches))}) meet in one term: {names}"
            )
        return self.emitter.emit(concatenated(cores, axis))

    def _tables(self) -> dict[int, AxisTable | None]:
        """Table of every spatial axis along which some segment is uniform."""
        contraction = self.contraction
        tables: dict[int, AxisTable | None] = {}
        for i, axis in enumerate(contraction.axes):
            if not any(i + 2 in s.uniform for _, s in self.found.uniform_segments):
                continue
            extent = contraction.dims[i + 2]
            padding = contraction.output_padding[i] if contraction.transposed else 0
            tables[i] = axis_table(axis, extent if isinstance(extent, int) else None, contraction.transposed, padding)
        return tables

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
        raise _UnknownError(f"the extent along spatial axis {axis} is known to the copies only")

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
        room = builder.add("Add", extent, builder.ints(geometry.pad_before + geometry.pad_after - geometry.reach))
        return builder.add("Add", builder.add("Div", room, builder.ints(geometry.stride)), builder.ints(1))

    # -- without anything dense ----------------------------------------------------------------------------------

    def _without_dense(self, run: _Run, total: Term, output: str | None) -> str:
        """All channels are uniform: add the bias, and write out the axes that every core lacks."""
        name = total.name
        bias = self._bias(run)
        if bias is not None and self.contraction.axes:
            name = self.builder.add(
                "Add", name, self.builder.unsqueeze(bias, 0, *range(2, 2 + len(self.contraction.axes)))
            )
        elif bias is not None:
            name = self.builder.add("Add", name, bias)
        lacking = [a for a, state in enumerate(total.states) if state == ONE]
        batch_lacks = all(0 in s.uniform for _, s in self.found.uniform_segments) and bool(self.contraction.axes)
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
