"""`unfold-matmul`: windows times weights become a convolution, whoever spelled them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msconv_deploy.surgery.optimize import optimize_model
from tests.surgery.graphs import Net, compare, feeds, optimized, reasons, rewritten, session
from tests.surgery.rules.unfolding import (
    DYNAMO,
    LEGACY,
    against,
    check,
    columns,
    export,
    left,
    operators,
    unfold,
    windows_of,
)

ID = "unfold-matmul"
SHAPES = [(2, 3, 9, 6), (1, 3, 15, 12), (3, 3, 6, 9), (2, 3, 3, 3)]
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(4).astype(np.float32)


def _spellings():
    """name -> (function of x and weight, operators that are left)."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    bias = torch.from_numpy(BIAS)

    def patches(x, order):
        parts = x.reshape(x.size(0), 3, x.size(2) // 3, 3, x.size(3) // 3, 3)
        return parts.permute(*order).reshape(x.size(0), -1, 27)

    def slid(x):
        return x.unfold(2, 3, 1).unfold(3, 3, 1)

    rearranged = ["Conv", "Transpose", "Reshape"]
    return {
        "weights times columns": (lambda x, w: w.flatten(1) @ F.unfold(x, 3, padding=1), ["Conv", "Reshape"]),
        "reshaped to an image": (
            lambda x, w: (w.flatten(1) @ F.unfold(x, 3, padding=1)).view(x.size(0), 4, x.size(2), x.size(3)),
            ["Conv"],
        ),
        "module": (lambda x, w: w.flatten(1) @ torch.nn.Unfold((3, 3), 2, 1, 1)(x), ["Conv", "Reshape"]),
        "linear on columns": (
            lambda x, w: F.linear(F.unfold(x, 3, 2, 2, 2).transpose(1, 2), w.flatten(1), bias),
            rearranged,
        ),
        "linear, transposed back": (
            lambda x, w: F.linear(F.unfold(x, 3, stride=2).transpose(1, 2), w.flatten(1), bias).transpose(1, 2),
            ["Conv", "Reshape"],
        ),
        "linear on rows": (
            lambda x, w: F.linear(F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27), w.flatten(1), bias),
            rearranged,
        ),
        "einsum of columns": (
            lambda x, w: torch.einsum("ok,nkl->nol", w.flatten(1), F.unfold(x, 3, padding=1)),
            ["Conv", "Reshape"],
        ),
        "einsum of windows": (lambda x, w: torch.einsum("nchwkl,ockl->nohw", slid(x), w), ["Conv"]),
        "products summed": (
            lambda x, w: (F.unfold(x, 3, padding=1)[:, None] * w.reshape(1, 4, 27, 1)).sum(2),
            ["Conv", "Reshape"],
        ),
        "one filter": (lambda x, w: (slid(x) * w[0, :, None, None]).sum((1, 4, 5)), ["Conv", "Squeeze"]),
        "patches": (lambda x, w: F.linear(patches(x, (0, 2, 4, 1, 3, 5)), w.flatten(1), bias), rearranged),
        "patches, channels last": (
            lambda x, w: patches(x, (0, 2, 4, 3, 5, 1)) @ w.permute(2, 3, 1, 0).reshape(27, 4),
            rearranged,
        ),
        "patches by unfold": (
            lambda x, w: x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).flatten(3) @ w.flatten(1).t(),
            ["Conv", "Transpose"],
        ),
        "strided slices": (
            lambda x, w: (
                w.flatten(1)
                @ torch.stack(
                    [x[:, :, i : x.size(2) - 2 + i, j : x.size(3) - 2 + j] for i in range(3) for j in range(3)], 2
                )
                .flatten(1, 2)
                .flatten(2)
            ),
            ["Conv", "Reshape"],
        ),
    }


NAMES = [
    "weights times columns", "reshaped to an image", "module", "linear on columns", "linear, transposed back", "linear on rows",
    "einsum of columns", "einsum of windows", "products summed", "one filter", "patches", "patches, channels last",
    "patches by unfold", "strided slices",
]  # fmt: skip
UNEXPORTABLE = {"einsum of windows", "one filter", "patches by unfold"}
"""The legacy exporter writes Tensor.unfold for known extents only."""


