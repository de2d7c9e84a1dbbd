"""Layers of an engine and their precision, from samples of the engine inspector's JSON.

The first sample has the form that NVIDIA's developer guide prints for a convolution built with detailed verbosity; the
others have the fields of layer dumps of TensorRT 10 (metadata with ONNX node names, ``Half`` for a type).
"""

import json

import pytest
from onnx import TensorProto, helper

from msconv_deploy.model_files import read_model
from msconv_deploy.ops.forms import Form, convert_form
from msconv_deploy.runtimes.tensorrt.inspect import Contraction, check_precision, contractions, precisions, read_layers
from tests.ops.test_lowerings import two_layers
from tests.validation.networks import two_convs

GUIDE = {
    "Name": "conv_a + bn_a + relu_a",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "t1",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {
            "Name": "t2",
            "Dimensions": [16, 256, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "ParameterType": "Convolution",
    "Kernel": [1, 1],
    "Groups": 1,
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "Activation": "RELU",
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    "TacticValue": "0x11bde0e1d9f2f35d",
}


def sample(name, kind, inputs, outputs, tactic="", metadata=None, weights=None):
    """A layer as the inspector tells it."""
    found = {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": f"i{n}", "Dimensions": [1, 8, 9, 9], "Format/Datatype": t} for n, t in enumerate(inputs)],
        "Outputs": [{"Name": f"o{n}", "Dimensions": [1, 8, 9, 9], "Format/Datatype": t} for n, t in enumerate(outputs)],
        "TacticName": tactic,
        "TacticValue": "0x0",
        "StreamId": 0,
    }
    if metadata is not None:
        found["Metadata"] = "\x1e".join(f"[ONNX Layer: {node}]" for node in metadata)
    if weights is not None:
        found["Weights"] = {"Type": weights, "Count": 10}
    return found


def layers_of(*samples):
    return read_layers(json.dumps({"Layers": list(samples), "Bindings": ["x", "y"]}))


def precision_of(**layer):
    return layers_of(sample("l", **layer))[0].precision


def test_the_guides_sample():
    (layer,) = layers_of(GUIDE)
    assert (layer.precision, layer.type, layer.plugin) == ("int8", "CaskConvolution", False)
    assert layer.nodes == ["conv_a", "bn_a", "relu_a"]
    assert layer.tactic == GUIDE["TacticName"]
    assert layer.inputs == ["Thirty-two wide channel vectorized row major Int8 format."]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({"kind": "CaskConvolution", "inputs": ["Row major linear FP32"], "outputs": ["Row major linear FP32"]}, "fp32"),
        ({"kind": "CaskConvolution", "inputs": ["Half"], "outputs": ["Half"]}, "fp16"),
        ({"kind": "conv", "inputs": ["BFloat16"], "outputs": ["BFloat16"]}, "bf16"),
        ({"kind": "conv", "inputs": ["Channel major FP16 format where channel % 8 == 0"], "outputs": ["Float"]}, "fp16"),
        ({"kind": "conv", "inputs": ["Float"], "outputs": ["Float"], "weights": "Half"}, "fp16"),
        ({"kind": "fusion", "inputs": ["Float", "Half"], "outputs": ["Half"]}, None),
        ({"kind": "kgen", "inputs": ["Float"], "outputs": ["Half"]}, None),
        ({"kind": "PluginV3", "inputs": ["Half", "Float"], "outputs": ["Half"]}, "fp16"),
        ({"kind": "Shape", "inputs": ["Int64"], "outputs": ["Int32"]}, None),
        (
            {"kind": "conv", "inputs": ["Float"], "outputs": ["Float"],
             "tactic": "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16"},
            "tf32",
        ),
        (
            {"kind": "conv", "inputs": ["Float"], "outputs": ["Float"],
             "tactic": "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nchwkcrs_nchw_tilesize32x32x8"},
            "fp32",
        ),
        (
            {"kind": "fusion", "inputs": ["Float"], "outputs": ["Half"],
             "tactic": "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize64x64x64"},
            "fp16",
        ),
        ({"kind": "conv", "inputs": ["Half"], "outputs": ["Half"], "tactic": "sm80_xmma_fprop_bf16bf16_"}, "bf16"),
        ({"kind": "conv", "inputs": ["Half"], "outputs": ["Half"], "tactic": "turing_h1688cudnn_128x128_ldg8_relu"}, "fp16"),
        ({"kind": "conv", "inputs": ["Half"], "outputs": ["Half"], "tactic": "ampere_scudnn_128x64_relu_interior"}, "fp32"),
    ],
)  # fmt: skip
def test_precision_of_a_layer(layer, expected):
    assert precision_of(**layer) == expected


