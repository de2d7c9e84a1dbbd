"""The pass of `sink-broadcast` and `drop-expand` within optimizing: what is applied, what is left and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msconv_deploy.surgery.optimize import Result, inspect_model, optimize_model
from tests.surgery.graphs import Net, feeds, optimized, session
from tests.surgery.graphs import compare as assert_equal

SIZE = 64


def copies_of(net: Net, extent: int = SIZE) -> str:
    return net.node("Expand", net.input(1, 4, 1, 1, name="vector"), net.ints(1, 4, extent, extent))


def image(net: Net, extent: int = SIZE) -> str:
    return net.input(1, 4, extent, extent, name="image")


def decisions(result: Result) -> list[tuple[str, str, str]]:
    return [(site.rule, site.output, site.decision) for site in result.sites]


def checked(net: Net) -> Result:
    """Optimize in default mode, compare, and run it a second time."""
    optimized(net.model())
    model = net.model()
    result = optimize_model(model, Path())
    given = feeds(model, {})
    assert_equal(session(model).run(None, given), session(result.model).run(None, given), "default mode")
    again = optimize_model(result.model, Path())
    assert again.model is result.model
    return result


def sinking(extent: int = SIZE) -> Net:
    net = Net()
    x = net.node("Sigmoid", net.node("Relu", copies_of(net, extent)))
    net.output(net.node("Concat", net.node("Neg", image(net, extent)), x, axis=1))
    return net


def test_an_operator_on_copies_runs_on_the_core() -> None:
    net = sinking()
    result = checked(net)
    (site,) = result.sites
    assert (site.rule, site.op, site.decision, site.lowering) == ("sink-broadcast", "Sigmoid", "rewritten", "on-core")
    assert [(s.size, s.uniform) for s in site.segments] == [(4, [2, 3])]
    assert [n.op_type for n in result.model.graph.node if n.op_type != "Neg"] == ["Relu", "Sigmoid", "Expand", "Concat"]
    assert site.output in {name for node in result.model.graph.node for name in node.output}


def test_inspect_lists_it_and_changes_nothing() -> None:
    model = sinking().model()
    before = model.SerializeToString()
    result = inspect_model(model, Path())
    assert [(rule, decision) for rule, _, decision in decisions(result)] == [("sink-broadcast", "left")]
    assert (result.changed, result.model is model) == (False, True)
    assert model.SerializeToString() == before


def test_small_results_are_left_by_default() -> None:
    result = checked(sinking(extent=4))
    assert not result.changed
    assert "fewer than 4096 elements" in result.sites[0].reason
    assert optimize_model(sinking(extent=4).model(), Path(), "always").changed


def test_copies_that_stay_are_left_by_default() -> None:
    net = Net()
    copies = copies_of(net)
    net.output(net.node("Relu", copies), net.node("Softmax", copies, axis=2))
    result = checked(net)
    assert not result.changed
    assert f"the copies in {copies} are read elsewhere too" in result.sites[0].reason


def test_shape_arithmetic_is_not_touched() -> None:
    net = Net()
    shape = net.node("Mul", net.node("ConstantOfShape", net.ints(4)), net.scalar(2))
    net.output(net.node("Add", image(net), net.node("ReduceSum", shape, keepdims=0)))
    assert not optimized(net.model()).sites


def test_copies_beside_a_full_tensor_are_not_made() -> None:
    net = Net()
    net.output(net.node("Mul", copies_of(net), image(net)))
    result = checked(net)
    (site,) = result.sites
    assert (site.rule, site.decision, site.lowering) == ("drop-expand", "rewritten", "without-copies")
    assert [(s.uniform, s.found) for s in site.segments] == [([2, 3], ["Expand node_expand_3"])]
    assert [node.op_type for node in result.model.graph.node] == ["Mul"]


def test_an_addition_to_a_convolution_is_left_by_default() -> None:
    net = Net()
    y = net.node("Conv", image(net), net.random(4, 4, 1, 1))
    net.output(net.node("Relu", net.node("Add", y, copies_of(net))))
    result = checked(net)
    assert not result.changed
    assert "part of the convolution" in result.sites[0].reason


def test_what_a_contraction_reads_belongs_to_its_site() -> None:
    """An operator on copies that only a rewritten contraction reads is no site of its own."""
    net = Net()
    x = net.node("Concat", image(net), net.node("Relu", copies_of(net)), axis=1)
    net.output(net.node("Conv", x, net.random(8, 8, 3, 3)))
    for result in (checked(net), inspect_model(net.model(), Path())):
        assert [site.rule for site in result.sites] == ["tile-concat-conv"]


@pytest.mark.parametrize("form", ["custom domain", "resize", "softmax"])
def test_near_misses_name_what_ended_the_knowledge(form: str) -> None:
    net = Net()
    if form == "custom domain":
        x = net.node("Expand", net.input(1, 4, 1, 1), net.ints(1, 4, 8, 8), domain="other")
    elif form == "resize":
        sizes = net.shape((1, 4, "H", "W")) if net.input(1, 1, "H", "W", name="like") else ""
        x = net.node("Resize", net.input(1, 4, "h", "w"), "", "", sizes, mode="nearest")
    else:
        x = net.node("Relu", net.node("Softmax", copies_of(net, 8), axis=1))
    y = net.node("Conv", net.node("Concat", x, net.node("Neg", x), axis=1), net.random(8, 8, 3, 3))
    net.output(y)
    misses = inspect_model(net.model(), Path()).near_misses
    if form == "custom domain":
        assert not misses
    else:
        assert misses[0].reason.startswith("Resize copies only" if form == "resize" else "Softmax between the copies")


@pytest.mark.parametrize("shape_is_read", [True, False])
@pytest.mark.parametrize("between", ["InstanceNormalization", "Softmax"])
def test_a_near_miss_names_what_mixes_the_copies_and_not_what_reads_their_shape(
    between: str, shape_is_read: bool
) -> None:
    """A GroupNorm as exporters write it: the way through Shape is the shortest, and no value takes it."""
    net = Net()
    x = net.node("Concat", image(net, 8), copies_of(net, 8), axis=1)
    grouped = net.node("Reshape", x, net.ints(0, 2, -1), name="groups")
    parameters = [net.constant(np.ones(2, np.float32)), net.constant(np.zeros(2, np.float32))]
    more = parameters if between == "InstanceNormalization" else []
    mixed = net.node(between, grouped, *more, name="mixes")
    whole = net.node("Shape", x, name="shape") if shape_is_read else net.ints(1, 8, 8, 8)
    net.output(net.node("Conv", net.node("Reshape", mixed, whole), net.random(8, 8, 3, 3)))
    (miss,) = inspect_model(net.model(), Path()).near_misses
    # A Softmax would be computed per copy if the Reshape left them apart.
    wanted = ("InstanceNormalization", "mixes") if more else ("Reshape", "groups")
    assert miss.reason == f"{wanted[0]} between the copies and the contraction is not computed per copy"
    assert miss.nodes[1] == wanted[1]
