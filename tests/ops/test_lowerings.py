"""Conformance: every body and lowering, run by ONNX Runtime, against the reference; and what each lowering refuses."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops import lowerings, reference
from msconv_deploy.ops.configuration import DOMAIN, MSConv2dConfig
from msconv_deploy.ops.forms import Form, convert_form, form_of, msconv_nodes
from msconv_deploy.ops.functions import function_for
from msconv_deploy.ops.node_builder import NodeBuilder
from msconv_deploy.ops.schema import register_schema
from msconv_deploy.ops.shapes import weight_shape
from msconv_deploy.runtimes.opsets import newest_onnxruntime_opset
from tests.oracle import border_and_interior, difference, extents, scale_of
from tests.strategies import Case, cases

SYMBOLS = {"nchw": ["N", None, "H", "W"], "nch": ["N", None, "H"], "ncw": ["N", None, "W"], "nc": ["N", None]}
NEWEST = newest_onnxruntime_opset()
FUNCTION_OPSETS = [opset for opset in (17, 18, 19, 21, 23, 26, 28) if opset <= NEWEST]
LOWERING_OPSETS = [opset for opset in (11, 12, 13, 15, 18, 26, 28) if opset <= NEWEST]


def inputs_of(case, dtype):
    """Graph inputs with symbolic N, H, W; a batch of 1 that is broadcast stays 1."""
    batch = max(source.shape[0] for source in case.sources.values())
    out = []
    for name, source in case.sources.items():
        dims = list(SYMBOLS[name])
        dims[1] = source.shape[1]
        if source.shape[0] != batch:
            dims[0] = 1
        out.append(helper.make_tensor_value_info(name, dtype, dims))
    return out


def model_of(case, nodes, opset, functions=(), dtype=TensorProto.FLOAT):
    arrays = {f"w_{n}": w for n, w in case.weights.items()} | ({"bias": case.bias} if case.bias is not None else {})
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = [numpy_helper.from_array(a.astype(kind), n) for n, a in arrays.items()]
    output = helper.make_tensor_value_info("y", dtype, [None] * 4)
    graph = helper.make_graph(nodes, "g", inputs_of(case, dtype), [output], weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, functions=list(functions), opset_imports=imports, ir_version=10 if opset < 26 else 13
    )


def fused_model(case, opset=18, dtype=TensorProto.FLOAT):
    config = case.config
    node = helper.make_node(
        config.function_name, list(config.input_names), ["y"], "layer", domain=DOMAIN, **config.attributes()
    )
    return model_of(case, [node], opset, [function_for(config, opset)], dtype)


def run(model, case, dtype=np.float32):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: source.astype(dtype) for name, source in case.sources.items()})[0]


def expect_agreement(actual, case, tolerance):
    expected = reference.msconv2d(case.config, case.sources, case.weights, case.bias)
    assert actual.shape == expected.shape
    scale = scale_of(case, expected)
    border = np.broadcast_to(border_and_interior(case.config, *extents(case.sources)), expected.shape)
    for region in (border, ~border):
        assert np.abs(actual - expected)[region].max(initial=0) <= tolerance * scale


def single(case):
    """The case rounded to float32, so that both sides compute on the same numbers."""
    return case.astype(np.float32).astype(np.float64)


@settings(max_examples=250, deadline=None)
@given(cases(activations=(0, 0, 1, 2, 3, 4, 5, 6)), st.sampled_from(FUNCTION_OPSETS))
def test_function_bodies_equal_the_reference(case, opset):
    case = single(case)
    model = fused_model(case, opset)
    onnx.checker.check_model(model, full_check=True)
    expect_agreement(run(model, case), case, 1e-5)


@settings(max_examples=40, deadline=None)
@given(cases(max_kernel=3))
def test_function_bodies_in_half_precision(case):
    half = case.astype(np.float16).astype(np.float64)
    expect_agreement(run(fused_model(half, dtype=TensorProto.FLOAT16), half, np.float16), half, 2e-2)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(sorted(lowerings.LOWERINGS)), st.sampled_from(LOWERING_OPSETS))
def test_each_lowering_equals_the_reference_or_is_refused(case, name, opset):
    assume(lowerings.LOWERINGS[name].refusal(case.config) is None)
    case = single(case)
    builder = NodeBuilder("layer", opset)
    operands = lowerings.Operands.from_inputs(case.config, case.config.input_names)
    lowerings.emit(name, builder, case.config, operands, "y")
    model = model_of(case, builder.nodes, opset)
    onnx.checker.check_model(model, full_check=True)
    expect_agreement(run(model, case), case, 1e-5)


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("broadcast-add", MSConv2dConfig((1, 0, 0, 1), (3, 3), pads=(1, 1, 1, 1), padding_semantics=1), "border"),
        ("broadcast-add", MSConv2dConfig((1, 1, 0, 0), (3, 3), pads=(0, 1, 0, 0), padding_semantics=1), "border"),
    ],
)
def test_refusals_say_why(name, config, reason):
    assert reason in lowerings.LOWERINGS[name].refusal(config)


def test_no_border_no_refusal():
    """Zero padding that falls only on axes which every vector owns leaves one class."""
    config = MSConv2dConfig((1, 1, 0, 0), (3, 3), pads=(1, 0, 1, 0), padding_semantics=1)
    assert lowerings.general_lowering(config) == "broadcast-add"


@pytest.mark.parametrize("semantics", [0, 1])
def test_an_empty_batch_gives_an_empty_output(semantics):
    rng = np.random.default_rng(0)
    config = MSConv2dConfig((1, 1, 1, 1), (3, 3), pads=(1, 1, 1, 1), padding_semantics=semantics)
    shapes = {"nchw": (0, 2, 5, 4), "nch": (0, 2, 5), "ncw": (0, 2, 4), "nc": (0, 2)}
    weights = {n: rng.standard_normal(weight_shape(config, n, 2, 3)) for n in shapes}
    case = Case(config, {n: np.zeros(s) for n, s in shapes.items()}, weights, np.zeros(3), 5, 4)
    assert run(fused_model(case), case).shape == (0, 3, 5, 4)


def two_layers():
    """Two configurations in one model: functions keyed by anything less than all attributes would collide."""
    rng = np.random.default_rng(3)
    first = MSConv2dConfig((1, 1, 0, 1), (3, 3), pads=(1, 1, 1, 1), padding_semantics=1, activation=1)
    second = MSConv2dConfig((1, 0, 1, 0), (3, 3), pads=(1, 1, 1, 1), padding_semantics=0, has_bias=0)
    shapes = {
        "w1": (4, 3, 3, 3),
        "w2": (4, 2, 3, 3),
        "w3": (4, 5, 3, 3),
        "b": (4,),
        "v1": (6, 4, 3, 3),
        "v2": (6, 2, 3),
    }
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    nodes = [
        helper.make_node("MSConv2d", ["nchw", "nch", "nc", "w1", "w2", "w3", "b"], ["h"], "one", domain=DOMAIN,
                         **first.attributes()),
        helper.make_node("MSConv2d", ["h", "ncw", "v1", "v2"], ["y"], "two", domain=DOMAIN, **second.attributes()),
    ]  # fmt: skip
    inputs = {"nchw": ["N", 3, "H", "W"], "nch": ["N", 2, "H"], "ncw": ["N", 2, "W"], "nc": ["N", 5]}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6, "H", "W"])],
        [numpy_helper.from_array(a, k) for k, a in arrays.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    sizes = {"N": 2, "H": 5, "W": 4}
    feeds = {k: rng.standard_normal([sizes.get(d, d) for d in s]).astype(np.float32) for k, s in inputs.items()}
    h = reference.msconv2d(first, {k: feeds[k] for k in ("nchw", "nch", "nc")},
                           {"nchw": arrays["w1"], "nch": arrays["w2"], "nc": arrays["w3"]}, arrays["b"])  # fmt: skip
    y = reference.msconv2d(second, {"nchw": h, "ncw": feeds["ncw"]}, {"nchw": arrays["v1"], "ncw": arrays["v2"]})
    return model, feeds, y


def test_forms_convert_into_each_other():
    plugin, feeds, expected = two_layers()
    fused = convert_form(plugin, Form.FUSED)
    portable = convert_form(fused, Form.PORTABLE)
    assert [form_of(m) for m in (plugin, fused, portable)] == [Form.PLUGIN, Form.FUSED, Form.PORTABLE]
    assert len({f.name for f in fused.functions}) == 2
    for model in (fused, portable):
        onnx.checker.check_model(model, full_check=True)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert difference(session.run(None, feeds)[0], expected) < 1e-5
    assert not portable.functions
    assert all(entry.domain == "" for entry in portable.opset_import)
    again = convert_form(convert_form(fused, Form.PLUGIN), Form.FUSED)
    assert again.SerializeToString(deterministic=True) == fused.SerializeToString(deterministic=True)
    assert {a.name for a in convert_form(fused, Form.PLUGIN).graph.node[0].attribute} >= {"plugin_version", "sources"}


def test_value_names_of_a_body_start_with_its_own_name():
    plugin, _, _ = two_layers()
    for function in convert_form(plugin, Form.FUSED).functions:
        names = [*function.input, *function.output, *(v for n in function.node for v in (*n.input, *n.output))]
        assert all(name.startswith(function.name) for name in names)
        assert not any(a.ref_attr_name for n in function.node for a in n.attribute)


def test_portable_form_does_not_go_back():
    plugin, _, _ = two_layers()
    with pytest.raises(BadInputError, match="no longer known"):
        convert_form(convert_form(plugin, Form.PORTABLE), Form.FUSED)


def test_nodes_in_subgraphs_are_found():
    plugin, _, _ = two_layers()
    branch = helper.make_graph([plugin.graph.node[1]], "b", [], [helper.make_tensor_value_info("y", 1, None)])
    plugin.graph.node[1].CopyFrom(helper.make_node("If", ["c"], ["out"], then_branch=branch, else_branch=branch))
    assert len(msconv_nodes(plugin)) == 3


def test_shape_inference_and_checker_know_the_plugin_form():
    register_schema()
    plugin, _, _ = two_layers()
    onnx.checker.check_model(plugin, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(plugin, strict_mode=True)
    (h,) = [v for v in inferred.graph.value_info if v.name == "h"]
    assert [d.dim_param or d.dim_value for d in h.type.tensor_type.shape.dim] == ["N", 4, "H", "W"]


def attribute(node, name):
    return next(a for a in node.attribute if a.name == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER")), "unknown attribute auto_pad"),
        (lambda n: n.input.pop(), "takes 7 inputs"),
        (lambda n: n.attribute.remove(attribute(n, "sources")), "attribute sources is missing"),
        (lambda n: attribute(n, "pads").ints.__setitem__(0, -1), "pads must be 4 integers"),
        (
            lambda n: attribute(n, "sources").CopyFrom(helper.make_attribute("sources", 1)),
            "sources must be a list of int",
        ),
        (
            lambda n: attribute(n, "group").CopyFrom(helper.make_attribute("group", "x")),
            "group must be an integer, but is",
        ),
        (
            lambda n: attribute(n, "activation_params").CopyFrom(helper.make_attribute("activation_params", 3)),
            "activation_params must be a list of numbers, but is 3",
        ),
    ],
)
def test_malformed_nodes_are_named(change, message):
    plugin, _, _ = two_layers()
    change(plugin.graph.node[0])
    with pytest.raises(BadInputError, match=f"node 'one'.*{message}"):
        convert_form(plugin, Form.FUSED)


def test_tables_that_no_convolution_needs_are_not_made():
    """A small file asks for nine million border classes."""
    plugin, _, _ = two_layers()
    attribute(plugin.graph.node[0], "kernel_shape").ints[:] = [3000, 3000]
    attribute(plugin.graph.node[0], "pads").ints[:] = [3000] * 4
    with pytest.raises(
        BadInputError, match=r"node 'one': .*3000 rows with padding 3000\+3000 has 9,006,001 border classes"
    ):
        convert_form(plugin, Form.FUSED)
    attribute(plugin.graph.node[0], "kernel_shape").ints[:] = [63, 63]
    attribute(plugin.graph.node[0], "pads").ints[:] = [31] * 4
    assert len(convert_form(plugin, Form.FUSED).functions) == 2


def test_a_function_that_is_there_is_what_portable_form_gets():
    """Its body is what has been computed so far."""
    fused = convert_form(two_layers()[0], Form.FUSED)
    node = next(n for f in fused.functions for n in f.node if n.op_type == "Conv")
    node.name = "of this very file"
    portable = convert_form(fused, Form.PORTABLE)
    assert any("of this very file" in n.name for n in portable.graph.node)


def test_function_name_is_stable():
    """The name is normative: files that exist refer to it."""
    assert MSConv2dConfig((1, 1, 1, 1), (3, 3), pads=(1, 1, 1, 1)).function_name == "MSConv2d_6632e075"
