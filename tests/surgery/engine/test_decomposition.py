"""Decompositions by form: the expected segments and uniform axes, and what must stay dense."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from msconv_deploy.surgery.engine.cores import Literal
from msconv_deploy.surgery.engine.decomposition import MAX_DEPTH, Decomposer, Group, Segment, _aligned, reshape_groups
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from tests.surgery.graphs import Net

FULL = ["N", 2, "H", "W"]
DENSE = [(2, set())]
TILED = [(2, {2, 3})]


def segments(net: Net, tensor: str, axis: int = 1):
    """[(size, uniform axes)] of a tensor, or None."""
    net.output(net.node("Identity", tensor))
    editable = EditableModel(net.model(), Path(), net.opset)
    symbols = Symbols(editable.inferred)
    found = Decomposer(symbols, net.opset).segments(editable.graph.tensors()[tensor], axis)
    return None if found is None else [(s.size, set(s.uniform)) for s in found]


def tile(net: Net, small=("N", 2, 1, 1), full=FULL) -> str:
    if "H" not in net.symbols:
        net.input("N", 3, "H", "W")
    return net.node("Expand", net.input(*small), net.shape(list(full)))


def filler(value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value], np.float32))


SOURCES = {
    "expand": (tile, TILED),
    "expand along one axis": (lambda net: tile(net, ("N", 2, "H", 1)), [(2, {3})]),
    "expand from a lower rank": (lambda net: tile(net, (2, 1, 1)), [(2, {0, 2, 3})]),
    "expand of the channels too": (lambda net: tile(net, ("N", 1, 1, 1)), [(2, {1, 2, 3})]),
    "expand twice": (
        lambda net: net.node("Expand", net.node("Expand", net.input("N", 2, 1, 1), net.ints(1, 1, 7, 1)), net.ints(1, 1, 7, 9)),
        TILED,
    ),
    "tile": (lambda net: net.node("Tile", net.input("N", 2, 1, 1), net.ints(1, 1, 7, 9)), TILED),
    "repeat": (
        lambda net: net.node("Tile", net.node("Expand", net.input(2, 1, 1), net.ints(1, 1, 1, 1)), net.ints(3, 1, 7, 9)),
        [(2, {0, 2, 3})],
    ),
    "resize by sizes": (
        lambda net: net.node("Resize", net.input("N", 2, 1, 1), "", "", net.ints(1, 2, 7, 9), mode="cubic"),
        None,  # the sizes say batch 1, the input says N: nothing can be relied on
    ),
    "resize by scales": (
        lambda net: net.node(
            "Resize", net.input("N", 2, 1, 1), "", net.constant(np.array([1, 1, 7, 9], np.float32)), mode="linear"
        ),
        TILED,
    ),
    "ones times a vector": (
        lambda net: net.node(
            "Mul", net.node("ConstantOfShape", net.ints(1, 2, 7, 9), value=filler(1)), net.input("N", 2, 1, 1)
        ),
        TILED,
    ),
    "zeros plus a vector": (
        lambda net: net.node("Add", net.input("N", 2, 1, 1), net.constant(np.zeros((1, 2, 7, 9), np.float32))),
        TILED,
    ),
    "two small operands": (
        lambda net: net.node("Add", net.input("N", 2, 7, 1), net.input("N", 1, 1, 9)),
        DENSE,
    ),
    "coordinates in one constant": (
        lambda net: net.constant(np.stack(np.meshgrid(np.arange(7.0), np.arange(9.0), indexing="ij"))[None].astype(np.float32)),
        [(1, {3}), (1, {2})],
    ),
    "label planes": (
        lambda net: net.node(
            "Gather", net.constant(np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1) * np.ones((3, 2, 7, 9), np.float32)),
            net.input("N", dtype=np.int64),
        ),
        TILED,
    ),
    "noise": (lambda net: net.random(1, 2, 7, 9), DENSE),
    "periodic": (lambda net: net.node("Tile", net.input("N", 2, 7, 1), net.ints(1, 1, 2, 9)), DENSE),
    "dynamic extents that may be 1": (lambda net: tile(net, ("N", 2, "P", "Q")), DENSE),
}  # fmt: skip


@pytest.mark.parametrize("form", SOURCES)
def test_sources_of_copies(form):
    net = Net()
    make, expected = SOURCES[form]
    tensor = make(net)
    if expected is None:
        segments(net, tensor)
    else:
        assert segments(net, tensor) == expected


CHAINS = {
    "Relu": (lambda net, x: net.node("Relu", x), TILED),
    "Clip": (lambda net, x: net.node("Clip", x, "", net.scalar(1)), TILED),
    "Cast": (lambda net, x: net.node("Cast", x, to=11), TILED),
    "Dropout": (lambda net, x: net.node("Dropout", x), TILED),
    "per channel": (lambda net, x: net.node("Mul", x, net.random(2, 1, 1)), TILED),
    "per row": (lambda net, x: net.node("Mul", x, net.input("H", 1)), [(2, {3})]),
    "per pixel": (lambda net, x: net.node("Mul", x, net.input("N", 1, "H", "W")), DENSE),
    "BatchNormalization": (
        lambda net, x: net.node(
            "BatchNormalization", x, *[net.random(2) for _ in range(3)], net.constant(np.ones(2, np.float32))
        ),
        TILED,
    ),
    "InstanceNormalization": (lambda net, x: net.node("InstanceNormalization", x, net.random(2), net.random(2)), DENSE),
    "Softmax": (lambda net, x: net.node("Softmax", x, axis=1), DENSE),
    "CumSum": (lambda net, x: net.node("CumSum", x, net.constant(np.array(2, np.int64))), DENSE),
    "Concat": (lambda net, x: net.node("Concat", net.input("N", 3, "H", "W"), x, axis=1), [(3, set()), (2, {2, 3})]),
    "Concat along a copied axis": (lambda net, x: net.node("Concat", x, x, axis=3), DENSE),
    "Split": (lambda net, x: net.node("Split", x, net.ints(1, 1), outputs=2, axis=1)[1], [(1, {2, 3})]),
    "Slice of channels": (lambda net, x: net.node("Slice", x, net.ints(1), net.ints(2), net.ints(1)), [(1, {2, 3})]),
    "Slice of copies": (lambda net, x: net.node("Slice", x, net.ints(1), net.ints(-1), net.ints(2)), TILED),
    "Unsqueeze": (lambda net, x: net.node("Unsqueeze", x, net.ints(2)), [(2, {3, 4})]),
    "Transpose": (lambda net, x: net.node("Transpose", x, perm=[2, 1, 0, 3]), [(2, {0, 3})]),
    "Reshape that merges copies": (lambda net, x: net.node("Reshape", x, net.ints(0, 0, -1)), [(2, {2})]),
    "Reshape that merges batch and copies": (
        lambda net, x: net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 1, 3]), net.ints(-1, 2, 9)), None,
    ),
    "Pad edge": (lambda net, x: net.node("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"), TILED),
    "Pad of nothing": (lambda net, x: net.node("Pad", x, net.ints(*[0] * 8)), TILED),
    "Pad with zeros": (lambda net, x: net.node("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1)), DENSE),
    "MaxPool": (lambda net, x: net.node("MaxPool", x, kernel_shape=[1, 1]), DENSE),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_behind_copies(chain):
    net = Net()
    make, expected = CHAINS[chain]
    tensor = make(net, tile(net))
    found = segments(net, tensor)
    if expected is not None:
        assert found == expected


def test_pixel_unshuffle_of_copies_makes_more_channels():
    net = Net()
    x = tile(net, (1, 2, 1, 1), (1, 2, 8, 6))
    y = net.node("Transpose", net.node("Reshape", x, net.ints(1, 2, 4, 2, 3, 2)), perm=[0, 1, 3, 5, 2, 4])
    assert segments(net, net.node("Reshape", y, net.ints(1, 8, 4, 3))) == [(8, {2, 3})]


def test_depth_is_bounded():
    net = Net()
    x = tile(net)
    for _ in range(MAX_DEPTH - 20):
        x = net.node("Relu", x)
    assert segments(net, x) == TILED
    for _ in range(30):
        x = net.node("Relu", x)
    assert segments(net, x) == DENSE


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((2, 3, 4), (2, 12), [((0,), (0,)), ((1, 2), (1,))]),
        (("N", 6), ("N", 2, 3), [((0,), (0,)), ((1,), (1, 2))]),
        ((1, 4), (4, 1), [((0,), ()), ((1,), (0,)), ((), (1,))]),
        ((2, 3, 2), (2, 2, 3), [((0,), (0,)), ((1, 2), (1, 2))]),
        (("N", "T", 5), ("r", 5), [((0, 1), (0,)), ((2,), (1,))]),
        (("N", "K"), ("N",), None),
        (("N",), ("N", "K"), None),
    ],
)
def test_reshape_groups(source, target, expected):
    groups = reshape_groups(source, target)
    assert groups == (None if expected is None else [Group(*pair) for pair in expected])


def test_segments_that_are_not_equally_long_are_not_aligned():
    """As in a model whose shapes contradict each other."""

    def segment(size):
        return Segment(size, Literal((1,), np.ones(1)), frozenset({0}), ())

    assert _aligned([(segment(2), segment(1)), (segment(3),)], [None, None]) is not None
    assert _aligned([(segment(2),), (segment(3),)], [None, None]) is None
