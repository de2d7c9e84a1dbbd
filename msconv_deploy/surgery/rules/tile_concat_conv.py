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
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.node_builder import TO_THE_END
from msconv_deploy.surgery.engine import ones_channel
from msconv_deploy.surgery.engine.axis_tables import AxisTable, TableTooLargeError, axis_table, transposed_extent
from msconv_deploy.surgery.engine.contraction import CONTRACTIONS, Contraction, Refusal, describe_contraction
from msconv_deploy.surgery.engine.cores import Core, CoreEmitter, Existing, concatenated
from msconv_deploy.surgery.engine.decomposition import Decomposer, Segment
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.split_views import SplitViews, merged_batch, take_apart
from msconv_deploy.surgery.engine.symbols import Dim, Dims, Symbols, monomial, operator, product
from msconv_deploy.surgery.engine.terms import FULL, ONE, TABLE, Term, combine, emit_term

ID = "tile-concat-conv"

BROADCAST_ADD, BORDER_GATHER = "broadcast-add", "border-gather"
DYNAMIC_BIAS, EXPANDED_ADD, ONES_CHANNEL = "dynamic-bias", "expanded-add", "ones-channel"
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

    @cached_property
    def tables(self) -> dict[int, AxisTable | None]:
        """Table of every spatial axis along which some segment is uniform.

        Raises:
            BadInputError: the padding of a transposed convolution crops all of its output, or a table would be too large.
        """
        contraction = self.contraction
        tables: dict[int, AxisTable | None] = {}
        for i, axis in enumerate(contraction.axes):
            if not any(i + contraction.first_spatial in s.uniform for _, s in self.uniform_segments):
                continue
            extent = contraction.dims[i + contraction.first_spatial]
            padding = contraction.output_padding[i] if contraction.transposed else 0
            tables[i] = axis_table(axis, extent if isinstance(extent, int) else None, contraction.transposed, padding)
        return tables

    def channels_of(self, groups: range) -> range:
        """Input channels that some groups of a convolution read; all channels of a product."""
        size = self.channels_per_group
        return range(groups.start * size, groups.stop * size)

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


def match(
    node: gs.Node, symbols: Symbols, decomposer: Decomposer, views: SplitViews | None = None
) -> Match | Refusal | None:
    """The site at a node, why it is none, or None if nothing suggests one.

    Args:
        views: of the same graph, so that what is found for one node is there for the next.
    """
    if operator(node) in _CONTROL_FLOW:
        return _in_body(node, symbols)
    if operator(node) not in CONTRACTIONS or len(node.inputs) < 2:
        return None
    contraction = describe_contraction(node, symbols)
    if isinstance(contraction, Refusal):
        return contraction if _near_miss(node, symbols, decomposer) is not None else None
    segments = decomposer.segments(contraction.source, contraction.channel_axis)
    if segments is not None:
        channels = contraction.dims[contraction.channel_axis]
        if isinstance(channels, int) and sum(s.size for s in segments) != channels:
            return Refusal("its weights do not fit the channels of its input", (str(node.name),))
        apart = take_apart(contraction, segments, views or SplitViews(symbols, decomposer))
        contraction, segments = apart or (contraction, segments)
    if segments is None or not any(s.uniform for s in segments):
        return _near_miss(node, symbols, decomposer)
    if _is_empty(contraction, symbols):
        return Refusal("it has no output: an extent of it is 0", (str(node.name),))
    starts = tuple(int(n) for n in np.cumsum([0, *(s.size for s in segments[:-1])]))
    found = Match(contraction, segments, starts)
    try:
        _ = found.tables
    except TableTooLargeError as reason:
        return Refusal(str(reason), (str(node.name),))
    except BadInputError as reason:
        return Refusal(f"it has no output: {reason}", (str(node.name),))
    return found


def _is_empty(contraction: Contraction, symbols: Symbols) -> bool:
    """Is an extent of the output below 1, whatever the input's dynamic extents are?"""
    outputs = list(symbols.dims(contraction.node.outputs[0]) or ())
    if not contraction.transposed:
        extents = contraction.dims[contraction.first_spatial :]
        outputs += [
            extent + axis.pad_before + axis.pad_after - axis.reach + 1
            for axis, extent in zip(contraction.axes, extents, strict=False)
            if isinstance(extent, int)
        ]
    return any(isinstance(extent, int) and extent < 1 for extent in outputs)