def test_names_only():
    layers = read_layers(json.dumps({"Layers": ["conv1 + relu1", "fc"], "Bindings": []}))
    assert [(layer.nodes, layer.precision) for layer in layers] == [(["conv1", "relu1"], None), (["fc"], None)]
    check = check_precision([Contraction("conv1", "fp16", False)], layers)
    assert (check.verdict, check.unaccounted) == ("unverified", ["conv1"])
    assert "no details" in check.reason


def test_node_names_with_brackets():
    (layer,) = layers_of(sample("l", "conv", ["Half"], ["Half"], metadata=["/a[0]/Conv", "/b/Conv [x]"]))
    assert layer.nodes == ["/a[0]/Conv", "/b/Conv [x]"]


# -- against the graph -----------------------------------------------------------------------------------------------

WANTED = [Contraction("first", "fp16", False), Contraction("second", "fp16", False)]
FIRST = sample("first + relu", "CaskConvolution", ["Half"], ["Half"], "sm80_f16f16_f16f32", ["first", "relu"])


def test_as_asked():
    copy = sample("Reformatting CopyNode for first", "Reformat", ["Float"], ["Half"], metadata=["first"])
    second = sample("__myl_Conv", "fusion", ["Half"], ["Half"], metadata=["second"])
    check = check_precision(WANTED, layers_of(copy, FIRST, second))
    assert check.verdict == "passed", check
    assert (check.asked, check.found) == ({"fp16": 2}, {"fp16": 2})


def test_fp32_in_an_fp16_graph_is_named():
    second = sample("second", "CaskConvolution", ["Float"], ["Float"], "ampere_scudnn_128", ["second"])
    check = check_precision(WANTED, layers_of(FIRST, second))
    assert check.verdict == "differ"
    assert check.differing == ["second: fp16 asked, fp32 computed by layer 'second' (tactic ampere_scudnn_128)"]
    assert "second: fp16 asked" in check.reason


def test_tf32_is_not_fp32_unless_it_is_allowed():
    layer = layers_of(sample("first", "conv", ["Float"], ["Float"], "xmma_tf32f32_tf32f32_f32", ["first"]))
    wanted = [Contraction("first", "fp32", False)]
    assert check_precision(wanted, layer).verdict == "differ"
    assert check_precision(wanted, layer, allow_tf32=True).verdict == "passed"


def test_what_no_layer_tells_is_unverified():
    check = check_precision(WANTED, layers_of(FIRST))
    assert (check.verdict, check.unaccounted) == ("unverified", ["second"])
    mixed = sample("second", "fusion", ["Float", "Half"], ["Half"], metadata=["second"])
    check = check_precision(WANTED, layers_of(FIRST, mixed))
    assert (check.verdict, check.unaccounted) == ("unverified", ["second"])
    assert "no layer tells the precision of second" in check.reason


def test_the_plugins_layers_are_counted():
    wanted = [Contraction("one", "fp16", True), Contraction("two", "fp16", True)]
    one, two = (sample(name, "PluginV3", ["Half", "Half"], ["Half"], metadata=[name]) for name in ("one", "two"))
    check = check_precision(wanted, layers_of(one, two))
    assert (check.verdict, check.plugin_nodes, check.plugin_layers) == ("passed", 2, 2)
    check = check_precision(wanted, layers_of(one))
    assert check.verdict == "differ"
    assert "2 msconv::MSConv2d nodes, but the engine has 1 plugin layers" in check.reason
    single = sample("two", "PluginV3", ["Float"], ["Float"], metadata=["two"])
    assert "two: fp16 asked, fp32 computed" in check_precision(wanted, layers_of(one, single)).reason


def test_count_by_precision():
    assert precisions(layers_of(FIRST, FIRST, sample("s", "Shape", [], []))) == {"fp16": 2, "unknown": 1}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_contractions_of_a_graph(tmp_path, dtype):
    model = read_model(two_convs(tmp_path / "m.onnx", dtype=dtype, external=True))
    model.graph.node[0].name = ""
    expected = {"float32": "fp32", "float16": "fp16"}[dtype]
    assert contractions(model) == [Contraction(n, expected, False) for n in ("node_of_t1", "linear", "second")]


def test_contractions_of_the_plugin_form():
    model = convert_form(two_layers()[0], Form.PLUGIN)
    assert contractions(model) == [Contraction("one", "fp32", True), Contraction("two", "fp32", True)]


def test_integer_contractions_ask_nothing():
    a, b, y = (helper.make_tensor_value_info(n, TensorProto.INT32, [2, 2]) for n in "aby")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"], "m")], "g", [a, b], [y])
    assert contractions(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])) == []
