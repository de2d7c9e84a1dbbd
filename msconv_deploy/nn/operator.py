"""``torch.ops.msconv.msconv2d``: the operator as one opaque node while a model is traced for export.

Outside of export the module runs plain PyTorch operations, so that autograd and `torch.compile` see through it. Inside
``nn.msconv2d.as_single_nodes`` it calls this custom operator instead; the exporters translate the node to
``msconv::MSConv2d``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from msconv_deploy.nn.functional import msconv2d
from msconv_deploy.ops.configuration import SOURCE_NAMES, MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.shapes import HEIGHT_AXIS, WIDTH_AXIS


@torch.library.custom_op("msconv::msconv2d", mutates_args=())
def _msconv2d(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    present: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
    padding_semantics: int,
    padding_mode: int,
) -> Tensor:
    config = configuration_of(
        bias is not None, present, kernel_shape, strides, dilations, pads, group, padding_semantics, padding_mode
    )
    names = config.source_names
    return msconv2d(config, dict(zip(names, sources, strict=True)), dict(zip(names, weights, strict=True)), bias)


@_msconv2d.register_fake
def _(sources, weights, bias, present, kernel_shape, strides, dilations, pads, group, padding_semantics, padding_mode):  # type: ignore[no-untyped-def]
    """Shape by arithmetic alone: no comparison of extents, which would narrow the dynamic dims of an export."""
    config = configuration_of(
        bias is not None, present, kernel_shape, strides, dilations, pads, group, padding_semantics, padding_mode
    )
    out = []
    for axis, axis_of in ((config.rows, HEIGHT_AXIS), (config.columns, WIDTH_AXIS)):
        extent = None
        for name, source in zip(config.source_names, sources, strict=True):
            position = axis_of[name]
            if position is not None and extent is None:
                extent = source.shape[position]
        room = None if extent is None else extent + axis.pad_before + axis.pad_after - axis.reach
        out.append(1 if room is None else room // axis.stride + 1)
    batch = next((s.shape[0] for s in sources if not (isinstance(s.shape[0], int) and s.shape[0] == 1)), 1)
    return sources[0].new_empty((batch, weights[0].shape[0], *out))


def configuration_of(
    has_bias: bool,
    present: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
    padding_semantics: int,
    padding_mode: int,
) -> MSConv2dConfig:
    """The configuration behind the arguments of the custom operator."""
    return MSConv2dConfig(
        sources=tuple(present),  # type: ignore[arg-type]
        kernel_shape=tuple(kernel_shape),  # type: ignore[arg-type]
        has_bias=int(has_bias),
        strides=tuple(strides),  # type: ignore[arg-type]
        dilations=tuple(dilations),  # type: ignore[arg-type]
        pads=tuple(pads),  # type: ignore[arg-type]
        group=group,
        padding_semantics=PaddingSemantics(padding_semantics),
        padding_mode=PaddingMode(padding_mode),
    )


def call(
    config: MSConv2dConfig, sources: Mapping[str, Tensor], weights: Mapping[str, Tensor], bias: Tensor | None
) -> Tensor:
    """Call the custom operator with a configuration and tensors by name."""
    names = [name for name in SOURCE_NAMES if name in sources]
    result: Tensor = _msconv2d(
        [sources[n] for n in names],
        [weights[n] for n in names],
        bias,
        list(config.sources),
        list(config.kernel_shape),
        list(config.strides),
        list(config.dilations),
        list(config.pads),
        config.group,
        int(config.padding_semantics),
        int(config.padding_mode),
    )
    return result
