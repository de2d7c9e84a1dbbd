"""Split views: a tensor with one axis taken apart into the factors that were merged into it.

Copies hide in a factor of an axis: directions ``[R, 1, 3]`` are expanded over ``S`` samples and reshaped to ``[R*S, 3]``,
encoded, and joined with features ``[R*S, F]``. Seen as ``[R, S, ...]`` all of this is decomposed as usual. A view is a
tensor that is not part of the graph, with operators above it that are not either: the graph's own operators as they would
be if the merging Reshape stood behind the last of them. Where an operator does not let the axis through, the view is a
Reshape of the graph's tensor, which costs nothing at run time.

The factors come from the graph: from a Reshape or Flatten that merges axes, a Tile that repeats an axis which has an
extent of its own, or constant indices in equal runs. They multiply to the axis' extent wherever the axis comes from such
a node by operators that keep it, or is joined with one that does; that an extent has the same product is not enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.ops.node_builder import TO_THE_END
from msconv_deploy.surgery.engine.contraction import Contraction, constant_array
from msconv_deploy.surgery.engine.cores import (
    Core,
    Existing,
    Literal,
    Made,
    concatenated,
    existing,
    sliced,
    squeezed,
    unsqueezed,
)
from msconv_deploy.surgery.engine.decomposition import (
    ELEMENTWISE,
    LARGEST_TESTED_CONSTANT,
    MAX_DEPTH,
    MERGING_RESHAPE,
    Decomposer,
    Segments,
    cut_segments,
    reshape_groups,
)
from msconv_deploy.surgery.engine.editing import constant_values
from msconv_deploy.surgery.engine.operators import UNARY, trains
from msconv_deploy.surgery.engine.symbols import (
    TIMES,
    WHOLE,
    Dim,
    Dims,
    Symbols,
    Values,
    axes_of,
    is_unsure,
    monomial,
    operator,
    pad_amounts,
    product,
    slice_ranges,
    squeezed_axes,
)

_LOOK = 200
"""Tensors above a view that are searched for one that has an extent."""

_MAX_FACTORINGS = 8
"""Ways to take an axis apart that are tried."""


@dataclass(eq=False)
class ViewTensor:
    """A tensor that is not part of the graph; what the rules ask of a tensor is here as well."""

    name: str
    inputs: list[ViewNode] = field(default_factory=list)
    outputs: tuple[()] = ()


@dataclass(eq=False)
class ViewNode:
    """An operator that is not part of the graph."""

    op: str
    name: str
    attrs: dict[str, Any]
    inputs: list[Any]
    outputs: list[ViewTensor]
    domain: str = ""


class _Operand(NamedTuple):
    """An operand of a view's operator: with ``axis`` taken apart, or with ones in its place, or as it is (None)."""

    tensor: gs.Tensor
    axis: int | None = None
    ones: bool = False


class _Recipe(NamedTuple):
    """How an operator looks in a view: its operands, further inputs and its attributes for a number of factors."""

    operands: list[_Operand]
    attributes: Callable[[int], dict[str, Any]]
    rest: Sequence[Any] = ()


