"""`unfold-max`: the maximum and the mean over windows become pooling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.surgery.graphs import Net, optimized, reasons, rewritten, session
from tests.surgery.rules.test_unfold_matmul import geometries
from tests.surgery.rules.unfolding import DYNAMO, LEGACY, against, check, export, left, operators, unfold, windows_of

ID = "unfold-max"
SHAPES = [(2, 3, 9, 6), (1, 3, 4, 12), (3, 3, 5, 5)]
NUMPY = {"ReduceMax": np.max, "ReduceMean": np.mean}
POOLS = {"ReduceMax": "MaxPool", "ReduceMean": "AveragePool"}


def _spellings():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def columns(x, *geometry):
        return F.unfold(x, (3, 2), *geometry).view(x.size(0), x.size(1), 6, -1)

    def slid(x):
        return x.unfold(2, 3, 2).unfold(3, 2, 1)

    return {
        "maximum of columns": (lambda x: columns(x, 2, (1, 0), (1, 2)).amax(2), ["MaxPool", "Reshape"]),
        "values of max": (lambda x: columns(x, 1).max(2).values, ["MaxPool", "Reshape"]),
        "padded": (lambda x: columns(x, 1, 1, 1).amax(2), ["Pad", "MaxPool", "Reshape"]),
        "maximum of windows": (lambda x: slid(x).amax((-2, -1)), ["MaxPool"]),
        "axis by axis": (lambda x: slid(x).max(-1)[0].max(-1)[0], ["MaxPool"]),
        "mean of columns": (lambda x: columns(x, 1, 1, 1).mean(2), ["AveragePool", "Reshape"]),
        "mean of windows": (lambda x: slid(x).mean((4, 5), keepdim=True), ["AveragePool", "Unsqueeze"]),
        "patches": (
            lambda x: x.reshape(x.size(0), 3, x.size(2) // 3, 3, x.size(3) // 3, 3).amax((3, 5)),
            ["MaxPool"],
        ),
    }


DYNAMO_ONLY = ("maximum of windows", "axis by axis", "mean of windows")
CASES = [
    (name, exporter, True)
    for name in ("maximum of columns", "padded", "mean of columns", "patches", *DYNAMO_ONLY)
    for exporter in (LEGACY, DYNAMO)
    if exporter == DYNAMO or name not in DYNAMO_ONLY
]
CASES += [(name, LEGACY, False) for name in DYNAMO_ONLY]
CASES += [("values of max", LEGACY, False), ("values of max", DYNAMO, False)]


@pytest.mark.parametrize(("name", "exporter", "dynamic"), CASES)
def test_what_exporters_write(name, exporter, dynamic):
    function, kept = _spellings()[name]
    shapes = [(2, 3, 9, 6), (1, 3, 6, 3), (4, 3, 3, 12)] if name == "patches" else SHAPES
    opset = 20 if exporter == DYNAMO and "mean" in name else None
    result = check(export(function, shapes[0], exporter, dynamic, opset=opset), ID, shapes if dynamic else shapes[:1])
    if name == "maximum of columns":
        kept = ["Pad", *kept]
    assert operators(result) == kept


def net_of(op, dims, geometry, opset=21, dtype=np.float32, keepdims=0):
    net = Net(opset, dtype)
    spatial = len(geometry[0])
    x = unfold(net, net.input(*dims), dims, *geometry)
    axes = [2 + 2 * i for i in range(spatial)]
    if opset < (18 if op != "ReduceSum" else 13):
        net.output(net.node(op, x, axes=axes, keepdims=keepdims), rank=2 + spatial)
    else:
        net.output(net.node(op, x, net.ints(*axes), keepdims=keepdims), rank=2 + spatial)
    return net


def expected(op, x, geometry):
    windows = windows_of(x, *geometry)
    return NUMPY[op](windows, axis=tuple(range(2, 2 + len(geometry[0]))))


@given(op=st.sampled_from(sorted(NUMPY)), geometry=geometries())
@settings(max_examples=15, deadline=None)
def test_random_geometry(op, geometry):
    """Zeros outside count, whichever sign the image has; dilated means too."""
    extents, *geometry = geometry
    model = net_of(op, (2, 2, *extents), geometry).model()
    counts = windows_of(np.zeros((1, 1, *extents)), *geometry).shape[2 + len(extents) :]
    result = optimized(model)
    sliding = [n for k, n in zip(geometry[0], counts, strict=True) if k > 1]
    if sliding and min(sliding) > 1:  # a single window is the axis itself
        assert rewritten(result, ID) == 1, reasons(result)
        against(model, lambda x: expected(op, x, geometry), ID)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("op", sorted(NUMPY))
def test_opsets_and_dynamic_extents(op, opset):
    geometry = ((3, 3), (2, 1), (1, 1), ((1, 0), (2, 1)))
    net = net_of(op, ("N", 3, "H", "W"), geometry, opset)
    sizes = [{"N": 2, "H": 7, "W": 6}, {"N": 1, "H": 2, "W": 1}, {"N": 3, "H": 4, "W": 9}]
    result = against(net.model(), lambda x: expected(op, x, geometry), ID, sizes)
    assert operators(result) == ["Pad", POOLS[op]]  # as many zeros behind as before would need no Pad for a mean


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("opset", [11, 17, 18, 21])
@pytest.mark.parametrize("padding_before", [False, True])
def test_a_maximum_of_negative_numbers_sees_the_padding(opset, optimize, padding_before):
    """MaxPool's own padding is minus infinity: it would give the wrong border here. ONNX Runtime makes a Pad in front of a
    pooling, ours or the model's, such a padding where it may."""
    geometry = ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    net = net_of("ReduceMax", (1, 2, 4, 5), geometry, opset)
    if padding_before:
        net = Net(opset)
        x = net.node("Pad", net.input(1, 2, 4, 5), net.ints(0, 0, 1, 1, 0, 0, 1, 1))
        x = unfold(net, x, (1, 2, 6, 7), *geometry[:3], ((0, 0), (0, 0)))
        axes = {"axes": [2, 4]} if opset < 18 else {}
        net.output(net.node("ReduceMax", x, *([] if axes else [net.ints(2, 4)]), keepdims=0, **axes), rank=4)
    model = net.model()
    result = optimized(model)
    assert rewritten(result, ID) == 1, reasons(result)
    x = -1 - np.random.default_rng(0).random((1, 2, 4, 5)).astype(np.float32)
    (y,) = session(result.model, optimize).run(None, {model.graph.input[0].name: x})
    assert (y[:, :, 0] == 0).all()
    assert (y[:, :, 1:-1, 1:-1] < 0).all()
    assert np.allclose(y, expected("ReduceMax", x, geometry))


