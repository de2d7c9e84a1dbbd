"""`merge-convs`: two convolutions with nothing between them are one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from msconv_deploy.optimizing import OptimizeOptions, optimize_file
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from msconv_deploy.surgery.rules import merge_convs
from tests.surgery.graphs import Net, assert_interface_kept, feeds, optimized, reasons, rewritten, session
from tests.surgery.rules.unfolding import DYNAMO, LEGACY, export, operators, sizes_of

ID = merge_convs.ID


# -- the definition ----------------------------------------------------------------------------------------------------


def conv(x, w, b, strides, dilations, pads, group=1):
    """The convolution [N, O, *spatial] of [N, C, *spatial] in float64, tap by tap. ``pads``: (before, after) per axis."""
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (0, 0), *pads])
    kernel = w.shape[2:]
    counts = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    outputs, inputs = w.shape[0] // group, w.shape[1]
    y = np.zeros((len(x), w.shape[0], *counts))
    for tap in np.ndindex(*kernel):
        cut = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(tap, dilations, strides, counts, strict=True)
        )
        seen = x[(slice(None), slice(None), *cut)]
        for g in range(group):
            rows = slice(g * outputs, (g + 1) * outputs)
            part = w[(rows, slice(None), *tap)].astype(np.float64)
            y[:, rows] += np.einsum("oc,nc...->no...", part, seen[:, g * inputs : (g + 1) * inputs])
    return y + (0 if b is None else np.asarray(b, np.float64).reshape(-1, *[1] * len(kernel)))


class Pair:
    """Two convolutions as a graph, and what they compute."""

    def __init__(
        self, dims, weights, geometries, biases=(True, True), groups=(1, 1), opset=17, dtype=np.float32
    ) -> None:
        self.net = net = Net(opset, dtype)
        self.arguments = []
        x = net.input(*dims, name="x")
        for number, (shape, geometry) in enumerate(zip(weights, geometries, strict=True)):
            w = net.values.standard_normal(shape).astype(dtype)
            b = net.values.standard_normal(shape[0]).astype(dtype) if biases[number] else None
            strides, dilations, pads = geometry
            operands = [net.constant(w)] + ([] if b is None else [net.constant(b)])
            name = ("first", "second")[number]
            x = net.node(
                "Conv", x, *operands, name=name, strides=list(strides), dilations=list(dilations), group=groups[number],
                pads=[p[0] for p in pads] + [p[1] for p in pads],
            )  # fmt: skip
            self.arguments.append((w, b, strides, dilations, pads, groups[number]))
        self.result = x

    def expected(self, x):
        for arguments in self.arguments:
            x = conv(x, *arguments)
        return x

    def model(self):
        self.net.output(self.result, rank=len(self.arguments[0][0].shape))
        return self.net.model()


def plain(spatial=2, stride=1, pad=0):
    return ((stride,) * spatial, (1,) * spatial, ((pad, pad),) * spatial)


def merged(model) -> onnx.ModelProto | str:
    """The model with its pair merged, whatever it costs, or why it cannot be."""
    editable = EditableModel(model, Path(), model.opset_import[0].version)
    symbols = Symbols(editable.inferred)
    outputs = frozenset(t.name for t in editable.graph.outputs)
    for node in list(editable.graph.nodes):
        found = merge_convs.match(node, symbols, outputs)
        if found is None:
            continue
        if isinstance(found, Refusal):
            return found.reason
        builder = GraphBuilder(editable.new_prefix("pair/msconv"), editable.opset)
        refusal = merge_convs.rewrite(builder, found)
        if refusal is not None:
            return refusal.reason
        found.node.outputs.clear()
        editable.insert(builder, {"msconv.rule": ID})
    return editable.export()


def check(pair: Pair, sizes=({},), limit=2e-5) -> onnx.ModelProto:
    """The pair, merged, is what the definition says, in float64."""
    model = pair.model()
    result = merged(model)
    assert isinstance(result, onnx.ModelProto), result
    onnx.checker.check_model(result, full_check=True)
    assert_interface_kept(model, result)
    assert [n.op_type for n in result.graph.node].count("Conv") == 1
    run = session(result)
    for number, size in enumerate(sizes):
        given = feeds(model, size, number)
        (got,) = run.run(None, given)
        wanted = pair.expected(given["x"])
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= limit * max(1.0, np.abs(wanted).max()), size
    return result


# -- geometry ----------------------------------------------------------------------------------------------------------


@st.composite
def geometries(draw):
    out = []
    for _ in range(draw(st.integers(1, 3))):
        first = [draw(st.integers(*bounds)) for bounds in ((1, 4), (1, 3), (1, 3), (0, 5), (0, 5))]
        second = [draw(st.integers(*bounds)) for bounds in ((1, 4), (1, 3), (1, 3), (0, 3), (0, 3))]
        if draw(st.booleans()):
            second[3:] = 0, 0
        extent = draw(st.integers(1, 12))
        between = _outputs(extent, *first)
        assume(between >= 1 and _outputs(between, *second) >= 1)
        out.append((extent, first, second))
    return out


def _outputs(extent, kernel, stride, dilation, before, after):
    return (extent + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _zero_outside(extent, first, second):
    """By enumeration: does every tap of the first, at every place where the second reads padding, fall outside?"""
    kernel, stride, dilation, before, _ = first
    between = _outputs(extent, *first)
    places = [*range(-second[3], 0), *range(between, between + second[4])]
    return not any(0 <= i * stride - before + t * dilation < extent for i in places for t in range(kernel))


def _zero_for_every_extent(_, first, second):
    kernel, stride, dilation, before, after = first
    reach = dilation * (kernel - 1) + 1
    return (not second[3] or before + stride >= reach) and (not second[4] or after >= reach - 1)


GROUPS = [(1, 1), (2, 1), (1, 3), (4, 6), (12, 12), (12, 1), (2, 4)]


@given(
    geometry=geometries(), groups=st.sampled_from(GROUPS), biases=st.tuples(st.booleans(), st.booleans()),
    dynamic=st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_random_geometry(geometry, groups, biases, dynamic):
    """Merged exactly when no tap of the first one is inside where the second one is padded, at known extents; at extents that
    are only names, where the padding says so for all of them."""
    spatial = len(geometry)
    extents = [f"L{i}" for i in range(spatial)] if dynamic else [g[0] for g in geometry]
    shapes = [(12, 12 // groups[0], *(g[1][0] for g in geometry)), (12, 12 // groups[1], *(g[2][0] for g in geometry))]
    parts = [
        (tuple(g[n][1] for g in geometry), tuple(g[n][2] for g in geometry), tuple(tuple(g[n][3:]) for g in geometry))
        for n in (1, 2)
    ]
    pair = Pair((2, 12, *extents), shapes, parts, biases, groups)
    exact = all((_zero_for_every_extent if dynamic else _zero_outside)(*g) for g in geometry)
    sizes = {f"L{i}": g[0] for i, g in enumerate(geometry)}
    if not exact:
        assert "continued, is not zero" in merged(pair.model())
        return
    assert all(_zero_outside(*g) for g in geometry)
    check(Pair((2, 12, *extents), shapes, parts, biases, groups), [sizes] if dynamic else [{}], 1e-4)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("bias", [True, False])
def test_dynamic_extents_and_opsets(opset, bias):
    """A full first padding, then a padded second one: with a bias, its share at the border is looked up."""
    geometries = (((1, 1), (1, 2), ((2, 2), (2, 3))), ((2, 1), (1, 1), ((1, 1), (0, 2))))
    pair = Pair(("N", 3, "H", "W"), [(5, 3, 3, 2), (4, 5, 3, 3)], geometries, (bias, True), opset=opset)
    sizes = [{"N": 2, "H": 5, "W": 7}, {"N": 1, "H": 1, "W": 1}, {"N": 1, "H": 12, "W": 2}]
    result = check(pair, sizes)
    assert ("Gather" in [n.op_type for n in result.graph.node]) == bias


def test_a_pointwise_first_convolution_with_a_bias_needs_the_border():
    """Its bias is missing in the second one's padding: with the bias summed over all taps the border would be wrong."""
    pair = Pair((1, 3, 6, 5), [(8, 3, 1, 1), (4, 8, 3, 3)], [plain(), plain(pad=1)])
    result = check(pair)
    assert [n.op_type for n in result.graph.node if n.op_type != "Constant"] == ["Conv", "Add"]
    x = feeds(pair.model(), {})["x"]
    (w1, b1, *_), (w2, b2, *_) = pair.arguments
    summed = conv(
        x, np.einsum("om...,mc->oc...", w2, w1[:, :, 0, 0]), b2 + np.einsum("omhw,m->o", w2, b1), *plain(pad=1)
    )
    wanted = pair.expected(x)
    assert np.abs(summed - wanted)[:, :, 1:-1, 1:-1].max() < 1e-5
    assert np.abs(summed - wanted)[:, :, 0].max() > 0.1