class SplitViews:
    """Finds the factors of axes, and makes views.

    Args:
        symbols: extents of the graph's tensors; views are declared there.
        decomposer: decomposes views as well.
    """

    def __init__(self, symbols: Symbols, decomposer: Decomposer) -> None:
        self.opset = decomposer.opset
        self._symbols = symbols
        self._decomposer = decomposer
        self._factorings: dict[tuple[int, int], tuple[Dims, ...]] = {}
        self._views: dict[tuple[int, int, Dims, int], Any] = {}
        self._given: dict[str, Core] = {}  # extents that graph inputs have
        self._above: dict[str, Core] = {}  # extents found above the tensor at hand, which another may stand above
        self._root = 0
        self._tails: dict[tuple[int, int], Core] = {}
        self._kept: list[Any] = []  # ids stay unique while their tensors live
        self._depth = 0

    # -- factors -------------------------------------------------------------------------------------------------

    def factorings(self, tensor: gs.Tensor, axis: int) -> tuple[Dims, ...]:
        """The ways to take an axis apart that the nodes above a tensor suggest, and their common refinements.

        Returns:
            Factors in order, none of them 1.
        """
        key = (id(tensor), axis)
        if key not in self._factorings:
            self._kept.append(tensor)
            self._factorings[key] = ()  # of a tensor that is met on the way to itself, which no valid graph has
            self._depth += 1
            try:
                self._factorings[key] = self._find_factorings(tensor, axis) if self._depth < MAX_DEPTH else ()
            finally:
                self._depth -= 1
        return self._factorings[key]

    def _find_factorings(self, tensor: gs.Tensor, axis: int) -> tuple[Dims, ...]:
        dims = self._symbols.dims(tensor)
        if dims is None or dims[axis] == 1:
            return ()
        found: dict[Dims, None] = {}  # in the order in which they are found
        for factors in self._suggested(tensor, axis, dims):
            found.setdefault(factors)
            if len(found) == _MAX_FACTORINGS:
                break
        known = list(found)
        for i, a in enumerate(known):
            for b in known[:i]:
                finer = _refinement(a, b)
                if finer is not None and len(found) < _MAX_FACTORINGS:
                    found.setdefault(finer)
        return tuple(found)

    def _suggested(self, tensor: gs.Tensor, axis: int, dims: Dims) -> Iterator[Dims]:
        if isinstance(tensor, gs.Constant):
            factors = _runs(tensor, axis)
            if factors is not None:
                yield factors
            return
        if not tensor.inputs:
            return
        node = tensor.inputs[0]
        if operator(node) in ("Reshape", "Flatten"):
            yield from self._merged(node, axis, dims)
            return
        if operator(node) == "Tile":
            yield from self._repeated(node, axis)
        recipe = self._recipe(node, tensor, axis, dims)
        for operand in recipe.operands if recipe is not None else ():
            if operand.axis is not None and not operand.ones:
                yield from self.factorings(operand.tensor, operand.axis)

    def _merged(self, node: gs.Node, axis: int, dims: Dims) -> Iterator[Dims]:
        """The axes that a reshape merges, or what its one axis was merged from."""
        source = self._symbols.dims(node.inputs[0])
        groups = None if source is None else reshape_groups(source, dims)
        group = next((g for g in groups or () if axis in g.outer), None)
        if group is None or source is None or any(dims[o] != 1 for o in group.outer if o != axis):
            return
        inner = [i for i in group.inner if source[i] != 1]
        if len(inner) == 1:
            yield from self.factorings(node.inputs[0], inner[0])
        if len(inner) < 2:
            return
        yield tuple(source[i] for i in inner)
        for position, i in enumerate(inner):
            for finer in self.factorings(node.inputs[0], i):
                before, after = inner[:position], inner[position + 1 :]
                yield (*(source[j] for j in before), *finer, *(source[j] for j in after))

    def _repeated(self, node: gs.Node, axis: int) -> Iterator[Dims]:
        """An extent that is repeated as a block."""
        source, repeats = self._symbols.dims(node.inputs[0]), self._symbols.values(node.inputs[1])
        if source is None or repeats is None or len(repeats) != len(source) or 1 in (source[axis], repeats[axis]):
            return
        if is_unsure(repeats[axis]):
            return
        yield (repeats[axis], source[axis])
        for finer in self.factorings(node.inputs[0], axis):
            yield (repeats[axis], *finer)

    # -- views ---------------------------------------------------------------------------------------------------

    def view(self, tensor: gs.Tensor, axis: int, factors: Dims) -> Any | None:
        """A tensor with an axis taken apart; None where the factors' extents cannot be found at run time.

        Args:
            factors: multiply to the axis' extent, see :meth:`factorings`.
        """
        self._above = {n: core for n in factors if isinstance(n, str) and (core := self._found(n, tensor)) is not None}
        self._root = id(tensor) if self._above else 0
        if not self._obtainable(factors):
            return None
        return self._view(tensor, axis, factors)

    def segments(self, tensor: gs.Tensor, axis: int, factors: Dims, channel_axis: int) -> Segments | None:
        """The segments of a tensor along an axis behind the one that is taken apart, with axes counted in the view."""
        view = self.view(tensor, axis, factors)
        return None if view is None else self._decomposer.segments(view, channel_axis + len(factors) - 1)

    def _view(self, tensor: gs.Tensor, axis: int, factors: Dims) -> Any:
        key = (id(tensor), axis, factors, self._root)
        if key in self._views:
            return self._views[key]
        dims = self._symbols.dims(tensor)
        assert dims is not None
        self._kept.append(tensor)
        wanted = (*dims[:axis], *factors, *dims[axis + 1 :])
        if isinstance(tensor, gs.Constant) and all(isinstance(d, int) for d in wanted) and _is_small(wanted):
            values = constant_values(tensor).reshape([int(d) for d in wanted])
            self._views[key] = gs.Constant(tensor.name, values)
            return self._views[key]
        result = self._declared(tensor.name, wanted, self._split_core(tensor, axis, factors, dims, wanted))
        self._views[key] = result
        if tensor.inputs and self._depth < MAX_DEPTH:
            self._depth += 1
            try:
                node = self._node(tensor.inputs[0], tensor, axis, factors, result)
            finally:
                self._depth -= 1
            if node is not None:
                result.inputs.append(node)
        return result

    def _declared(self, name: str, dims: Dims, core: Core) -> ViewTensor:
        tensor = ViewTensor(name)
        self._symbols.declare(tensor, dims)
        self._decomposer.declare(tensor, core)
        return tensor

    def _integers(self, values: Values | None) -> ViewTensor:
        """A shape of which only the values are known."""
        tensor = ViewTensor("shape")
        self._symbols.declare(tensor, None, values)
        return tensor

    def _with_ones(self, tensor: Any, axis: int, count: int) -> Any:
        """A tensor or a view with axes of extent 1 before an axis."""
        dims = self._symbols.dims(tensor)
        assert dims is not None
        added = list(range(axis, axis + count))
        core = unsqueezed(self._decomposer.whole(tensor, dims), added, self._decomposer.opset)
        result = self._declared(tensor.name, (*dims[:axis], *[1] * count, *dims[axis:]), core)
        result.inputs.append(ViewNode("Unsqueeze", "", {"axes": added}, [tensor], [result]))
        return result

    def _node(self, node: gs.Node, tensor: gs.Tensor, axis: int, factors: Dims, result: ViewTensor) -> ViewNode | None:
        """The operator that makes a view; None where the axis does not come through."""
        dims = self._symbols.dims(tensor)
        assert dims is not None
        kind = operator(node)
        if kind in ("Reshape", "Flatten"):
            return self._reshape(node, dims, axis, factors, result)
        if kind == "Expand":
            return self._expand(node, dims, axis, factors, result)
        if kind == "Tile":
            return self._tile(node, dims, axis, factors, result)
        if kind == "BatchNormalization" and axis == 0:
            return self._batch_normalization(node, tensor, factors, result)
        recipe = self._recipe(node, tensor, axis, dims)
        if recipe is None or any(self._symbols.dims(o.tensor) is None for o in recipe.operands if o.axis is not None):
            return None
        inputs = [self._operand(operand, factors) for operand in recipe.operands]
        outputs = [result]
        if kind == "Split":
            outputs = [result if o is tensor else self._sibling(o, axis, factors) for o in node.outputs]
        return ViewNode(kind, str(node.name), recipe.attributes(len(factors)), [*inputs, *recipe.rest], outputs)

    def _operand(self, operand: _Operand, factors: Dims) -> Any:
        if operand.axis is None:
            return operand.tensor
        if operand.ones:
            return self._with_ones(operand.tensor, operand.axis, len(factors) - 1)
        return self._view(operand.tensor, operand.axis, factors)

    def _sibling(self, output: gs.Tensor, axis: int, factors: Dims) -> ViewTensor:
        """Another output of a node, whose extents are asked for."""
        dims = self._symbols.dims(output)
        tensor = ViewTensor(output.name)
        self._symbols.declare(tensor, None if dims is None else (*dims[:axis], *factors, *dims[axis + 1 :]))
        return tensor

    # -- operators that keep the axis ----------------------------------------------------------------------------

    def _recipe(self, node: gs.Node, tensor: gs.Tensor, axis: int, dims: Dims) -> _Recipe | None:
        kind = operator(node)
        if kind in UNARY:
            if tensor is not node.outputs[0] or any(o.outputs for o in node.outputs[1:]):
                return None
            return _Recipe([_Operand(node.inputs[0], axis)], lambda _: dict(node.attrs), node.inputs[1:])
        if kind in ELEMENTWISE:
            return self._broadcasting(node, axis, dims)
        rule = _RECIPES.get(kind)
        return None if rule is None else rule(self._symbols, node, axis, dims)

    def _broadcasting(self, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
        operands = []
        for t in node.inputs:
            shape = self._symbols.dims(t) if t.name else ()
            if shape is None:
                return None
            own = axis - len(dims) + len(shape)
            if own < 0:
                operands.append(_Operand(t))
            elif shape[own] in (1, dims[axis]):
                operands.append(_Operand(t, own, ones=shape[own] == 1))
            else:
                return None  # it may be 1 at run time, and be broadcast
        return _Recipe(operands, lambda _: dict(node.attrs))

    # -- operators that copy or merge ----------------------------------------------------------------------------

    def _reshape(self, node: gs.Node, dims: Dims, axis: int, factors: Dims, result: ViewTensor) -> ViewNode | None:
        """What is merged here comes from the axes before; one of them may have to be taken apart in turn."""
        before = self._symbols.dims(node.inputs[0])
        groups = None if before is None else reshape_groups(before, dims)
        group = next((g for g in groups or () if axis in g.outer), None)
        if before is None or group is None:
            return None
        inner = [i for i in group.inner if before[i] != 1]
        wanted = [d for o in group.outer for d in (factors if o == axis else (dims[o],)) if d != 1]
        parts = reshape_groups(tuple(before[i] for i in inner), tuple(wanted))
        if parts is None or any(len(p.outer) > 1 and len(p.inner) != 1 for p in parts):
            return None
        split = [p for p in parts if len(p.outer) > 1]
        source = node.inputs[0]
        if len(split) > 1:
            return None
        if split:
            finer = tuple(wanted[o] for o in split[0].outer)
            for name in finer:
                if isinstance(name, str):
                    self._found(name, source)
            if not self._obtainable(finer):
                return None
            source = self._view(source, inner[split[0].inner[0]], finer)
        return ViewNode(
            MERGING_RESHAPE if len(inner) > 1 else "Reshape", node.name or node.outputs[0].name, {}, [source], [result]
        )

    def _expand(self, node: gs.Node, dims: Dims, axis: int, factors: Dims, result: ViewTensor) -> ViewNode | None:
        source, target = self._symbols.dims(node.inputs[0]), self._symbols.values(node.inputs[1])
        operand = None if source is None else _copied_operand(node.inputs[0], source, dims, axis)
        if operand is None:
            return None
        at = -1 if target is None else axis - len(dims) + len(target)
        if target is not None and at >= 0:
            target = (*target[:at], *factors, *target[at + 1 :])
        return ViewNode(
            "Expand", str(node.name), {}, [self._operand(operand, factors), self._integers(target)], [result]
        )

    def _tile(self, node: gs.Node, dims: Dims, axis: int, factors: Dims, result: ViewTensor) -> ViewNode | None:
        source, repeats = self._symbols.dims(node.inputs[0]), self._symbols.values(node.inputs[1])
        if source is None or len(source) != len(dims):
            return None
        count = len(factors)
        operand = _copied_operand(node.inputs[0], source, dims, axis)
        if operand is not None:
            view, own = self._operand(operand, factors), factors if operand.ones else (1,) * count
        elif repeats is None:
            return None
        else:  # blocks: the factors before the block's own are copies
            cut = next(
                (i for i in range(1, count) if monomial(factors[:i]) == monomial(repeats[axis : axis + 1])), None
            )
            if cut is None or monomial(factors[cut:]) != monomial(source[axis : axis + 1]):
                return None
            block = self._view(node.inputs[0], axis, factors[cut:]) if cut < count - 1 else node.inputs[0]
            view, own = self._with_ones(block, axis, cut), (*factors[:cut], *[1] * (count - cut))
        values = None if repeats is None else self._integers((*repeats[:axis], *own, *repeats[axis + 1 :]))
        return ViewNode("Tile", str(node.name), {}, [view, values or self._integers(None)], [result])

    def _batch_normalization(
        self, node: gs.Node, tensor: gs.Tensor, factors: Dims, result: ViewTensor
    ) -> ViewNode | None:
        """The channels are not axis 1 of a view: a multiplication and an addition, of constant parameters."""
        dims = self._symbols.dims(tensor)
        parameters = [constant_array(t) for t in node.inputs[1:5]]
        known = [p.astype(np.float64) for p in parameters if p is not None]
        if dims is None or tensor is not node.outputs[0] or len(known) != 4 or trains(node):
            return None
        scale, shift, mean, variance = known
        factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        shape = (len(factor), *[1] * (len(dims) - 2))
        dtype = parameters[0].dtype  # type: ignore[union-attr]
        name = str(tensor.name)  # a tensor without a name is an operand that is not there
        terms = [
            gs.Constant(f"{name} {part}", values.astype(dtype).reshape(shape))
            for part, values in (("factor", factor), ("shift", shift - mean * factor))
        ]
        x = self._view(node.inputs[0], 0, factors)
        wanted = (*factors, *dims[1:])
        operands = (self._decomposer.whole(x, wanted), Literal(shape, np.asarray(terms[0].values)))
        scaled = self._declared(name, wanted, Made(wanted, "Mul", operands, {}))
        scaled.inputs.append(ViewNode("Mul", name, {}, [x, terms[0]], [scaled]))
        return ViewNode("Add", name, {}, [scaled, terms[1]], [result])

    # -- shapes at run time --------------------------------------------------------------------------------------

    def _split_core(self, tensor: gs.Tensor, axis: int, factors: Dims, dims: Dims, wanted: Dims) -> Core:
        """A Reshape of the graph's tensor. Axes before the factors keep their extents, and one factor what is left."""
        named = [d for d in factors if not isinstance(d, int)]
        extents = {**self._given, **self._above}
        left = next((d for d in named if d not in extents), named[0] if named else None)
        parts: list[Core] = [_literal([0] * axis)] if axis else []
        for factor in factors:
            if isinstance(factor, int):
                parts.append(_literal([factor]))
            elif factor == left:
                parts.append(_literal([-1]))
                left = None
            else:
                parts.append(extents[factor])
        tail = dims[axis + 1 :]
        if all(isinstance(d, int) for d in tail):
            parts.append(_literal([int(d) for d in tail]))
        else:
            parts.append(self._tail(tensor, axis + 1, dims))
        return Made(wanted, "Reshape", (existing(tensor, dims), _joined(parts)), {})

    def _tail(self, tensor: gs.Tensor, start: int, dims: Dims) -> Core:
        """The extents of a tensor from an axis on."""
        key = (id(tensor), start)
        if key not in self._tails:
            shape = Made((len(dims),), "Shape", (Existing(dims, tensor),), {})
            self._tails[key] = sliced(shape, {0: slice(start, None)})
        return self._tails[key]

    def _obtainable(self, factors: Dims) -> bool:
        """Are all factors but one, which a Reshape works out, numbers or found?"""
        return sum(isinstance(d, str) and d not in self._given and d not in self._above for d in factors) <= 1

    def _found(self, name: str, tensor: gs.Tensor) -> Core | None:
        """Look for an extent above a tensor; the result is an int64 tensor of one element.

        That of a graph input is noted for all views, and None returned. Else a shape that asks for the extent, or else the
        tensor farthest above: which other tensors do not depend on them is not known.
        """
        if name in self._given:
            return None
        asked: Core | None = None
        farthest: Core | None = None
        queue: list[gs.Tensor] = [tensor]
        seen = {id(tensor)}
        for item in queue:
            if len(seen) > _LOOK:
                break
            dims = None if isinstance(item, gs.Constant) else self._symbols.dims(item)
            if dims is not None and name in dims:
                place = dims.index(name)
                shape = Made((len(dims),), "Shape", (Existing(dims, item),), {})
                farthest = sliced(shape, {0: slice(place, place + 1)})
                if not item.inputs:
                    self._given[name] = farthest
                    return None
            if not item.inputs:
                continue
            node = item.inputs[0]
            if asked is None and operator(node) in ("Expand", "Reshape", "Tile"):
                asked = self._entry(node.inputs[1], name)
            for operand in node.inputs:
                if operand.name and id(operand) not in seen:
                    seen.add(id(operand))
                    queue.append(operand)
        return asked or farthest

    def _entry(self, shape: gs.Tensor, name: str) -> Core | None:
        """The entry of a shape that is an extent."""
        values = self._symbols.values(shape)
        if values is None or name not in values or self._symbols.rank(shape) != 1:
            return None
        place = values.index(name)
        return sliced(existing(shape, (len(values),)), {0: slice(place, place + 1)})


# -- operators that keep an axis: where it is in their operand, and how they look with several in its place ----------


def _moved(position: int, axis: int, count: int) -> int:
    """Where an axis is once another has been replaced by ``count``."""
    return position if position <= axis else position + count - 1


def _concat(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    at = int(node.attrs["axis"]) % len(dims)
    if at == axis:
        return None
    return _Recipe([_Operand(t, axis) for t in node.inputs], lambda n: {"axis": _moved(at, axis, n)})


def _split(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    at = int(node.attrs.get("axis", 0)) % len(dims)
    return None if at == axis else _Recipe([_Operand(node.inputs[0], axis)], lambda n: {"axis": _moved(at, axis, n)})


def _slice(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    source = symbols.dims(node.inputs[0])
    ranges = None if source is None else slice_ranges(symbols, node, source)
    if ranges is None or ranges.get(axis, WHOLE) is not WHOLE:
        return None
    cuts = [(a, cut) for a, cut in ranges.items() if cut is not WHOLE]
    if any(cut is None or (cut.step or 1) < 0 for _, cut in cuts):
        return None
    known = [(a, cut) for a, cut in cuts if cut is not None]

    def attributes(count: int) -> dict[str, Any]:
        return {
            "starts": [cut.start or 0 for _, cut in known],
            "ends": [TO_THE_END if cut.stop is None else cut.stop for _, cut in known],
            "axes": [_moved(a, axis, count) for a, _ in known],
            "steps": [cut.step or 1 for _, cut in known],
        }

    return _Recipe([_Operand(node.inputs[0], axis)], attributes)


def _pad(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    amounts = pad_amounts(symbols, node, len(dims))
    if amounts is None or amounts.get(axis, (0, 0)) != (0, 0):
        return None

    def attributes(count: int) -> dict[str, Any]:
        sides: list[int] = []
        for side in (0, 1):
            own = [amounts.get(a, (0, 0))[side] for a in range(len(dims))]
            sides += [*own[:axis], *[0] * count, *own[axis + 1 :]]
        return {**{k: v for k, v in node.attrs.items() if k != "pads"}, "pads": sides}

    rest = [ViewTensor(""), *node.inputs[2:3]]
    return _Recipe([_Operand(node.inputs[0], axis)], attributes, rest)


def _transpose(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    perm = [int(p) for p in node.attrs.get("perm", range(len(dims))[::-1])]
    own = perm[axis]

    def attributes(count: int) -> dict[str, Any]:
        factors = list(range(own, own + count))
        return {"perm": [q for p in perm for q in (factors if p == own else [_moved(p, own, count)])]}

    return _Recipe([_Operand(node.inputs[0], own)], attributes)


def _unsqueeze(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    given = axes_of(symbols, node)
    added = sorted(a % len(dims) for a in given or ())
    if given is None or axis in added:
        return None
    own = axis - sum(a < axis for a in added)
    return _Recipe([_Operand(node.inputs[0], own)], lambda n: {"axes": [_moved(a, axis, n) for a in added]})


def _squeeze(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    source = symbols.dims(node.inputs[0])
    removed = None if source is None else squeezed_axes(symbols, node, source)
    if source is None or removed is None:
        return None
    kept = [i for i in range(len(source)) if i not in removed]
    own = kept[axis]
    return _Recipe([_Operand(node.inputs[0], own)], lambda n: {"axes": sorted(_moved(a, own, n) for a in removed)})


def _gather(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    """The axis is one of the data's, or one of the indices'."""
    data, indices = symbols.dims(node.inputs[0]), symbols.dims(node.inputs[1])
    if data is None or indices is None:
        return None
    single = operator(node) == "GatherND"
    if single and node.attrs.get("batch_dims", 0):
        return None
    at = 0 if single else int(node.attrs.get("axis", 0)) % len(data)
    count = len(indices) - single
    if at <= axis < at + count:
        return _Recipe([_Operand(node.inputs[0]), _Operand(node.inputs[1], axis - at)], lambda _: {"axis": at})
    if single and indices[-1] != 1:
        return None
    own = axis if axis < at else axis - count + 1
    return _Recipe([_Operand(node.inputs[0], own), _Operand(node.inputs[1])], lambda n: {"axis": _moved(at, own, n)})


def _batch_normalization(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    """Behind the channels it stays as it is; in front of them see :meth:`SplitViews._batch_normalization`."""
    return None if axis == 1 else _Recipe([_Operand(node.inputs[0], axis)], lambda _: dict(node.attrs), node.inputs[1:])


def _constant_of_shape(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    return _Recipe([], lambda _: dict(node.attrs))


def _copies(symbols: Symbols, node: gs.Node, axis: int, dims: Dims) -> _Recipe | None:
    """Only to find factors: see :meth:`SplitViews._expand` and :meth:`SplitViews._tile`."""
    source = symbols.dims(node.inputs[0])
    operand = None if source is None else _copied_operand(node.inputs[0], source, dims, axis)
    return None if operand is None else _Recipe([operand], lambda _: {})


_RECIPES: dict[str, Callable[[Symbols, gs.Node, int, Dims], _Recipe | None]] = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "GatherND": _gather,
    "BatchNormalization": _batch_normalization,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _copies,
    "Tile": _copies,
}


def _copied_operand(tensor: gs.Tensor, source: Dims, dims: Dims, axis: int) -> _Operand | None:
    """The operand of a node that copies axes: it lacks the axis, has extent 1 there, or has it already."""
    own = axis - len(dims) + len(source)
    if own < 0:
        return _Operand(tensor)
    if source[own] == 1:
        return _Operand(tensor, own, ones=True)
    return _Operand(tensor, own) if source[own] == dims[axis] else None


def _is_small(dims: Dims) -> bool:
    return int(np.prod([d for d in dims if isinstance(d, int)], dtype=np.int64)) <= LARGEST_TESTED_CONSTANT


def _literal(values: list[int]) -> Core:
    return Literal((len(values),), np.asarray(values, np.int64))


def _joined(parts: list[Core]) -> Core:
    """Shape parts in order, neighbouring numbers as one constant."""
    merged: list[Core] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Literal) and isinstance(last, Literal):
            merged[-1] = concatenated([last, part], 0)
        else:
            merged.append(part)
    return concatenated(merged, 0)


def _refinement(a: Dims, b: Dims) -> Dims | None:
    """The factors that two ways to take an axis apart have in common, where each of one is made of whole ones."""
    groups = reshape_groups(a, b)
    if groups is None:
        return None
    finer: list[Dim] = []
    for group in groups:
        left, right = [a[i] for i in group.inner], [b[i] for i in group.outer]
        if len(right) == 1:
            finer += left
        elif len(left) == 1:
            finer += right
        else:
            steps = _steps(left, right)
            if steps is None:
                return None
            finer += steps
    return tuple(finer)


def _steps(left: list[Dim], right: list[Dim]) -> list[int] | None:
    """Numbers whose products from the left are those of both lists, where each divides the next."""
    if not all(isinstance(d, int) for d in (*left, *right)):
        return None
    marks = sorted({int(n) for side in (left, right) for n in np.cumprod([int(d) for d in side])})
    steps, last = [], 1
    for mark in marks:
        if last == 0 or mark % last:
            return None
        steps.append(mark // last)
        last = mark
    return steps


def _runs(constant: gs.Constant, axis: int) -> Dims | None:
    """The factors of constant indices along an axis: in equal runs (0 0 1 1), or in equal blocks (0 1 0 1)."""
    count = int(constant.shape[axis])
    if count < 2 or np.dtype(constant.dtype).kind not in "iu":
        return None
    values: NDArray[Any] = np.moveaxis(constant_values(constant), axis, 0).reshape(count, -1)
    changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1)) + 1
    run = int(np.gcd.reduce([count, *changes]))
    if 1 < run < count:
        return count // run, run
    for block in np.flatnonzero((values == values[0]).all(axis=1))[1:]:
        if count % block == 0 and (values.reshape(-1, block, values.shape[1]) == values[:block]).all():
            return count // int(block), int(block)
    return None


# -- contractions ----------------------------------------------------------------------------------------------------


def take_apart(contraction: Contraction, plain: Segments, views: SplitViews) -> tuple[Contraction, Segments] | None:
    """A contraction on the view that shows most copies, with its segments; None where no view shows more than ``plain``.

    Any axis before the channels may be taken apart. Of a convolution that is the batch, and only copies that are not
    uniform along all spatial axes anyway are worth it; its dense segments keep cores with one batch axis.
    """
    source, channel_axis = contraction.source, contraction.channel_axis
    best: tuple[tuple[int, int], Contraction, Segments] | None = None
    for axis in range(channel_axis):
        for factors in views.factorings(source, axis):
            segments = views.segments(source, axis, factors, channel_axis)
            if segments is None:
                continue
            own = set(range(axis, axis + len(factors)))
            spatial = set(range(channel_axis + len(factors), len(contraction.dims) + len(factors) - 1))
            partly = [s for s in segments if s.uniform & own and own - s.uniform]
            shown, before = (sum(s.size for s in found if s.uniform) for found in (segments, plain))
            if (
                not partly
                or shown < before
                or (shown == before and spatial and all(spatial <= s.uniform for s in partly))
            ):
                continue
            score = (shown, -len(factors))
            if best is None or score > best[0]:
                dims = (*contraction.dims[:axis], *factors, *contraction.dims[axis + 1 :])
                note = f"axis {axis} as {TIMES.join(map(str, factors))}"
                noted = tuple(replace(s, found=(note, *s.found)) if s in partly else s for s in segments)
                if spatial:
                    noted = _with_dense_channels(noted, plain, len(factors), views.opset)
                apart = replace(
                    contraction,
                    dims=dims,
                    channel_axis=channel_axis + len(factors) - 1,
                    factors=factors,
                    split_axis=axis,
                )
                best = (score, apart, noted)
    return None if best is None else best[1:]


def _with_dense_channels(segments: Segments, plain: Segments, count: int, opset: int) -> Segments:
    """The segments of a view [f1, .., C, *spatial], the dense ones with cores [N, C, *spatial]."""
    out, start = [], 0
    for segment in segments:
        stop = start + segment.size
        if not segment.uniform:
            pieces = cut_segments(plain, start, stop, 1) or ()
            if any(piece.uniform for piece in pieces):  # the view shows less of them
                core = merged_batch(segment.core, count, opset)
            else:
                core = concatenated([piece.core for piece in pieces], 1)
            segment = replace(segment, core=core)
        out.append(segment)
        start = stop
    return tuple(out)


def merged_batch(core: Core, count: int, opset: int) -> Core:
    """A core [f1, .., C, *spatial] of a view whose batch was taken apart into ``count`` factors, as [N, C, *spatial]."""
    if count == 1:
        return core
    lead, rest = core.dims[:count], core.dims[count:]
    present = [i for i, d in enumerate(lead) if d != 1]
    if len(present) < 2:
        kept = present[0] if present else 0
        return squeezed(core, [i for i in range(count) if i != kept], opset)
    dims = (product(lead), *rest)
    if isinstance(core, Literal):
        return Literal(dims, core.array.reshape(-1, *core.array.shape[count:]))
    tail = _literal([int(d) for d in rest]) if all(isinstance(d, int) for d in rest) else None
    if tail is None:
        tail = sliced(Made((len(core.dims),), "Shape", (core,), {}), {0: slice(count, None)})
    return Made(dims, "Reshape", (core, _joined([_literal([-1]), tail])), {})
