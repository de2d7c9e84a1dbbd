"""The estimate of a site: what it costs as it is, and what each way to rewrite it would cost.

Before: the contraction and every node that only rewritten sites need (the tile, the concatenation, chains between), a
node that several sites need counted in equal shares. After: the nodes of the rewrite. Both within their surroundings,
since an activation that was part of a convolution is an operator of its own behind a sum.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from msconv_deploy.surgery.choice.cost import (
    ACTIVATIONS,
    Cost,
    Op,
    Surroundings,
    UnknownShapeError,
    estimate,
    reads_blocks,
    takes_blocks,
)
from msconv_deploy.surgery.choice.extents import InputShapes, Numbers, Tensors
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols

_LOOK = 6
"""Nodes that are followed to find out the layout of a tensor."""


@dataclass(frozen=True)
class SiteCost:
    """Cost of a site before and after; ``gain`` is the ratio of their seconds."""

    before: Cost
    after: Cost

    @property
    def gain(self) -> float:
        return self.before.seconds / self.after.seconds if self.after.seconds else 1.0


@dataclass(frozen=True)
class Plan:
    """A rewrite as the estimate sees it.

    Attributes:
        lowering: how it is spelled.
        ops: its nodes.
        tensors: shapes of what they compute.
        constants: its weights.
        needed: tensors of the graph that it reads.
        taken_over: nodes behind the contraction that the rewrite's weights take over.
    """

    lowering: str
    ops: tuple[Op, ...]
    tensors: Tensors
    constants: frozenset[str]
    needed: frozenset[str]
    taken_over: tuple[gs.Node, ...] = ()


class Estimator:
    """Estimates sites of one graph, at one set of shapes.

    Args:
        editable: the graph, not edited yet.
        symbols: its extents.
        shapes: of inputs, see ``extents``.
    """

    def __init__(self, editable: EditableModel, symbols: Symbols, shapes: InputShapes) -> None:
        self._symbols = symbols
        self._numbers = Numbers(editable.model, shapes)
        self.tensors: Tensors = self._numbers.tensors
        self._constants = _constants(editable.graph)
        self._outputs = {tensor.name for tensor in editable.graph.outputs}
        self._order = {id(node): position for position, node in enumerate(editable.graph.nodes)}

    def plan(self, node: gs.Node, builder: GraphBuilder, lowering: str, taken_over: tuple[gs.Node, ...] = ()) -> Plan:
        """What the estimate needs of a rewrite; its weights are not kept."""
        full = self.tensors.get(node.outputs[0].name)
        if full is None:
            raise UnknownShapeError(node.outputs[0].name)
        made = self._numbers.of_builder(builder)
        made.setdefault(node.outputs[0].name, full)
        ops = tuple(Op.of(n) for n in builder.nodes)
        inside = {name for op in ops for name in op.outputs} | set(builder.constants)
        needed = frozenset(name for op in ops for name in op.inputs if name) - inside
        return Plan(lowering, ops, made, frozenset(builder.constants), needed, taken_over)

    def site(self, node: gs.Node, plan: Plan, rewritten: Collection[gs.Node], needed: Collection[str]) -> SiteCost:
        """Cost of a site before and after.

        Args:
            node: the contraction.
            plan: its rewrite.
            rewritten: contractions of all sites that are rewritten.
            needed: tensors that rewrites read.

        Raises:
            UnknownShapeError: a shape is not known.
        """
        around = self._surroundings(node)
        dying = self._dying(node, rewritten, needed)
        dying.sort(key=lambda pair: self._order[id(pair[0])])
        before = estimate([_op(n) for n in (*(n for n, _ in dying), node)], self.tensors, around, lower_bound=True)
        for other, count in dying:
            if count > 1:  # the other sites carry the rest of what they share
                single = estimate(
                    [_op(other)], self.tensors, Surroundings(constants=around.constants), lower_bound=True
                )
                before.seconds -= single.seconds * (1 - 1 / count)
                before.bytes -= int(single.bytes * (1 - 1 / count))
        tensors = {**self.tensors, **plan.tensors}
        around = self._surroundings(node, plan.taken_over)
        after = estimate(plan.ops, tensors, replace(around, constants=around.constants | plan.constants))
        return SiteCost(before, after)

    # -- what dies -----------------------------------------------------------------------------------------------

    def _dying(
        self, node: gs.Node, rewritten: Collection[gs.Node], needed: Collection[str]
    ) -> list[tuple[gs.Node, int]]:
        """Nodes above a contraction that only rewritten sites need, with the number of sites that need each."""
        sites = {id(n) for n in rewritten} | {id(node)}
        dying: dict[int, gs.Node] = {}
        frontier = list(node.inputs)
        progress = True
        while progress:
            progress = False
            rest = []
            for tensor in frontier:
                above = tensor.inputs[0] if tensor.inputs else None
                if above is None or id(above) in dying or id(above) not in self._order:
                    continue
                if self._only_for(above, sites, dying, needed):
                    dying[id(above)] = above
                    rest.extend(above.inputs)
                    progress = True
                else:
                    rest.append(tensor)
            frontier = rest
        return [(n, self._sites_below(n, sites, dying)) for n in dying.values()]

    def _only_for(self, above: gs.Node, sites: set[int], dying: dict[int, gs.Node], needed: Collection[str]) -> bool:
        for output in above.outputs:
            if output.name in self._outputs or output.name in needed:
                return False
            if any(id(user) not in sites and id(user) not in dying for user in output.outputs):
                return False
        return True

    def _sites_below(self, node: gs.Node, sites: set[int], dying: dict[int, gs.Node]) -> int:
        found: set[int] = set()
        stack, seen = [node], {id(node)}
        while stack:
            for output in stack.pop().outputs:
                for user in output.outputs:
                    if id(user) in sites:
                        found.add(id(user))
                    elif id(user) in dying and id(user) not in seen:
                        seen.add(id(user))
                        stack.append(user)
        return max(1, len(found))

    # -- what is around ------------------------------------------------------------------------------------------

    def _surroundings(self, node: gs.Node, taken_over: tuple[gs.Node, ...] = ()) -> Surroundings:
        result = node.outputs[0]
        channel_axis = 1 if node.op in ("Conv", "ConvTranspose") else -1
        scaled = activation = False
        while len(result.outputs) == 1 and result.name not in self._outputs:
            user = result.outputs[0]
            if user in taken_over or user.op == "Identity":
                result = user.outputs[0]
            elif not activation and self._scales(user, result, channel_axis):
                scaled, result = True, user.outputs[0]
            elif not activation and user.op in ACTIVATIONS:
                activation, result = True, user.outputs[0]
            else:
                break
        users = result.outputs
        wants = [self._reads_blocks(user, _LOOK) for user in users]
        dims = self._symbols.dims(node.outputs[0])
        return Surroundings(
            blocked=frozenset(t.name for t in self._near(node) if self._is_blocked(t, _LOOK)),
            constants=frozenset(self._constants),
            scaled=scaled,
            activation=activation,
            wants_blocked=any(wants),
            wants_plain=result.name in self._outputs or not users or not all(wants),
            static=dims is not None and all(isinstance(d, int) for d in dims),
        )

    def _near(self, node: gs.Node) -> list[gs.Tensor]:
        """Tensors from which the site may take its dense channels."""
        found, frontier = [], [node.inputs[0]]
        for _ in range(_LOOK):
            frontier = [t for tensor in frontier for above in tensor.inputs for t in above.inputs]
            found.extend(frontier[:64])
        return [node.inputs[0], *found]

    def _scales(self, user: gs.Node, result: gs.Tensor, channel_axis: int) -> bool:
        """Arithmetic with one constant per channel, which ONNX Runtime folds into a convolution."""
        if user.op == "BatchNormalization":
            return True
        if user.op not in ("Mul", "Add") or len(user.inputs) != 2:
            return False
        other = user.inputs[1] if user.inputs[0] is result else user.inputs[0]
        shape = self.tensors.get(other.name)
        whole = self.tensors.get(result.name)
        if other.name not in self._constants or shape is None or whole is None:
            return False
        return shape.count in (1, whole.shape[channel_axis] if len(whole.shape) > 1 else 1)

    def _is_blocked(self, tensor: gs.Tensor, depth: int) -> bool:
        if not tensor.inputs or depth == 0:
            return False
        node = tensor.inputs[0]
        if node.op == "Conv":
            return takes_blocks(_op(node), self.tensors, self._constants)
        if node.op in (*ACTIVATIONS, "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"):
            return self._is_blocked(node.inputs[0], depth - 1)
        if node.op in ("Add", "Concat"):
            return all(self._is_blocked(t, depth - 1) for t in node.inputs)
        return False

    def _reads_blocks(self, node: gs.Node, depth: int) -> bool:
        if node.op == "Conv":
            op = _op(node)
            return takes_blocks(op, self.tensors, self._constants) and reads_blocks(op, self.tensors)
        if node.op in (*ACTIVATIONS, "MaxPool", "AveragePool", "BatchNormalization") and depth:
            users = node.outputs[0].outputs
            return bool(users) and all(self._reads_blocks(user, depth - 1) for user in users)
        return False


def _op(node: gs.Node) -> Op:
    return Op(str(node.op), tuple(t.name for t in node.inputs), tuple(t.name for t in node.outputs), dict(node.attrs))


def _constants(graph: gs.Graph) -> set[str]:
    """Tensors that do not depend on inputs: the runtime computes them once."""
    found = {name for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    for node in graph.nodes:
        random = node.op.startswith("Random") or node.op in ("Bernoulli", "Multinomial", "If", "Loop", "Scan")
        if not random and all(not t.name or t.name in found for t in node.inputs):
            found.update(t.name for t in node.outputs)
    return found
