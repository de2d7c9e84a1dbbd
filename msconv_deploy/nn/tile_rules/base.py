"""What a rule is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from msconv_deploy.nn.facts import Fact

if TYPE_CHECKING:
    from msconv_deploy.nn.tile_graph import TileGraph
Axes = frozenset[int]


@dataclass(frozen=True)
class Core:
    """A node that computes a value with some of its uniform dimensions at extent 1.

    ``full_batch`` is False where a copy over the batch was dropped too, so that its batch may be 1 instead of N.
    """

    node: fx.Node
    full_batch: bool = True


class Rule:
    """What one kind of operation does to uniform tensors. The base class knows nothing.

    ``joins`` says that it joins tensors: a tile among them is a part of the result, and not lost.
    """

    joins = False

    def fact(self, graph: TileGraph, node: fx.Node) -> Fact:
        return Fact()

    def core(self, graph: TileGraph, node: fx.Node, axes: Axes, drop_batch: bool) -> Core:
        """Compute the node with ``axes`` at extent 1. Always right, but builds the tile: cut it off afterwards."""
        return Core(graph.first_slice(node, axes))

    def split(self, graph: TileGraph, node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
        """The operand, and its dimension, that the node treats slice by slice along ``dim``; None: not so.

        The extents of the two dimensions are equal, and the node of a part is the part of the node.
        """
        return None

    def parts(self, graph: TileGraph, node: fx.Node, dim: int) -> list[fx.Node] | None:
        """The tensors that the operation itself concatenates along the dimension; None if it does not."""
        return None

    def operand_of_rank(self, graph: TileGraph, node: fx.Node, rank: int) -> tuple[fx.Node, int] | None:
        """An operand whose rank follows from the node's, and that rank."""
        return None

    def on_part(self, graph: TileGraph, node: fx.Node, whole: fx.Node, part: fx.Node, dim: int) -> fx.Node:
        """The operation on one part of its operand ``whole``, at the insertion point."""
        return graph.copy(node, {whole: part})
