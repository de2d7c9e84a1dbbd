"""Arithmetic per channel behind a site becomes part of its weights: what is taken over, what is not, and that it agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest

from msconv_deploy.ops.forms import Form
from msconv_deploy.optimizing.optimize import optimize_file
from msconv_deploy.surgery import optimize as optimizing
from msconv_deploy.surgery.choice import tune as tuning
from msconv_deploy.surgery.engine.epilogue import MOST_CANCELLATION
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from msconv_deploy.surgery.rules.msconv_node import LOWERING
from tests.surgery.graphs import Net, compare, feeds, optimized, rewritten, session
from tests.surgery.random_graphs import OPSETS, defined_by_onnxruntime, random_case

SIZES = [{"N": 2, "H": 5, "W": 4}, {"N": 1, "H": 1, "W": 1}, {"N": 3, "H": 1, "W": 7}]
OUTPUTS = 6


def normalization(net: Net, x: str, channels: int = OUTPUTS, mean: float = 1.0, **attributes) -> str:
    values = net.values
    moments = values.standard_normal((3, channels)).astype(net.dtype)
    variance = values.uniform(0.5, 2, channels).astype(net.dtype)
    moments[2] *= mean
    parameters = [net.constant(array) for array in (*moments, variance)]
    return net.node("BatchNormalization", x, *parameters, **attributes)


def tiled(net: Net, op: str = "Conv", group: int = 1, bias: bool = True, **attributes) -> str:
    """[N, 6, H, W] before what follows: an image of 4 channels, a vector of 2 or 4 copied, and a contraction."""
    copies = 4 if group > 1 else 2
    image, vector = net.input("N", 4, "H", "W", name="image"), net.input("N", copies, 1, 1, name="vector")
    x = net.node("Concat", image, net.node("Expand", vector, net.shape(["N", copies, "H", "W"])), axis=1)
    inputs = 4 + copies
    shape = (inputs, OUTPUTS // group, 3, 3) if op == "ConvTranspose" else (OUTPUTS, inputs // group, 3, 3)
    weight, own = net.random(*shape), [net.random(OUTPUTS)] if bias else []
    return net.node(op, x, weight, *own, pads=[1] * 4, group=group, name="site", **attributes)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_normalization_becomes_part_of_the_weights(op, group, bias):
    net = Net()
    net.output(net.node("Relu", normalization(net, tiled(net, op, group, bias))))
    result = optimized(net.model(), SIZES)
    assert rewritten(result) == 1
    assert "BatchNormalization" not in ops(result.model)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_chain_with_identities(opset):
    """Also where a constant gets its shape by a node."""
    net = Net(opset)
    y = net.node("Add", tiled(net, bias=False), net.node("Reshape", net.random(OUTPUTS), net.ints(1, OUTPUTS, 1, 1)))
    y = normalization(net, net.node("Identity", y))
    y = net.node("Mul", net.random(OUTPUTS, 1, 1), y)
    y = net.node("Add", net.random(1), y)
    net.output(net.node("Tanh", net.node("Identity", y)))
    result = optimized(net.model(), SIZES)
    site = result.sites[0]
    kept = [node.op_type for node in result.model.graph.node if not node.metadata_props]
    assert "BatchNormalization" not in kept
    assert "Mul" not in kept
    assert len(site.taken_over) == 5
    stamps = {p.value for n in result.model.graph.node for p in n.metadata_props if p.key == "msconv.replaces"}
    assert stamps == {",".join(["site", *site.taken_over])}


@pytest.mark.parametrize(("op", "rank"), [("Gemm", 2), ("Gemm transposed", 2), ("MatMul", 2), ("MatMul", 3)])
def test_products(op, rank):
    net = Net()
    lead = ["N", "H"][: rank - 1]
    x = net.input(*lead, 3, name="x")
    x = net.node("Concat", x, net.node("Expand", net.input(*[1] * (rank - 1), 4), net.shape([*lead, 4])), axis=-1)
    attributes = {"transB": 1, "alpha": 0.5} if op == "Gemm transposed" else {}
    weight = net.random(5, 7) if attributes else net.random(7, 5)
    own = [net.random(5)] if op != "MatMul" else []
    y = net.node("Add", net.node(op.split()[0], x, weight, *own, **attributes), net.random(5))
    net.output(net.node("Sigmoid", net.node("Mul", y, net.random(1, 5))), rank=rank)
    result = optimized(net.model(), [{"N": 3, "H": 2}, {"N": 1, "H": 1}])
    assert rewritten(result) == 1
    assert "Mul" not in ops(result.model)
    if rank == 2:
        assert ops(result.model).count("Gemm") == 1, "the sum of the terms is its C"


def left_alone(net: Net, y: str, kept: str) -> None:
    net.output(net.node("Relu", y))
    result = optimized(net.model(), SIZES)
    assert rewritten(result) == 1
    assert result.sites[0].taken_over == []
    assert kept in ops(result.model)


def test_what_others_read_too_stays():
    net = Net()
    y = tiled(net)
    net.output(net.node("Neg", y))
    left_alone(net, normalization(net, y), "BatchNormalization")


def test_what_is_an_output_stays():
    net = Net()
    y = tiled(net)
    net.output(y)
    left_alone(net, normalization(net, y), "BatchNormalization")


def test_training_stays():
    net = Net(17)
    y = tiled(net)
    parameters = [net.random(OUTPUTS) for _ in range(3)] + [net.constant(np.ones(OUTPUTS, np.float32))]
    y, *_ = net.node("BatchNormalization", y, *parameters, outputs=3, training_mode=1)
    left_alone(net, y, "BatchNormalization")


def test_cancellation_stays():
    net = Net()
    left_alone(net, normalization(net, tiled(net), mean=100 * MOST_CANCELLATION), "BatchNormalization")


def test_half_precision_stays():
    net = Net(dtype=np.float16)
    left_alone(net, normalization(net, tiled(net)), "BatchNormalization")


@pytest.mark.parametrize("case", ["not per channel", "by itself", "with an input", "of higher rank"])
def test_other_arithmetic_stays(case):
    net = Net()
    y = tiled(net)
    other = {
        "not per channel": lambda: net.random(2, 1, 1, 1),
        "by itself": lambda: y,
        "with an input": lambda: net.input(1, OUTPUTS, 1, 1),
        "of higher rank": lambda: net.random(1, 1, OUTPUTS, 1, 1),
    }[case]()
    left_alone(net, net.node("Mul", y, other), "Mul")


def test_a_bias_that_is_an_input_stays():
    net = Net()
    image, vector = net.input("N", 4, "H", "W"), net.input("N", 2, 1, 1)
    x = net.node("Concat", image, net.node("Expand", vector, net.shape(["N", 2, "H", "W"])), axis=1)
    y = net.node("Conv", x, net.random(OUTPUTS, 6, 3, 3), net.input(OUTPUTS), pads=[1] * 4)
    left_alone(net, normalization(net, y), "BatchNormalization")


def large(batch: int = 1) -> onnx.ModelProto:
    net = Net()
    image, vector = net.input(batch, 8, 48, 48), net.input(batch, 64, 1, 1)
    x = net.node("Concat", image, net.node("Expand", vector, net.ints(batch, 64, 48, 48)), axis=1)
    y = net.node("Conv", x, net.random(16, 72, 3, 3), pads=[1] * 4, name="site", outputs="convolved")
    net.output(net.node("Relu", normalization(net, y, 16)))
    return net.model()


def test_a_site_that_is_left_keeps_what_follows():
    model = large()
    found = inspect_model(model, Path()).sites[0]
    assert found.decision == "left"
    assert found.taken_over
    result = optimize_model(model, Path())
    assert result.sites[0].estimated_gain == pytest.approx(found.estimated_gain)


def test_verification_compares_the_result_of_what_was_taken_over(tmp_path):
    model = large()
    onnx.save(model, tmp_path / "m.onnx")
    report = optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert report.verdict == "passed"
    (site,) = report.sites
    (normalized,) = [n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization"]
    assert site.output == normalized
    compared = {row.output for row in report.verification.comparisons}
    assert normalized in compared
    written = onnx.load(tmp_path / "o.onnx")
    assert "BatchNormalization" not in ops(written)
    assert "convolved" not in {name for node in written.graph.node for name in node.output}


@pytest.mark.parametrize("wrong", ["scale", "shift"])
def test_verification_finds_a_wrong_epilogue(wrong, monkeypatch, tmp_path):
    right = optimizing.taken_over

    def broken(contraction, epilogue, editable, prefix):
        values = getattr(epilogue, wrong).copy()
        values[-1] += 0.1
        return right(contraction, replace(epilogue, **{wrong: values}), editable, prefix)

    monkeypatch.setattr(optimizing, "taken_over", broken)
    onnx.save(large(), tmp_path / "m.onnx")
    report = optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert report.verdict == "differ"
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("spelling", ["border-gather", "ones-channel"])
def test_tuning_finds_the_site_by_its_result(spelling, monkeypatch):
    model, built = large(), []

    def fake(original, folder, given, starts, candidates, build, **_):
        (candidate,) = candidates
        plan = {candidate.output: spelling}
        built.append(build(plan))
        return tuning.Tuned(plan, None)

    monkeypatch.setattr("msconv_deploy.surgery.optimize.tune_plan", fake)
    result = optimize_model(model, Path(), tune=True)
    assert [(s.decision, s.lowering) for s in result.sites] == [("rewritten", spelling)]
    given = feeds(model, {})
    expected = session(model).run(None, given)
    for made in (built[0], result.model):
        assert "BatchNormalization" not in ops(made)
        compare(expected, session(made).run(None, given), spelling)


def test_the_fused_form_takes_it_over_too():
    model = large()
    result = optimize_model(model, Path(), "always", form=Form.FUSED)
    assert [site.lowering for site in result.sites] == [LOWERING]
    assert "BatchNormalization" not in ops(result.model)
    given = feeds(model, {})
    compare(session(model).run(None, given), session(result.model).run(None, given), "fused")


def with_normalizations(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with a BatchNormalization behind every convolution."""
    values, result = np.random.default_rng(seed), onnx.ModelProto()
    result.CopyFrom(model)
    weights = {t.name: t for t in result.graph.initializer}
    nodes = list(result.graph.node)
    for position, node in reversed(list(enumerate(nodes))):
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in weights:
            continue
        weight = weights[node.input[1]]
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        channels = weight.dims[0] if node.op_type == "Conv" else weight.dims[1] * group
        dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        arrays = [*values.standard_normal((3, channels)), values.uniform(0.5, 2, channels)]
        names = [f"normalization{position}_{i}" for i in range(4)]
        tensors = [onnx.numpy_helper.from_array(a.astype(dtype), n) for a, n in zip(arrays, names, strict=True)]
        result.graph.initializer.extend(tensors)
        output, node.output[0] = node.output[0], f"normalization{position}_input"
        nodes.insert(position + 1, onnx.helper.make_node("BatchNormalization", [node.output[0], *names], [output]))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


@defined_by_onnxruntime
def test_random_graphs_agree():
    taken = 0
    for seed in range(200):
        case = random_case(Random(3 * 10**6 + seed))
        model = with_normalizations(case.model, seed)
        try:
            session(model)
        except Exception:  # ONNX Runtime has no kernel for it
            continue
        taken += sum(bool(site.taken_over) for site in optimized(model, case.sizes).sites)
    assert taken > 30
