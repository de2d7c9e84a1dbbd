"""The activation as standard operators."""

from __future__ import annotations

from msconv_deploy.ops.configuration import Activation, MSConv2dConfig
from msconv_deploy.ops.node_builder import NodeBuilder


def emit_activation(builder: NodeBuilder, config: MSConv2dConfig, x: str, output: str) -> None:
    """Apply ``config.activation`` to ``x``; the result is the value ``output``."""
    first, second = config.activation_params
    match config.activation:
        case Activation.NONE:
            builder.add("Identity", x, output=output)
        case Activation.RELU:
            builder.add("Relu", x, output=output)
        case Activation.LEAKY_RELU:
            builder.add("LeakyRelu", x, output=output, alpha=first)
        case Activation.SILU:
            builder.add("Mul", x, builder.add("Sigmoid", x), output=output)
        case Activation.SIGMOID:
            builder.add("Sigmoid", x, output=output)
        case Activation.TANH:
            builder.add("Tanh", x, output=output)
        case Activation.CLIP:
            builder.add("Clip", x, builder.scalar_like(first, x), builder.scalar_like(second, x), output=output)
