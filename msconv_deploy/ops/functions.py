"""Model-local functions: the portable body of one configuration, named by the hash of its attributes.

Attributes are baked into the body as literals, because TensorRT's parser mis-resolves references to INTS attributes;
the calling node carries them too, so that fused form and plugin form convert into each other without loss.
"""

from __future__ import annotations

import onnx
from onnx import helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops import lowerings
from msconv_deploy.ops.border_classes import range_grid
from msconv_deploy.ops.configuration import DOMAIN, MSConv2dConfig
from msconv_deploy.ops.node_builder import NodeBuilder

MIN_IR_VERSION = 8  # model-local functions

_MOST_TABLE = 1 << 22
"""Entries of the membership table of one axis: a kernel of 255 taps, padded to the same size, has 4.2 million."""


def function_for(config: MSConv2dConfig, opset: int) -> onnx.FunctionProto:
    """The function of a configuration, its body in the given opset of the default domain.

    All value names start with the function's name, so that two bodies never meet after inlining by a simple tool.

    Raises:
        BadInputError: a table of border classes would be larger than any convolution needs.
    """
    _check_tables(config)
    name = config.function_name
    builder = NodeBuilder(name, opset)
    inputs = [builder.name(i) for i in config.input_names]
    output = builder.name("y")
    operands = lowerings.Operands.from_inputs(config, inputs)
    lowerings.emit(lowerings.general_lowering(config), builder, config, operands, output)
    return helper.make_function(
        DOMAIN,
        name,
        inputs,
        [output],
        builder.nodes,
        [helper.make_opsetid("", opset)],
        attributes=list(config.attributes()),
        doc_string="Portable body of msconv::MSConv2d for one set of attributes; see docs/spec.md of msconv-deploy.",
    )


def _check_tables(config: MSConv2dConfig) -> None:
    for axis, word in ((config.rows, "rows"), (config.columns, "columns")):
        if not config.has_border(axis):
            continue
        rows = range_grid(axis).rows
        if rows * axis.kernel > _MOST_TABLE:
            raise BadInputError(
                f"MSConv2d: a kernel of {axis.kernel} {word} with padding {axis.pad_before}+{axis.pad_after} has {rows:,} "
                f"border classes, a table of {rows * axis.kernel:,} entries: more than {_MOST_TABLE:,} are not written. "
                "Use a smaller kernel or less padding"
            )