CASES = [(name, exporter, True) for name in NAMES for exporter in (LEGACY, DYNAMO)]
CASES = [case for case in CASES if case[0] not in UNEXPORTABLE or case[1] == DYNAMO]
CASES += [(name, exporter, False) for name in (NAMES[0], *sorted(UNEXPORTABLE)) for exporter in (LEGACY, DYNAMO)]


@pytest.mark.parametrize(("name", "exporter", "dynamic"), CASES)
def test_what_exporters_write(name, exporter, dynamic):
    function, kept = _spellings()[name]
    model = export(function, SHAPES[0], exporter, dynamic, WEIGHT)
    result = check(model, ID, SHAPES if dynamic else SHAPES[:1])
    assert operators(result) == kept


@pytest.mark.parametrize(("exporter", "opset"), [(LEGACY, o) for o in (11, 13, 18, 20)] + [(DYNAMO, 20)])
def test_opsets(exporter, opset):
    function, kept = _spellings()["module"]
    result = check(export(function, SHAPES[0], exporter, True, WEIGHT, opset), ID, SHAPES)
    assert result.model.opset_import[0].version == opset
    assert operators(result) == kept


def test_half_precision():
    torch = pytest.importorskip("torch")
    function, kept = _spellings()["weights times columns"]
    model = export(function, SHAPES[0], DYNAMO, True, WEIGHT.astype(np.float16), dtype=torch.float16)
    result = check(model, ID, SHAPES, tolerance=1e-2)
    assert operators(result) == kept


@pytest.mark.parametrize("dynamic", [False, True])
def test_frames_of_a_signal(dynamic):
    """No channels: the batch axis stays, a channel axis of extent 1 comes in between."""
    pytest.importorskip("torch")
    basis = RNG.standard_normal((7, 5)).astype(np.float32)
    model = export(lambda x, w: x.unfold(-1, 7, 3) @ w, (2, 40), DYNAMO, False, basis)
    if dynamic:
        model = export(lambda x, w: x.unfold(-1, 7, 3) @ w, (2, 3, 40), DYNAMO, True, basis)
        result = check(model, ID, [(2, 3, 40), (1, 3, 7), (5, 3, 12)])
    else:
        result = check(model, ID, [(2, 40)])
    assert "Conv" in operators(result)
    assert "Gather" not in [n.op_type for n in result.model.graph.node if n.name.endswith("unfold")]


# -- the definition, at random -------------------------------------------------------------------------------------------


@st.composite
def geometries(draw):
    """(spatial extents, kernel, stride, dilation, pads): tiny images, strides beyond the kernel, asymmetric pads."""
    spatial = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 4)) for _ in range(spatial)]
    if all(k == 1 for k in kernel):
        kernel[0] = 2
    stride = [draw(st.integers(1, 5)) for _ in range(spatial)]
    dilation = [draw(st.integers(1, 3)) for _ in range(spatial)]
    pads = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(spatial)]
    extents = []
    for k, d, p in zip(kernel, dilation, pads, strict=True):
        least = max(1, d * (k - 1) + 1 - sum(p))
        extents.append(least + draw(st.integers(0, 6)))
    return extents, kernel, stride, dilation, pads


def expected_product(x, weight, kernel, stride, dilation, pads):
    windows = windows_of(x, kernel, stride, dilation, pads)
    axes = [1, *range(2, 2 + len(kernel))]
    y = np.tensordot(windows, weight.astype(np.float64), (axes, axes))
    return np.moveaxis(y, -1, 1)


def product_net(extents, geometry, channels, outputs, dims, opset=17, dtype=np.float32):
    """weights [O, C*taps] times columns [N, C*taps, L]."""
    net = Net(opset, dtype)
    x = net.input(*dims)
    weight = net.values.standard_normal((outputs, channels, *geometry[0])).astype(dtype)
    y = net.node("MatMul", net.constant(weight.reshape(outputs, -1)), columns(net, x, dims, *geometry))
    net.output(y, rank=3)
    return net, weight


