"""Copies that hide in a factor of a merged axis: rays and samples merged into rows, frames into a batch, pairs into a list."""

import io
import logging
import os
import warnings
from random import Random

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msconv_deploy.ops.forms import Form, form_of
from msconv_deploy.runtimes.opsets import newest_onnxruntime_opset
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from tests.surgery.graphs import Net, compare, feeds, optimized, reasons, rewritten, session, spelled
from tests.surgery.random_graphs import defined_by_onnxruntime, random_merged_case
from tests.surgery.test_random_graphs import check

EXAMPLES = int(os.environ.get("MSCONV_EXAMPLES", "300"))
SIZES = [{"R": 3, "S": 5}, {"R": 1, "S": 4}, {"R": 6, "S": 1}, {"R": 1, "S": 1}]


def uniform_channels(result, site=0) -> int:
    return sum(segment.size for segment in result.sites[site].segments if segment.uniform)


def assert_site(net: Net, channels: int, sizes=SIZES, sites: int = 1, runs: int | None = None, **kwargs):
    """All sites are rewritten and agree, with this many channels on their cores; moving the copies moves the output."""
    model = net.model()
    result = optimized(model, sizes, **kwargs)
    assert rewritten(result) == sites, reasons(result)
    assert uniform_channels(result) == channels, result.sites[0].segments
    assert result.ran == (len(sizes) if runs is None else runs)
    return result


def rows(net: Net, *dims) -> str:
    """A tensor [R, S, ...] with the first two axes merged."""
    return net.node("Reshape", net.input(*dims), net.ints(-1, *dims[2:]))


# -- PyTorch's exporters ---------------------------------------------------------------------------------------------


def exported(module, inputs, dims, dynamo: bool, dynamic: bool) -> onnx.ModelProto:
    """The module through one of the exporters.

    Args:
        dims: per input, axis -> name.
    """
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            names = {name for axes in dims for name in axes.values()}
            given = {name: torch.export.Dim(name) for name in names}
            shapes = tuple({axis: given[name] for axis, name in axes.items()} for axes in dims) if dynamic else None
            program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes)
            return program.model_proto
        names = [f"in{i}" for i in range(len(inputs))]
        axes = dict(zip(names, dims, strict=True)) if dynamic else None
        file = io.BytesIO()
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes)
        return onnx.load_from_string(file.getvalue())


