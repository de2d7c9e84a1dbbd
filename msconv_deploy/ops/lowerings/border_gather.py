"""`border-gather`: class tables are spread over the output by gathering rows and columns of classes.

    y = conv2d(nchw, W1) + b + R[n,o,i,cj(j)] + K[n,o,ci(i),j] + S[n,o,ci(i),cj(j)]

Valid always. The tables cover every tap range that the kernel allows and the class of each output index is computed
from the run-time extent, so one body serves all image sizes. Columns are gathered first, then rows, which copies whole
rows; tables that can be summed while they are small are summed first.
"""

from __future__ import annotations

from msconv_deploy.ops.border_classes import Axis, RangeGrid
from msconv_deploy.ops.configuration import MSConv2dConfig
from msconv_deploy.ops.lowerings.operands import Operands
from msconv_deploy.ops.lowerings.terms import class_grid, image_term, vector_terms
from msconv_deploy.ops.node_builder import NodeBuilder
from msconv_deploy.ops.shapes import HEIGHT_AXIS, WIDTH_AXIS

NAME = "border-gather"


def refusal(config: MSConv2dConfig) -> str | None:
    """Why this lowering cannot be used: it always can."""
    return None


def emit(builder: NodeBuilder, config: MSConv2dConfig, operands: Operands) -> str:
    """Add the nodes; returns the name of [N, O, H', W'] before the activation."""
    terms = vector_terms(builder, config, operands)
    row_term, column_term, corner = terms.get("nch"), terms.get("ncw"), terms.get("nc")
    image = None
    if "nchw" in operands.sources:
        image = image_term(builder, config, operands.sources["nchw"], operands.weights["nchw"], operands.bias)
    owner_of_height, owner_of_width = (image, image) if image else (row_term, column_term)
    extents: dict[int, tuple[Axis, str | None, dict[str, int | None]]] = {
        2: (config.rows, owner_of_height, HEIGHT_AXIS),
        3: (config.columns, owner_of_width, WIDTH_AXIS),
    }
    indices: dict[int, str] = {}

    def spread(table: str, dim: int) -> str:
        """Spread the classes along one dimension of a table over the output indices."""
        axis, owner, axis_of = extents[dim]
        grid = class_grid(config, axis)
        if grid is None or owner is None:
            return table
        if dim not in indices:
            source = next(name for name in operands.sources if axis_of[name] is not None)
            position = axis_of[source]
            assert position is not None
            extent = builder.extent(operands.sources[source], position)
            indices[dim] = emit_grid_index(builder, grid, builder.extent(owner, dim), extent)
        return builder.add("Gather", table, indices[dim], axis=dim, hint="spread")

    if corner:
        if row_term and not column_term:
            row_term = builder.add("Add", row_term, spread(corner, 2))
        else:
            corner = spread(corner, 3)
            column_term = builder.add("Add", column_term, corner) if column_term else corner
    total = image
    for table, dim in ((column_term, 2), (row_term, 3)):
        if table:
            table = spread(table, dim)
            total = builder.add("Add", total, table) if total else table
    assert total is not None  # a configuration has at least one source
    if operands.bias and not image:
        total = builder.add("Add", total, builder.unsqueeze(operands.bias, 0, 2, 3))
    return total


def emit_grid_index(builder: NodeBuilder, grid: RangeGrid, outputs: str, extent: str) -> str:
    """`ops.border_classes.grid_index` as nodes: the row of the table at each output index.

    Args:
        outputs: int64 scalar, the output extent.
        extent: int64 scalar, the input extent.
    """
    axis = grid.axis
    zero, one = builder.ints(0), builder.ints(1)
    position = builder.add("Range", zero, outputs, one)
    if axis.stride != 1:
        position = builder.add("Mul", position, builder.ints(axis.stride))

    def taps_before(reach: str) -> str:
        """ceil(max(0, reach - position) / dilation): integer division truncates, so the clip comes first."""
        taps = builder.maximum(builder.add("Sub", reach, position), zero)
        if axis.dilation == 1:
            return taps
        return builder.add(
            "Div", builder.add("Add", taps, builder.ints(axis.dilation - 1)), builder.ints(axis.dilation)
        )

    index: str | None = None
    if grid.first_max:
        first = builder.minimum(taps_before(builder.ints(axis.pad_before)), builder.ints(grid.first_max))
        index = builder.add("Mul", first, builder.ints(grid.last_count)) if grid.last_count > 1 else first
    if grid.last_count > 1:
        end = builder.add("Add", extent, builder.ints(axis.pad_before)) if axis.pad_before else extent
        last = builder.minimum(taps_before(end), builder.ints(axis.kernel))
        if grid.last_min:
            last = builder.add("Sub", last, builder.ints(grid.last_min))
        index = builder.add("Add", index, last) if index else last
    assert index is not None  # an axis with a border has padding before or after
    return index
