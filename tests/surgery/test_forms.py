"""The fused and the plugin form of a rewrite: one MSConv2d node where the operator covers the site, else the reason."""

from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest

from msconv_deploy.ops.forms import Form, convert_form, form_of, msconv_nodes
from msconv_deploy.surgery.optimize import optimize_model
from msconv_deploy.surgery.rules.msconv_node import LOWERING
from tests.surgery.graphs import Net, compare, feeds, session
from tests.surgery.random_graphs import defined_by_onnxruntime, random_case


def tiled(spatial=2, group=1, op="Conv", opset=17, one_axis=False):
    """An image with a label tiled over it (or a per-row vector over its columns), concatenated and convolved."""
    net = Net(opset)
    names = ["H", "W"][:spatial] if spatial < 3 else ["D", "H", "W"]
    image = net.input("N", 4, *names, name="x")
    core = net.input("N", 4, *(["H", 1] if one_axis else [1] * spatial), name="z")
    shape = net.node("Concat", net.node("Slice", net.node("Shape", image), net.ints(0), net.ints(1)), net.ints(4),
                     net.node("Slice", net.node("Shape", image), net.ints(2), net.ints(2 + spatial)), axis=0)  # fmt: skip
    joined = net.node("Concat", image, net.node("Expand", core, shape), axis=1)
    out, channels = 6, 8 // group
    weight = net.random(*((8, out // group) if op == "ConvTranspose" else (out, channels)), *[3] * spatial)
    y = net.node(op, joined, weight, net.random(out), pads=[1] * (2 * spatial), group=group)
    net.outputs.append(y)
    return net.model()


def agrees(model, result, **sizes):
    given = feeds(model, sizes)
    compare(session(model).run(None, given), session(result).run(None, given), sizes)


SIZES = ({"N": 2, "H": 5, "W": 4}, {"N": 1, "H": 1, "W": 1}, {"N": 3, "H": 2, "W": 7})


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("one_axis", [False, True])
def test_a_site_becomes_one_node_in_every_opset(opset, one_axis):
    model = tiled(opset=opset, one_axis=one_axis)
    fused = optimize_model(model, Path(), "always", form=Form.FUSED)
    assert [site.lowering for site in fused.sites] == [LOWERING]
    assert (form_of(fused.model), len(msconv_nodes(fused.model))) == (Form.FUSED, 1)
    assert fused.model.ir_version >= 8
    onnx.checker.check_model(fused.model)
    for sizes in SIZES:
        agrees(model, fused.model, **sizes)
    plugin = optimize_model(model, Path(), "always", form=Form.PLUGIN)
    assert form_of(plugin.model) == Form.PLUGIN
    again = convert_form(plugin.model, Form.FUSED)
    assert again.SerializeToString(deterministic=True) == fused.model.SerializeToString(deterministic=True)


def test_one_dimensional_convolutions_go_through_a_kernel_of_height_one():
    model = tiled(spatial=1)
    fused = optimize_model(model, Path(), "always", form=Form.FUSED)
    (node,) = msconv_nodes(fused.model)
    assert next(a for a in node.attribute if a.name == "kernel_shape").ints == [1, 3]
    for length in (1, 2, 9):
        agrees(model, fused.model, N=2, H=length)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"spatial": 3}, "one or two spatial dims, not Conv 3d"),
        ({"op": "ConvTranspose"}, "not ConvTranspose 2d"),
        ({"group": 2}, "not spread equally over the groups"),
    ],
)
def test_what_the_operator_does_not_cover_is_portable_with_the_reason(arguments, reason):
    model = tiled(**arguments)
    result = optimize_model(model, Path(), "always", form=Form.FUSED)
    assert [site.decision for site in result.sites] == ["rewritten"]
    assert reason in result.sites[0].reason
    assert form_of(result.model) == Form.PORTABLE
    agrees(model, result.model, N=2, H=5, W=4, D=3)


@defined_by_onnxruntime
def test_random_graphs_in_fused_form_agree():
    nodes = 0
    for seed in range(150):
        case = random_case(Random(10_000 + seed))
        try:
            original = session(case.model)
        except Exception:  # ONNX Runtime has no kernel for it
            continue
        result = optimize_model(case.model, Path(), "always", form=Form.FUSED)
        if not result.changed:
            continue
        nodes += len(msconv_nodes(result.model))
        rewritten = session(result.model)
        for number, sizes in enumerate(case.sizes):
            given = feeds(case.model, sizes, number)
            try:
                expected = original.run(None, given)
            except Exception:  # the original refuses this size
                continue
            # The body sums taps in the model's own type, the portable form in float64.
            tolerance = 5e-2 if expected[0].dtype == np.float16 else None
            compare(expected, rewritten.run(None, given), (seed, sizes), tolerance)
    assert nodes > 20
