"""A site as one ``msconv::MSConv2d`` node: the fused and the plugin form of `tile-concat-conv`.

The operator covers Conv with two spatial dims, and Conv1d through a kernel ``[1, k]``. Segments of one kind are joined:
their cores concatenated, their weights beside each other. What it does not cover is written in portable form, with the
reason (``docs/spec.md``).
"""

from __future__ import annotations

import numpy as np

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.configuration import DOMAIN, OP_TYPE, SOURCE_NAMES, MSConv2dConfig, PaddingSemantics
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.cores import Core, CoreEmitter, concatenated, squeezed, unsqueezed
from msconv_deploy.surgery.engine.decomposition import Segment
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.rules.tile_concat_conv import Match

LOWERING = "msconv::MSConv2d"

# Uniform spatial axes of a segment, as positions in [N, C, H, W] -> the source that it is.
_KINDS = {frozenset[int](): "nchw", frozenset({3}): "nch", frozenset({2}): "ncw", frozenset({2, 3}): "nc"}


def write_node(builder: GraphBuilder, found: Match) -> Refusal | None:
    """Add the nodes that compute the site's output with one MSConv2d, or say why it has to be portable."""
    contraction = found.contraction
    if contraction.node.op != "Conv" or len(contraction.axes) not in (1, 2):
        return Refusal(f"MSConv2d covers Conv with one or two spatial dims, not {_words(found)}")
    if contraction.factors:
        return Refusal("copies hide in a factor of the batch")
    parts = _parts(found)
    if isinstance(parts, Refusal):
        return parts
    members, channels = parts
    config = _configuration(found, channels)
    if isinstance(config, Refusal):
        return config
    emitter = CoreEmitter(builder)
    one_dimensional = len(contraction.axes) == 1
    sources = [
        emitter.emit(_as_source(kind, concatenated(members[kind], 1), one_dimensional, builder.opset))
        for kind in config.source_names
    ]
    weights = [_weight(found, kind, channels[kind], config) for kind in config.source_names]
    operands = [*sources, *(builder.constant(w) for w in weights)]
    if contraction.bias is not None:
        operands.append(str(contraction.bias.name))
    output = contraction.node.outputs[0].name
    if not one_dimensional:
        builder.add(OP_TYPE, *operands, output=output, domain=DOMAIN, **config.attributes())
        return None
    y = builder.add(OP_TYPE, *operands, domain=DOMAIN, **config.attributes())
    if builder.opset < 13:
        builder.add("Squeeze", y, output=output, axes=[2])
    else:
        builder.add("Squeeze", y, builder.ints([2]), output=output)
    return None


def _words(found: Match) -> str:
    spatial = len(found.contraction.axes)
    return f"{found.node.op} {spatial}d" if spatial else str(found.node.op)


def _parts(found: Match) -> tuple[dict[str, list[Core]], dict[str, list[list[int]]]] | Refusal:
    """Cores and input channels of every kind of source; a channel list per core channel (equal channels share one)."""
    one_dimensional = len(found.contraction.axes) == 1
    members: dict[str, list[Core]] = {}
    channels: dict[str, list[list[int]]] = {}
    for start, segment in zip(found.starts, found.segments, strict=True):
        if segment.size == 0:
            continue
        kind = _kind(segment, one_dimensional)
        members.setdefault(kind, []).append(segment.core)
        own = range(start, start + segment.size)
        channels.setdefault(kind, []).extend([list(own)] if 1 in segment.uniform else [[c] for c in own])
    if found.contraction.dims[0] not in {core.dims[0] for cores in members.values() for core in cores}:
        return Refusal("no source has the batch of the output")
    for kind, cores in members.items():
        if len({core.dims[0] for core in cores}) > 1:
            return Refusal(f"parts of the {kind} source have different batches")
    return members, channels


def _kind(segment: Segment, one_dimensional: bool) -> str:
    spatial = frozenset(a for a in segment.uniform if a > 1)
    if one_dimensional:  # [N, C, L] is an image of height 1: what is uniform along L is scalars
        return "nc" if spatial else "nchw"
    return _KINDS[spatial]


def _configuration(found: Match, kinds: dict[str, list[list[int]]]) -> MSConv2dConfig | Refusal:
    contraction = found.contraction
    axes = contraction.axes
    pads = [a.pad_before for a in axes] + [a.pad_after for a in axes]
    lead = [0] if len(axes) == 1 else []
    if contraction.group > 1 and "nchw" in kinds:
        image = [channel for group in kinds["nchw"] for channel in group]
        per_group = [sum(c // found.channels_per_group == g for c in image) for g in range(contraction.group)]
        if len(set(per_group)) > 1 or len(image) != len(kinds["nchw"]):
            return Refusal("the image part is not spread equally over the groups")
    try:
        return MSConv2dConfig(
            sources=tuple(int(name in kinds) for name in SOURCE_NAMES),  # type: ignore[arg-type]
            kernel_shape=tuple([1] * len(lead) + [a.kernel for a in axes]),  # type: ignore[arg-type]
            has_bias=int(contraction.bias is not None),
            strides=tuple([1] * len(lead) + [a.stride for a in axes]),  # type: ignore[arg-type]
            dilations=tuple([1] * len(lead) + [a.dilation for a in axes]),  # type: ignore[arg-type]
            pads=tuple(lead + pads[: len(axes)] + lead + pads[len(axes) :]),  # type: ignore[arg-type]
            group=contraction.group if "nchw" in kinds else 1,
            padding_semantics=PaddingSemantics.TILED,
        )
    except BadInputError as error:
        return Refusal(str(error))


def _as_source(kind: str, core: Core, one_dimensional: bool, opset: int) -> Core:
    """[N, C, H, W] with extent 1 where the source lacks an axis -> the source's own rank."""
    if one_dimensional:
        return squeezed(core, [2], opset) if kind == "nc" else unsqueezed(core, [2], opset)
    return squeezed(core, {"nchw": [], "nch": [3], "ncw": [2], "nc": [2, 3]}[kind], opset)


def _weight(found: Match, kind: str, channels: list[list[int]], config: MSConv2dConfig) -> np.ndarray:
    """Weights of a source in the operator's layout; equal channels get the sum of their weights."""
    contraction = found.contraction
    if kind == "nchw" and config.group > 1:
        weight = found.grouped_weight([c for group in channels for c in group])
    else:
        columns = contraction.weight_of([channel for group in channels for channel in group])
        weight = columns
        if columns.shape[1] != len(channels):
            starts = np.cumsum([0, *map(len, channels[:-1])])
            weight = np.add.reduceat(columns.astype(np.float64), starts, axis=1).astype(columns.dtype)
    if len(contraction.axes) == 1:
        weight = weight[:, :, None, :]
    return np.ascontiguousarray(weight)