@pytest.mark.parametrize("optimize", [False, True])
def test_a_mean_with_as_much_padding_as_kernel(optimize):
    """Which no pooling of ONNX Runtime takes: its optimizations must not make one of the Pad either."""
    geometry = ((2,), (1,), (1,), ((2, 2),))
    model = net_of("ReduceMean", (1, 2, 7), geometry).model()
    result = optimized(model)
    assert rewritten(result, ID) == 1, reasons(result)
    x = np.random.default_rng(0).random((1, 2, 7)).astype(np.float32)
    (y,) = session(result.model, optimize).run(None, {model.graph.input[0].name: x})
    assert np.allclose(y, expected("ReduceMean", x, geometry))


@pytest.mark.parametrize("opset", [11, 18, 19])
def test_a_mean_over_dilated_windows(opset):
    geometry = ((3,), (1,), (2,), ((1, 1),))
    model = net_of("ReduceMean", (1, 2, 9), geometry, opset).model()
    if opset < 19:
        left(model, "a mean over dilated windows needs opset 19")
    else:
        against(model, lambda x: expected("ReduceMean", x, geometry), ID)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_element_types(dtype):
    geometry = ((3,), (1,), (1,), ((1, 1),))
    model = net_of("ReduceMax", (1, 2, 9), geometry, dtype=dtype).model()
    if dtype == np.float16:
        against(model, lambda x: expected("ReduceMax", x, geometry), ID)
    else:
        left(model, f"not every runtime has pooling in {np.dtype(dtype).name}")


def test_a_sum_is_left():
    geometry = ((3,), (1,), (1,), ((1, 1),))
    left(net_of("ReduceSum", (1, 2, 9), geometry).model(), None)


def test_channels_reduced_too():
    net = Net()
    x = unfold(net, net.input(1, 3, 9), (1, 3, 9), (3,), (1,), (1,), ((1, 1),))
    net.output(net.node("ReduceMax", x, axes=[1, 2], keepdims=0), rank=2)
    left(net.model(), "it reduces whole axes beside the windows")


def test_the_maximum_over_an_image_is_no_pooling():
    net = Net()
    net.output(
        net.node("ReduceMax", net.node("Reshape", net.input(1, 3, 4, 4), net.ints(1, 3, 16)), axes=[2], keepdims=0)
    )
    left(net.model(), None)


def test_a_maximum_in_two_steps_with_a_reader_in_between():
    """The first step is an output: it stays, and the second one is pooling by itself."""
    net = Net()
    dims = (1, 2, 7, 8)
    x = unfold(net, net.input(*dims), dims, (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))
    first = net.node("ReduceMax", x, axes=[4], keepdims=0)
    net.output(first, net.node("ReduceMax", first, axes=[2], keepdims=0))
    result = optimized(net.model())
    assert rewritten(result, ID) >= 1
    assert "MaxPool" in operators(result)
