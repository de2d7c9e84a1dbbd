"""`dynamic-bias`: the scalars' linear becomes the bias input of the image's convolution.

    y = conv2d(nchw, W1, bias = b + W4s nc)          W4s: W4 summed over all taps

Valid for one sample, with scalars as the only vector and without border classes. No extra pass over the output, but a
bias that is not constant keeps some runtimes from their blocked layouts.
"""

from __future__ import annotations

from msconv_deploy.ops.configuration import MSConv2dConfig
from msconv_deploy.ops.lowerings import broadcast_add
from msconv_deploy.ops.lowerings.operands import Operands
from msconv_deploy.ops.lowerings.terms import image_term, vector_terms
from msconv_deploy.ops.node_builder import NodeBuilder

NAME = "dynamic-bias"
NEEDS_ONE_SAMPLE = True


def refusal(config: MSConv2dConfig) -> str | None:
    """Why this lowering cannot be used, or None. That the batch is 1 is for the caller to know."""
    if config.source_names != ("nchw", "nc"):
        return "a bias has one value per channel, so that only scalars beside an image can go there"
    return broadcast_add.refusal(config)


def emit(builder: NodeBuilder, config: MSConv2dConfig, operands: Operands) -> str:
    """Add the nodes; returns the name of [1, O, H', W'] before the activation."""
    scalar = vector_terms(builder, config, operands)["nc"]  # [1, O, 1, 1]
    bias = builder.add("Reshape", scalar, builder.ints([-1]))
    if operands.bias:
        bias = builder.add("Add", bias, operands.bias)
    return image_term(builder, config, operands.sources["nchw"], operands.weights["nchw"], bias)
