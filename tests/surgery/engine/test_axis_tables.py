"""Tables of one axis against counting: which taps meet the input, at every output of a Conv or a ConvTranspose?"""

import itertools

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.node_builder import NodeBuilder
from msconv_deploy.surgery.engine.axis_tables import axis_table, transposed_extent

EXTENTS = range(1, 8)


def axes(kernels=(1, 2, 3, 4), strides=(1, 2, 3), dilations=(1, 2, 3), pads=((0, 0), (1, 1), (0, 2), (3, 1))):
    product = itertools.product(kernels, strides, dilations, pads)
    return [Axis(k, s, d, before, after) for k, s, d, (before, after) in product]


def counted(axis, extent, transposed, output_padding=0):
    """Per output index, 0 or 1 for every tap."""
    if transposed:
        room = max(i * axis.stride + t * axis.dilation for i in range(extent) for t in range(axis.kernel)) + 1
        outputs = room + output_padding - axis.pad_before - axis.pad_after
        met = {i * axis.stride: True for i in range(extent)}
        starts = [j + axis.pad_before for j in range(outputs)]
        return [[int(met.get(at - t * axis.dilation, False)) for t in range(axis.kernel)] for at in starts]
    padded = axis.pad_before + extent + axis.pad_after
    starts = [at for at in range(0, padded, axis.stride) if at + axis.dilation * (axis.kernel - 1) < padded]
    inside = range(axis.pad_before, axis.pad_before + extent)
    return [[int(at + t * axis.dilation in inside) for t in range(axis.kernel)] for at in starts]


@pytest.mark.parametrize("output_padding", [None, 0, 1])
def test_a_known_extent_gives_the_taps_of_every_output(output_padding):
    transposed = output_padding is not None
    tables = 0
    for axis, extent in itertools.product(axes(), EXTENTS):
        if transposed and output_padding >= max(axis.stride, axis.dilation):
            continue  # not a ConvTranspose
        if not transposed and extent + axis.pad_before + axis.pad_after < axis.reach:
            continue  # no output
        taps = counted(axis, extent, transposed, output_padding or 0)
        if transposed:
            assert transposed_extent(axis, extent, output_padding) == len(taps) or not taps
            if not taps:
                with pytest.raises(BadInputError, match=f"^its padding crops all of the {extent} positions"):
                    axis_table(axis, extent, True, output_padding)
                continue
        table = axis_table(axis, extent, transposed, output_padding or 0)
        if table is None:
            assert all(map(all, taps)), (axis, extent)
            continue
        tables += 1
        assert table.membership.dtype == np.float64
        assert table.membership[list(table.index)].tolist() == taps, (axis, extent)
        assert table.rows == len({tuple(row) for row in taps}) == len(table.membership)
        assert (table.axis, table.transposed) == (axis, transposed)
    assert tables > 300


def index_session(table):
    """A session that works out the row of every output from their number and the input's extent."""
    builder = NodeBuilder("t", 17)
    rows = table.emit_index(builder, "outputs", "extent")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ("outputs", "extent")]
    graph = helper.make_graph(
        builder.nodes, "index", inputs, [helper.make_tensor_value_info(rows, TensorProto.INT64, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("transposed", [False, True])
def test_an_extent_of_run_time_gives_the_same_by_arithmetic(transposed):
    for axis in axes(kernels=(1, 3, 4), pads=((0, 0), (1, 2), (4, 0))):
        table = axis_table(axis, None, transposed)
        if table is None:
            assert all(all(map(all, counted(axis, extent, transposed))) for extent in range(axis.reach, 9)), axis
            continue
        assert table.index is None
        assert table.membership.dtype == np.float64
        session = index_session(table)
        for extent in EXTENTS:
            taps = counted(axis, extent, transposed)
            if taps:
                feeds = {"outputs": np.array(len(taps)), "extent": np.array(extent)}
                given = {entry.name: feeds[entry.name] for entry in session.get_inputs()}
                (rows,) = session.run(None, given)
                assert table.membership[rows].tolist() == taps, (axis, extent)


def test_a_known_index_is_written_as_it_is():
    table = axis_table(Axis(3, 1, 1, 1, 1), 5, False)
    builder = NodeBuilder("t", 17)
    assert table.emit_index(builder, "outputs", "extent").startswith("t_rows")
    assert [node.op_type for node in builder.nodes] == ["Constant"]


def test_the_interior_is_where_all_taps_are():
    """Outside of the first and last few outputs, every output has the row of all taps."""
    found = 0
    for axis, extent in itertools.product(axes(pads=((1, 1), (0, 2), (3, 1), (2, 0))), [*EXTENTS, 20]):
        for known in (True, False):
            if extent + axis.pad_before + axis.pad_after < axis.reach:
                continue
            taps = counted(axis, extent, False)
            table = axis_table(axis, extent if known else None, False)
            interior = table and table.interior()
            if interior is None:
                assert table is None or (known and not any(map(all, taps))) or axis.pad_before >= axis.reach, axis
                continue
            found += 1
            row, before, after = interior
            assert table.membership[row].all()
            middle = taps[before : len(taps) - after] if len(taps) > before + after else []
            if before + after < len(taps) and extent >= axis.reach:
                assert all(map(all, middle)), (axis, extent)
            if before and extent >= axis.reach and len(taps) > before:  # no more than need be
                assert not all(taps[before - 1]), (axis, extent)
    assert found > 200


def test_a_transposed_axis_has_no_interior():
    assert axis_table(Axis(3, 2, 1, 1, 1), 6, True).interior() is None


def test_no_table_where_every_output_has_all_taps():
    assert axis_table(Axis(3), None, False) is None
    assert axis_table(Axis(1), None, True) is None
    assert axis_table(Axis(1), 4, True) is None
    assert axis_table(Axis(2), 4, True) is not None
    assert axis_table(Axis(1, stride=2), 4, True) is not None
