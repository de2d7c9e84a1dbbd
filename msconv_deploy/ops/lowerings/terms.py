"""The terms of the operator as ONNX nodes: the image's convolution and the class tables R, K and S.

Shapes here are those of ``docs/spec.md``; a table has extent 1 along an axis without border classes and then simply
broadcasts. Channel counts are not known (one function serves them all), so reshapes read them from the weights; those
are constants in a model, and every runtime folds what depends on them alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from msconv_deploy.ops.border_classes import Axis, RangeGrid, range_grid
from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingMode
from msconv_deploy.ops.lowerings.operands import Operands
from msconv_deploy.ops.node_builder import NodeBuilder

PAD_MODES = {PaddingMode.REFLECT: "reflect", PaddingMode.REPLICATE: "edge", PaddingMode.CIRCULAR: "wrap"}


def class_grid(config: MSConv2dConfig, axis: Axis) -> RangeGrid | None:
    """The table of tap ranges along an axis, or None where there is one class, the whole kernel."""
    return range_grid(axis) if config.has_border(axis) else None


def image_term(builder: NodeBuilder, config: MSConv2dConfig, x: str, w: str, bias: str | None) -> str:
    """conv2d(nchw, W1) + b: [N, O, H', W']."""
    return _conv(builder, config, x, w, {2: config.rows, 3: config.columns}, config.group, bias)


def vector_terms(builder: NodeBuilder, config: MSConv2dConfig, operands: Operands) -> dict[str, str]:
    """R [N,O,H',column classes] of nch, K [N,O,row classes,W'] of ncw, S [N,O,row classes,column classes] of nc."""
    make = _tiled_terms if config.tiled else _source_terms
    return make(builder, config, operands.sources, operands.weights)


def _source_terms(
    builder: NodeBuilder, config: MSConv2dConfig, sources: Mapping[str, str], weights: Mapping[str, str]
) -> dict[str, str]:
    terms = {}
    if "nch" in sources:
        row = _conv(builder, config, sources["nch"], weights["nch"], {2: config.rows}, config.group)
        terms["nch"] = builder.unsqueeze(row, 3)
    if "ncw" in sources:
        column = _conv(builder, config, sources["ncw"], weights["ncw"], {2: config.columns}, config.group)
        terms["ncw"] = builder.unsqueeze(column, 2)
    if "nc" in sources:
        scalar = builder.add("MatMul", sources["nc"], builder.add("Transpose", weights["nc"], perm=[1, 0]))
        terms["nc"] = builder.unsqueeze(scalar, 2, 3)
    return terms


def _tiled_terms(
    builder: NodeBuilder, config: MSConv2dConfig, sources: Mapping[str, str], weights: Mapping[str, str]
) -> dict[str, str]:
    terms = {}
    if "nch" in sources:
        w = tap_sums(builder, config, weights["nch"], 3)  # [O, C, kh, T]
        w = _merge_classes(builder, builder.add("Transpose", w, perm=[0, 3, 1, 2]))
        row = _conv(builder, config, sources["nch"], w, {2: config.rows}, 1)  # [N, O*T, H']
        terms["nch"] = _split_classes(builder, config, row, weights["nch"], config.columns, [0, 2, 1, 3])
    if "ncw" in sources:
        w = tap_sums(builder, config, weights["ncw"], 2)  # [O, C, T, kw]
        w = _merge_classes(builder, builder.add("Transpose", w, perm=[0, 2, 1, 3]))
        column = _conv(builder, config, sources["ncw"], w, {2: config.columns}, 1)  # [N, O*T, W']
        terms["ncw"] = _split_classes(builder, config, column, weights["ncw"], config.rows, [0, 2, 3, 1])
    if "nc" in sources:
        w = tap_sums(builder, config, tap_sums(builder, config, weights["nc"], 3), 2)  # [O, C, T rows, T columns]
        flat = builder.add("Flatten", builder.add("Transpose", w, perm=[1, 0, 2, 3]), axis=1)  # [C, O*T*T]
        linear = builder.add("MatMul", sources["nc"], flat)
        counts = [_class_count(config, config.rows), _class_count(config, config.columns)]
        shape = _shape_with_outputs(builder, weights["nc"], [0], counts)
        terms["nc"] = builder.add("Reshape", linear, shape, hint="corner_table")
    return terms


def tap_sums(builder: NodeBuilder, config: MSConv2dConfig, w: str, axis: int) -> str:
    """A tiled weight [O, C, kh, kw] summed per class over the taps of one axis, which becomes the class axis.

    The taps of each class are gathered, absent ones from a tap of zeros that is padded on, and summed. This needs no
    constant of the weight's type, which a function does not know.
    """
    geometry = config.rows if axis == 2 else config.columns
    grid = class_grid(config, geometry)
    if grid is None:
        return builder.unsqueeze(builder.reduce_sum(w, axis), axis)
    zero_tap = geometry.kernel
    taps = [[t if first <= t < last else zero_tap for t in range(geometry.kernel)] for first, last in grid.ranges]
    padded = builder.pad(w, "constant", 4, {axis: (0, 1)})
    return builder.reduce_sum(builder.add("Gather", padded, builder.ints(taps, "taps"), axis=axis), axis + 1)


def _class_count(config: MSConv2dConfig, axis: Axis) -> int:
    grid = class_grid(config, axis)
    return 1 if grid is None else len(grid.ranges)


def _merge_classes(builder: NodeBuilder, w: str) -> str:
    """[O, T, C, k] -> [O*T, C, k]."""
    extents = builder.add("Gather", builder.add("Shape", w), builder.ints([2, 3]))
    return builder.add("Reshape", w, builder.add("Concat", builder.ints([-1]), extents, axis=0))


def _split_classes(builder: NodeBuilder, config: MSConv2dConfig, x: str, w: str, axis: Axis, perm: list[int]) -> str:
    """[N, O*T, L] -> [N, L, O, T] -> permuted. The length comes first so that no extent has to be known."""
    x = builder.add("Transpose", x, perm=[0, 2, 1])
    shape = _shape_with_outputs(builder, w, [0, 0], [_class_count(config, axis)])
    return builder.add("Transpose", builder.add("Reshape", x, shape), perm=perm, hint="class_table")


def _shape_with_outputs(builder: NodeBuilder, w: str, before: list[int], after: list[int]) -> str:
    """A shape whose middle is the number of output channels, read from a weight: -1 would not do for an empty batch."""
    outputs = builder.add("Gather", builder.add("Shape", w), builder.ints([0]))
    return builder.add("Concat", builder.ints(before), outputs, builder.ints(after), axis=0)


def _conv(
    builder: NodeBuilder,
    config: MSConv2dConfig,
    x: str,
    w: str,
    axes: dict[int, Axis],
    group: int,
    bias: str | None = None,
) -> str:
    """Convolution along some axes of x, zero padding in the operator, any other padding as a node before it."""
    pads = [axis.pad_before for axis in axes.values()] + [axis.pad_after for axis in axes.values()]
    if config.padding_mode != PaddingMode.ZEROS:
        amounts = {i: (axis.pad_before, axis.pad_after) for i, axis in axes.items()}
        x = builder.pad(x, PAD_MODES[config.padding_mode], 2 + len(axes), amounts)
        pads = [0] * len(pads)
    return builder.add(
        "Conv",
        x,
        w,
        *([bias] if bias else []),
        kernel_shape=[axis.kernel for axis in axes.values()],
        strides=[axis.stride for axis in axes.values()],
        dilations=[axis.dilation for axis in axes.values()],
        pads=pads,
        group=group,
    )
