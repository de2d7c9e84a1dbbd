"""`ones-channel`: a Conv whose copies are equal at every pixel becomes one with a channel of ones. Borders have to agree."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from msconv_deploy.optimizing.optimize import optimize_file
from msconv_deploy.runtimes import tensorrt_rtx
from msconv_deploy.surgery.engine import ones_channel
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from msconv_deploy.surgery.rules import tile_concat_conv
from msconv_deploy.surgery.rules.tile_concat_conv import ONES_CHANNEL
from tests.surgery.graphs import Net, compare, feeds, session, spelled
from tests.surgery.random_graphs import OPSETS, defined_by_onnxruntime, random_case

SIZES = [{"H": 5, "W": 6, "D": 4}, {"H": 1, "W": 3, "D": 2}, {"H": 7, "W": 1, "D": 1}, {"H": 1, "W": 1, "D": 1}]
AXES = ("H", "W", "D")


def tile(net: Net, core: str, *shape) -> str:
    return net.node("Expand", core, net.shape(list(shape)))


def one_sample(net: Net, spatial: int = 2, batch: int | str = 1, **attributes) -> onnx.ModelProto:
    """An image of 3 channels, a vector of 2 copied to every pixel, and a convolution with a 3x.. kernel."""
    axes = AXES[:spatial]
    image, vector = net.input(batch, 3, *axes, name="image"), net.input(1, 2, *[1] * spatial, name="vector")
    x = net.node("Concat", image, tile(net, vector, batch, 2, *axes), axis=1)
    attributes.setdefault("pads", [1] * (2 * spatial))
    if "auto_pad" in attributes:
        del attributes["pads"]
    net.output(net.node("Conv", x, net.random(4, 5, *[3] * spatial), net.random(4), **attributes), rank=spatial + 2)
    return net.model()


def only_ones(names: list[str]) -> str | None:
    return ONES_CHANNEL if ONES_CHANNEL in names else None


def assert_agrees(model: onnx.ModelProto, sizes=SIZES, label: object = "") -> onnx.ModelProto:
    """Write the sites that can be as `ones-channel`; compare with the original in ONNX Runtime, plain and optimized."""
    result = spelled(model, only_ones)
    assert result is not None, "the lowering is not offered"
    assert sizes_that_agree(model, result, sizes, label), "the original ran at none of the sizes"
    return result


def sizes_that_agree(model: onnx.ModelProto, result: onnx.ModelProto, sizes, label: object) -> int:
    """At how many sizes the original ran; the result agrees there."""
    onnx.checker.check_model(result, full_check=True)
    original, rewritten, fast = session(model), session(result), session(result, optimize=True)
    ran = 0
    for number, assignment in enumerate(sizes):
        given = feeds(model, assignment, number)
        try:
            expected = original.run(None, given)
        except Exception:  # the original refuses this size
            continue
        ran += 1
        compare(expected, rewritten.run(None, given), (label, assignment))
        compare(expected, fast.run(None, given), (label, assignment, "optimized"))
    return ran


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


GEOMETRIES = {
    "stride": {"strides": [2, 3]},
    "dilation": {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    "asymmetric": {"pads": [0, 0, 1, 2], "strides": [2, 1]},
    "one axis": {"pads": [1, 0, 1, 0]},
    "wide": {"pads": [4, 5, 4, 3]},
    "same_upper": {"auto_pad": "SAME_UPPER"},
    "same_lower": {"auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_borders_agree_in_every_geometry(geometry, dtype):
    result = assert_agrees(one_sample(Net(dtype=dtype), **GEOMETRIES[geometry]))
    assert "Add" not in ops(result), "no term is left to be added"
    assert ops(result).count("Expand") == 0


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_spatial_ranks_and_opsets(spatial, opset):
    assert_agrees(one_sample(Net(opset), spatial))


def test_padding_by_a_node_is_the_padding_of_the_ones_too():
    net = Net()
    image, vector = net.input(1, 3, "H", "W"), net.input(1, 2, 1, 1)
    x = net.node("Concat", tile(net, vector, 1, 2, "H", "W"), image, axis=1)
    x = net.node("Pad", x, net.ints(0, 0, 1, 2, 0, 0, 0, 1))
    net.output(net.node("Conv", x, net.random(4, 5, 3, 3), pads=[0, 0, 1, 0]))
    assert_agrees(net.model())


def test_the_dense_channels_may_have_any_batch():
    model = one_sample(Net(), batch="N")
    assert_agrees(model, [{"N": n, "H": 4, "W": 5} for n in (1, 3)])


def test_several_vectors_around_the_dense_channels_are_one_channel():
    net = Net()
    image, vector = net.input(1, 3, "H", "W"), net.input(1, 2, 1, 1)
    other, plane = net.input(1, 4, 1, 1), net.input(1, 1, 1, 1)
    parts = [tile(net, vector, 1, 2, "H", "W"), image, tile(net, other, 1, 4, "H", "W"), net.node("Relu", image)]
    parts.append(tile(net, plane, 1, 3, "H", "W"))  # its channels are equal too
    x = net.node("Concat", *parts, axis=1)
    net.output(net.node("Conv", x, net.random(6, 15, 3, 3), net.random(6), pads=[1] * 4))
    result = assert_agrees(net.model())
    (last,) = [n for n in result.graph.node if n.op_type == "Conv" and n.output[0] == net.outputs[0]]
    (pad,) = [n for n in result.graph.node if n.op_type == "Pad"]
    assert last.input[0] == pad.output[0]


def test_constant_vectors_are_constant_weights():
    """ONNX Runtime needs constant weights for its blocked layout."""
    net = Net()
    image = net.input(1, 3, "H", "W")
    x = net.node("Concat", image, tile(net, net.random(1, 2, 1, 1), 1, 2, "H", "W"), axis=1)
    weight = net.random(4, 5, 3, 3)
    net.output(net.node("Conv", x, weight, net.random(4), pads=[1] * 4))
    result = assert_agrees(net.model())
    arrays = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    assert [op for op in ops(result) if op != "Constant"] == ["Pad", "Conv"]
    assert arrays[result.graph.node[-1].input[1]].shape == (4, 4, 3, 3)


def test_a_constant_vector_beside_one_that_is_not():
    net = Net()
    image = net.input(1, 3, "H", "W")
    x = net.node("Concat", image, tile(net, net.random(1, 2, 1, 1), 1, 2, "H", "W"),
                 tile(net, net.input(1, 2, 1, 1), 1, 2, "H", "W"), axis=1)  # fmt: skip
    net.output(net.node("Conv", x, net.random(4, 7, 3, 3), pads=[1] * 4))
    assert_agrees(net.model())


def test_weights_that_are_zero_need_no_channel():
    net = Net()
    image, vector = net.input(1, 3, "H", "W"), net.input(1, 2, 1, 1)
    weight = net.values.standard_normal((4, 5, 3, 3)).astype(np.float32)
    weight[:, 3:] = 0
    x = net.node("Concat", image, tile(net, vector, 1, 2, "H", "W"), axis=1)
    net.output(net.node("Conv", x, net.constant(weight), pads=[1] * 4))
    assert "Pad" not in ops(assert_agrees(net.model()))


# -- where it cannot be used ---------------------------------------------------------------------------------------------


def site(channels=5, core=(1, 2, 1, 1), batch: int | str = 1, op="Conv", pads=(1, 1, 1, 1), group=1) -> onnx.ModelProto:
    net = Net()
    image = net.input(batch, channels - core[1], "H", "W", name="image")
    x = net.node("Concat", image, tile(net, net.input(*core, name="core"), batch, core[1], "H", "W"), axis=1)
    shape = (4, channels // group, 3, 3) if op == "Conv" else (channels, 4, 3, 3)
    net.output(net.node(op, x, net.random(*shape), pads=list(pads), group=group))
    return net.model()


REFUSED = {
    "samples": ({"core": (2, 2, 1, 1), "batch": 2}, "from sample to sample"),
    "samples that have a name": ({"core": ("N", 2, 1, 1), "batch": "N"}, "from sample to sample"),
    "rows differ": ({"core": (1, 2, "H", 1)}, "equal at every pixel"),
    "groups": ({"channels": 6, "group": 2}, "in every group"),
    "transposed": ({"op": "ConvTranspose"}, "for Conv only"),
    "no border": ({"pads": (0, 0, 0, 0)}, "a bias does the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_the_reason(case):
    arguments, reason = REFUSED[case]
    model = site(**arguments)
    editable = EditableModel(model, Path(), 17)
    symbols = Symbols(editable.inferred)
    (node,) = [n for n in editable.graph.nodes if n.op.startswith("Conv")]
    found = tile_concat_conv.match(node, symbols, Decomposer(symbols, 17))
    uniform = [segment for _, segment in found.uniform_segments]
    said = ones_channel.refusal(found.contraction, uniform, border=case != "no border")
    assert said is not None
    assert reason in said
    assert ONES_CHANNEL not in tile_concat_conv.lowerings(symbols, found)
    assert spelled(model, only_ones) is None


def test_a_vector_beside_copies_of_another_kind_is_left_to_the_other_lowerings():
    net = Net()
    image, vector, rows = net.input(1, 3, "H", "W"), net.input(1, 2, 1, 1), net.input(1, 2, "H", 1)
    x = net.node("Concat", image, tile(net, vector, 1, 2, "H", "W"), tile(net, rows, 1, 2, "H", "W"), axis=1)
    net.output(net.node("Conv", x, net.random(4, 7, 3, 3), pads=[1] * 4))
    model = net.model()
    assert spelled(model, only_ones) is None
    assert inspect_model(model, Path()).sites[0].spellings == ["border-gather"]


def test_nothing_dense_is_no_place_for_it():
    net = Net()
    net.input(1, 1, "H", "W", name="extents")
    net.output(net.node("Conv", tile(net, net.input(1, 2, 1, 1), 1, 2, "H", "W"), net.random(4, 2, 3, 3), pads=[1] * 4))
    assert spelled(net.model(), only_ones) is None


# -- chosen --------------------------------------------------------------------------------------------------------------


def large_unaligned() -> onnx.ModelProto:
    """17 and 9 channels: ONNX Runtime does not take the blocked layout before or after, and adding a term is a pass."""
    net = Net()
    image, vector = net.input(1, 17, 96, 96, name="image"), net.input(1, 16, 1, 1, name="vector")
    x = net.node("Concat", image, tile(net, vector, 1, 16, 96, 96), axis=1)
    y = net.node("Conv", x, net.random(32, 33, 3, 3), net.random(32), pads=[1] * 4, name="site")
    net.output(net.node("Relu", y))
    return net.model()


def test_the_estimate_can_choose_it_and_running_again_changes_nothing():
    model = large_unaligned()
    assert inspect_model(model, Path()).sites[0].lowering == ONES_CHANNEL
    result = optimize_model(model, Path())
    assert [(s.decision, s.lowering) for s in result.sites] == [("rewritten", ONES_CHANNEL)]
    given = feeds(model, {})
    compare(session(model).run(None, given), session(result.model).run(None, given), "chosen")
    made = {p.value for n in result.model.graph.node for p in n.metadata_props if p.key == "msconv.replaces"}
    assert made == {"site"}
    again = optimize_model(result.model, Path(), "always")
    assert not again.changed
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_the_command_verifies_and_reports_it(tmp_path):
    onnx.save(large_unaligned(), tmp_path / "m.onnx")
    report = optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert report.verdict == "passed"
    assert [s.lowering for s in report.sites] == [ONES_CHANNEL]


def test_tensorrt_rtx_builds_weights_that_are_computed(tmp_path):
    if not tensorrt_rtx.available():
        pytest.skip(f"needs TensorRT-RTX: {tensorrt_rtx.INSTALL}")
    result = spelled(one_sample(Net(), strides=[2, 1]), only_ones)
    onnx.save(result, tmp_path / "m.onnx")
    check = tensorrt_rtx.check_build(tmp_path / "m.onnx", {"image": ((1, 3, 4, 4), (1, 3, 9, 8), (1, 3, 20, 20))})
    assert check.status == "passed", check.reason


@defined_by_onnxruntime
def test_random_graphs_agree():
    compared = 0
    for seed in range(700):
        case = random_case(Random(2 * 10**6 + seed))
        try:
            session(case.model)
        except Exception:  # ONNX Runtime has no kernel for it
            continue
        result = spelled(case.model, only_ones)
        if result is not None:
            compared += sizes_that_agree(case.model, result, case.sizes, seed) > 0
    assert compared > 8
