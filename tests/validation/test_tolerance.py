"""The tolerance policy: its closed form, the graph walk, and that it is neither too tight nor too loose."""

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.validation.graph import UNKNOWN_REDUCTION, read_graph
from msconv_deploy.validation.tolerance import NOISE_LIMIT, ErrorPath, policy_tolerance, unit_roundoff, with_noise
from tests.validation.networks import two_convs


def test_unit_roundoff_is_that_of_numpy():
    for name in ("float16", "float32", "float64"):
        assert unit_roundoff(name) == np.finfo(name).eps / 2
    with pytest.raises(BadInputError, match="int8"):
        unit_roundoff("int8")


def test_closed_form():
    assert policy_tolerance("float32", 1, [27]) == pytest.approx(8 * 2**-24 * (1 + 27**0.5))
    assert policy_tolerance("float16", 4, [9, 16]) == pytest.approx(8 * 2**-11 * 2 + 8 * 2**-24 * 5)
    assert policy_tolerance("bfloat16", 1, [1]) == pytest.approx(8 * 2**-8 + 8 * 2**-24)
    assert policy_tolerance("float64", 1, [27]) < 1e-14


def test_one_convolution_and_a_large_network_in_float32():
    assert 1e-6 < policy_tolerance("float32", 1, [27]) < 1e-5
    assert policy_tolerance("float32", 200, [4608] * 60) < 1e-3


def test_the_graph_walk_gives_the_closed_form_along_the_longest_path(tmp_path):
    graph = read_graph(two_convs(tmp_path / "m.onnx"))
    # Conv, (Relu rounds nothing), Add, Conv; the branch through the MatMul is shorter.
    assert graph.tolerance("y") == pytest.approx(policy_tolerance("float32", 3, [27, 72]))
    assert graph.tolerance("t1") == pytest.approx(policy_tolerance("float32", 1, [27]))
    assert graph.tolerance("s1") == pytest.approx(policy_tolerance("float32", 1, [4]))
    assert graph.border["t1"] == 1
    assert graph.border["y"] == 2


def test_contractions_inside_functions_count(tmp_path):
    inside = read_graph(two_convs(tmp_path / "f.onnx", functions=True))
    outside = read_graph(two_convs(tmp_path / "p.onnx"))
    assert inside.tolerance("y") == outside.tolerance("y")
    assert inside.border["y"] == outside.border["y"]


def test_external_weights_are_not_needed_for_it(tmp_path):
    inside, outside = (
        read_graph(two_convs(tmp_path / "p.onnx")),
        read_graph(two_convs(tmp_path / "e.onnx", external=True)),
    )
    assert inside.tolerance("y") == outside.tolerance("y")


def test_half_precision_uses_its_own_roundoff(tmp_path):
    graph = read_graph(two_convs(tmp_path / "h.onnx", dtype="float16"))
    assert graph.tolerance("y") == pytest.approx(policy_tolerance("float16", 3, [27, 72]))


@pytest.mark.parametrize(
    ("op_type", "weight", "attributes", "size"),
    [
        ("Conv", (6, 2, 3, 5), {"group": 2}, 30),
        ("ConvTranspose", (4, 3, 3, 3), {"group": 2}, 18),
        ("Gemm", (7, 4), {"transB": 1}, 4),
        ("Gemm", (4, 7), {}, 4),
        ("MatMul", (4, 7), {}, 4),
        ("MatMul", None, {}, UNKNOWN_REDUCTION),
    ],
)
def test_reduction_sizes(tmp_path, op_type, weight, attributes, size):
    rank = 4 if "Conv" in op_type else 2
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"x{i}" for i in range(rank)])]
    initializers = []
    if weight is None:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["a", "b"]))
    else:
        initializers.append(numpy_helper.from_array(np.zeros(weight, np.float32), "w"))
    node = helper.make_node(op_type, ["x", "w"], ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [output], initializers)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    assert read_graph(path).tolerance("y") == pytest.approx(policy_tolerance("float32", 1, [size]))


