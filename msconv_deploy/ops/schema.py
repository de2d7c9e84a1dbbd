"""The ONNX schema of ``msconv::MSConv2d``, so that the checker and shape inference know nodes of the plugin form."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, defs, helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import DOMAIN, DOMAIN_VERSION, OP_TYPE, PLUGIN_ATTRIBUTES, MSConv2dConfig
from msconv_deploy.ops.shapes import HEIGHT_AXIS, WIDTH_AXIS, check_sources, check_weights

FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)")

_DOC = """Convolution of up to four sources without tiling them: image nchw [N,C1,H,W], per-row vector nch [N,C2,H],
per-column vector ncw [N,C3,W], scalars nc [N,C4]. Inputs, those that are present: the sources, their weights in the same
order, the bias. One output [N,O,H',W']. Defined in docs/spec.md of msconv-deploy."""


def schema() -> defs.OpSchema:
    """A new schema object. ``inputs`` is variadic, because which inputs exist is an attribute."""
    kind = defs.OpSchema.FormalParameter
    attribute = defs.OpSchema.Attribute
    defaults = MSConv2dConfig((1, 0, 0, 0), (1, 1)).attributes()
    required = {"sources", "kernel_shape"}
    attributes = []
    for name, default in defaults.items():
        value = helper.make_attribute(name, default)
        if name in required:
            attributes.append(attribute(name, _ATTRIBUTE_TYPES[value.type], required=True))
        else:
            attributes.append(attribute(name, value))
    attributes += [attribute(name, helper.make_attribute(name, value)) for name, value in PLUGIN_ATTRIBUTES.items()]
    variadic = defs.OpSchema.FormalParameterOption.Variadic
    made = defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        doc=_DOC,
        inputs=[kind("inputs", "T", "sources, weights, bias", param_option=variadic, min_arity=2)],
        outputs=[kind("y", "T", "[N, O, H', W']")],
        type_constraints=[("T", list(FLOAT_TYPES), "one floating-point type for all")],
        attributes=attributes,
    )
    made.set_type_and_shape_inference_function(_infer)
    return made


_ATTRIBUTE_TYPES = {
    onnx.AttributeProto.INT: defs.OpSchema.AttrType.INT,
    onnx.AttributeProto.INTS: defs.OpSchema.AttrType.INTS,
    onnx.AttributeProto.FLOATS: defs.OpSchema.AttrType.FLOATS,
}


def register_schema() -> None:
    """Make the schema known to `onnx` in this process; calling it again does nothing."""
    if not defs.has(OP_TYPE, DOMAIN):
        defs.register_schema(schema())


def configuration_of_node(node: onnx.NodeProto) -> MSConv2dConfig:
    """The configuration that a node of the plugin form or the fused form carries.

    Raises:
        BadInputError: naming the node and the attribute.
    """
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        config = MSConv2dConfig.from_attributes(attributes)
    except BadInputError as error:
        raise BadInputError(f"node {node.name or node.output[0]!r}: {error}") from error
    if len(node.input) != len(config.input_names):
        raise BadInputError(
            f"node {node.name or node.output[0]!r}: MSConv2d with sources {list(config.sources)} and has_bias "
            f"{config.has_bias} takes {len(config.input_names)} inputs {list(config.input_names)}, but has {len(node.input)}"
        )
    return config


def _infer(context: Any) -> None:
    """Type and shape of the output; unknown extents stay unknown, wrong known ones are inference errors."""
    first = context.get_input_type(0)
    elem_type = first.tensor_type.elem_type if first is not None else TensorProto.UNDEFINED
    attributes = {}
    for name in MSConv2dConfig((1, 0, 0, 0), (1, 1)).attributes():
        found = context.get_attribute(name)
        if found is not None:
            attributes[name] = helper.get_attribute_value(found)
    try:
        config = MSConv2dConfig.from_attributes(attributes)
        shapes = [_dims(context.get_input_type(i)) for i in range(context.get_num_inputs())]
        output = _output_dims(config, shapes)
    except BadInputError as error:
        raise onnx.shape_inference.InferenceError(str(error)) from error
    context.set_output_type(0, helper.make_tensor_type_proto(elem_type, output))


def _dims(value: onnx.TypeProto | None) -> list[int | str | None] | None:
    """Extents: an int where known, a name where symbolic, None where unknown; None for an unknown rank."""
    if value is None or not value.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in value.tensor_type.shape.dim]


def _output_dims(config: MSConv2dConfig, shapes: list[list[int | str | None] | None]) -> list[int | str | None] | None:
    """[N, O, H', W'] as far as it is known; None where not even the output channels are."""
    names = config.source_names
    sources = dict(zip(names, shapes, strict=False))
    weights = dict(zip(names, shapes[len(names) :], strict=False))
    known_weights = {n: w for n, w in weights.items() if w is not None and all(isinstance(d, int) for d in w)}
    if len(known_weights) == len(names):
        channels, _ = check_weights(config, known_weights)  # type: ignore[arg-type]
        known_sources = {n: s for n, s in sources.items() if s is not None and all(isinstance(d, int) for d in s)}
        if len(known_sources) == len(names):
            check_sources(config, known_sources, channels)
    out_channels = next((w[0] for w in weights.values() if w), None)
    batches = [s[0] for s in sources.values() if s]
    batch = next((b for b in batches if b != 1), 1 if len(batches) == len(names) else None)

    def extent(axis: Axis, axis_of: dict[str, int | None]) -> int | str | None:
        owners = [(n, position) for n in names if (position := axis_of[n]) is not None]
        if not owners:
            return 1
        owner, position = owners[0]
        shape = sources.get(owner)
        value = None if shape is None else shape[position]
        if isinstance(value, int):
            return axis.output_extent(value)
        same = axis.stride == 1 and axis.pad_before + axis.pad_after == axis.reach - 1
        return value if same else None

    return [batch, out_channels, extent(config.rows, HEIGHT_AXIS), extent(config.columns, WIDTH_AXIS)]
