"""`ones-channel`: the scalars become the weights of one extra channel of ones.

    y = conv2d(concat(nchw, 1), concat(W1, V)) + b          V[o,0,u,v] = sum over c of W4[o,c,u,v] nc[c]

Valid for one sample with scalars as the only vector, in tiled semantics and without groups. Zero padding is exact by
itself, because the channel of ones is padded like the tile would be. Costs one channel of the convolution and a copy
of the image.
"""

from __future__ import annotations

from msconv_deploy.ops.configuration import MSConv2dConfig
from msconv_deploy.ops.lowerings.operands import Operands
from msconv_deploy.ops.lowerings.terms import image_term
from msconv_deploy.ops.node_builder import NodeBuilder

NAME = "ones-channel"
NEEDS_ONE_SAMPLE = True


def refusal(config: MSConv2dConfig) -> str | None:
    """Why this lowering cannot be used, or None. That the batch is 1 is for the caller to know."""
    if config.source_names != ("nchw", "nc"):
        return "one channel of ones carries scalars only"
    if not config.tiled:
        return "the channel of ones is padded with zeros, which is the tiled semantics"
    if config.group != 1:
        return "the channel of ones would have to be in every group"
    return None


def emit(builder: NodeBuilder, config: MSConv2dConfig, operands: Operands) -> str:
    """Add the nodes; returns the name of [1, O, H', W'] before the activation."""
    image = operands.sources["nchw"]
    # [1, C4, 1, 1] convolved with [C4, O*kh*kw] as a product: [1, C4] x [C4, O*kh*kw] -> [O, 1, kh, kw]
    taps = builder.add("Flatten", builder.add("Transpose", operands.weights["nc"], perm=[1, 0, 2, 3]), axis=1)
    product = builder.add("MatMul", operands.sources["nc"], taps)
    channel = builder.add("Reshape", product, builder.ints([-1, 1, *config.kernel_shape]))
    weights = builder.add("Concat", operands.weights["nchw"], channel, axis=1)
    extents = builder.add("Gather", builder.add("Shape", image), builder.ints([2, 3]))
    shape = builder.add("Concat", builder.ints([1, 1]), extents, axis=0)
    ones = builder.add("Expand", builder.scalar_like(1.0, image), shape, hint="ones")
    return image_term(builder, config, builder.add("Concat", image, ones, axis=1), weights, operands.bias)