@pytest.mark.parametrize(
    ("op_type", "axes", "attributes", "size"),
    [
        ("ReduceMean", [2, 3], {}, 35),
        ("ReduceSum", [1, -1], {}, 21),
        ("ReduceSum", None, {}, 210),
        ("ReduceL1", [2], {}, 5),
        ("ReduceL2", [2], {}, 5),
        ("ReduceSumSquare", [3], {}, 7),
        ("ReduceLogSumExp", [3], {}, 7),
        ("ReduceLogSum", [3], {}, 7),
        ("CumSum", [3], {}, 7),
        ("GlobalAveragePool", None, {}, 35),
        ("GlobalLpPool", None, {}, 35),
        ("AveragePool", None, {"kernel_shape": [3, 4]}, 12),
        ("LpPool", None, {"kernel_shape": [3, 4]}, 12),
        ("Softmax", None, {"axis": 1}, 3),
        ("LogSoftmax", None, {}, 7),
        ("LpNormalization", None, {"axis": 1}, 3),
        ("MeanVarianceNormalization", None, {}, 70),
    ],
)
def test_what_sums_values_counts_them(tmp_path, op_type, axes, attributes, size):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 5, 7])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inputs, initializers = ["x"], []
    if axes is not None:
        inputs.append("axes")
        shape = [] if op_type == "CumSum" else [len(axes)]
        initializers.append(numpy_helper.from_array(np.array(axes, np.int64).reshape(shape), "axes"))
    graph = helper.make_graph([helper.make_node(op_type, inputs, ["y"], **attributes)], "g", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    assert read_graph(tmp_path / "m.onnx").tolerance("y") == pytest.approx(policy_tolerance("float32", 1, [size]))


def test_a_reduction_that_is_not_known_is_assumed(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    wanted = policy_tolerance("float32", 1, [UNKNOWN_REDUCTION])
    assert read_graph(tmp_path / "m.onnx").tolerance("y") == pytest.approx(wanted)


def test_a_cast_to_a_narrower_type_rounds(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    assert read_graph(path).tolerance("y") == pytest.approx(8 * 2**-11)


def test_noise_widens_the_tolerance_up_to_a_limit():
    assert with_noise(1e-5, None) == (1e-5, True)
    assert with_noise(1e-5, 1e-6) == (1e-5, True)
    assert with_noise(1e-5, 1e-4) == (4e-4, True)
    for hopeless in (NOISE_LIMIT, np.inf):
        assert with_noise(1e-5, hopeless) == (1e-5, False)


def test_the_heaviest_path_wins():
    light, heavy = ErrorPath().rounded("float32"), ErrorPath().rounded("float16")
    assert ErrorPath.heaviest([light, heavy]) == heavy
    assert ErrorPath.heaviest([]) == ErrorPath()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_stays_below_the_tolerance_but_not_far_below(dtype):
    torch = pytest.importorskip("torch", reason="the networks are PyTorch modules: pip install 'msconv-deploy[torch]'")
    rng = np.random.default_rng(0)
    ratios = []
    for seed in range(20):
        torch.manual_seed(seed)
        count, channels, kernel = int(rng.integers(1, 12)), int(rng.choice([4, 16, 48])), int(rng.choice([1, 3]))
        convs = [torch.nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(count)]
        network = torch.nn.Sequential(*(m for c in convs for m in (c, torch.nn.ReLU()))).to(getattr(torch, dtype))
        wide = copy.deepcopy(network).double()
        x = torch.randn(1, channels, 9, 10).to(getattr(torch, dtype))
        with torch.no_grad():
            a, b = network(x).double(), wide(x.double())
        tolerance = policy_tolerance(dtype, count, [channels * kernel**2] * count)
        ratios.append(tolerance * float(b.abs().max()) / float((a - b).abs().max()))
    assert min(ratios) > 3
    assert np.median(ratios) < 300
