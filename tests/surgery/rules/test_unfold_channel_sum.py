"""`unfold-channel-sum`: windows times one filter, summed over channels, become a 1x1 convolution and shifted slices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.surgery.graphs import Net, optimized, reasons, rewritten
from tests.surgery.rules.test_unfold_matmul import geometries
from tests.surgery.rules.unfolding import DYNAMO, LEGACY, against, check, export, left, operators, unfold, windows_of

ID = "unfold-channel-sum"
FILTER = np.random.default_rng(1).standard_normal((3, 3, 2)).astype(np.float32)
SHAPES = [(2, 3, 9, 6), (1, 3, 4, 12), (3, 3, 5, 3)]


def _spellings():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def columns(x, *geometry):
        return F.unfold(x, (3, 2), *geometry).view(x.size(0), x.size(1), 6, -1)

    return {
        "columns": lambda x, w: (columns(x, 1, 1, 1) * w.reshape(1, 3, 6, 1)).sum(1),
        "strided and dilated": lambda x, w: (columns(x, 2, (2, 1), (1, 2)) * w.reshape(1, x.size(1), 6, 1)).sum(1),
        "taps last": lambda x, w: torch.einsum("nckl,ck->nlk", columns(x, 1, 1, 1), w.flatten(1)),
        "windows": lambda x, w: (x.unfold(2, 3, 1).unfold(3, 2, 2) * w[:, None, None]).sum(1, keepdim=True),
    }


CASES = [
    (name, exporter, True) for name in ("columns", "strided and dilated", "taps last") for exporter in (LEGACY, DYNAMO)
]
CASES += [("windows", LEGACY, False), ("windows", DYNAMO, False), ("windows", DYNAMO, True)]


@pytest.mark.parametrize(("name", "exporter", "dynamic"), CASES)
def test_what_exporters_write(name, exporter, dynamic):
    model = export(_spellings()[name], SHAPES[0], exporter, dynamic, FILTER)
    result = check(model, ID, SHAPES if dynamic else SHAPES[:1])
    assert operators(result).count("Slice") == 6
    assert {"Gather", "Mul", "ReduceSum", "Einsum"} & set(operators(result)) <= {"Gather"}, (
        "extents are gathered, at most"
    )
    assert operators(result)[0] == "Conv"


def net_of(dims, geometry, dtype=np.float32, opset=17, keepdims=0):
    net = Net(opset, dtype)
    kernel = geometry[0]
    taps_and_positions = [n for k in kernel for n in (k, 1)]
    weight = net.values.standard_normal((dims[1], *kernel)).astype(dtype)
    x = unfold(net, net.input(*dims), dims, *geometry)
    product = net.node("Mul", x, net.constant(weight.reshape(1, dims[1], *taps_and_positions)))
    net.output(net.with_axes("ReduceSum", product, 1, keepdims=keepdims), rank=1 + 2 * len(kernel) + keepdims)
    return net, weight


def expected(x, weight, kernel, stride, dilation, pads):
    """[N, k1, out1, k2, out2, …] in float64."""
    spatial = len(kernel)
    windows = windows_of(x, kernel, stride, dilation, pads)  # [N, C, *kernel, *positions]
    y = (windows * weight.astype(np.float64).reshape(1, *weight.shape, *[1] * spatial)).sum(1)
    return y.transpose(0, *(a for i in range(spatial) for a in (1 + i, 1 + spatial + i)))


@given(geometry=geometries(), channels=st.integers(2, 3))
@settings(max_examples=12, deadline=None)
def test_random_geometry(geometry, channels):
    extents, *geometry = geometry
    net, weight = net_of((2, channels, *extents), geometry)
    model = net.model()
    result = optimized(model)
    windows = windows_of(np.zeros((1, 1, *extents)), *geometry).shape[2 + len(extents) :]
    if any(k > 1 and n > 1 for k, n in zip(geometry[0], windows, strict=True)):
        assert rewritten(result, ID) == 1, reasons(result)
        against(model, lambda x: expected(x, weight, *geometry), ID)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_borders_of_dynamic_extents(opset):
    geometry = ((3, 2), (2, 1), (1, 3), ((1, 0), (2, 1)))
    net, weight = net_of(("N", 3, "H", "W"), geometry, opset=opset)
    sizes = [{"N": 2, "H": 7, "W": 6}, {"N": 1, "H": 2, "W": 1}, {"N": 3, "H": 4, "W": 9}]
    against(net.model(), lambda x: expected(x, weight, *geometry), ID, sizes)


def test_one_tap_along_an_axis():
    geometry = ((1, 3), (2, 1), (1, 1), ((0, 0), (1, 1)))
    net, weight = net_of((2, 3, 7, 6), geometry)
    result = against(net.model(), lambda x: expected(x, weight, *geometry), ID)
    assert operators(result).count("Slice") == 3


def test_half_precision():
    geometry = ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    net, weight = net_of((2, 4, 6, 6), geometry, np.float16)
    against(net.model(), lambda x: expected(x, weight, *geometry), ID)


def test_a_filter_that_is_computed():
    net = Net()
    x = unfold(net, net.input(1, 3, 9), (1, 3, 9), (3,), (1,), (1,), ((1, 1),))
    product = net.node("Mul", x, net.input(1, 3, 3, 1))
    net.output(net.with_axes("ReduceSum", product, 1, keepdims=0), rank=3)
    left(net.model(), "its weights are not constant")


def test_several_filters():
    net = Net()
    dims = (1, 3, 9)
    x = unfold(net, net.input(*dims), dims, (3,), (1,), (1,), ((1, 1),))
    net.output(net.node("Einsum", x, net.random(4, 3, 3), equation="nckl,ock->nokl"), rank=4)
    left(net.model(), "it has several filters, whose taps stay apart")


def test_a_bias_behind_it_stays():
    net, _ = net_of((2, 3, 7, 6), ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))))
    (y,) = net.outputs
    net.outputs = []
    net.output(net.node("Add", y, net.random(1)), rank=5)
    result = optimized(net.model())
    assert rewritten(result, ID) == 1
    assert operators(result)[-1] == "Add"


def test_a_positions_weight_is_no_filter():
    """Weights that differ from window to window are of another kind."""
    net = Net()
    x = unfold(net, net.input(1, 3, 9), (1, 3, 9), (3,), (1,), (1,), ((1, 1),))
    product = net.node("Mul", x, net.random(1, 3, 3, 9))
    net.output(net.with_axes("ReduceSum", product, 1, keepdims=0), rank=3)
    left(net.model(), None)
