"""What an engine computes, layer by layer, and whether that is what the graph asked for.

A builder may choose fp32 kernels for an fp16 graph, or TF32 for an fp32 graph. So precision is read back from the engine
inspector: every contraction of the graph is looked up in the layers that name it (in their metadata, else in their name),
and its precision is that of the kernel's name, else of the weights, else of the layer's tensors where they all agree.
What cannot be told is *unverified*, never passed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from msconv_deploy.model_files import MIN_EXTERNAL_BYTES, without_weights
from msconv_deploy.ops.configuration import DOMAIN, OP_TYPE
from msconv_deploy.ops.schema import register_schema
from msconv_deploy.reporting.engine import EngineLayer, PrecisionCheck

CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_MAX_NAMED = 10
_ELEMENT_TYPES = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}
# The inspector's words for data types, most particular first ("Row major linear FP16 format", "Half").
_WORDS = (
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\b(fp8|float8|e4m3|e5m2)", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
)
# Operand types in the names of kernels: xmma and cutlass write them out (sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32),
# cuDNN's have a letter (turing_h1688cudnn, volta_scudnn).
_KERNELS = (
    ("tf32", re.compile(r"_tf32")),
    ("bf16", re.compile(r"_bf16(bf16|_)")),
    ("fp16", re.compile(r"_f16(f16|_)|_h(\d+)?cudnn")),
    ("fp8", re.compile(r"_e[45]m[23]")),
    ("int8", re.compile(r"_[is]8([is]8|f32)_|_i(\d+)?cudnn")),
    ("fp32", re.compile(r"_f32f32_|_scudnn")),
)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\s\[]|$)")
_COMPUTES = re.compile(r"conv|gemm|matmul|matrix|fullyconnected|plugin|fusion", re.IGNORECASE)
_MAY_COMPUTE = re.compile(r"kgen|myelin|foreign", re.IGNORECASE)


@dataclass(frozen=True)
class Contraction:
    """A contraction of the graph, and the type that it asks for."""

    name: str
    precision: str
    is_plugin: bool


# -- layers ----------------------------------------------------------------------------------------------------------


def read_layers(text: str) -> list[EngineLayer]:
    """The layers in the engine inspector's JSON; names only where the plan was built without details."""
    found = json.loads(text)
    layers = found.get("Layers", []) if isinstance(found, dict) else found
    return [_layer(layer) for layer in layers]


def _layer(found: Any) -> EngineLayer:
    if not isinstance(found, Mapping):
        return EngineLayer(name=str(found), type="unknown", nodes=_nodes(str(found), ""))
    name, kind = str(found.get("Name", "")), str(found.get("LayerType", "unknown"))
    inputs, outputs = (_formats(found.get(which, [])) for which in ("Inputs", "Outputs"))
    tactic = str(found.get("TacticName", "") or found.get("TacticValue", ""))
    return EngineLayer(
        name=name,
        type=kind,
        precision=_precision(kind, tactic, found.get("Weights"), inputs, outputs),
        inputs=inputs,
        outputs=outputs,
        tactic=tactic,
        nodes=_nodes(name, str(found.get("Metadata", "") or "")),
        plugin=kind.lower().startswith("plugin"),
    )


def _formats(tensors: Any) -> list[str]:
    return [str(t.get("Format/Datatype", "")) for t in tensors if isinstance(t, Mapping)] if tensors else []


def _nodes(name: str, metadata: str) -> list[str]:
    return list(dict.fromkeys(_ONNX_LAYER.findall(metadata))) or [part.strip() for part in name.split(" + ")]


def _precision(kind: str, tactic: str, weights: Any, inputs: Sequence[str], outputs: Sequence[str]) -> str | None:
    for precision, pattern in _KERNELS:
        if pattern.search(tactic):
            return precision
    if isinstance(weights, Mapping) and (found := _data_type(str(weights.get("Type", "")))):
        return found
    tensors = {t for t in map(_data_type, [*inputs, *outputs]) if t}
    if len(tensors) == 1:
        return tensors.pop()
    if inputs and re.search("conv|gemm|plugin", kind, re.IGNORECASE):
        return _data_type(inputs[0])
    return None