@given(geometry=geometries(), channels=st.integers(1, 3), outputs=st.integers(1, 3), batch=st.integers(1, 2))
@settings(max_examples=15, deadline=None)
def test_random_geometry(geometry, channels, outputs, batch):
    extents, *geometry = geometry
    net, weight = product_net(extents, geometry, channels, outputs, (batch, channels, *extents))
    model = net.model()
    result = optimized(model)
    if result.sites:  # one window in all is no sliding: nothing to find
        against(model, lambda x: expected_product(x, weight, *geometry).reshape(batch, outputs, -1), ID)
    else:
        counts = windows_of(np.zeros((1, 1, *extents)), *geometry).shape[2 + len(extents) :]
        slides = any(k > 1 and n > 1 for k, n in zip(geometry[0], counts, strict=True))
        assert not slides, reasons(result)


@given(geometry=geometries())
@settings(max_examples=8, deadline=None)
def test_random_geometry_of_dynamic_extents(geometry):
    extents, *geometry = geometry
    names = ["H", "W"][: len(extents)]
    net, weight = product_net(extents, geometry, 2, 3, ("N", 2, *names))
    sizes = [
        dict(zip(["N", *names], [n, *(e + more for e in extents)], strict=True)) for n, more in ((2, 0), (1, 1), (3, 4))
    ]
    wanted = lambda x: expected_product(x, weight, *geometry).reshape(x.shape[0], 3, -1)  # noqa: E731
    against(net.model(), wanted, ID, sizes)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_opsets_by_hand(opset):
    geometry = ((3, 2), (2, 1), (1, 2), ((1, 0), (2, 1)))
    net, weight = product_net((7, 6), geometry, 2, 3, ("N", 2, "H", "W"), opset)
    wanted = lambda x: expected_product(x, weight, *geometry).reshape(x.shape[0], 3, -1)  # noqa: E731
    result = against(net.model(), wanted, ID, [{"N": 2, "H": 7, "W": 6}, {"N": 1, "H": 2, "W": 2}])
    assert operators(result) == ["Conv", "Reshape"]


# -- what is around ------------------------------------------------------------------------------------------------------

GEOMETRY = ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
DIMS = (2, 3, 6, 7)


def test_the_unfold_is_read_by_others_too():
    net = Net()
    x = net.input(*DIMS)
    u = columns(net, x, DIMS, *GEOMETRY)
    net.output(net.node("MatMul", net.random(4, 27), u), net.node("Sigmoid", u))
    result = optimized(net.model())
    assert rewritten(result, ID) == 1
    assert {"Conv", "Gather"} <= set(operators(result))


def test_two_products_of_the_same_windows():
    net = Net()
    u = columns(net, net.input(*DIMS), DIMS, *GEOMETRY)
    net.output(net.node("MatMul", net.random(4, 27), u), net.node("MatMul", net.random(2, 27), u))
    result = optimized(net.model())
    assert rewritten(result, ID) == 2
    assert operators(result) == ["Conv", "Reshape"] * 2


def test_the_product_is_an_output_too():
    """What is an output, or read twice, stays where it is: the rewrite ends there."""
    net = Net()
    y = net.node("MatMul", net.random(4, 27), columns(net, net.input(*DIMS), DIMS, *GEOMETRY))
    z = net.node("Reshape", net.node("Add", y, net.random(4, 1)), net.ints(2, 4, 6, 7))
    net.output(y, z)
    result = optimized(net.model())
    (site,) = [s for s in result.sites if s.rule == ID]
    assert (site.output, site.taken_over) == (y, [])
    assert operators(result) == ["Conv", "Reshape", "Add", "Reshape"]


