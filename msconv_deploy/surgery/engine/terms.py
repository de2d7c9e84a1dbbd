"""Terms: what one group of uniform segments contributes to a contraction, computed on its core.

A term has the rank of the output and, along each spatial axis, one of three states: *full* (the core has the axis), *one*
(extent 1, to be broadcast: every output index has all taps), or *table* (one entry per row of the axis' table, to be
spread over the output indices). Terms are summed while they are small: equal states first, then axis by axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msconv_deploy.ops.node_builder import TO_THE_END
from msconv_deploy.surgery.engine.axis_tables import AxisTable
from msconv_deploy.surgery.engine.contraction import Contraction
from msconv_deploy.surgery.engine.editing import GraphBuilder

FULL, ONE, TABLE = "full", "one", "table"


@dataclass(frozen=True)
class Term:
    """A tensor [N or 1, O, *spatial] by name, with the state of every spatial axis."""

    name: str
    states: tuple[str, ...]


def summed_weights(
    weight: NDArray[Any], uniform: Iterable[int], tables: dict[int, AxisTable | None]
) -> tuple[NDArray[Any], list[int]]:
    """Weights for a core: taps of every uniform axis summed per row of its table, in float64.

    Args:
        weight: [O, C, *kernel].
        uniform: spatial axes along which the core has extent 1.
        tables: spatial axis -> its table, None where there is a single class of all taps.

    Returns:
        [T1*T2*..*O, C, *kernel with 1 on the uniform axes], the rows of the tables before the outputs, and the row counts
        of the uniform axes in order.
    """
    work = weight.astype(np.float64)
    counts: list[int] = []
    for axis in sorted(uniform, reverse=True):
        table = tables[axis]
        member = np.ones((1, weight.shape[2 + axis])) if table is None else table.membership
        at = len(counts) + 2 + axis  # rows of the axes that are done stand in front
        work = np.moveaxis(np.tensordot(work, member, axes=(at, 1)), -1, 0)
        work = np.expand_dims(work, at + 1)
        counts.insert(0, len(member))
    flat = work.reshape(-1, *work.shape[len(counts) + 1 :])
    return flat.astype(weight.dtype), counts


def emit_term(
    builder: GraphBuilder,
    contraction: Contraction,
    core: str,
    weight: NDArray[Any],
    uniform: set[int],
    tables: dict[int, AxisTable | None],
) -> Term:
    """The term of a core.

    Args:
        core: name of [N or 1, C, *spatial], extent 1 on the uniform spatial axes; for Gemm and MatMul [..., C].
        weight: [O, C, *kernel] of its channels.
        uniform: spatial axes (0 is the first) along which the core has extent 1.
        tables: per uniform axis.
    """
    if not contraction.axes:
        rank = len(contraction.dims)
        states = tuple(ONE if a in uniform else FULL for a in range(rank - 1))
        return Term(builder.add("MatMul", core, builder.constant(np.ascontiguousarray(weight.T))), states)
    outputs = weight.shape[0]
    flat, counts = summed_weights(weight, uniform, tables)
    attributes: dict[str, Any] = {"kernel_shape": list(flat.shape[2:])}
    spatial = range(len(contraction.axes))
    axes = contraction.axes
    attributes["strides"] = [1 if i in uniform else axes[i].stride for i in spatial]
    attributes["dilations"] = [1 if i in uniform else axes[i].dilation for i in spatial]
    attributes["pads"] = [0 if i in uniform else axes[i].pad_before for i in spatial]
    attributes["pads"] += [0 if i in uniform else axes[i].pad_after for i in spatial]
    if contraction.transposed:
        padding = [0 if i in uniform else contraction.output_padding[i] for i in spatial]
        if any(padding):
            attributes["output_padding"] = padding
        flat = flat.swapaxes(0, 1)
    y = builder.add(contraction.node.op, core, builder.constant(np.ascontiguousarray(flat)), hint="term", **attributes)
    states = tuple(FULL if i not in uniform else TABLE if tables[i] is not None else ONE for i in spatial)
    rows = {axis: count for axis, count in zip(sorted(uniform), counts, strict=True) if tables[axis] is not None}
    return Term(_rows_in_place(builder, y, rows, outputs, len(axes), len(uniform) == len(axes)), states)


def _rows_in_place(
    builder: GraphBuilder, y: str, rows: dict[int, int], outputs: int, spatial: int, all_uniform: bool
) -> str:
    """[N, T1*T2*..*O, *spatial] with extent 1 on the table axes -> [N, O, *spatial with T on the table axes]."""
    if not rows:
        return y
    if all_uniform:  # every extent is known: rows come before outputs, so one transpose puts them in place
        counts = [rows.get(i, 1) for i in range(spatial)]
        y = builder.add("Reshape", y, builder.ints([0, *counts, outputs]))
        return builder.add("Transpose", y, perm=[0, spatial + 1, *range(1, spatial + 1)], hint="table")
    for axis, count in rows.items():
        rest = int(np.prod([c for a, c in rows.items() if a > axis], dtype=np.int64))
        parts = builder.split(y, [rest * outputs] * count, axis=1)
        y = builder.add("Concat", *parts, axis=axis + 2, hint="table")
    return y


def combine(
    builder: GraphBuilder,
    terms: list[Term],
    tables: dict[int, AxisTable | None],
    index: Callable[[int], str],
) -> Term:
    """Sum terms and spread their tables, last axis first: the result has only *full* and *one* axes.

    Args:
        tables: spatial axis -> its table.
        index: spatial axis -> name of the int64 tensor with the table's row at every output index.
    """
    groups = _summed(builder, terms)
    for axis in sorted(tables, reverse=True):
        spread = []
        for term in groups:
            if term.states[axis] == TABLE:
                name = _spread(builder, term, axis, tables[axis], index(axis))
                states = tuple(FULL if a == axis else s for a, s in enumerate(term.states))
                term = Term(name, states)
            spread.append(term)
        groups = _summed(builder, spread)
    groups.sort(key=lambda t: t.states.count(FULL))
    total = groups[0]
    for term in groups[1:]:
        states = tuple(FULL if FULL in pair else ONE for pair in zip(total.states, term.states, strict=True))
        total = Term(builder.add("Add", total.name, term.name), states)
    return total


def _spread(builder: GraphBuilder, term: Term, axis: int, table: AxisTable | None, index: str) -> str:
    """The rows of a term's table at every output index.

    Along any axis but the last, Gather copies whole rows of memory. Along the last one it copies single elements, several
    times slower, so a large term is put together from its few border columns and one interior column, expanded:

        concat(gather(table, index[:before]), expand(table[interior], max(0, n - before - after)), gather(table, the rest))
    """
    assert table is not None  # the term has a table along the axis
    interior = table.interior()
    if axis != len(term.states) - 1 or FULL not in term.states or interior is None:
        return builder.add("Gather", term.name, index, axis=axis + 2, hint="spread")
    row, before, after = interior
    at, rank = axis + 2, len(term.states) + 2
    if table.index is None:
        count = builder.add("Shape", index)
        rest = builder.maximum(builder.add("Sub", count, builder.ints([after])), builder.ints([before]))
        inside = builder.add("Sub", rest, builder.ints([before]))
        head = builder.add("Slice", index, builder.ints([0]), builder.ints([before])) if before else None
        tail = builder.add("Slice", index, rest, builder.ints([TO_THE_END])) if after else None
    else:
        first_after = len(table.index) - after
        if (
            first_after <= before
        ):  # nothing to expand; and ONNX Runtime takes a constant Expand to extent 0 for one to 1
            return builder.add("Gather", term.name, index, axis=at, hint="spread")
        inside = builder.ints([first_after - before])
        head = builder.ints(list(table.index[:before])) if before else None
        tail = builder.ints(list(table.index[first_after:])) if after else None
    column = builder.add("Gather", term.name, builder.ints([row]), axis=at)
    shape = builder.add("Concat", builder.ints([1] * (rank - 1)), inside, axis=0)
    parts = [builder.add("Expand", column, shape, hint="interior")]
    if head is not None:
        parts.insert(0, builder.add("Gather", term.name, head, axis=at, hint="border"))
    if tail is not None:
        parts.append(builder.add("Gather", term.name, tail, axis=at, hint="border"))
    return builder.add("Concat", *parts, axis=at, hint="spread") if len(parts) > 1 else parts[0]


def _summed(builder: GraphBuilder, terms: list[Term]) -> list[Term]:
    """Terms of equal states added up."""
    sums: dict[tuple[str, ...], Term] = {}
    for term in terms:
        before = sums.get(term.states)
        sums[term.states] = term if before is None else replace(term, name=builder.add("Add", before.name, term.name))
    return list(sums.values())