def _data_type(text: str) -> str | None:
    return next((precision for precision, pattern in _WORDS if pattern.search(text)), None)


def precisions(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """Type -> number of layers; ``unknown`` where the inspector does not say."""
    return dict(Counter(layer.precision or "unknown" for layer in layers).most_common())


# -- comparison with the graph ---------------------------------------------------------------------------------------


def contractions(model: onnx.ModelProto) -> list[Contraction]:
    """The contractions of the graph in portable or plugin form that compute in a floating type."""
    types = _element_types(model)
    found = []
    for node in model.graph.node:
        is_plugin = node.domain == DOMAIN and node.op_type == OP_TYPE
        if not is_plugin and (node.domain not in ("", "ai.onnx") or node.op_type not in CONTRACTIONS):
            continue
        known = [types[name] for name in (*node.input[1:2], *node.input[:1]) if name in types]
        if known and known[0] in _ELEMENT_TYPES:
            name = node.name or f"node_of_{node.output[0]}"  # as TensorRT's parser names it
            found.append(Contraction(name, _ELEMENT_TYPES[known[0]], is_plugin))
    return found


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    register_schema()
    light, weights = without_weights(model, MIN_EXTERNAL_BYTES)
    light.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights)
    graph = onnx.shape_inference.infer_shapes(light).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def check_precision(
    wanted: Sequence[Contraction], layers: Sequence[EngineLayer], allow_tf32: bool = False
) -> PrecisionCheck:
    """Compare what the graph asks with what the engine computes.

    Args:
        allow_tf32: TF32 counts as fp32.
    """
    by_node: dict[str, list[EngineLayer]] = {}
    for one in layers:
        for node in one.nodes:
            by_node.setdefault(node, []).append(one)
    found: Counter[str] = Counter()
    differing, unaccounted = [], []
    for contraction in wanted:
        layer = _computing(by_node.get(contraction.name, []), contraction)
        precision = layer.precision if layer is not None else None
        if layer is None or precision is None:
            unaccounted.append(contraction.name)
            continue
        found[precision] += 1
        if precision != contraction.precision and not (
            allow_tf32 and (precision, contraction.precision) == ("tf32", "fp32")
        ):
            differing.append(
                f"{contraction.name}: {contraction.precision} asked, {precision} computed by layer {layer.name!r}"
                + (f" (tactic {layer.tactic})" if layer.tactic else "")
            )
    plugin_nodes = sum(c.is_plugin for c in wanted)
    plugin_layers = sum(one.plugin for one in layers)
    check = PrecisionCheck(
        verdict="passed",
        asked=dict(Counter(c.precision for c in wanted)),
        found=dict(found),
        differing=differing,
        unaccounted=unaccounted,
        plugin_nodes=plugin_nodes,
        plugin_layers=plugin_layers,
    )
    _judge(check, layers)
    return check


def _computing(layers: Sequence[EngineLayer], contraction: Contraction) -> EngineLayer | None:
    """Of the layers that name a contraction (copies of its inputs and weights may, too) the one that computes it."""
    if contraction.is_plugin:
        return next((layer for layer in layers if layer.plugin), None)
    for pattern in (_COMPUTES, _MAY_COMPUTE):
        for layer in layers:
            if pattern.search(layer.type):
                return layer
    return None


def _judge(check: PrecisionCheck, layers: Sequence[EngineLayer]) -> None:
    detailed = any(layer.type != "unknown" for layer in layers)
    if check.differing:
        check.verdict = "differ"
        check.reason = "the engine does not compute in the graph's type: " + _some(check.differing)
    elif detailed and check.plugin_layers < check.plugin_nodes:
        check.verdict = "differ"
        check.reason = (
            f"the graph has {check.plugin_nodes} msconv::{OP_TYPE} nodes, but the engine has {check.plugin_layers} plugin "
            "layers"
        )
    elif not detailed:
        check.verdict = "unverified"
        check.reason = "the plan holds no details of its layers (it was not built with detailed profiling verbosity)"
    elif check.unaccounted:
        check.verdict = "unverified"
        check.reason = "no layer tells the precision of " + _some(check.unaccounted)


def _some(texts: Sequence[str]) -> str:
    rest = len(texts) - _MAX_NAMED
    return "; ".join(texts[:_MAX_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
