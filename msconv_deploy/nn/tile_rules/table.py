"""Which rule an operation has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import fx, nn

from msconv_deploy.nn.fx_nodes import argument, describe, has_hooks, operation
from msconv_deploy.nn.tile_rules.base import Rule
from msconv_deploy.nn.tile_rules.concatenation import (
    Concatenate,
    Constant,
    Stack,
    TileAndConcatenate,
    TiledSource,
    tiled_source,
)
from msconv_deploy.nn.tile_rules.copies import Create, CreateLike, Expand, Pad, Repeat, Resize
from msconv_deploy.nn.tile_rules.pointwise import (
    AlongLastDim,
    Cast,
    Convolution,
    Elementwise,
    PerChannel,
    PoolToOutput,
    Reduction,
    WholePool,
)
from msconv_deploy.nn.tile_rules.shapes import Flatten, Index, Permute, View
from msconv_deploy.nn.tiling import tile_and_concatenate

if TYPE_CHECKING:
    from msconv_deploy.nn.tile_graph import TileGraph


def _words(text: str) -> list[str]:
    return text.split()


_CASTS = _words("to type type_as float double half bfloat16 long int bool contiguous clone detach cpu cuda")
_ELEMENTWISE = _words("""
    add sub mul div truediv true_divide floordiv floor_divide neg pos pow abs absolute exp exp2 expm1 log log1p log2
    log10 sqrt rsqrt square reciprocal sin cos tan sinh cosh tanh asin acos atan atan2 sigmoid logit relu relu6
    leaky_relu elu selu celu silu mish gelu hardtanh hardsigmoid hardswish softplus softsign tanhshrink hardshrink
    softshrink logsigmoid threshold clamp clamp_min clamp_max clip maximum minimum where lerp erf floor ceil round sign
    eq ne lt le gt ge logical_not logical_and logical_or masked_fill rsub subtract multiply divide dropout dropout2d
    alpha_dropout iadd isub imul itruediv
    """)
_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.GELU, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardshrink,
    nn.Softshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout,
)  # fmt: skip
_PADDING_MODULES = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d, nn.ConstantPad2d)
_REDUCTIONS = _words("mean sum amax amin std var logsumexp")

_MODULE_RULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(_ELEMENTWISE_MODULES, Elementwise()),
    nn.BatchNorm2d: PerChannel(),
    nn.PReLU: PerChannel(),
    nn.Linear: AlongLastDim(),
    nn.Conv2d: Convolution(),
    nn.AdaptiveAvgPool2d: PoolToOutput(),
    nn.AdaptiveMaxPool2d: PoolToOutput(),
    nn.Flatten: Flatten(),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), Resize()),
    **dict.fromkeys(_PADDING_MODULES, Pad()),
}
_CALL_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CASTS, Cast()),
    **dict.fromkeys(_ELEMENTWISE, Elementwise()),
    **dict.fromkeys(_REDUCTIONS, Reduction()),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), PoolToOutput()),
    "avg_pool2d": WholePool(),
    **dict.fromkeys(("view", "reshape"), View()),
    "flatten": Flatten(),
    **dict.fromkeys(("getitem", "unsqueeze"), Index()),
    **dict.fromkeys(("permute", "transpose", "swapaxes"), Permute()),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), Expand()),
    **dict.fromkeys(("repeat", "tile"), Repeat()),
    **dict.fromkeys(("ones", "zeros", "full", "new_ones", "new_zeros", "new_full"), Create()),
    **dict.fromkeys(("ones_like", "zeros_like", "full_like"), CreateLike()),
    **dict.fromkeys(("interpolate", "upsample"), Resize()),
    "pad": Pad(),
    **dict.fromkeys(("cat", "concat", "concatenate"), Concatenate()),
    "stack": Stack(),
}
_OWN_RULES: dict[Any, Rule] = {tile_and_concatenate: TileAndConcatenate(), tiled_source: TiledSource()}
_OPAQUE = Rule()
_CONSTANT = Constant()


def rule_of(graph: TileGraph, node: fx.Node) -> Rule:
    """The rule of the node's operation; modules of a subclass are opaque, for their forward may be any."""
    if node.op == "get_attr":
        return _CONSTANT
    if node.op == "call_module":
        return _MODULE_RULES.get(type(graph.module(node)), _OPAQUE)
    if node.op == "call_function" and node.target in _OWN_RULES:
        return _OWN_RULES[node.target]
    return _CALL_RULES.get(operation(node) or "", _OPAQUE)


def obstacle_of(graph: TileGraph, node: fx.Node) -> str:
    """Why the operation's rule must not be used at this node; empty if it may."""
    if "out" in node.kwargs:
        return f"{describe(node)} writes to an out= tensor"
    if node.op == "call_module":
        module = graph.module(node)
        if has_hooks(module):
            return f"{describe(node)} has hooks, which would see the core"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training:
                return f"{describe(node)} is a BatchNorm in training mode: its statistics would differ; call eval()"
            if module.running_mean is None:
                return f"{describe(node)} is a BatchNorm that uses batch statistics (track_running_stats=False)"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training:
            return f"{describe(node)} is a Dropout in training mode: it differs from pixel to pixel; call eval()"
    if operation(node) in ("dropout", "dropout2d", "feature_dropout", "alpha_dropout"):
        default = node.target is F.dropout or node.target is F.dropout2d
        if argument(node, 2, "training", default) is not False:
            return f"{describe(node)} is a Dropout in training mode: it differs from pixel to pixel; call eval()"
    return ""