def test_the_bias_and_what_rearranges_are_taken_over():
    net = Net()
    y = net.node("MatMul", net.random(4, 27), columns(net, net.input(*DIMS), DIMS, *GEOMETRY))
    y = net.node("Add", net.node("Add", y, net.random(4, 1)), net.random(4, 1))
    net.output(net.node("Reshape", y, net.ints(2, 4, 6, 7)))
    result = optimized(net.model())
    (site,) = [s for s in result.sites if s.rule == ID]
    assert len(site.taken_over) == 1, "a second bias is not one of the convolution"
    assert operators(result) == ["Conv", "Reshape", "Add", "Reshape"]


def test_heads_are_cut_behind_it():
    """A reshape that cuts the output channels is no rearrangement of whole axes."""
    net = Net()
    y = net.node("MatMul", net.random(4, 27), columns(net, net.input(*DIMS), DIMS, *GEOMETRY))
    net.output(net.node("Transpose", net.node("Reshape", y, net.ints(2, 2, 2, 42)), perm=[0, 1, 3, 2]))
    result = optimized(net.model())
    assert rewritten(result, ID) == 1
    assert operators(result) == ["Conv", "Reshape", "Reshape", "Transpose"]


def test_names_of_new_nodes_do_not_clash():
    net = Net()
    u = columns(net, net.input(*DIMS), DIMS, *GEOMETRY)
    net.output(net.node("MatMul", net.random(4, 27), u, name="product"))
    net.output(net.node("Relu", net.input(1, name="product/msconv_weight"), name="product/msconv_conv"))
    assert rewritten(optimized(net.model()), ID) == 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", ["none", "vector", "scaled"])
def test_gemm(transposed, bias):
    net = Net()
    u = columns(net, net.input(*DIMS), DIMS, *GEOMETRY)
    rows = net.node("Reshape", net.node("Transpose", u, perm=[0, 2, 1]), net.ints(-1, 27))
    operands = [rows, net.random(4, 27) if transposed else net.random(27, 4)]
    operands += [] if bias == "none" else [net.random(4)]
    attributes = {"transB": int(transposed), "alpha": 0.5, "beta": 2.0 if bias == "scaled" else 1.0}
    net.output(net.node("Gemm", *operands, **attributes), rank=2)
    if bias == "scaled":
        left(net.model(), "its bias is scaled")
    else:
        assert rewritten(optimized(net.model()), ID) == 1


