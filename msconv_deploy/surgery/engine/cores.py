"""Cores: small expressions that stand for the information of a uniform tensor, emitted only where they are needed.

A core has the rank of the tensor that it stands for, with extent 1 on the uniform axes. It is an existing tensor, a
constant, or an operator on cores; finding cores changes nothing in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.ops.node_builder import TO_THE_END
from msconv_deploy.surgery.engine.editing import GraphBuilder, constant_values
from msconv_deploy.surgery.engine.symbols import Dim, Dims


@dataclass(frozen=True, eq=False)
class Core:
    """Base of all cores. ``dims`` are the core's own extents."""

    dims: Dims


@dataclass(frozen=True, eq=False)
class Existing(Core):
    """A tensor of the graph, used as it is."""

    tensor: gs.Tensor


@dataclass(frozen=True, eq=False)
class Literal(Core):
    """A constant."""

    array: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Made(Core):
    """An operator on cores, with its attributes as they will be written.

    ``integers`` are int64 inputs that follow the cores (axes, starts, shapes), None for an input that is left out.
    """

    op: str
    inputs: tuple[Core | None, ...]
    attributes: dict[str, Any]
    integers: tuple[tuple[int, ...] | None, ...] = ()


def existing(tensor: gs.Tensor, dims: Dims) -> Core:
    """A tensor as a core; a constant one as a literal, so that it can be cut and folded."""
    if isinstance(tensor, gs.Constant):
        return Literal(dims, constant_values(tensor))
    return Existing(dims, tensor)


class CoreEmitter:
    """Writes cores as nodes of a builder; a core that is asked for twice is written once.

    Args:
        builder: collects the nodes.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._names: dict[int, str] = {}
        self._kept: list[Core] = []  # ids stay unique while their cores live

    def emit(self, core: Core) -> str:
        """The name of the tensor that holds the core."""
        stack: list[tuple[Core, bool]] = [(core, False)]
        while stack:
            item, ready = stack.pop()
            if id(item) in self._names:
                continue
            if isinstance(item, Made) and not ready:
                stack.append((item, True))
                stack.extend((operand, False) for operand in item.inputs if operand is not None)
                continue
            self._kept.append(item)
            self._names[id(item)] = self._write(item)
        return self._names[id(core)]

    def _write(self, core: Core) -> str:
        if isinstance(core, Existing):
            return str(core.tensor.name)
        if isinstance(core, Literal):
            return self._builder.constant(core.array)
        assert isinstance(core, Made)
        operands = [self._names[id(operand)] if operand is not None else "" for operand in core.inputs]
        operands += [self._builder.ints(list(values)) if values is not None else "" for values in core.integers]
        while operands and not operands[-1]:
            operands.pop()
        return self._builder.add(core.op, *operands, hint=core.op.lower(), **core.attributes)


def unsqueezed(core: Core, axes: list[int], opset: int) -> Core:
    """A core with axes of extent 1 inserted at these positions of the result."""
    if not axes:
        return core
    if isinstance(core, Literal):
        array = np.expand_dims(core.array, tuple(axes))
        return Literal(tuple(array.shape), array)
    dims = list(core.dims)
    for axis in sorted(axes):
        dims.insert(axis, 1)
    if opset < 13:
        return Made(tuple(dims), "Unsqueeze", (core,), {"axes": sorted(axes)})
    return Made(tuple(dims), "Unsqueeze", (core,), {}, (tuple(sorted(axes)),))


def squeezed(core: Core, axes: list[int], opset: int) -> Core:
    """A core without these axes, which have extent 1."""
    if not axes:
        return core
    if isinstance(core, Literal):
        array = np.squeeze(core.array, tuple(axes))
        return Literal(tuple(array.shape), array)
    dims = tuple(d for i, d in enumerate(core.dims) if i not in axes)
    if opset < 13:
        return Made(dims, "Squeeze", (core,), {"axes": sorted(axes)})
    return Made(dims, "Squeeze", (core,), {}, (tuple(sorted(axes)),))


def transposed(core: Core, perm: list[int]) -> Core:
    """A core with permuted axes."""
    if perm == list(range(len(perm))):
        return core
    if isinstance(core, Literal):
        array = core.array.transpose(perm)
        return Literal(tuple(array.shape), array)
    if isinstance(core, Made) and core.op == "Transpose":
        inner = core.attributes["perm"]
        assert core.inputs[0] is not None
        return transposed(core.inputs[0], [inner[p] for p in perm])
    return Made(tuple(core.dims[p] for p in perm), "Transpose", (core,), {"perm": list(perm)})


def sliced(core: Core, ranges: dict[int, slice]) -> Core:
    """A core cut along some axes by Python slices with known bounds."""
    ranges = {a: r for a, r in ranges.items() if not _is_whole(r, core.dims[a])}
    if not ranges:
        return core
    if isinstance(core, Literal):
        array = core.array[tuple(ranges.get(i, slice(None)) for i in range(core.array.ndim))]
        return Literal(tuple(array.shape), array)
    dims = list(core.dims)
    starts, ends, steps = [], [], []
    for axis, cut in ranges.items():
        extent = dims[axis]
        dims[axis] = (
            len(range(*cut.indices(extent))) if isinstance(extent, int) else f"{extent}[{cut.start}:{cut.stop}]"
        )
        starts.append(cut.start or 0)
        ends.append(TO_THE_END if cut.stop is None else cut.stop)
        steps.append(cut.step or 1)
    integers = (tuple(starts), tuple(ends), tuple(ranges), tuple(steps))
    return Made(tuple(dims), "Slice", (core,), {}, integers)


def _is_whole(cut: slice, extent: Dim) -> bool:
    return isinstance(extent, int) and range(*cut.indices(extent)) == range(extent)


def concatenated(cores: list[Core], axis: int) -> Core:
    """Cores of equal other extents, joined along an axis."""
    if len(cores) == 1:
        return cores[0]
    if all(isinstance(c, Literal) for c in cores):
        array = np.concatenate([c.array for c in cores if isinstance(c, Literal)], axis)
        return Literal(tuple(array.shape), array)
    dims = list(cores[0].dims)
    extents = [c.dims[axis] for c in cores]
    dims[axis] = sum(extents) if all(isinstance(e, int) for e in extents) else "+".join(map(str, extents))  # type: ignore[arg-type]
    return Made(tuple(dims), "Concat", tuple(cores), {"axis": axis})
