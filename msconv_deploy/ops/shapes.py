"""Shapes of the operator's tensors: what each input must be and what the output is.

The one place that knows the table of weight shapes in ``docs/spec.md``; the module, the NumPy reference and ONNX shape
inference all ask here, so that they refuse the same inputs with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import SOURCE_NAMES, MSConv2dConfig, PaddingMode

SOURCE_LAYOUT = {"nchw": "[N, C1, H, W]", "nch": "[N, C2, H]", "ncw": "[N, C3, W]", "nc": "[N, C4]"}

# Position of H and W in each source's shape, None where the source lacks the axis.
HEIGHT_AXIS: dict[str, int | None] = {"nchw": 2, "nch": 2, "ncw": None, "nc": None}
WIDTH_AXIS: dict[str, int | None] = {"nchw": 3, "nch": None, "ncw": 2, "nc": None}


def weight_shape(config: MSConv2dConfig, source: str, in_channels: int, out_channels: int) -> tuple[int, ...]:
    """Shape of a source's weight.

    | weight of | source             | tiled             |
    |-----------|--------------------|-------------------|
    | nchw      | [O, C1/g, kh, kw]  | the same          |
    | nch       | [O, C2/g, kh]      | [O, C2, kh, kw]   |
    | ncw       | [O, C3/g, kw]      | [O, C3, kh, kw]   |
    | nc        | [O, C4]            | [O, C4, kh, kw]   |
    """
    kh, kw = config.kernel_shape
    grouped = in_channels // config.group
    if source == "nchw":
        return (out_channels, grouped, kh, kw)
    if config.tiled:
        return (out_channels, in_channels, kh, kw)
    return {
        "nch": (out_channels, grouped, kh),
        "ncw": (out_channels, grouped, kw),
        "nc": (out_channels, in_channels),
    }[source]


def channels_of_weight(config: MSConv2dConfig, source: str, shape: Sequence[Any]) -> Any:
    """Input channels that a weight of this shape belongs to: the inverse of :func:`weight_shape`."""
    grouped = source == "nchw" or (source != "nc" and not config.tiled)
    return shape[1] * config.group if grouped else shape[1]


def check_weights(config: MSConv2dConfig, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, int], int]:
    """Weight shapes against the configuration and each other.

    Returns:
        Source name -> input channels, and the number of output channels.

    Raises:
        BadInputError: naming the weight, its shape and the expected one.
    """
    if tuple(shapes) != config.source_names:
        raise BadInputError(f"MSConv2d: weights are given for {list(shapes)}, needed for {list(config.source_names)}")
    out_channels = next(iter(shapes.values()))[0]
    channels: dict[str, int] = {}
    for name, shape in shapes.items():
        rank = len(weight_shape(config, name, config.group, out_channels))
        if len(shape) == rank:
            channels[name] = channels_of_weight(config, name, shape)
        expected = weight_shape(config, name, channels.get(name, 0), out_channels)
        if tuple(shape) != expected:
            raise BadInputError(
                f"MSConv2d: the weight of {name} has shape {tuple(shape)}; in {config.padding_semantics.name.lower()} "
                f"semantics it must have {rank} dimensions and, for {out_channels} output channels and the kernel "
                f"{config.kernel_shape}, shape {expected}"
            )
    check_channels(config, channels, out_channels)
    return channels, out_channels


def check_channels(config: MSConv2dConfig, in_channels: Mapping[str, int], out_channels: int) -> None:
    """Channel counts must be divisible by the groups that apply to them.

    Raises:
        BadInputError: naming the source and the count.
    """
    if out_channels < 1:
        raise BadInputError(f"MSConv2d: out_channels must be at least 1, but is {out_channels}")
    if config.group == 1:
        return
    grouped = ("nchw",) if config.tiled else ("nchw", "nch", "ncw")
    if any(name in in_channels for name in grouped) and out_channels % config.group:
        raise BadInputError(f"MSConv2d: out_channels {out_channels} is not divisible by groups {config.group}")
    for name in grouped:
        if in_channels.get(name, 0) % config.group:
            raise BadInputError(
                f"MSConv2d: {name} has {in_channels[name]} channels, which is not divisible by groups {config.group}"
            )


def check_sources(config: MSConv2dConfig, shapes: Mapping[str, Sequence[Any]], in_channels: Mapping[str, int]) -> None:
    """Ranks, channels, batches and tied extents of the sources.

    Args:
        shapes: source name -> shape, for the sources that were given.
        in_channels: source name -> expected channels, for the sources that the configuration has.

    Raises:
        BadInputError: saying which source, what it is and what it should be.
    """
    for name in SOURCE_NAMES:
        if name in in_channels and name not in shapes:
            raise BadInputError(
                f"MSConv2d: source {name} {SOURCE_LAYOUT[name]} is missing; "
                f"this layer was built with {in_channels[name]} {name} channels"
            )
        if name in shapes and name not in in_channels:
            raise BadInputError(f"MSConv2d: source {name} was given, but this layer was built without {name} channels")
    batch: tuple[str, Any] | None = None
    for name, shape in shapes.items():
        rank = SOURCE_LAYOUT[name].count(",") + 1
        if len(shape) != rank:
            raise BadInputError(
                f"MSConv2d: source {name} must have {rank} dimensions {SOURCE_LAYOUT[name]}, but has shape {list(shape)}"
            )
        if shape[1] != in_channels[name]:
            raise BadInputError(
                f"MSConv2d: source {name} must have {in_channels[name]} channels, but has shape {list(shape)}"
            )
        if shape[0] != 1:
            if batch is not None and shape[0] != batch[1]:
                raise BadInputError(
                    f"MSConv2d: source {name} has batch {shape[0]} but {batch[0]} has batch {batch[1]}; "
                    "batches must be equal or 1"
                )
            batch = batch or (name, shape[0])
    _check_padding(config, config.rows, source_extent(shapes, HEIGHT_AXIS, "height"), "height")
    _check_padding(config, config.columns, source_extent(shapes, WIDTH_AXIS, "width"), "width")


def _check_padding(config: MSConv2dConfig, axis: Axis, extent: Any | None, what: str) -> None:
    """Reflect and circular padding read inside the input, which must be large enough."""
    if extent is None or config.padding_mode not in (PaddingMode.REFLECT, PaddingMode.CIRCULAR):
        return
    smallest = max(axis.pad_before, axis.pad_after) + (config.padding_mode == PaddingMode.REFLECT)
    if extent < smallest:
        raise BadInputError(
            f"MSConv2d: {config.padding_mode.name.lower()} padding of {axis.pad_before} and {axis.pad_after} needs a "
            f"{what} of at least {smallest}, but it is {extent}"
        )


def source_extent(shapes: Mapping[str, Sequence[Any]], axis_of: Mapping[str, int | None], what: str) -> Any | None:
    """The extent that the sources agree on along H or W; None where no source has that axis.

    Raises:
        BadInputError: two sources disagree.
    """
    found: tuple[str, Any] | None = None
    for name, shape in shapes.items():
        axis = axis_of[name]
        if axis is None:
            continue
        if found is not None and found[1] != shape[axis]:
            raise BadInputError(
                f"MSConv2d: {name} has {what} {shape[axis]} but {found[0]} has {what} {found[1]}; they must be equal"
            )
        found = found or (name, shape[axis])
    return None if found is None else found[1]


def output_shape(config: MSConv2dConfig, shapes: Mapping[str, Sequence[int]], out_channels: int) -> tuple[int, ...]:
    """Shape ``[N, O, H', W']`` of the output. An axis that no source has gets extent 1 (``source`` semantics)."""
    height = source_extent(shapes, HEIGHT_AXIS, "height")
    width = source_extent(shapes, WIDTH_AXIS, "width")
    return (
        next((shape[0] for shape in shapes.values() if shape[0] != 1), 1),  # a batch of 1 is broadcast, to 0 as well
        out_channels,
        1 if height is None else config.rows.output_extent(height),
        1 if width is None else config.columns.output_extent(width),
    )