_LOOK = 200
"""Tensors above a contraction that are searched for the shape which made an extent."""

_SHAPED = {"Expand": 1, "Reshape": 1, "Resize": 3}
"""Operators with a shape as an input, whose entries with a name are extents of the result, and which input that is."""

_NEAR = 24
"""Tensors above a contraction that are looked at for copies, only to decide what is worth reporting."""

_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")

_EXTENTS = ("Shape", "Size")
"""Operators whose result holds no values of what they read."""

_NORMALIZATIONS = ("InstanceNormalization", "LayerNormalization", "RMSNormalization")
"""Operators that exporters put between two Reshapes for a normalization over groups of channels."""

_RESHAPES = ("Unsqueeze", "Squeeze", "Reshape", "Transpose", "Cast", "Identity")
"""Operators that leave open whether an extent of a graph input is 1."""


def _near_miss(node: gs.Node, symbols: Symbols, decomposer: Decomposer) -> Refusal | None:
    """Copies stand above the contraction, but what lies between ends the knowledge of them."""
    found = _copies_above(node, symbols)
    return None if found is None else _end_of_knowledge(*found, symbols, decomposer)


def _copies_above(node: gs.Node, symbols: Symbols) -> tuple[gs.Node, tuple[gs.Node, ...]] | None:
    """The nearest node above a contraction that makes copies, and the nodes between, the last of them first."""
    frontier: list[tuple[gs.Tensor, tuple[gs.Node, ...]]] = [(node.inputs[0], ())]
    seen = 0
    while frontier and seen < _NEAR:
        tensor, path = frontier.pop(0)
        seen += 1
        if not tensor.inputs:
            continue
        above = tensor.inputs[0]
        if operator(above) in ("Expand", "Tile") or _resizes_unknown(above, symbols):
            return above, path
        if operator(above) not in (*CONTRACTIONS, *_EXTENTS):
            frontier.extend((t, (*path, above)) for t in above.inputs[:3] if t.inputs)
    return None


