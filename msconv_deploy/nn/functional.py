"""The operator in PyTorch: differentiable, traceable, and without a tile.

Formulas are those of ``docs/spec.md``; the geometry of border classes comes from ``ops.border_classes``, so that
there is one place for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msconv_deploy.ops.border_classes import Axis, RangeGrid, grid_index, range_grid
from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingMode
from msconv_deploy.ops.shapes import HEIGHT_AXIS, WIDTH_AXIS

_TORCH_PAD_MODE = {PaddingMode.REFLECT: "reflect", PaddingMode.REPLICATE: "replicate", PaddingMode.CIRCULAR: "circular"}


def class_grid(config: MSConv2dConfig, axis: Axis) -> RangeGrid | None:
    """The table of tap ranges for a source that lacks the axis; None where one class, the whole kernel, is all."""
    return range_grid(axis) if config.has_border(axis) else None


def class_membership(config: MSConv2dConfig, axis: Axis) -> Tensor:
    """``[classes, kernel]`` of 0 and 1, float64; a single row of ones where there is no border."""
    grid = class_grid(config, axis)
    return torch.ones(1, axis.kernel, dtype=torch.float64) if grid is None else torch.from_numpy(grid.membership())


def msconv2d(
    config: MSConv2dConfig,
    sources: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    bias: Tensor | None,
    row_membership: Tensor | None = None,
    column_membership: Tensor | None = None,
) -> Tensor:
    """Evaluate the operator (without its activation, which is a module of its own in PyTorch).

    Args:
        config: the attributes.
        sources: present sources by name: nchw [N,C1,H,W], nch [N,C2,H], ncw [N,C3,W], nc [N,C4].
        weights: their weights, shaped as ``ops.shapes.weight_shape`` says.
        bias: [O] or None.
        row_membership, column_membership: ``class_membership`` of the axes in the weights' dtype and device; computed
            here if None (modules keep them as buffers).

    Returns:
        [N, O, H', W'], on an axis that no source has: extent 1.
    """
    terms = _vector_terms(config, sources, weights, row_membership, column_membership)
    row_term, column_term, corner = terms.get("nch"), terms.get("ncw"), terms.get("nc")
    y = _conv2d(config, sources["nchw"], weights["nchw"], bias) if "nchw" in sources else None

    # An output extent is that of a term that owns the axis; None where no source has it.
    owner_of_height, owner_of_width = (y, y) if y is not None else (row_term, column_term)
    height = None if owner_of_height is None else owner_of_height.shape[2]
    width = None if owner_of_width is None else owner_of_width.shape[3]

    def over_rows(table: Tensor) -> Tensor:
        return _spread(config, config.rows, table, 2, height, _extent(sources, HEIGHT_AXIS))

    def over_columns(table: Tensor) -> Tensor:
        return _spread(config, config.columns, table, 3, width, _extent(sources, WIDTH_AXIS))

    # Small tables are summed before they meet the large tensor.
    if corner is not None:
        if row_term is not None and column_term is None:
            row_term = row_term + over_rows(corner)
        else:
            column_term = _add(column_term, over_columns(corner))
    if column_term is not None:
        y = _add(y, over_rows(column_term))
    if row_term is not None:
        y = _add(y, over_columns(row_term))
    assert y is not None  # a configuration has at least one source
    return y if bias is None or "nchw" in sources else y + bias[:, None, None]


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _vector_terms(
    config: MSConv2dConfig,
    sources: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    row_membership: Tensor | None,
    column_membership: Tensor | None,
) -> dict[str, Tensor]:
    """R [N,O,H',column classes] of nch, K [N,O,row classes,W'] of ncw, S [N,O,row classes,column classes] of nc."""
    terms: dict[str, Tensor] = {}
    if not config.tiled:
        if "nch" in sources:
            terms["nch"] = _conv1d(config, config.rows, sources["nch"], weights["nch"], config.group)[:, :, :, None]
        if "ncw" in sources:
            terms["ncw"] = _conv1d(config, config.columns, sources["ncw"], weights["ncw"], config.group)[:, :, None, :]
        if "nc" in sources:
            terms["nc"] = F.linear(sources["nc"], weights["nc"])[:, :, None, None]
        return terms
    any_weight = next(iter(weights.values()))
    rows = class_membership(config, config.rows).to(any_weight) if row_membership is None else row_membership
    columns = (
        class_membership(config, config.columns).to(any_weight) if column_membership is None else column_membership
    )
    if "nch" in sources:
        w = torch.einsum("ochw,tw->otch", weights["nch"], columns)
        table = _conv1d(config, config.rows, sources["nch"], w.flatten(0, 1), 1)
        terms["nch"] = table.unflatten(1, w.shape[:2]).transpose(2, 3)
    if "ncw" in sources:
        w = torch.einsum("ochw,th->otcw", weights["ncw"], rows)
        table = _conv1d(config, config.columns, sources["ncw"], w.flatten(0, 1), 1)
        terms["ncw"] = table.unflatten(1, w.shape[:2])
    if "nc" in sources:
        w = torch.einsum("ochw,sh,tw->ostc", weights["nc"], rows, columns)
        terms["nc"] = F.linear(sources["nc"], w.flatten(0, 2)).unflatten(1, w.shape[:3])
    return terms


def _extent(sources: Mapping[str, Tensor], axis_of: Mapping[str, int | None]) -> Any:
    for name, source in sources.items():
        axis = axis_of[name]
        if axis is not None:
            return source.shape[axis]
    return None


def _spread(config: MSConv2dConfig, axis: Axis, table: Tensor, dim: int, outputs: Any, extent: Any) -> Tensor:
    """Spread a table's classes (dimension ``dim``) over the output indices; one class is left to broadcast."""
    grid = class_grid(config, axis)
    if grid is None or outputs is None:
        return table
    return table.index_select(dim, grid_index(grid, torch.arange(outputs, device=table.device), extent))


def _pad_widths(*axes: Axis) -> list[int]:
    """Pad amounts in the order of ``F.pad``: last axis first."""
    return [n for axis in reversed(axes) for n in (axis.pad_before, axis.pad_after)]


def _padded(config: MSConv2dConfig, x: Tensor, axes: tuple[Axis, ...]) -> tuple[Tensor, list[int]]:
    """Apply the padding that the convolution itself cannot express; returns what is left for the convolution."""
    if not any(axis.padded for axis in axes):
        return x, [0] * len(axes)
    if config.padding_mode != PaddingMode.ZEROS:
        return F.pad(x, _pad_widths(*axes), mode=_TORCH_PAD_MODE[config.padding_mode]), [0] * len(axes)
    if any(axis.pad_before != axis.pad_after for axis in axes):
        return F.pad(x, _pad_widths(*axes)), [0] * len(axes)
    return x, [axis.pad_before for axis in axes]


def _conv2d(config: MSConv2dConfig, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    x, padding = _padded(config, x, (config.rows, config.columns))
    return F.conv2d(x, w, bias, config.strides, padding, config.dilations, config.group)


def _conv1d(config: MSConv2dConfig, axis: Axis, x: Tensor, w: Tensor, group: int) -> Tensor:
    x, padding = _padded(config, x, (axis,))
    return F.conv1d(x, w, None, axis.stride, padding, axis.dilation, group)
