"""Extents by name: what is followed through exporters' arithmetic, and what must not be concluded."""

from pathlib import Path

import numpy as np
import pytest

from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols, broadcast, monomial, product
from tests.surgery.graphs import Net


def analysed(net: Net, *tensors: str):
    net.output(*[net.node("Identity", t) for t in tensors])
    editable = EditableModel(net.model(), Path(), net.opset)
    known = editable.graph.tensors()
    return Symbols(editable.inferred), [known[t] for t in tensors]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("N", 1), (1, 4)], ["N", 4]),
        ([("N", 3), (3,)], ["N", 3]),
        ([("N",), ("M",)], [None]),
        ([("N",), (5,)], [5]),
        ([(1,), (1, 1)], [1, 1]),
    ],
)
def test_broadcast(shapes, expected):
    assert broadcast(shapes) == expected


def test_the_legacy_guard_around_expand():
    net = Net()
    x = net.input("N", 3, "H", "W")
    shape = net.shape(["N", 2, "H", "W"])
    ones = net.node("ConstantOfShape", net.node("Shape", shape), value=net_ones())
    minus = net.node("Mul", ones, net.constant(np.array(-1, np.int64)))
    guarded = net.node("Where", net.node("Equal", shape, minus), ones, shape)
    symbols, (tensor, _) = analysed(net, net.node("Expand", net.input("N", 2, 1, 1), guarded), x)
    assert symbols.dims(tensor) == ("N", 2, "H", "W")


def net_ones():
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array([1], np.int64))


def test_truth_values_are_zero_or_one():
    """Cast to BOOL does not keep a number."""
    net = Net()
    symbols, (tensor,) = analysed(net, net.node("Cast", net.node("Cast", net.ints(5, 0), to=9), to=7))
    assert symbols.values(tensor) == (1, 0)


def test_integers_that_need_not_be_extents():
    """A shape from outside may hold -1 or 0: a reshape by it does not give its entries the extents' names."""
    net = Net()
    x, asked = net.input("N", "T", 6), net.input(2, dtype=np.int64)
    by_name = net.node("Reshape", x, net.node("Concat", asked, net.ints(6), axis=0))
    symbols, (tensor,) = analysed(net, by_name)
    dims = symbols.dims(tensor)
    assert dims is not None
    assert dims[0] not in ("N", "T")
    assert not str(dims[0]).startswith("?")


def test_resize_policy_is_not_ignored():
    net = Net(18)
    sizes = net.shape([1, 2, "H", "W"]) if net.input("H", "W") else ""
    x = net.node("Resize", net.input(1, 2, 3, 4), "", "", sizes, keep_aspect_ratio_policy="not_larger", mode="nearest")
    symbols, (tensor,) = analysed(net, x)
    assert symbols.dims(tensor)[2:] != ("H", "W")


def test_operators_of_another_domain_are_unknown():
    net = Net()
    x = net.node("Relu", net.input("N", 3), domain="other")
    net.output(x, rank=2)
    editable = EditableModel(net.model(), Path(), 17)
    symbols = Symbols({})
    assert symbols.dims(editable.graph.tensors()[x]) is None


@pytest.mark.parametrize(("start", "limit", "delta"), [(0, 96, 1), (3, 10, 2), (10, 0, -3), (5, 5, 1), (7, 2, 1)])
def test_the_extent_of_a_range(start, limit, delta):
    net = Net()
    scalars = [net.constant(np.asarray(v, np.int64)) for v in (start, limit, delta)]
    symbols, (tensor,) = analysed(net, net.node("Range", *scalars))
    assert symbols.dims(tensor) == (len(range(start, limit, delta)),)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((), 1),
        ((2, 3), 6),
        (("S", "R"), "R × S"),
        (("R", 2, "S", 3), "6 × R × S"),
        (("6 × R × S", "R", 2), "12 × R × R × S"),
        ((0, "R"), 0),
        (("2", 3), "3 × 2"),  # a name that looks like a number is a name
    ],
)
def test_products_are_named_after_their_factors(dims, expected):
    assert product(dims) == expected


def test_a_name_that_looks_like_a_number_is_none():
    assert monomial(["2"]) == (1, ("2",))


def test_merged_axes_however_they_are_written():
    net = Net()
    x = net.input("R", "S", 6)
    merged = net.node("Reshape", x, net.ints(-1, 6))
    flat = net.node("Flatten", x, axis=2)
    rows = net.node("Mul", net.extent("S"), net.extent("R"))
    computed = net.node("Reshape", x, net.node("Concat", rows, net.ints(6), axis=0))
    halves = net.node("Reshape", merged, net.ints(-1, 2))
    back = net.node("Reshape", merged, net.node("Concat", net.extent("R"), net.ints(-1, 6), axis=0))
    symbols, tensors = analysed(net, merged, flat, computed, halves, back)
    dims = [symbols.dims(t) for t in tensors]
    assert dims == [("R × S", 6)] * 3 + [("3 × R × S", 2), ("R", "S", 6)]


def test_the_repeats_of_the_legacy_repeat_interleave():
    net = Net()
    net.input("R", "S", 2)
    pair = net.node("Concat", net.ints(1), net.extent("S"), axis=0)
    hot = net.node("OneHot", net.ints(1), net.constant(np.array(3, np.int64)), pair)
    repeats = net.node("Reshape", hot, net.ints(-1))
    symbols, (tensor,) = analysed(net, repeats)
    assert symbols.values(tensor) == (1, "S", 1)