INDICES = np.repeat(np.arange(5), 6)
SPELLINGS = {
    "expand": lambda d, r, s: d[:, None].expand(r, s, 3).reshape(-1, 3),
    "repeat": lambda d, r, s: d.unsqueeze(1).repeat(1, s, 1).view(-1, 3),
    "flatten": lambda d, r, s: d[:, None].expand(r, s, 3).flatten(0, 1),
    "repeat_interleave": lambda d, r, s: d.repeat_interleave(s, dim=0),
    "blocks": lambda d, r, s: d.repeat(s, 1),
    "index": lambda d, r, s: d[INDICES.tolist()],
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_exported_view_directions(spelling, dynamo, dynamic):
    torch = pytest.importorskip("torch")
    if dynamic and spelling == "index":
        pytest.skip("its indices are of one size")
    if dynamic and dynamo and spelling == "repeat_interleave":
        pytest.skip("this exporter expands along the wrong axis: its file does not run")

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = torch.nn.Linear(4, 16), torch.nn.Linear(16 + 9, 8)

        def forward(self, points, directions):
            r, s = points.shape[:2]
            d = SPELLINGS[spelling](directions, r, s)
            encoded = torch.cat([d, torch.sin(d * 2), torch.cos(d * 2)], -1)
            f = torch.relu(self.features(points.reshape(-1, 4)))
            return torch.relu(self.head(torch.cat([f, encoded], -1))).reshape(r, s, 8)

    inputs = (torch.randn(5, 6, 4), torch.randn(5, 3))
    model = exported(Field().eval(), inputs, ({0: "R", 1: "S"}, {0: "R"}), dynamo, dynamic)
    result = optimized(model, SIZES)
    assert rewritten(result) == 1, reasons(result)
    assert uniform_channels(result) == 9
    assert result.ran


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_exported_frames_with_a_context_per_clip(dynamo):
    torch = pytest.importorskip("torch")

    class Video(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3 + 4, 6, 3, padding=1)

        def forward(self, clip, context):
            b, t, _, h, w = clip.shape
            spread = context[:, None, :, None, None].expand(b, t, 4, h, w).reshape(b * t, 4, h, w)
            return self.conv(torch.cat([clip.reshape(b * t, 3, h, w), spread], 1)).reshape(b, t, 6, h, w)

    inputs = (torch.randn(2, 3, 3, 6, 5), torch.randn(2, 4))
    model = exported(Video().eval(), inputs, ({0: "B", 1: "T", 3: "H", 4: "W"}, {0: "B"}), dynamo, True)
    result = optimized(model, [{"B": 2, "T": 3, "H": 6, "W": 5}, {"B": 1, "T": 4, "H": 3, "W": 2}])
    assert (rewritten(result), uniform_channels(result), result.ran) == (1, 4, 2), reasons(result)


# -- forms -----------------------------------------------------------------------------------------------------------


def directions(net: Net, *core, full=("R", "S", 3)) -> str:
    return net.node("Expand", net.input(*(core or ("R", 1, 3))), net.shape(list(full)))


def encoded(net: Net, d: str) -> str:
    """A direction and its sine and cosine: [.., 3] -> [.., 9]."""
    scaled = net.node("Mul", d, net.scalar(2.0))
    return net.node("Concat", d, net.node("Sin", scaled), net.node("Cos", scaled), axis=-1)


def field(net: Net, d: str, merge=None, op="Gemm") -> None:
    """Features of rows and encoded directions into one product."""
    merged = merge(net, d) if merge else net.node("Reshape", d, net.ints(-1, 3))
    joined = net.node("Concat", net.node("Relu", rows(net, "R", "S", 4)), encoded(net, merged), axis=1)
    bias = [net.random(6)] if op == "Gemm" else []
    net.output(net.node(op, joined, net.random(13, 6), *bias), rank=2)


@pytest.mark.parametrize("opset", [o for o in (11, 13, 17, 21, 23, 28) if o <= newest_onnxruntime_opset()])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_every_opset(opset, op):
    net = Net(opset)
    net.input("R", "S", 2)
    field(net, directions(net), op=op)
    assert_site(net, 9)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_every_type(dtype):
    net = Net(dtype=dtype)
    net.input("R", "S", 2)
    field(net, directions(net))
    try:
        onnxruntime.InferenceSession(net.model().SerializeToString(), providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as reason:
        pytest.skip(f"this ONNX Runtime does not run the original: {reason}")
    assert_site(net, 9)


MERGES = {
    "flatten": lambda net, d: net.node("Flatten", d, axis=2),
    "explicit product": lambda net, d: net.node(
        "Reshape", d, net.node("Concat", net.node("Mul", net.extent("R"), net.extent("S")), net.ints(3), axis=0)
    ),
    "squeezed later": lambda net, d: net.with_axes("Squeeze", net.node("Reshape", d, net.ints(-1, 1, 3)), 1),
    "transposed": lambda net, d: net.node(
        "Transpose", net.node("Reshape", net.node("Transpose", d, perm=[2, 0, 1]), net.ints(3, -1)), perm=[1, 0]
    ),
    "normalized": lambda net, d: net.node(
        "BatchNormalization", net.node("Reshape", d, net.ints(-1, 3)), net.random(3), net.random(3), net.random(3),
        net.constant(np.array([0.5, 1, 2], np.float32)),
    ),
    "sliced and joined": lambda net, d: net.node(
        "Concat",
        *(net.node("Slice", net.node("Reshape", d, net.ints(-1, 3)), *map(net.ints, cut)) for cut in ((1, 3, 1), (0, 1, 1))),
        axis=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("merge", MERGES)
def test_every_way_to_merge(merge):
    net = Net()
    net.input("R", "S", 2)
    field(net, directions(net), MERGES[merge])
    assert_site(net, 9)


@pytest.mark.parametrize("core", [("R", 1, 3), (1, "S", 3), (1, 1, 3), ("S", 3)], ids=str)
def test_copies_along_either_factor(core):
    net = Net()
    net.input("R", "S", 2)
    field(net, directions(net, *core))
    assert_site(net, 9)


def test_copies_along_both_factors_in_one_concat():
    """Pairs (i, j): what belongs to i and what belongs to j, each flattened before they are joined."""
    net = Net()
    net.input("R", "S", 2)
    first, second = (directions(net, *core) for core in (("R", 1, 3), (1, "S", 3)))
    parts = [net.node("Reshape", x, net.ints(-1, 3)) for x in (first, second)]
    net.output(net.node("MatMul", net.node("Concat", *parts, axis=1), net.random(6, 4)), rank=2)
    result = assert_site(net, 6)
    assert result.sites[0].lowering == "cores-only"
    assert [s.uniform for s in result.sites[0].segments] == [[1], [0]]


@pytest.mark.parametrize("lacking", [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}], ids=str)
@pytest.mark.parametrize("steps", [False, True], ids=["at once", "in two steps"])
def test_three_factors(lacking, steps):
    net = Net()
    dims = ["B", "R", "S"]
    x = net.node("Reshape", net.input(*dims, 4), net.ints(-1, 4))
    core = net.input(*(1 if i in lacking else d for i, d in enumerate(dims)), 3)
    d = net.node("Expand", core, net.shape([*dims, 3]))
    if steps:
        d = net.node("Relu", net.node("Reshape", d, net.shape(["B", -1, 3])))
    joined = net.node("Concat", x, net.node("Reshape", d, net.ints(-1, 3)), axis=1)
    net.output(net.node("Gemm", joined, net.random(7, 5)), rank=2)
    assert_site(net, 3, [{"B": 2, "R": 3, "S": 4}, {"B": 1, "R": 1, "S": 3}, {"B": 3, "R": 2, "S": 1}])


def test_blocks_and_runs_by_tile_and_by_constant_indices():
    net = Net()
    x = net.node("Reshape", net.input(4, 6, 5), net.ints(24, 5))
    blocks = net.node("Tile", net.input(6, 2), net.ints(4, 1))
    runs = net.node("Gather", net.input(4, 3), net.constant(np.repeat(np.arange(4), 6)), axis=0)
    again = net.node("Gather", net.input(6, 1), net.constant(np.tile(np.arange(6), 4)), axis=0)
    net.output(net.node("Gemm", net.node("Concat", blocks, x, runs, again, axis=1), net.random(11, 7)), rank=2)
    result = assert_site(net, 6, [{}])
    assert [s.uniform for s in result.sites[0].segments] == [[0], [], [1], [0]]


def test_labels_that_are_repeated_and_looked_up():
    """An embedding of tiled labels is a tiled embedding."""
    net = Net()
    x = rows(net, "R", "S", 4)
    labels = net.node("Expand", net.input("R", 1, dtype=np.int64), net.shape(["R", "S"]))
    table = net.random(3, 5)
    d = net.node("Gather", table, net.node("Reshape", labels, net.ints(-1)), axis=0)
    net.output(net.node("Gemm", net.node("Concat", x, d, axis=1), net.random(9, 4)), rank=2)
    assert_site(net, 5)


def test_factors_of_one_operand_are_refined_by_those_of_another():
    net = Net()
    x = net.node("Reshape", net.input(2, 12, 5), net.ints(24, 5))
    first = net.node("Reshape", net.node("Expand", net.input(2, 1, 3), net.ints(2, 12, 3)), net.ints(24, 3))
    second = net.node("Reshape", net.node("Expand", net.input(1, 4, 2), net.ints(6, 4, 2)), net.ints(24, 2))
    net.output(net.node("Gemm", net.node("Concat", x, first, second, axis=1), net.random(10, 4)), rank=2)
    result = assert_site(net, 5, [{}])
    assert [s.uniform for s in result.sites[0].segments] == [[], [1, 2], [0, 1]]


def test_other_factors_are_dense():
    """As many rows, but in another order: the operand with fewer channels is treated as dense."""
    net = Net()
    net.input("R", "S", 2)
    x = net.node("Reshape", net.node("Expand", net.input("R", 1, 3), net.shape(["R", "S", 3])), net.ints(-1, 3))
    y = net.node("Reshape", net.node("Expand", net.input("S", 1, 2), net.shape(["S", "R", 2])), net.ints(-1, 2))
    net.output(net.node("Gemm", net.node("Concat", x, y, axis=1), net.random(5, 4)), rank=2)
    assert_site(net, 3)


@pytest.mark.parametrize(("before", "after"), [(["N"], []), ([], ["L"]), (["N"], ["L"])], ids=str)
def test_products_with_further_axes(before, after):
    net = Net()
    full = [*before, "R", "S", *after]
    merged = lambda x, c: net.node("Reshape", x, net.shape([*before, -1, *after, c]))  # noqa: E731
    x = merged(net.input(*full, 4), 4)
    core = net.input(*(1 if d in ("S", "N") else d for d in full), 3)
    d = merged(net.node("Expand", core, net.shape([*full, 3])), 3)
    net.output(net.node("MatMul", net.node("Concat", x, d, axis=-1), net.random(7, 5)), rank=len(full))
    assert_site(net, 3, [{"N": 2, "R": 3, "S": 4, "L": 2}, {"N": 1, "R": 2, "S": 1, "L": 3}])


CONVS = {
    "pointwise": ("Conv", [1, 1], {}),
    "padded": ("Conv", [3, 3], {"pads": [1, 1, 1, 1]}),
    "strided": ("Conv", [3, 2], {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    "grouped": ("Conv", [3, 3], {"pads": [1, 1, 1, 1], "group": 2}),
    "transposed": ("ConvTranspose", [3, 3], {"pads": [1, 0, 0, 1], "strides": [2, 1]}),
}


@pytest.mark.parametrize(
    "core", [("B", 1, 2, 1, 1), ("B", 1, 2, "H", "W"), (1, "T", 2, 1, "W"), (1, 1, 2, "H", 1)], ids=str
)
@pytest.mark.parametrize("form", CONVS)
def test_convolutions_over_a_merged_batch(form, core):
    op, kernel, attributes = CONVS[form]
    net = Net()
    full = ["B", "T", 4, "H", "W"]
    x = net.node("Reshape", net.input(*full), net.shape([-1, 4, "H", "W"]))
    wide = net.node("Expand", net.input(*core), net.shape(["B", "T", 2, "H", "W"]))
    joined = net.node("Concat", net.node("Reshape", wide, net.shape([-1, 2, "H", "W"])), x, axis=1)
    shape = (6, 3) if op == "ConvTranspose" else (4, 6 // attributes.get("group", 1))
    y = net.node(op, joined, net.random(*shape, *kernel), net.random(shape[op == "ConvTranspose"]), **attributes)
    net.output(y)
    assert_site(
        net, 2, [{"B": 2, "T": 3, "H": 5, "W": 4}, {"B": 1, "T": 2, "H": 3, "W": 6}, {"B": 3, "T": 1, "H": 4, "W": 4}]
    )


def test_three_factors_of_a_batch_of_which_two_stay():
    net = Net()
    full = ["B", "T", "V", 4, "H"]
    x = net.node("Reshape", net.input(*full), net.shape([-1, 4, "H"]))
    wide = net.node("Expand", net.input("B", 1, "V", 2, "H"), net.shape(["B", "T", "V", 2, "H"]))
    joined = net.node("Concat", x, net.node("Reshape", wide, net.shape([-1, 2, "H"])), axis=1)
    net.output(net.node("Conv", joined, net.random(3, 6, 3), net.random(3), pads=[1, 1]), rank=3)
    assert_site(
        net, 2, [{"B": 2, "T": 3, "V": 2, "H": 5}, {"B": 1, "T": 2, "V": 3, "H": 3}, {"B": 2, "T": 1, "V": 1, "H": 1}]
    )


def test_all_channels_of_a_merged_batch_are_copies():
    net = Net()
    net.input("B", "T", "H")
    parts = []
    for core in (("B", 1, 2, 1), (1, "T", 3, 1)):
        wide = net.node("Expand", net.input(*core), net.shape(["B", "T", core[2], "H"]))
        parts.append(net.node("Reshape", wide, net.shape([-1, core[2], "H"])))
    net.output(net.node("Conv", net.node("Concat", *parts, axis=1), net.random(4, 5, 3), pads=[1, 1]), rank=3)
    result = assert_site(net, 5, [{"B": 2, "T": 3, "H": 5}, {"B": 1, "T": 2, "H": 1}])
    assert result.sites[0].lowering == "cores-only"


def test_several_consumers_and_a_graph_output_in_the_middle():
    net = Net()
    net.input("R", "S", 2)
    d = encoded(net, net.node("Reshape", directions(net), net.ints(-1, 3)))
    joined = net.node("Concat", rows(net, "R", "S", 4), d, axis=1)
    net.output(joined, net.node("ReduceSum", d, keepdims=0), rank=2)
    for outputs in (3, 5):
        net.output(net.node("Gemm", joined, net.random(13, outputs)), rank=2)
    assert_site(net, 9, sites=2)


def test_the_next_layer_sees_the_copies_of_the_layer_before():
    net = Net()
    net.input("R", "S", 2)
    d = net.node("Reshape", directions(net), net.ints(-1, 3))
    hidden = net.node("Relu", net.node("Gemm", d, net.random(3, 4), net.random(4)))
    net.output(net.node("Gemm", net.node("Concat", rows(net, "R", "S", 4), hidden, axis=1), net.random(8, 5)), rank=2)
    assert_site(net, 3, sites=2)


# -- what is reported and chosen -------------------------------------------------------------------------------------


def wide_field(width: int = 64) -> onnx.ModelProto:
    """Eight features per row, and ``width`` per ray."""
    net = Net()
    x = net.node("Reshape", net.input("R", "S", 8), net.ints(-1, 8))
    d = net.node("Expand", net.input("R", 1, width), net.shape(["R", "S", width]), name="spread")
    merged = net.node("Reshape", d, net.ints(-1, width), name="merge")
    net.output(
        net.node("Gemm", net.node("Concat", x, net.node("Sin", merged), axis=1), net.random(8 + width, 64)), rank=2
    )
    return net.model()


def test_the_report_names_the_merge_and_the_copies(tmp_path):
    result = inspect_model(wide_field(), tmp_path, input_shapes={"in_1": (64, 32, 8)})
    (site,) = result.sites
    assert [(s.start, s.size, s.uniform) for s in site.segments] == [(0, 8, []), (8, 64, [1])]
    assert site.segments[1].found == ["axis 0 as R × S", "Reshape merge", "Expand spread"]
    assert (site.macs_before, site.macs_after) == (64 * 32 * 72 * 64, 64 * 32 * 8 * 64 + 64 * 64 * 64)


def test_the_default_choice_takes_a_large_saving_and_leaves_a_small_one(tmp_path):
    model = wide_field()
    large = optimize_model(model, tmp_path, input_shapes={"in_1": (64, 32, 8)})
    assert large.sites[0].estimated_gain > 1.5
    assert rewritten(large) == 1
    given = feeds(model, {"R": 3, "S": 5})
    compare(session(model).run(None, given), session(large.model).run(None, given), "default")
    small = optimize_model(wide_field(1), tmp_path, input_shapes={"in_1": (64, 32, 8)})
    assert rewritten(small) == 0
    assert "less than" in small.sites[0].reason


def test_the_fused_form_leaves_a_merged_batch_portable(tmp_path):
    net = Net()
    x = net.node("Reshape", net.input("B", "T", 4, "H", "W"), net.shape([-1, 4, "H", "W"]))
    wide = net.node("Expand", net.input("B", 1, 2, 1, 1), net.shape(["B", "T", 2, "H", "W"]))
    joined = net.node("Concat", net.node("Reshape", wide, net.shape([-1, 2, "H", "W"])), x, axis=1)
    net.output(net.node("Conv", joined, net.random(4, 6, 3, 3)))
    model = net.model()
    result = optimize_model(model, tmp_path, "always", form=Form.FUSED)
    assert form_of(result.model) == Form.PORTABLE
    assert "in portable form: copies hide in a factor of the batch" in result.sites[0].reason
    given = feeds(model, {"B": 2, "T": 3, "H": 5, "W": 4})
    compare(session(model).run(None, given), session(result.model).run(None, given), "fused")


# -- what is not uniform ---------------------------------------------------------------------------------------------


def test_an_extent_that_may_be_1_is_not_uniform():
    net = Net()
    net.input("R", "S", 2)
    field(net, directions(net, "R", "Q", 3))
    result = optimized(net.model(), [{"R": 3, "S": 5, "Q": 1}, {"R": 3, "S": 5, "Q": 5}])
    assert not result.changed
    assert "which axes Expand copies does not follow from the file's structure" in reasons(result)


def test_an_addend_that_may_be_broadcast_is_not_taken_apart():
    """[M, 3] may have one row, so that it cannot be seen as [R, S, 3]; what is known of the sum ends there."""
    net = Net()
    net.input("R", "S", 2)
    merged = net.node("Reshape", directions(net), net.ints(-1, 3))
    shifted = net.node("Add", merged, net.input("M", 3))
    joined = net.node("Concat", rows(net, "R", "S", 4), shifted, merged, axis=1)
    net.output(net.node("Gemm", joined, net.random(10, 4)), rank=2)
    assert_site(net, 3, [{"R": 3, "S": 5, "M": 15}, {"R": 3, "S": 5, "M": 1}])


def test_rows_in_another_order_are_not_copies():
    """Transposed before the merge, the copies of a direction do not stand together in either order of the factors."""
    net = Net()
    x = net.node("Reshape", net.input(4, 6, 5), net.ints(24, 5))
    d = net.node("Expand", net.input(2, 3, 1, 2), net.ints(2, 3, 4, 2))
    mixed = net.node("Reshape", net.node("Transpose", d, perm=[0, 2, 1, 3]), net.ints(8, 3, 2))
    merged = net.node("Reshape", net.node("Softmax", mixed, axis=-1), net.ints(24, 2))
    net.output(net.node("Gemm", net.node("Concat", x, merged, axis=1), net.random(7, 4)), rank=2)
    result = optimized(net.model(), [{}])
    assert not rewritten(result)
    assert "between the copies and the contraction is not computed per copy" in reasons(result)


def test_indices_without_runs_are_dense():
    net = Net()
    x = net.node("Reshape", net.input(2, 3, 5), net.ints(6, 5))
    d = net.node("Gather", net.input(4, 3), net.constant(np.array([0, 0, 1, 1, 1, 2])), axis=0)
    net.output(net.node("Gemm", net.node("Concat", x, d, axis=1), net.random(8, 4)), rank=2)
    assert not optimized(net.model(), [{}]).sites


# -- regressions -----------------------------------------------------------------------------------------------------


def test_a_convolution_whose_kernel_does_not_fit_has_no_output():
    """The rewrite of a merged batch met extents of 0, which a Reshape cannot work out."""
    net = Net()
    x = net.node("Reshape", net.input(2, 3, 4, 5, 1), net.ints(-1, 4, 5, 1))
    wide = net.node("Expand", net.input(2, 1, 2, 5, 1), net.ints(2, 3, 2, 5, 1))
    joined = net.node("Concat", net.node("Reshape", wide, net.ints(-1, 2, 5, 1)), x, axis=1)
    net.output(net.node("Conv", joined, net.random(4, 6, 1, 2)))
    result = optimized(net.model(), [{}])
    assert not result.changed
    assert "it has no output: an extent of it is 0" in reasons(result)


def test_a_merged_batch_that_is_merged_further_and_taken_apart_again():
    """The factors were looked for among those of the batch only."""
    net = Net()
    x = net.node("Reshape", net.input(5, 4, 2, "H", "W"), net.shape([-1, 2, "H", "W"]))
    wide = net.node("Expand", net.input(1, 1, 1, 1, "W"), net.shape([5, 4, 1, "H", "W"]))
    flat = net.node("Reshape", net.node("Reshape", wide, net.shape([-1, 1, "H", "W"])), net.ints(-1, 1))
    again = net.node("Reshape", flat, net.shape([20, 1, "H", "W"]))
    clip = net.node("Expand", net.input(5, 1, 3, "H", "W"), net.shape([5, 4, 3, "H", "W"]))
    joined = net.node("Concat", x, again, net.node("Reshape", clip, net.shape([-1, 3, "H", "W"])), axis=1)
    net.output(net.node("Conv", joined, net.random(3, 6, 3, 1), pads=[1, 0, 1, 0]))
    assert_site(net, 4, [{"H": 3, "W": 4}, {"H": 1, "W": 1}])


def test_a_merged_batch_of_empty_images_that_are_padded():
    """Dense channels were taken apart and merged again, which a Reshape cannot do with an extent of 0."""
    net = Net()
    x = net.node("Reshape", net.input("B", "T", 4, "H"), net.shape([-1, 4, "H"]))
    wide = net.node("Expand", net.input(1, "T", 2, 1), net.shape(["B", "T", 2, "H"]))
    joined = net.node("Concat", x, net.node("Reshape", wide, net.shape([-1, 2, "H"])), axis=1)
    behind = net.node("Slice", joined, *map(net.ints, (1, 2**31 - 1, 2)))
    net.output(net.node("Conv", behind, net.random(3, 6, 1), net.random(3), pads=[1, 2]), rank=3)
    assert_site(net, 2, [{"B": 2, "T": 3, "H": 1}, {"B": 2, "T": 3, "H": 4}])


# -- random graphs ---------------------------------------------------------------------------------------------------


@defined_by_onnxruntime
@pytest.mark.parametrize("block", range(5))
def test_seeded_graphs_agree(block):
    per_block = max(1, EXAMPLES // 10)
    found = [check(random_merged_case(Random(seed))) for seed in range(block * per_block, (block + 1) * per_block)]
    sites, done = (sum(column) for column in zip(*found, strict=True))
    assert sites > per_block // 2, "the generator hardly makes sites"
    assert done > 0.9 * sites, "most sites are refused"


@defined_by_onnxruntime
@settings(
    max_examples=max(10, EXAMPLES // 6),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(st.randoms(use_true_random=False))
def test_drawn_graphs_agree(rng):
    check(random_merged_case(rng))


@defined_by_onnxruntime
@pytest.mark.parametrize("choice", [0, 1, 2])
def test_every_lowering_agrees(choice):
    compared = 0
    for seed in range(10**6, 10**6 + max(1, EXAMPLES // 6)):
        case = random_merged_case(Random(seed))
        try:
            original = session(case.model)
        except Exception:
            continue
        result = spelled(case.model, lambda names: names[choice] if choice < len(names) else None)
        if result is None:
            continue
        rewrite = session(result)
        for number, assignment in enumerate(case.sizes):
            given_inputs = feeds(case.model, assignment, number)
            try:
                expected = original.run(None, given_inputs)
            except Exception:
                continue
            compare(expected, rewrite.run(None, given_inputs), (seed, choice, assignment))
            compared += 1
    assert compared