def test_two_same_paddings_are_not_one_convolution():
    """The counter-example: the second one reads zeros where the first one's result, continued, is not zero."""
    pair = Pair((1, 3, 6, 5), [(4, 3, 3, 3), (4, 4, 3, 3)], [plain(pad=1), plain(pad=1)], (False, False))
    assert "continued, is not zero" in merged(pair.model())
    x = feeds(pair.model(), {})["x"]
    w1, w2 = (arguments[0] for arguments in pair.arguments)
    composed = np.zeros((4, 3, 5, 5))
    for tap in np.ndindex(3, 3):
        composed[:, :, tap[0] : tap[0] + 3, tap[1] : tap[1] + 3] += np.einsum("om,mchw->ochw", w2[(..., *tap)], w1)
    difference = np.abs(conv(x, composed, None, *plain(pad=2)) - pair.expected(x))
    assert difference[:, :, 1:-1, 1:-1].max() < 1e-5
    assert difference[:, :, 0].min() > 1e-3


def test_dilation_stays_where_all_offsets_share_it():
    pair = Pair((1, 3, 20), [(8, 3, 3), (4, 8, 2)], [((2,), (4,), ((0, 0),)), ((1,), (2,), ((0, 0),))])
    result = check(pair)
    (node,) = [n for n in result.graph.node if n.op_type == "Conv"]
    attributes = {a.name: list(a.ints) for a in node.attribute if a.ints}
    assert (attributes["kernel_shape"], attributes["dilations"], attributes["strides"]) == ([4], [4], [2])


