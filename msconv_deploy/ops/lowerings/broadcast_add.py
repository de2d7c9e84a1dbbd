"""`broadcast-add`: the vectors' terms are added to the image's convolution by broadcasting.

    y = conv2d(nchw, W1) + b  +  R[N,O,H',1]  +  K[N,O,1,W']  +  S[N,O,1,1]

Valid where every term has one class: source semantics, no zero padding on an axis that a source lacks, or a padding
that keeps a uniform tensor uniform. Costs one pass over the output per added term; small terms are summed first.
"""

from __future__ import annotations

from functools import reduce

from msconv_deploy.ops.configuration import MSConv2dConfig
from msconv_deploy.ops.lowerings.operands import Operands
from msconv_deploy.ops.lowerings.terms import image_term, vector_terms
from msconv_deploy.ops.node_builder import NodeBuilder

NAME = "broadcast-add"


def refusal(config: MSConv2dConfig) -> str | None:
    """Why this lowering cannot be used, or None."""
    missing_height = config.sources[2] or config.sources[3]
    missing_width = config.sources[1] or config.sources[3]
    if (missing_height and config.has_border(config.rows)) or (missing_width and config.has_border(config.columns)):
        return "zero padding falls on an axis that a source lacks, so that its term differs at the border"
    return None


def emit(builder: NodeBuilder, config: MSConv2dConfig, operands: Operands) -> str:
    """Add the nodes; returns the name of [N, O, H', W'] before the activation."""
    terms = vector_terms(builder, config, operands)
    small = [terms[name] for name in ("nc", "nch", "ncw") if name in terms]
    bias = operands.bias
    if "nchw" in operands.sources:
        image = image_term(builder, config, operands.sources["nchw"], operands.weights["nchw"], bias)
        if "nch" in terms and "ncw" in terms:
            # nch + ncw together are already as large as the output: add them one after the other instead.
            rows = reduce(lambda a, b: builder.add("Add", a, b), [terms[n] for n in ("nc", "nch") if n in terms])
            return builder.add("Add", builder.add("Add", image, rows), terms["ncw"])
        return reduce(lambda a, b: builder.add("Add", b, a), [*small, image])
    if bias:
        small.insert(0, builder.unsqueeze(bias, 0, 2, 3))
    return reduce(lambda a, b: builder.add("Add", a, b), small)
