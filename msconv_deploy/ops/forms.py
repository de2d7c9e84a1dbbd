"""The three forms of a model, and the way from one to another.

- *portable*: standard operators only.
- *fused*: nodes ``msconv::MSConv2d_<hash>`` whose model-local functions carry the portable body; ONNX Runtime runs it.
- *plugin*: nodes ``msconv::MSConv2d`` without functions, for the TensorRT plugin.

Fused and plugin form differ in the op type and in whether the functions are there; nodes carry all attributes in both,
so the way between them loses nothing. Portable form is one way: what has been inlined cannot be told from other nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import onnx
from onnx import helper, inliner

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.configuration import DOMAIN, DOMAIN_VERSION, OP_TYPE, PLUGIN_ATTRIBUTES, MSConv2dConfig
from msconv_deploy.ops.functions import MIN_IR_VERSION, function_for
from msconv_deploy.ops.schema import configuration_of_node


class Form(str, Enum):
    """How a model spells its MSConv2d layers."""

    PORTABLE = "portable"
    FUSED = "fused"
    PLUGIN = "plugin"


def msconv_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All MSConv2d nodes, fused or plugin, in the graph, its subgraphs and the functions of other domains."""
    found = list(_nodes_of(model.graph.node))
    for function in model.functions:
        if function.domain != DOMAIN:
            found += _nodes_of(function.node)
    return [n for n in found if n.domain == DOMAIN and (n.op_type == OP_TYPE or n.op_type.startswith(f"{OP_TYPE}_"))]


def _nodes_of(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes_of(graph.node)


def form_of(model: onnx.ModelProto) -> Form:
    """The form that a model is in. A model that mixes the two is in plugin form: it needs the plugin."""
    nodes = msconv_nodes(model)
    if any(node.op_type == OP_TYPE for node in nodes):
        return Form.PLUGIN
    return Form.FUSED if nodes else Form.PORTABLE


def default_opset(model: onnx.ModelProto) -> int:
    """Version of the default domain.

    Raises:
        BadInputError: the model does not import it.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise BadInputError("the model does not say which opset of the default domain it uses (opset_import is missing)")


def convert_form(model: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """A copy of the model in the given form. Graph inputs, outputs and metadata stay as they are.

    Raises:
        BadInputError: from portable to another form, an MSConv2d node is malformed, or its function is not that of its
            attributes.
    """
    present = form_of(model)
    if present == form:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    if present == Form.PORTABLE:
        raise BadInputError(
            f"the model has no msconv::{OP_TYPE} nodes: it is in portable form already, and which of its nodes were one "
            f"layer is no longer known. Export it in {form.value} form from its checkpoint (msconv export)"
        )
    if form == Form.PLUGIN:
        return _to_plugin(model)
    fused = _to_fused(model)
    return fused if form == Form.FUSED else _inline(fused)


def _to_fused(model: onnx.ModelProto) -> onnx.ModelProto:
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    opset = default_opset(model)
    own = {f.name: f for f in model.functions if f.domain == DOMAIN and _function_opset(f) == opset}
    functions: dict[str, onnx.FunctionProto] = {}
    for node in msconv_nodes(fused):
        config = _configuration(node)
        _set_attributes(node, config.attributes())
        node.op_type = config.function_name
        if config.function_name in own:  # a body that is there is what has been computed so far
            functions[config.function_name] = own[config.function_name]
        if config.function_name not in functions:
            try:
                functions[config.function_name] = function_for(config, opset)
            except BadInputError as error:
                raise BadInputError(f"node {node.name or node.output[0]!r}: {error}") from error
    kept = [f for f in fused.functions if f.domain != DOMAIN]
    del fused.functions[:]
    fused.functions.extend([*functions.values(), *kept])
    fused.ir_version = max(fused.ir_version, MIN_IR_VERSION)
    _import_domain(fused)
    return fused


def _function_opset(function: onnx.FunctionProto) -> int:
    """Version of the default domain in a function's body; 0 if it does not say."""
    return next((entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _configuration(node: onnx.NodeProto) -> MSConv2dConfig:
    """What a node computes, by its attributes. In fused form that is what its function computes, which is named by them.

    Raises:
        BadInputError: the node is malformed, or the function that it calls is that of other attributes.
    """
    config = configuration_of_node(node)
    if node.op_type not in (OP_TYPE, config.function_name):
        raise BadInputError(
            f"node {node.name or node.output[0]!r}: it calls {node.op_type}, but the function of its attributes is "
            f"{config.function_name}: which of them is meant cannot be known. Correct the attributes, or export the model anew"
        )
    return config


def _to_plugin(model: onnx.ModelProto) -> onnx.ModelProto:
    plugin = onnx.ModelProto()
    plugin.CopyFrom(model)
    for node in msconv_nodes(plugin):
        _set_attributes(node, _configuration(node).attributes() | PLUGIN_ATTRIBUTES)
        node.op_type = OP_TYPE
    kept = [f for f in plugin.functions if f.domain != DOMAIN]
    del plugin.functions[:]
    plugin.functions.extend(kept)
    _import_domain(plugin)
    return plugin


def _set_attributes(node: onnx.NodeProto, attributes: dict[str, object]) -> None:
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())


def _import_domain(model: onnx.ModelProto) -> None:
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the functions of our domain; those of other domains are the model's own and stay.

    The inliner serializes the model, which protobuf allows up to 2 GB only, and needs no weight: they stand aside.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in light.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    identifiers = [(f.domain, f.name) for f in model.functions if f.domain == DOMAIN]
    portable = inliner.inline_selected_functions(light, identifiers)
    for tensor in portable.graph.initializer:
        tensor.CopyFrom(weights[tensor.name])
    kept = [entry for entry in portable.opset_import if entry.domain != DOMAIN]
    del portable.opset_import[:]
    portable.opset_import.extend(kept)
    return portable