@pytest.mark.parametrize(("groups", "expected"), [((6, 6), 6), ((6, 1), 1), ((2, 3), 1), ((6, 2), 2)])
def test_groups(groups, expected):
    shapes = [(6, 6 // groups[0], 3), (6, 6 // groups[1], 2)]
    result = check(Pair((1, 6, 9), shapes, [plain(1, 1, 1), plain(1)], groups=groups))
    (node,) = [n for n in result.graph.node if n.op_type == "Conv"]
    assert {a.name: a.i for a in node.attribute}["group"] == expected


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(mode):
    net = Net()
    x = net.node("Conv", net.input(1, 3, 9, 8, name="x"), net.random(16, 3, 3, 3), auto_pad=mode, strides=[2, 2])
    net.output(net.node("Conv", x, net.random(4, 16, 1, 1)))
    assert rewritten(optimized(net.model()), ID) == 1


@pytest.mark.parametrize("where", ["before", "between"])
def test_zero_padding_by_a_pad_is_the_convolutions_own(where):
    net = Net()
    x = net.input(1, 3, 8, 8, name="x")
    if where == "before":
        x = net.node("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    x = net.node("Conv", x, net.random(16, 3, 1, 1))
    if where == "between":
        x = net.node("Pad", net.node("Identity", x), net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    net.output(net.node("Conv", x, net.random(2, 16, 3, 3)))
    result = optimized(net.model())
    assert rewritten(result, ID) == 1, reasons(result)
    assert [n.op_type for n in result.model.graph.node] == ["Conv"]


# -- what is left ------------------------------------------------------------------------------------------------------


def expanding(dims=(1, 3, 16, 16), dtype=np.float32, opset=17, **kwargs) -> Pair:
    """3x3 to many channels, then 1x1 to few: cheaper as one."""
    return Pair(dims, [(32, 3, 3, 3), (4, 32, 1, 1)], [plain(pad=1), plain()], dtype=dtype, opset=opset, **kwargs)


def left(model, reason: str | None) -> None:
    result = optimize_model(model, Path(), "always")
    assert not rewritten(result, ID)
    if reason is None:
        assert not result.near_misses, reasons(result)
    else:
        assert reason in reasons(result), reasons(result)


def test_more_work_is_refused_in_every_mode():
    pair = Pair((1, 16, 8, 8), [(4, 16, 1, 1), (16, 4, 1, 1)], [plain(), plain()])
    left(pair.model(), "one convolution does 16384 multiply-accumulates, the two 8192")


def test_more_bytes_are_refused_in_every_mode():
    """Few positions: the weights of the one are more than both of theirs and the tensor between."""
    pair = Pair((1, 64, 7, 7), [(64, 64, 3, 3), (64, 64, 3, 3)], [plain(), plain(stride=2)])
    left(pair.model(), "one convolution moves")


@pytest.mark.parametrize("what", ["output", "reader", "activation", "computed weights", "computed bias", "quantized"])
def test_what_is_left_and_why(what):
    net = Net()
    x = net.input(1, 3, 16, 16, name="x")
    if what == "quantized":
        scale, zero = net.scalar(0.1), net.constant(np.int8(0))
        x = net.node("DequantizeLinear", net.node("QuantizeLinear", x, scale, zero), scale, zero)
    weights = (
        net.node("Mul", net.input(32, 3, 3, 3), net.scalar(2))
        if what == "computed weights"
        else net.random(32, 3, 3, 3)
    )
    bias = [net.input(32)] if what == "computed bias" else []
    between = net.node("Conv", x, weights, *bias, outputs="between")
    reader = net.node("Relu", between) if what in ("activation", "reader") else between
    if what == "output":
        net.output(between)
    if what == "reader":
        net.output(reader)
    net.output(net.node("Conv", reader if what == "activation" else between, net.random(4, 32, 1, 1)))
    expected = {
        "output": "between, is an output of the graph",
        "reader": "between, is read elsewhere too",
        "activation": None,
        "computed weights": "its weights are not constant",
        "computed bias": "a bias is not constant",
        "quantized": "quantized",
    }
    left(net.model(), expected[what])


def test_shared_weights_are_left_to_their_other_reader():
    net = Net()
    w = net.random(32, 3, 3, 3, name="shared")
    y = net.node("Conv", net.node("Conv", net.input(1, 3, 16, 16), w), net.random(4, 32, 1, 1))
    net.output(y, net.node("Conv", net.input(1, 3, 9, 9), w))
    result = optimized(net.model())
    assert rewritten(result, ID) == 1
    assert "shared" in [t.name for t in result.model.graph.initializer]


def test_of_three_in_a_row_one_pair_is_merged():
    net = Net()
    x = net.node("Conv", net.input(1, 3, 16, 16), net.random(32, 3, 3, 3), name="a")
    x = net.node("Conv", x, net.random(4, 32, 1, 1), name="b")
    net.output(net.node("Conv", x, net.random(2, 4, 1, 1), name="c"))
    result = optimized(net.model())
    assert rewritten(result, ID) == 1, reasons(result)
    stamps = {p.value for n in result.model.graph.node for p in n.metadata_props if p.key == "msconv.replaces"}
    assert stamps == {"b,a"}


def test_names_that_exist_already():
    pair = expanding()
    pair.net.initializers.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "second/msconv_weight"))
    pair.net.output(pair.net.node("Add", pair.net.input(1), "second/msconv_weight"), rank=1)
    result = optimized(pair.model())
    assert rewritten(result, ID) == 1


# -- types, modes, files -----------------------------------------------------------------------------------------------


def test_half_precision_is_rounded_once():
    model = expanding(dtype=np.float16).model()
    result = optimized(model, tolerance=1e-2)
    assert rewritten(result, ID) == 1
    assert {t.data_type for t in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_half_precision_weights_that_do_not_fit():
    pair = expanding(dtype=np.float16)
    for tensor in pair.net.initializers:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((array * 1e-4).astype(np.float16), tensor.name))
    left(pair.model(), "its weights do not fit float16")


def test_other_types_are_left():
    left(expanding(dtype=np.float64).model(), "not every runtime has convolutions in float64")


def test_the_default_merges_what_is_faster_and_says_so():
    model = expanding((1, 3, 64, 64)).model()
    result = optimize_model(model, Path())
    (site,) = result.sites
    assert (site.rule, site.node, site.lowering, site.decision) == (ID, "second", "one-convolution", "rewritten")
    assert site.macs_after < site.macs_before
    assert site.bytes_after < site.bytes_before
    assert "estimated gain" in site.reason
    (seen,) = inspect_model(model, Path()).sites
    assert (seen.rule, seen.decision, seen.segments[0].found) == (ID, "left", ["Conv first"])
    assert optimize_model(result.model, Path()).model is result.model


def test_the_default_leaves_what_may_be_slower():
    """A 9x9 kernel to one channel: fewer multiply-accumulates, but the runtime computes a block of channels."""
    pair = Pair((1, 24, 64, 64), [(24, 24, 5, 5), (1, 24, 5, 5)], [plain(pad=2), plain()])
    result = optimize_model(pair.model(), Path())
    assert not rewritten(result, ID)
    assert "less than x1.25" in reasons(result)


def test_the_result_is_verified_and_written(tmp_path):
    onnx.save(expanding(("N", 3, "H", "W")).model(), tmp_path / "m.onnx")
    report = optimize_file(tmp_path / "m.onnx", tmp_path / "out.onnx", OptimizeOptions())
    assert (report.verdict, report.rules) == ("passed", [ID]), report.reason
    assert {row.output for row in report.verification.sites} == {site.output for site in report.rewritten}
    assert report.after.macs < report.before.macs


def test_tuning_measures_overlapping_pairs():
    net = Net()
    x = net.node("Conv", net.input(1, 3, 24, 24), net.random(32, 3, 3, 3), name="a")
    x = net.node("Conv", x, net.random(4, 32, 1, 1), name="b")
    net.output(net.node("Conv", x, net.random(2, 4, 1, 1), name="c"))
    result = optimize_model(net.model(), Path(), "always", tune=True)
    assert rewritten(result, ID) == 1
    assert result.measured is not None


@pytest.mark.parametrize("exporter", [LEGACY, DYNAMO])
@pytest.mark.parametrize("dynamic", [True, False])
def test_what_exporters_write(exporter, dynamic):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 48, 3, padding=1, stride=2),
        torch.nn.Conv2d(48, 8, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 32, 1, bias=False),
        torch.nn.Conv2d(32, 4, 3, padding=1),
    )
    shapes = [(2, 3, 20, 18), (1, 3, 7, 5), (3, 3, 2, 33)]
    model = export(network.requires_grad_(False), shapes[0], exporter, dynamic)
    result = optimized(model, sizes_of(model, shapes) if dynamic else ())
    assert rewritten(result, ID) == 2, reasons(result)
    assert operators(result) == ["Conv", "Relu", "Conv"]
