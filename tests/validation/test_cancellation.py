"""What pairwise distances may change: the bound at a site, and what it becomes further on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from msconv_deploy.validation.cancellation import CheckedDistance, allowances, distance_bound
from msconv_deploy.validation.inputs import Inputs
from tests.surgery.graphs import Net, feeds, session

DISTANCE = CheckedDistance("a", "b", -1, 0.0, False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bound_grows_with_the_operands_and_the_type(dtype):
    a, b = np.full((2, 1, 4), 3, dtype), np.full((3, 4), 5, dtype)
    bound = distance_bound(a, b, -1)
    assert bound.shape == (2, 3, 1)
    u = np.finfo(dtype).eps / 2
    assert bound == pytest.approx(4 * 10 * u * 4 * (9 + 25), rel=1e-5)
    assert distance_bound(10 * a, 10 * b, -1) == pytest.approx(100 * bound)


def test_a_root_is_bounded_by_half_the_digits_near_zero():
    a = np.ones((1, 1, 4), np.float32)
    squared = distance_bound(a, a[0], -1)
    assert distance_bound(a, a[0], -1, root=True) == pytest.approx(np.sqrt(squared))
    far = distance_bound(a, a[0] + 100, -1, root=True)
    assert far == pytest.approx(distance_bound(a, a[0] + 100, -1) / 200)


def model():
    """[5, 7] distances, then twice their exponential, distances between its rows, and something else."""
    net = Net()
    squares = net.node("Pow", net.node("Sub", net.input(5, 1, 4, name="a"), net.input(7, 4, name="b")), net.scalar(2))
    d = net.node("ReduceSum", squares, net.ints(-1), keepdims=0, outputs="d")
    e = net.node("Mul", net.node("Exp", net.node("Neg", d)), net.scalar(2), outputs="e")
    rows = [net.with_axes("Unsqueeze", e, axis) for axis in (1, 0)]
    again = net.node("Pow", net.node("Sub", *rows), net.scalar(2))
    d2 = net.node("ReduceSum", again, net.ints(-1), keepdims=0, outputs="d2")
    other = net.node("Relu", "a", outputs="other")
    net.output(d2, e, rank=2)
    net.output(other, rank=3)
    return net.model(), rows


def found(offset, distances=None):
    original, rows = model()
    given = {name: array + np.float32(offset) for name, array in feeds(original, {}).items()}
    names = ["d", "e", "d2", "other"]
    shown = onnx.ModelProto()
    shown.CopyFrom(original)
    shown.graph.output.append(onnx.ValueInfoProto(name="d"))
    expected = dict(zip(names, session(shown).run(names, given), strict=True))
    distances = distances or {"d": DISTANCE, "d2": CheckedDistance(*rows, -1, 0.0, False)}
    before = original.SerializeToString(deterministic=True)
    result = allowances("m.onnx", original, distances, Inputs("case", {}, given, ""), expected, 0)
    assert original.SerializeToString(deterministic=True) == before
    return result, expected, given


def test_what_is_allowed_where():
    result, expected, given = found(10)
    assert set(result) == {"d", "e", "d2"}
    bound = distance_bound(given["a"], given["b"], -1)
    assert result["d"] == pytest.approx(bound.max() / expected["d"].max())
    # behind it: exp changes relative to itself by what the distance changes, and twice that is allowed
    change = (np.expm1(bound[..., 0]) * expected["e"]).max() / expected["e"].max()
    assert result["e"] == pytest.approx(2 * change, rel=0.05)


def test_a_distance_behind_another_has_what_arrives_too():
    both, *_ = found(10)
    alone, *_ = found(10, {"d": DISTANCE})
    assert both["d2"] > alone["d2"] > 0
    assert both["d"] == alone["d"]


def test_near_the_origin_hardly_anything_is_allowed():
    near, far = found(0)[0], found(100)[0]
    assert near["d"] < 1e-5
    assert far["d"] > 100 * near["d"]