def _in_body(node: gs.Node, symbols: Symbols) -> Refusal | None:
    """A contraction below copies in a body of control flow, which is left as it is."""
    bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
    for body in bodies:
        bodies.extend(v for inner in body.nodes for v in inner.attrs.values() if isinstance(v, gs.Graph))
        for inner in body.nodes:
            copies = _copies_above(inner, symbols) if operator(inner) in CONTRACTIONS else None
            if copies is not None:
                names = tuple(n.name or n.outputs[0].name for n in (inner, copies[0]))
                reason = f"{inner.op} {names[0]} is below copies inside the body of {node.op}, which is not rewritten"
                return Refusal(reason, names)
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
    below = path[::-1]
    for node, following in zip_longest(below, below[1:]):
        if not _known_uniform(node.outputs[0], symbols, decomposer):
            grouped = operator(node) == "Reshape" and following is not None and operator(following) in _NORMALIZATIONS
            blocking = following if grouped else node  # that Reshape makes the groups, which is not what mixes
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

    * ``broadcast-add``, ``border-gather``: the sum of the terms is added to the dense contraction, as C of a Gemm where
      that is a product of matrices; in the latter some term differs at the border;
    * ``dynamic-bias``: the sum is the bias of the dense convolution: no pass over the output, and an activation behind it
      stays part of it. Where the terms have one value per channel for all samples;
    * ``expanded-add``: the sum is written out to full size before it is added, which lets ONNX Runtime make the addition
      and an activation behind it part of the convolution. Where it knows all extents;
    * ``ones-channel``: the terms are the weights of one more channel, of ones, which brings the border right: no pass over
      the output either. Where the cores have one value per channel for all samples (``engine.ones_channel``);
    * ``cores-only``: nothing is dense.
    """
    contraction = found.contraction
    if not found.dense_segments:
        return [CORES_ONLY]
    first, lead = contraction.first_spatial, contraction.channel_axis
    spatial = set(range(first, first + len(contraction.axes)))
    uniform = [s for _, s in found.uniform_segments]
    border = any(a + first in s.uniform for a, table in found.tables.items() if table is not None for s in uniform)
    names = [BORDER_GATHER if border else BROADCAST_ADD]
    if contraction.axes and contraction.group == 1 and contraction.merged is None:
        if not border and all(spatial <= s.uniform and set(s.core.dims[:lead]) == {1} for s in uniform):
            names.append(DYNAMIC_BIAS)
        dims = symbols.dims(found.node.outputs[0])
        known = dims is not None and all(isinstance(d, int) for d in dims)
        if not border and known and not contraction.transposed:
            names.append(EXPANDED_ADD)
    if ones_channel.refusal(contraction, uniform, border) is None:
        names.append(ONES_CHANNEL)
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


def _runs(found: Match) -> list[_Run]:
    """The groups of a convolution as runs, each of groups with the same number of dense channels."""
    contraction, dense = found.contraction, found.dense_per_group()
    runs, start = [], 0
    for stop in range(1, contraction.group + 1):
        if stop == contraction.group or dense[stop] != dense[start]:
            runs.append(_Run(range(start, stop), dense[start]))
            start = stop
    return runs


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
        self.first_spatial = self.contraction.first_spatial
        self.indices: dict[int, str] = {}
        self.dense_input: str | None = None
        self.reference: str | None = None  # a tensor with the output's spatial extents

    def write(self) -> None:
        runs = _runs(self.found) if self.contraction.axes else [_Run(range(1), len(self._dense_channels()))]
        self.tables = self.found.tables
        if len(runs) == 1:
            self._write_run(runs[0], self._name_of_result())
        else:
            parts = []
            for run in sorted(runs, key=lambda r: not r.dense):  # dense ones first: they know the output's extents
                parts.append((run.groups.start, self._write_run(run, None)))
            self.builder.add("Concat", *(name for _, name in sorted(parts)), axis=1, output=self._name_of_result())
        if self._merges:
            self._merge_axes()

    @property
    def _merges(self) -> bool:
        """Has the sum more axes than the node's output? The batch of a convolution is merged in its terms already."""
        return self.contraction.merged is not None or (bool(self.contraction.factors) and not self.contraction.axes)

    def _name_of_result(self) -> str | None:
        return None if self._merges else self.output

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
        if self.lowering == ONES_CHANNEL:
            self.last = self._write_dense(run, self._bias(run), output)
            return self.last
        members = self._members(run)
        if members and run.dense and not self.contraction.axes:
            self.last = self._write_product(run, members, output)
            return self.last
        dense = self._write_dense(run, self._bias(run)) if run.dense else None
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
            lead = self.contraction.channel_axis
            batch_lacks = all(set(segment.core.dims[:lead]) == {1} for segment, _ in members)
            name = self._without_dense(run, total, batch_lacks, output)
        self.last = name
        return name

    def _write_product(self, run: _Run, members: list[tuple[Segment, NDArray[Any]]], output: str | None) -> str:
        """A matrix product with the terms; its bias is added to them while they are small."""
        total = combine(self.builder, [*self._terms(members), *self._bias_term(run)], self.tables, self._index)
        channels = self._dense_channels(run.groups)
        x, matrix = self._dense_source(run, channels), self._dense_weight(run, channels)
        if len(self.contraction.dims) == 2 and matrix.dtype.kind == "f":
            return self.builder.add("Gemm", x, self.builder.constant(matrix), total.name, output=output, hint="sum")
        y = self.builder.add("MatMul", x, self.builder.constant(matrix), hint="dense")
        return self.builder.add("Add", y, total.name, output=output, hint="sum")

    def _write_with_bias(self, run: _Run, output: str | None) -> str:
        """The dense convolution with the terms, one value per output channel, as its bias."""
        members = self._members(run)
        bias = self._bias(run)
        if members:
            total = combine(self.builder, self._terms(members), self.tables, self._index)
            flat = self.builder.add("Reshape", total.name, self.builder.ints([-1]), hint="term_bias")
            bias = self.builder.add("Add", flat, bias, hint="bias") if bias else flat
        return self._write_dense(run, bias, output)

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
            weight = self.builder.constant(self._dense_weight(run, channels))
            y = self.builder.add("MatMul", x, weight, hint="dense")
            return self.builder.add("Add", y, bias) if bias else y
        attributes = dict(node.attrs)
        if contraction.group > 1:
            attributes["group"] = len(run.groups)
        for name in ("auto_pad", "pads"):
            attributes.pop(name, None)
        attributes["pads"] = [a.pad_before for a in contraction.axes] + [a.pad_after for a in contraction.axes]
        x, weight = self._with_ones(run, x, self._dense_weight(run, channels))
        operands = [x, weight, *([bias] if bias else [])]
        y = self.builder.add(node.op, *operands, output=output, hint="dense", **attributes)
        self.reference, self.dense_input = y, x
        return y

    def _with_ones(self, run: _Run, x: str, weight: NDArray[Any]) -> tuple[str, str]:
        """Input and weight of the dense contraction, in `ones-channel` with the channel that carries the terms."""
        members = self._members(run) if self.lowering == ONES_CHANNEL else []
        if not members:
            return x, self.builder.constant(weight)
        core = concatenated([segment.core for segment, _ in members], self.contraction.channel_axis)
        own = np.concatenate([w for _, w in members], axis=1)
        padded = ones_channel.emit_ones(self.builder, x, len(self.contraction.axes), weight.dtype)
        return padded, ones_channel.emit_weight(self.builder, self.emitter, core, own, weight)

    def _dense_weight(self, run: _Run, channels: list[int]) -> np.ndarray:
        contraction = self.contraction
        outputs = contraction.out_channels // contraction.group
        if contraction.transposed or not contraction.axes:
            return np.ascontiguousarray(contraction.weight[channels])
        rows = slice(run.groups.start * outputs, run.groups.stop * outputs)
        if contraction.group == 1:
            return np.ascontiguousarray(contraction.weight[rows][:, channels])
        return np.ascontiguousarray(self.found.grouped_weight(channels, run.groups))

    def _dense_source(self, run: _Run, channels: list[int]) -> str:
        """The dense channels as one tensor; the original one where they are all of it."""
        wanted = set(channels)
        axis = 1 if self.contraction.axes else self.contraction.channel_axis
        cores: list[Core] = []
        for start, segment in self.found.dense_segments:
            inside = [i for i in range(segment.size) if start + i in wanted]
            if inside:
                cores.append(segment.part(inside[0], inside[-1] + 1, axis).core)
        return self.emitter.emit(concatenated(cores, axis))

    def _one_batch(self, core: Core) -> Core:
        """A core with one batch axis, whose factors a view has as axes."""
        return merged_batch(core, self.contraction.channel_axis, self.builder.opset)

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
        reached = self.found.channels_of(run.groups)
        for start, segment in self.found.uniform_segments:
            if start >= reached.stop or start + segment.size <= reached.start:
                continue  # of other groups
            weight = self.contraction.weight_of(list(range(start, start + segment.size)), run.groups)
            if axis in segment.uniform:  # equal channels: one channel with the sum of their weights
                weight = weight.astype(np.float64).sum(1, keepdims=True).astype(weight.dtype)
            (members if weight.any() else idle).append((segment, weight))
        return members or ([] if run.dense else idle[:1])

    def _terms(self, members: list[tuple[Segment, NDArray[Any]]]) -> list[Term]:
        """One term per set of uniform axes (and batch): their cores joined, their weights side by side."""
        axis = self.contraction.channel_axis
        sets: dict[tuple[frozenset[int], Dims], list[tuple[Core, NDArray[Any]]]] = {}
        for segment, weight in members:
            sets.setdefault((segment.uniform - {axis}, segment.core.dims[:axis]), []).append((segment.core, weight))
        terms = []
        for (uniform, batch), parts in sets.items():
            core = concatenated([core for core, _ in parts], axis)
            joined = self.emitter.emit(self._one_batch(core) if self.contraction.axes else core)
            spatial = {a - self.first_spatial for a in uniform if a >= self.first_spatial}
            weight = np.concatenate([w for _, w in parts], axis=1)
            term = emit_term(self.builder, self.contraction, joined, weight, spatial, self.tables)
            if self.contraction.axes and 1 in batch and set(batch) != {1}:
                term = self._over_batch(term, batch, len(weight))
            terms.append(term)
        return terms

    def _over_batch(self, term: Term, batch: Dims, outputs: int) -> Term:
        """A term that has some factors of the batch, written out over the others while it is small.

        Args:
            batch: extents of the core along the factors, 1 along those that it lacks.
            outputs: channels of the term.
        """
        builder = self.builder
        lacking = [i for i, extent in enumerate(batch) if extent == 1]
        extents = [self._factor(i) for i in range(len(batch))]
        if FULL in term.states:
            rest = builder.add("Slice", builder.add("Shape", term.name), builder.ints([1]), builder.ints([TO_THE_END]))
        else:
            rows = [t.rows if s == TABLE and (t := self.tables[a]) else 1 for a, s in enumerate(term.states)]
            rest = builder.ints([outputs, *rows])
        if len(batch) - len(lacking) == 1:
            name = builder.unsqueeze(term.name, *lacking)
        else:
            own = [builder.ints([1]) if i in lacking else extent for i, extent in enumerate(extents)]
            name = builder.add("Reshape", term.name, builder.add("Concat", *own, rest, axis=0))
        copies = [extent if i in lacking else builder.ints([1]) for i, extent in enumerate(extents)]
        ones = builder.ints([1] * (1 + len(term.states)))
        name = builder.add("Expand", name, builder.add("Concat", *copies, ones, axis=0), hint="over_batch")
        merged = product(self.contraction.dims[: len(batch)])
        whole = builder.ints([merged if isinstance(merged, int) else -1])
        shape = builder.add("Concat", whole, rest, axis=0)
        return Term(builder.add("Reshape", name, shape, hint="over_batch"), term.states)

    def _factor(self, position: int) -> str:
        """The extent of a factor of the batch, as a tensor of one element."""
        dim = self.contraction.dims[position]
        return self.builder.ints([dim]) if isinstance(dim, int) else self._vector(self._extent_by_name(dim))

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
        dim = self.contraction.dims[axis + self.first_spatial]
        if isinstance(dim, int):
            return self.builder.ints(dim)
        if self.dense_input is not None:
            return self.builder.extent(self.dense_input, axis + 2)
        return self._extent_by_name(dim)

    def _extent_by_name(self, dim: Dim) -> str:
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
            number, names = monomial([dim])
            if number == 1 and len(names) == 1:
                raise _UnknownError(f"extent {dim} of its input is known to the copies only")
            extent = self._extent_by_name(names[0])
            for name in names[1:]:
                extent = self.builder.add("Mul", extent, self._extent_by_name(name))
            return extent if number == 1 else self.builder.add("Mul", extent, self.builder.ints(number))
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
            position = _SHAPED.get(operator(node), len(node.inputs))
            for operand in node.inputs[position : position + 1]:
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
        lead = self.contraction.dims[: self.contraction.channel_axis]
        batch_lacks = batch_lacks and bool(self.contraction.axes) and set(lead) != {1}
        if not lacking and not batch_lacks:
            return self._finish(name, output)
        return self._expanded(name, total, lacking, batch_lacks, output)

    def _expanded(self, name: str, total: Term, lacking: list[int], batch_lacks: bool, output: str | None) -> str:
        builder, contraction = self.builder, self.contraction
        shape = []
        rank = len(contraction.axes) + 2 if contraction.axes else len(contraction.dims)
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
                shape.append(builder.ints([dim]) if isinstance(dim, int) else self._vector(self._extent_by_name(dim)))
            else:
                shape.append(builder.ints([1]))
        return builder.add("Expand", name, builder.add("Concat", *shape, axis=0), output=output, hint="expanded")

    def _batch(self) -> str:
        dim = product(self.contraction.dims[: self.contraction.channel_axis])
        return self.builder.ints(dim) if isinstance(dim, int) else self._extent_by_name(dim)

    def _vector(self, scalar: str) -> str:
        return self.builder.unsqueeze(scalar, 0)

    # -- behind a Reshape that merges axes -------------------------------------------------------------------------

    def _merge_axes(self) -> None:
        """The result has the axes that the Reshape before the node merged, or that were taken apart: merge them now."""
        builder, contraction = self.builder, self.contraction
        after = self.symbols.dims(contraction.node.inputs[0])
        assert after is not None
        outputs = contraction.out_channels
        if len(after) == 2:
            shape = builder.ints([-1, outputs])
        elif contraction.merged is not None:
            raise _UnknownError("a Reshape before it merges axes in a way that cannot be repeated behind it")
        else:
            at, count = contraction.split_axis, len(contraction.factors)
            tail = after[at + 1 : -1]
            if all(isinstance(d, int) for d in tail):
                shape = builder.ints([*[0] * at, -1, *(int(d) for d in tail), outputs])
            else:
                behind = [builder.ints([at + count]), builder.ints([TO_THE_END])]
                rest = builder.add("Slice", builder.add("Shape", self.last), *behind)
                shape = builder.add("Concat", builder.ints([*[0] * at, -1]), rest, axis=0)
        builder.add("Reshape", self.last, shape, output=self.output)
