"""Lowerings: the ways to spell an MSConv2d of any batch and extents in standard ONNX operators, for function bodies.

One module a lowering; each has a NAME, a :func:`refusal` (why it cannot be used, or None) and an ``emit`` that adds the
nodes. None of them writes a tile of a source. Rewriting a graph, where extents and constants are known, has more
(``surgery/rules/tile_concat_conv.py``).
"""

from __future__ import annotations

from types import ModuleType

from msconv_deploy.ops.configuration import MSConv2dConfig
from msconv_deploy.ops.lowerings import border_gather, broadcast_add
from msconv_deploy.ops.lowerings.operands import Operands
from msconv_deploy.ops.node_builder import NodeBuilder

LOWERINGS: dict[str, ModuleType] = {module.NAME: module for module in (broadcast_add, border_gather)}

__all__ = ["LOWERINGS", "Operands", "emit", "general_lowering"]


def general_lowering(config: MSConv2dConfig) -> str:
    """The lowering that is right for any batch, extents and dtype, for bodies that are written before they are known."""
    return broadcast_add.NAME if broadcast_add.refusal(config) is None else border_gather.NAME


def emit(name: str, builder: NodeBuilder, config: MSConv2dConfig, operands: Operands, output: str) -> None:
    """Add the nodes of a lowering and of the activation; the result is the value ``output``."""
    from msconv_deploy.ops.lowerings.activation import emit_activation

    lowering = LOWERINGS[name]
    emit_activation(builder, config, lowering.emit(builder, config, operands), output)