def test_images_with_channels_last():
    """Patches of [N, H, W, C]: the image is transposed first."""
    net = Net()
    x = net.input("N", 8, 6, 3)
    x = net.node("Reshape", x, net.ints(-1, 4, 2, 3, 2, 3))
    x = net.node("Reshape", net.node("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), net.ints(-1, 12, 12))
    net.output(net.node("MatMul", x, net.random(12, 5)), rank=3)
    result = optimized(net.model(), [{"N": 1}, {"N": 3}])
    assert rewritten(result, ID) == 1
    assert operators(result) == ["Transpose", "Conv", "Transpose", "Reshape"]


def test_every_channel_on_its_own():
    """The same taps for every channel: channels are part of the batch, with dynamic extents read at run time."""
    net = Net()
    x = unfold(net, net.input("N", "C", "T"), ("N", "C", "T"), (4,), (2,), (1,), ((1, 1),))
    net.output(net.node("MatMul", net.node("Transpose", x, perm=[0, 1, 3, 2]), net.random(4, 5)), rank=4)
    sizes = [{"N": 2, "C": 3, "T": 8}, {"N": 1, "C": 1, "T": 2}, {"N": 3, "C": 2, "T": 5}]
    result = optimized(net.model(), sizes)
    assert rewritten(result, ID) == 1
    assert result.ran == 3


# -- what is left --------------------------------------------------------------------------------------------------------


def test_weights_that_are_computed():
    net = Net()
    u = columns(net, net.input(*DIMS), DIMS, *GEOMETRY)
    net.output(net.node("MatMul", net.input(4, 27), u), rank=3)
    left(net.model(), "its weights are not constant")


def test_quantized_weights():
    net = Net(13)
    u = columns(net, net.input(*DIMS), DIMS, *GEOMETRY)
    stored = net.constant(net.values.integers(-9, 9, (4, 27)).astype(np.int8))
    weight = net.node("DequantizeLinear", stored, net.scalar(0.1))
    net.output(net.node("MatMul", weight, u), rank=3)
    left(net.model(), "its weights are not constant")


def test_a_matrix_per_sample():
    net = Net()
    u = columns(net, net.input(*DIMS), DIMS, *GEOMETRY)
    net.output(net.node("MatMul", net.random(2, 4, 27), u), rank=3)
    left(net.model(), "its weights are not one matrix")


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_other_element_types(dtype):
    net, _ = product_net(DIMS[2:], GEOMETRY, 3, 4, DIMS, dtype=np.float64)
    if dtype == np.float64:
        left(net.model(), "not every runtime has convolutions in float64")
    else:
        net = Net(dtype=np.int32)
        weight = net.constant(np.ones((4, 27), np.int32))
        net.output(net.node("MatMul", weight, columns(net, net.input(*DIMS), DIMS, *GEOMETRY)), rank=3)
        left(net.model(), "not every runtime has convolutions in int32")


def test_windows_in_an_irregular_order():
    net = Net()
    x = net.input(1, 3, 9)
    indices = net.constant(np.array([[0, 1, 2], [2, 3, 4], [5, 6, 7]]))
    windows = net.node("Transpose", net.node("Gather", x, indices, axis=2), perm=[0, 2, 1, 3])
    net.output(net.node("MatMul", net.node("Reshape", windows, net.ints(1, 3, 9)), net.random(9, 4)), rank=3)
    left(net.model(), None)


def test_a_reflected_border_stays_a_pad():
    """What is not padded with zeros is the source of the windows, not part of them."""
    net = Net()
    x = net.node("Pad", net.input(1, 3, 9), net.ints(0, 0, 2, 0, 0, 2), mode="reflect")
    u = columns(net, x, (1, 3, 13), (5,), (2,), (1,), ((0, 0),))
    net.output(net.node("MatMul", net.random(4, 15), u), rank=3)
    result = optimized(net.model())
    assert rewritten(result, ID) == 1
    assert operators(result) == ["Pad", "Conv"]


def test_padding_with_another_number_stays_a_pad():
    net = Net()
    x = net.node("Pad", net.input(1, 3, 9), net.ints(0, 0, 2, 0, 0, 2), net.scalar(1.0))
    u = columns(net, x, (1, 3, 13), (5,), (2,), (1,), ((0, 0),))
    net.output(net.node("MatMul", net.random(4, 15), u), rank=3)
    assert operators(optimized(net.model())) == ["Pad", "Conv"]


@pytest.mark.parametrize("cut", ["first", "last"])
def test_windows_that_are_left_out(cut):
    net = Net()
    x = unfold(net, net.input(1, 3, 9), (1, 3, 9), (3,), (1,), (1,), ((0, 0),))
    bounds = (1, 7) if cut == "first" else (0, 6)
    x = net.node("Slice", x, net.ints(bounds[0]), net.ints(bounds[1]), net.ints(3))
    u = net.node("Reshape", x, net.ints(1, 9, 6))
    net.output(net.node("MatMul", net.random(4, 9), u), rank=3)
    left(net.model(), f"its {cut} windows are left out")


def test_two_images_side_by_side_are_one_source():
    """A concatenation of different tensors is followed no further."""
    net = Net()
    x = net.node("Concat", net.input(1, 1, 9), net.input(1, 2, 9), axis=1)
    u = columns(net, x, (1, 3, 9), (3,), (1,), (1,), ((1, 1),))
    net.output(net.node("MatMul", net.random(4, 9), u), rank=3)
    assert operators(optimized(net.model())) == ["Concat", "Conv"]


@pytest.mark.parametrize("form", ["flattened image", "pixels", "mixed channels"])
def test_matrices_without_windows(form):
    net = Net()
    x = net.input(2, 4, 6, 6)
    if form == "flattened image":
        net.output(net.node("MatMul", net.node("Reshape", x, net.ints(2, 144)), net.random(144, 5)), rank=2)
    elif form == "pixels":
        x = net.node("Transpose", net.node("Reshape", x, net.ints(2, 4, 36)), perm=[0, 2, 1])
        net.output(net.node("MatMul", x, net.random(4, 5)), rank=3)
    else:  # heads: a part of the channels is summed, another one kept
        x = net.node("Transpose", net.node("Reshape", x, net.ints(2, 2, 2, 36)), perm=[0, 1, 3, 2])
        net.output(net.node("MatMul", x, net.random(2, 5)), rank=4)
    left(net.model(), None)


def test_one_filter_per_channel():
    net = Net()
    x = unfold(net, net.input(1, 3, 9), (1, 3, 9), (3,), (1,), (1,), ((1, 1),))
    product = net.node("Mul", x, net.random(1, 3, 3, 1))
    net.output(net.with_axes("ReduceSum", product, 2, keepdims=0), rank=3)
    left(net.model(), "a filter of its own for every channel or tap")


def test_windows_over_four_axes():
    net = Net()
    dims, ones, pads = (1, 2, 4, 4, 4, 4), (1, 1, 1, 1), ((0, 0),) * 4
    u = columns(net, net.input(*dims), dims, (2, 2, 2, 2), ones, ones, pads)
    net.output(net.node("MatMul", net.random(3, 32), u), rank=3)
    left(net.model(), "its windows slide over more than three axes")


def test_padding_that_depends_on_the_extent():
    """Windows as "same" padding places them: the amount in front changes with the extent, so the Pad stays."""
    net = Net()
    extent = net.extent("T") if net.input(1, 2, "T", name="x") else ""
    before = net.node("Mod", extent, net.ints(2))
    x = net.node("Pad", "x", net.node("Concat", net.ints(0, 0), before, net.ints(0, 0, 3), axis=0))
    positions = net.node("Add", net.node("Add", extent, before), net.ints(1))
    u = slid(net, x, net.with_axes("Squeeze", positions, 0), net.constant(np.int64(1)))
    net.output(net.node("MatMul", net.random(4, 6), u), rank=3)
    result = optimized(net.model(), [{"T": 5}, {"T": 8}, {"T": 1}])
    assert result.ran == 3
    assert operators(result)[-2:] == ["Pad", "Conv"]


def test_a_stride_that_depends_on_the_extent():
    net = Net()
    extent = net.extent("T") if net.input(1, 2, "T", name="x") else ""
    stride = net.node("Add", net.node("Mod", extent, net.ints(2)), net.ints(1))
    limit = net.node("Sub", extent, net.ints(2))
    u = slid(net, "x", *(net.with_axes("Squeeze", n, 0) for n in (limit, stride)))
    net.output(net.node("MatMul", net.random(4, 6), u), rank=3)
    left(net.model(), "its windows are placed otherwise at other extents")


def slid(net: Net, x: str, limit: str, stride: str) -> str:
    """[1, 6, L]: windows of 3 over [1, 2, T], the indices computed."""
    starts = net.node("Range", net.constant(np.int64(0)), limit, stride)
    indices = net.node("Add", net.with_axes("Unsqueeze", starts, 0), net.constant(np.arange(3)[:, None]))
    return net.node("Reshape", net.node("Gather", x, indices, axis=2), net.ints(1, 6, -1))


def test_the_default_leaves_what_is_not_faster():
    """Patches of a reshape cost one transposition; a convolution over 3 channels costs more than the product."""
    net = Net()
    x = net.node("Reshape", net.input(1, 3, 224, 224), net.ints(1, 3, 14, 16, 14, 16))
    x = net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), net.ints(1, 196, 768))
    net.output(net.node("MatMul", x, net.random(768, 768)), rank=3)
    model = net.model()
    result = optimize_model(model, Path())
    assert result.model is model
    assert [(s.rule, s.decision) for s in result.sites] == [(ID, "left")]
    assert "less than x1.05" in result.sites[0].reason
    always = optimize_model(model, Path(), "always")
    given_ = feeds(model, {})
    compare(session(model).run(None, given_), session(always.model).run(None, given_), "patches", 1e-4)
