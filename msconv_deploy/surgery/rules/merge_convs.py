"""`merge-convs`: two convolutions with nothing between them are one.

    y[m, i] = b1[m] + sum over c, t of W1[m, c, t] * x[c, i*s1 + t*d1 - p1]
    z[o, j] = b2[o] + sum over m, u of W2[o, m, u] * y[m, j*s2 + u*d2 - p2]

Inserting one into the other, with y continued by its own formula outside its extent, gives a convolution with

    weights   W[o, c, u*d2*s1 + t*d1] += sum over m of W2[o, m, u] * W1[m, c, t]         (zero at other offsets)
    bias      b = b2 + sum over m, u of W2[o, m, u] * b1[m]
    stride    s1*s2
    padding   p1 + s1*p2 before, q1 + s1*q2 behind              (p before and q behind of either convolution)

along every axis; the offsets are divided by their greatest common divisor, which is the dilation. It has as many outputs
as the two together: with reaches r = d*(k - 1) + 1 and R = r1 + s1*(r2 - 1), since floor((floor(a / s1) + n) / s2) =
floor((a + s1*n) / (s1*s2)) for integers, the second has

    floor((floor((L + p1 + q1 - r1) / s1) + 1 + p2 + q2 - r2) / s2) + 1  =  floor((L + P + Q - R) / (s1*s2)) + 1

outputs for every extent L, with P and Q the padding above.

*When it is exact.* The second convolution reads y outside its extent only where it is padded: unpadded, nothing more has to
hold, whatever stride and padding the first one has. Padded with zeros, it reads zero there, so that its continuation has to be
zero there as well, and with b1 = 0 that is so where all taps fall outside x:

* before (i <= -1): the last tap reads x at i*s1 + r1 - 1 - p1 <= r1 - 1 - p1 - s1, negative if p1 + s1 >= r1;
* behind (i >= N, the number of the first one's outputs): the first tap reads x at i*s1 - p1 >= N*s1 - p1 >= L + q1 - r1 + 1,
  outside if q1 >= r1 - 1.

That is for every L. Of an L that is known, the taps are listed: an image may fall between the taps of a dilated kernel, and a
stride may leave positions at its end unread.

With stride 1 that is a first padding of at least d1*(k1 - 1) on each padded side; a first kernel of 1 always satisfies it. An
image that is padded along one axis only has to satisfy it along that axis: all taps are outside as soon as they are along one.
The ordinary "same" padding of two 3x3 convolutions does not: there the outputs at the border differ. A bias b1 that is not
zero contributes through those of the second one's taps that are inside y: a constant per border class (``axis_tables``),
which is added instead of its share of the bias.

*Groups.* Both keep the channels between apart in gcd(g1, g2) blocks, so the result has that many groups.

Weights are multiplied in float64 and rounded once, so that rounding differs from that of two convolutions by what either
rounds anyway; refused where rounding to the type loses the small weights (float16). Costs a kernel of R taps; saves the
tensor between. Never done where multiply-accumulates or bytes rise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.surgery.engine.axis_tables import AxisTable, TableTooLargeError, axis_table
from msconv_deploy.surgery.engine.contraction import Contraction, Refusal, constant_array, describe_contraction
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.engine.element_types import CONVOLVED
from msconv_deploy.surgery.engine.symbols import Dim, Symbols, operator
from msconv_deploy.surgery.engine.terms import ONE, TABLE, Term, combine, summed_weights

ID = "merge-convs"
LOWERING = "one-convolution"


@dataclass(frozen=True, eq=False)
class Match:
    """Two convolutions.

    Attributes:
        node: the second one.
        first, second: both.
        between: the operators that lead from one to the other: Identity, and a Pad that became padding.
        axes: geometry of the convolution that does the work of both.
        group: of it.
    """

    node: gs.Node
    first: Contraction
    second: Contraction
    between: tuple[gs.Node, ...]
    axes: tuple[Axis, ...]
    group: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[O, C/group, *kernel] of the result."""
        channels = self.first.stored.shape[1] * self.first.group
        return (self.second.out_channels, channels // self.group, *(a.kernel for a in self.axes))


def match(node: gs.Node, symbols: Symbols, outputs: frozenset[str]) -> Match | Refusal | None:
    """The convolution at a node with the one before it, why both are left, or None if there is something between them.

    Args:
        outputs: names of the graph's outputs.
    """
    if operator(node) != "Conv" or _convolution_above(node) is None:
        return None
    second = describe_contraction(node, symbols)
    if isinstance(second, Refusal):
        return second
    above = _convolution_above(node, second.source)
    if above is None:
        return None  # a Pad that is no padding with zeros
    first_node, between = above
    name = (str(node.name), str(first_node.name))
    kept = _read_elsewhere(first_node, between, outputs)
    if kept:
        return Refusal(kept, name)
    first = describe_contraction(first_node, symbols)
    if isinstance(first, Refusal):
        return first
    return _fitted(node, first, second, between) or Refusal("its channels do not fit", name)


def _convolution_above(node: gs.Node, source: gs.Tensor | None = None) -> tuple[gs.Node, tuple[gs.Node, ...]] | None:
    """The convolution that computes what a node reads, and what leads from it to the node.

    Args:
        source: the tensor before the Pad that the node's padding took in; without it a Pad is taken for one.
    """
    tensor, between = node.inputs[0], list[gs.Node]()
    while tensor.inputs:
        above = tensor.inputs[0]
        if operator(above) == "Conv":
            return above, tuple(between)
        is_padding = operator(above) == "Pad" and not between and (source is None or above.inputs[0] is source)
        if operator(above) != "Identity" and not is_padding:
            return None
        between.append(above)
        tensor = above.inputs[0]
    return None


def _read_elsewhere(first: gs.Node, between: tuple[gs.Node, ...], outputs: frozenset[str]) -> str:
    """Why the tensor between has to be computed anyway; empty if it does not."""
    for node in (first, *between):
        tensor = node.outputs[0]
        if tensor.name in outputs:
            return f"what is between, {tensor.name}, is an output of the graph"
        if len(tensor.outputs) > 1:
            return f"what is between, {tensor.name}, is read elsewhere too"
    return ""


def _fitted(
    node: gs.Node, first: Contraction, second: Contraction, between: tuple[gs.Node, ...]
) -> Match | Refusal | None:
    name = (str(node.name), str(first.node.name))
    types = {c.stored.constant.dtype for c in (first, second)}
    if len(types) > 1 or not types <= set(CONVOLVED):
        return Refusal(f"not every runtime has convolutions in {' and '.join(sorted(map(str, types)))}", name)
    if any(c.bias is not None and constant_array(c.bias) is None for c in (first, second)):
        return Refusal("a bias is not constant", name)
    if first.out_channels != second.dims[1]:
        return None
    if any(_outputs(axis, n) < 1 for c in (first, second) for axis, n in zip(c.axes, c.dims[2:], strict=True)):
        return Refusal("an image is smaller than a kernel", name)
    axes = []
    for i, pair in enumerate(zip(first.axes, second.axes, strict=True)):
        if not _is_zero_outside(*pair, first.dims[i + 2]):
            return Refusal(
                f"the second pads by {pair[1].pad_before},{pair[1].pad_after} where the first one's result, continued, is "
                f"not zero: its padding {pair[0].pad_before},{pair[0].pad_after} is less than its kernel reaches",
                name,
            )
        axes.append(_composed_axis(*pair))
    return Match(node, first, second, between, tuple(axes), math.gcd(first.group, second.group))


def _is_zero_outside(first: Axis, second: Axis, extent: Dim) -> bool:
    """Do all taps of the first one fall outside its input where the second one's padding reads? (See the module.)"""
    if isinstance(extent, int):
        count = _outputs(first, extent)
        places = [*range(-second.pad_before, 0), *range(count, count + second.pad_after)]
        read = (i * first.stride - first.pad_before + t * first.dilation for i in places for t in range(first.kernel))
        return not any(0 <= position < extent for position in read)
    before = not second.pad_before or first.pad_before + first.stride >= first.reach
    behind = not second.pad_after or first.pad_after >= first.reach - 1
    return before and behind


def _outputs(axis: Axis, extent: Dim) -> int:
    """How many outputs an axis has, less than 1 where the kernel does not fit; 1 for an extent that is only a name."""
    if isinstance(extent, str):
        return 1
    return (extent + axis.pad_before + axis.pad_after - axis.reach) // axis.stride + 1


def _composed_axis(first: Axis, second: Axis) -> Axis:
    step = second.dilation * first.stride
    dilation = math.gcd(step if second.kernel > 1 else 0, first.dilation if first.kernel > 1 else 0) or 1
    return Axis(
        (step * (second.kernel - 1) + first.reach - 1) // dilation + 1,
        first.stride * second.stride,
        dilation,
        first.pad_before + first.stride * second.pad_before,
        first.pad_after + first.stride * second.pad_after,
    )


# -- the weights -------------------------------------------------------------------------------------------------------


def _composed_weights(found: Match) -> NDArray[np.float64]:
    """[O, C/group, *kernel], block by block of the channels between."""
    composed = np.zeros(found.weight_shape)
    outputs, inputs = composed.shape[0] // found.group, composed.shape[1]
    steps = [
        (u.dilation * t.stride // a.dilation, max(1, t.dilation // a.dilation))
        for t, u, a in zip(found.first.axes, found.second.axes, found.axes, strict=True)
    ]
    for block in range(found.group):
        own = composed[block * outputs : (block + 1) * outputs]
        w1 = _block(found.first, found.group, block, inputs)
        w2 = _block(found.second, found.group, block, len(w1))
        for tap in np.ndindex(*w2.shape[2:]):
            place = tuple(
                slice(u * outer, u * outer + inner * (k - 1) + 1, inner)
                for u, (outer, inner), k in zip(tap, steps, w1.shape[2:], strict=True)
            )
            own[(slice(None), slice(None), *place)] += np.tensordot(w2[(slice(None), slice(None), *tap)], w1, 1)
    return composed


def _block(contraction: Contraction, blocks: int, block: int, channels: int) -> NDArray[np.float64]:
    """Dense weights [O/blocks, channels, *kernel] of one of the blocks that a convolution keeps apart."""
    per_block = contraction.group // blocks
    groups = range(block * per_block, (block + 1) * per_block)
    return contraction.weight_of(list(range(block * channels, (block + 1) * channels)), groups).astype(np.float64)


def _bias(contraction: Contraction) -> NDArray[np.float64] | None:
    """[O], None if it is zero."""
    array = None if contraction.bias is None else constant_array(contraction.bias)
    return None if array is None or not array.any() else array.astype(np.float64).reshape(-1)


# -- writing -----------------------------------------------------------------------------------------------------------


def rewrite(builder: GraphBuilder, found: Match) -> Refusal | None:
    """The convolution, and what the first one's bias adds at the border; or why its weights cannot be written."""
    first, second, dtype = found.first, found.second, found.first.stored.constant.dtype
    exact = _composed_weights(found)
    with np.errstate(over="ignore"):
        weight = exact.astype(dtype)
    if not _is_well_rounded(weight, exact):
        return Refusal(f"its weights do not fit {np.dtype(dtype).name}", (str(found.node.name), str(first.node.name)))
    channels = list(range(second.dims[1]))  # type: ignore[arg-type]
    between, bias = _bias(first), _bias(second)
    tables: dict[int, AxisTable | None] = {}
    term = None
    if between is not None:
        try:
            tables = {i: axis_table(axis, _known(second.dims[i + 2]), False) for i, axis in enumerate(second.axes)}
        except TableTooLargeError as reason:
            return Refusal(str(reason), (str(found.node.name), str(first.node.name)))
        flat, counts = summed_weights(second.weight_of(channels).astype(np.float64), range(len(tables)), tables)
        sums = np.moveaxis(flat.reshape(*counts, -1, len(channels)) @ between, -1, 0)
        if any(table is not None for table in tables.values()):
            states = tuple(ONE if tables[i] is None else TABLE for i in range(len(tables)))
            term = Term(builder.constant(sums[None].astype(dtype), "border"), states)
        else:
            bias = sums.reshape(-1) + (0 if bias is None else bias)
    operands = [str(first.source.name), builder.constant(weight)]
    if bias is not None:
        operands.append(builder.constant(bias.astype(dtype), "bias"))
    attributes: dict[str, object] = {"kernel_shape": list(weight.shape[2:])}
    attributes["strides"] = [a.stride for a in found.axes]
    attributes["dilations"] = [a.dilation for a in found.axes]
    attributes["pads"] = [a.pad_before for a in found.axes] + [a.pad_after for a in found.axes]
    output = str(found.node.outputs[0].name)
    y = builder.add("Conv", *operands, hint="merged", output=None if term else output, group=found.group, **attributes)
    if term is not None:
        total = combine(builder, [term], tables, lambda axis: _index(builder, found, tables[axis], axis, y))
        builder.add("Add", y, total.name, output=output)
    return None


def _is_well_rounded(weight: NDArray[np.floating], exact: NDArray[np.float64]) -> bool:
    """Is the rounding error of every output's weights that of its largest one? It is not where they leave the type's range."""
    largest = np.abs(exact).reshape(len(exact), -1).max(axis=1)
    error = np.abs(weight.astype(np.float64) - exact).reshape(len(exact), -1).max(axis=1)
    return bool((error <= np.finfo(weight.dtype).eps * largest).all())


def _known(extent: Dim) -> int | None:
    return extent if isinstance(extent, int) else None


def _index(builder: GraphBuilder, found: Match, table: AxisTable | None, axis: int, y: str) -> str:
    """Rows of the table at every output index; the extent between the two is worked out from the input's."""
    assert table is not None
    if table.index is not None:
        return table.emit_index(builder, "", "")
    geometry = found.first.axes[axis]
    extent = builder.extent(str(found.first.source.name), axis + 2)
    room = builder.add("Add", extent, builder.ints(geometry.pad_before + geometry.pad_after - geometry.reach))
    between = builder.add("Add", builder.add("Div", room, builder.ints(geometry.stride)), builder.ints(1))
    return table.emit_index(builder, builder.extent(y, axis + 2), between)
