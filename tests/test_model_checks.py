"""Files from strangers that are well-formed protobuf and still no model: refused by name, before anything is computed."""

import os
import resource
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy import model_checks
from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError
from msconv_deploy.model_checks import memory_limit, propagates, tensor_bytes
from msconv_deploy.model_files import check_graph, check_size, read_model
from tests.fuzz.files import wire
from tests.tile_models import tiled_conv


def model_of(nodes, weights=(), inputs=None, outputs=None, functions=(), domains=()):
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", inputs or info[:1], outputs or info[1:], list(weights))
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)


def plus(weight):
    return model_of([helper.make_node("Add", ["x", weight.name], ["y"])], [weight])


def refusal(tmp_path, model, code=2, verb="inspect", *options):
    """What a verb says about the model; it ends with the code and writes nothing."""
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path) if isinstance(model, onnx.ModelProto) else path.write_bytes(model)
    before = sorted(tmp_path.iterdir())
    assert main([verb, str(path), *options]) == code
    assert sorted(tmp_path.iterdir()) == before


def weight(dims, data_type=TensorProto.FLOAT, **data):
    tensor = TensorProto(name="w", data_type=data_type, dims=dims)
    for field, value in data.items():
        setattr(tensor, field, value) if isinstance(value, bytes) else getattr(tensor, field).extend(value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (weight([2], raw_data=bytes(4)), r"tensor 'w' has extents \[2\], which take 8 bytes, but holds 4"),
        (weight([2], raw_data=bytes(9)), "holds 9"),
        (weight([2], float_data=[1]), "take 2 elements, but holds 1"),
        (weight([2], TensorProto.INT64, float_data=[1, 2]), "take 2 elements, but holds 0"),
        (weight([2], TensorProto.STRING, string_data=[b"a"]), "take 2 elements, but holds 1"),
        (weight([-2], raw_data=bytes(8)), "impossible extents"),
        (weight([2**62, 2**62], raw_data=bytes(8)), "impossible extents"),
        (weight([0, 2**62]), "impossible extents"),
        (weight([1] * 65, raw_data=bytes(4)), "65 dimensions"),
        (weight([2**40]), "take 1099511627776 elements, but holds 0"),
        (weight([2], 99, raw_data=bytes(8)), "element type 99"),
        (weight([2], 0, raw_data=bytes(8)), "element type 0"),
    ],
)
def test_weights_whose_extents_type_and_bytes_disagree(tmp_path, capsys, tensor, message):
    onnx.save_model(plus(tensor), tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match=rf"m\.onnx: .*{message}"):
        read_model(tmp_path / "m.onnx")
    refusal(tmp_path, plus(tensor))


@pytest.mark.parametrize("dtype", sorted(set(TensorProto.DataType.values()) - {0, TensorProto.STRING}))
def test_every_element_type_has_its_bytes(dtype):
    """ONNX's own way to make a tensor is the oracle, both of raw bytes and of typed fields."""
    if TensorProto.DataType.Name(dtype).startswith("FLOAT6"):
        pytest.skip("onnx itself writes this type in several ways")
    array = np.zeros(5).astype(helper.tensor_dtype_to_np_dtype(dtype))
    assert tensor_bytes(numpy_helper.from_array(array)) == len(numpy_helper.from_array(array).raw_data)
    typed = helper.make_tensor("w", dtype, [5], np.zeros(5))
    model_checks._check_tensor(typed)
    model_checks._check_tensor(numpy_helper.from_array(array, "w"))


@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xed\xa0\x80"])
@pytest.mark.parametrize("place", [b"node", b"edge", b"weights", b"author"])
def test_texts_that_are_no_utf_8(tmp_path, text, place):
    """Names of nodes, tensors and weights, and metadata; protobuf hands such texts out as bytes."""
    marks = {b"node": b"NNNN", b"edge": b"EEEE", b"weights": b"WWWW", b"author": b"AAAA"}
    w = numpy_helper.from_array(np.ones(2, np.float32), "WWWW")
    nodes = [helper.make_node("Add", ["x", "WWWW"], ["EEEE"], "NNNN"), helper.make_node("Neg", ["EEEE"], ["y"])]
    model = model_of(nodes, [w])
    model.metadata_props.add(key="AAAA", value="somebody")
    whole = model.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole.replace(marks[place], text.ljust(4, b".")))
    with pytest.raises(BadInputError, match="no UTF-8 text"):
        read_model(tmp_path / "m.onnx")


def test_types_of_intermediate_tensors_and_of_bodies(tmp_path):
    model = plus(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model.graph.value_info.add(name="t").type.tensor_type.elem_type = -1
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="element type -1"):
        read_model(tmp_path / "m.onnx")


def function(name, *calls, domain="own"):
    nodes = [
        helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], domain="own" if op[0] == "F" else "")
        for i, op in enumerate(calls)
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function(domain, name, ["t0"], [f"t{len(calls)}"], nodes, imports)


def calling(*functions):
    call = helper.make_node(functions[0].name, ["x"], ["y"], domain="own")
    return model_of([call], functions=functions, domains=["own"])


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([function("F", "F")], "own::F calls itself"),
        ([function("F", "Neg", "F2"), function("F2", "F")], "calls itself"),
        ([function("F", "Neg"), function("F", "Abs")], "own::F twice"),
        # each calls the next one ten times: 10^30 nodes from 300
        (
            [function(f"F{i}", *[f"F{i + 1}"] * 10) for i in range(30)] + [function("F30", "Neg")],
            "functions are inlined",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "diff", "validate", "convert", "optimize"])
def test_functions_without_end(tmp_path, capsys, functions, message, verb):
    path = str(tmp_path / "m.onnx")
    options = {"diff": [path], "validate": ["--reference", path, "--no-rtx"]}
    options |= {"convert": ["--form", "portable", "-o", path + ".out"], "optimize": ["-o", path + ".out"]}
    refusal(tmp_path, calling(*functions), 2, verb, *options.get(verb, []))
    assert message in capsys.readouterr().err


def test_a_call_with_more_than_the_function_takes(tmp_path):
    model = calling(function("F", "Neg"))
    model.graph.node[0].input.append("x")
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="own::F more than it takes"):
        read_model(tmp_path / "m.onnx")


def test_a_long_chain_of_functions_is_fine(tmp_path):
    chain = [function(f"F{i}", f"F{i + 1}") for i in range(3000)] + [function("F3000", "Neg")]
    onnx.save_model(calling(*chain), tmp_path / "m.onnx")
    assert len(read_model(tmp_path / "m.onnx").functions) == 3001


def test_two_opsets_of_a_domain(tmp_path):
    model = plus(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model.opset_import.add(domain="", version=11)
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="two opsets of domain 'ai.onnx': 18 and 11"):
        read_model(tmp_path / "m.onnx")


# -- memory ----------------------------------------------------------------------------------------------------------


def integers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


AMOUNT = 2**34
BOMBS = {
    "ConstantOfShape": ["shape"],
    "Expand": ["one", "shape"],
    "Tile": ["one", "shape"],
    "Pad": ["one", "pads"],
}


def bomb(operator):
    """A kilobyte from which a runtime makes 64 GiB when it loads the model, beside a tile-concat-conv."""
    weights = [
        integers("shape", AMOUNT, 1),
        integers("pads", 0, 0, AMOUNT - 1, 0),
        numpy_helper.from_array(np.ones((1, 1), np.float32), "one"),
    ]
    nodes = [
        helper.make_node(operator, BOMBS[operator], ["much"]),
        helper.make_node("ReduceMax", ["much"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    return model_of(nodes, weights)


@pytest.mark.parametrize("operator", BOMBS)
@pytest.mark.parametrize("verb", ["inspect", "validate", "optimize"])
def test_constants_that_would_fill_the_memory(tmp_path, capsys, operator, verb):
    path = str(tmp_path / "m.onnx")
    options = {"validate": ["--reference", path, "--no-rtx"], "optimize": ["-o", path + ".out"]}
    start = time.monotonic()
    refusal(tmp_path, bomb(operator), 2, verb, *options.get(verb, []))
    assert time.monotonic() - start < 5
    said = capsys.readouterr().err
    assert "m.onnx: " in said
    assert "'much'" in said
    assert "68.7 GB" in said


def test_constants_count_together(tmp_path, monkeypatch):
    """No single one is above the limit."""
    monkeypatch.setattr(model_checks, "MOST_CONSTANT_BYTES", 10_000)
    tiles = [helper.make_node("ConstantOfShape", ["shape"], [f"t{i}"]) for i in range(3)]
    sums = [helper.make_node("Sum", ["x", "t0", "t1", "t2"], ["y"])]
    onnx.save_model(model_of(tiles + sums, [integers("shape", 1000)]), tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="expanded to more than 1e-05 GB, tensor 't2' alone to 4e-06 GB"):
        check_size(read_model(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    onnx.save_model(
        model_of([*tiles[:2], helper.make_node("Sum", ["x", "t0", "t1"], ["y"])], [integers("shape", 1000)]),
        tmp_path / "m.onnx",
    )
    check_size(read_model(tmp_path / "m.onnx"), tmp_path / "m.onnx")


def test_a_tensor_that_the_machine_cannot_hold(tmp_path):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2**20, 2**20]) for n in "xy"]
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], inputs=values[:1], outputs=values[1:])
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="m.onnx: tensor 'x' would take 4.4e.03 GB; this machine can hold"):
        check_size(read_model(tmp_path / "m.onnx"), tmp_path / "m.onnx")


def test_a_sparse_weight_is_as_large_as_what_it_stands_for(tmp_path):
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])])
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, integers("i", 5), [2**36]))
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="'w'"):
        check_size(read_model(tmp_path / "m.onnx"), tmp_path / "m.onnx")


def test_the_limit_on_address_space_is_the_memory(tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))\n"
    code += "from msconv_deploy.model_checks import memory_limit; print(memory_limit())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) == min(1 << 32, memory_limit())


@pytest.mark.parametrize("node", [
    helper.make_node("ConstantOfShape", ["big"], ["much"]),
    helper.make_node("Range", ["start", "end", "start"], ["much"]),
    helper.make_node("Tile", ["vector", "big1"], ["much"]),
])  # fmt: skip
def test_estimates_compute_no_large_tensor(tmp_path, node):
    """Shapes are followed through values; a value that is large is not made for that."""
    from msconv_deploy.surgery.choice.extents import Numbers

    weights = [integers("big", 2**28), integers("big1", 2**28), integers("vector", 1)]
    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("start", 1), ("end", 2**28))]
    model = model_of([node, helper.make_node("Size", ["much"], ["y"])], weights)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Numbers(model, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes; the tensor has 2 GB


@pytest.mark.parametrize("depth", [25, 60, 5000])
def test_bodies_within_bodies(tmp_path, depth):
    """Twenty-five bodies deep is read; sixty are more than protobuf reads."""
    graph = b""
    for _ in range(depth):
        attribute = wire.serialized([wire.Field(1, 2, b"then_branch"), wire.Field(20, 0, 5), wire.Field(6, 2, graph)])
        node = [wire.Field(2, 2, b"y"), wire.Field(4, 2, b"If"), wire.Field(5, 2, attribute)]
        graph = wire.serialized([wire.Field(1, 2, wire.serialized(node))])
    whole = model_of([]).SerializeToString() + wire.serialized([wire.Field(7, 2, graph)])
    (tmp_path / "m.onnx").write_bytes(whole)
    if depth == 25:
        assert len(read_model(tmp_path / "m.onnx").graph.node) == 1
    else:
        with pytest.raises(BadInputError, match="not an ONNX model"):
            read_model(tmp_path / "m.onnx")
    refusal(tmp_path, whole)


def test_many_nodes_and_many_strings_are_fine(tmp_path):
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(100_000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    strings = helper.make_tensor("w", TensorProto.STRING, [50_000], [b"word"] * 50_000)
    onnx.save_model(model_of(nodes, [strings]), tmp_path / "m.onnx")
    model = read_model(tmp_path / "m.onnx")
    check_graph(model, tmp_path / "m.onnx")
    check_size(model, tmp_path / "m.onnx")


# -- external data ---------------------------------------------------------------------------------------------------


def referring(location, **entries):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return plus(tensor)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (referring("a\x00b"), "cannot be looked for"),
        (referring("n" * 5000), "cannot be looked for|is missing"),
        (referring("circle"), "cannot be looked for|is missing"),
        (referring("pipe"), "is no plain file"),
        (referring("."), "is no plain file|not inside"),
        (referring("w.bin", offset="٣"), "not a number of bytes"),
        (referring("w.bin", offset="1_0"), "not a number of bytes"),
        (referring("w.bin", offset="9" * 5000), "not a number of bytes"),
        (referring("w.bin", length="4"), r"has 4 bytes, but extents \[2\] take 8"),
        (referring("w.bin", offset="16"), "is too short"),
    ],
)
def test_external_data_that_cannot_be(tmp_path, model, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "w.bin").write_bytes(bytes(20))
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match=rf"m\.onnx: .*({message})"):
        read_model(tmp_path / "m.onnx")


def test_data_without_a_length_ends_where_the_tensor_does(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.arange(5, dtype=np.float32).tobytes())
    onnx.save_model(referring("w.bin", offset="4"), tmp_path / "m.onnx")
    assert main(["optimize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "-q"]) == 0
    assert main(["diff", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]) == 0


def test_validation_reads_no_file_outside_of_the_folder(tmp_path, capsys):
    (tmp_path / "secret").write_bytes(bytes(8))
    (tmp_path / "model").mkdir()
    onnx.save_model(referring("../secret"), tmp_path / "model" / "m.onnx")
    path = str(tmp_path / "model" / "m.onnx")
    assert main(["validate", path, "--reference", path, "--no-rtx"]) == 2
    assert "not inside the model's folder" in capsys.readouterr().err


def test_a_pipe_is_no_model(tmp_path, capsys):
    os.mkfifo(tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 2
    assert "no plain file" in capsys.readouterr().err


# -- what nobody expected --------------------------------------------------------------------------------------------


def test_an_internal_error_is_a_message_and_no_exit_code_1(tmp_path, capsys, monkeypatch):
    """Exit code 1 says that outputs differ; Python's own for an exception is the same number."""
    from msconv_deploy.surgery import optimize

    def broken(*arguments, **options):
        raise IndexError("list index out of range")

    path = tiled_conv(tmp_path / "m.onnx")
    monkeypatch.setattr(optimize, "_one_pass", broken)
    assert main(["optimize", str(path), "-o", str(tmp_path / "o.onnx")]) == 3
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"msconv optimize {path}" in said
    assert "internal error (IndexError: list index out of range); please report it" in said
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_contradicts_itself_in_the_model_is_said_instead(tmp_path, capsys, monkeypatch):
    """The checker compares no shapes; where work on such a model fails, shape inference says what is wrong."""
    from msconv_deploy.surgery import optimize

    def broken(*arguments, **options):
        raise IndexError

    w = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    onnx.save_model(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [w]), tmp_path / "m.onnx")
    monkeypatch.setattr(optimize, "_one_pass", broken)
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 2
    assert "m.onnx: shapes or types in the model contradict each other: " in capsys.readouterr().err


@pytest.mark.parametrize("overridable", [False, True])
def test_values_are_not_followed_through_limits_that_a_caller_gives(overridable):
    """ONNX's shape inference makes a list of another length of such a Slice."""
    limits = {"starts": [2], "ends": [4]}
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Slice", ["s", *limits], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, "H", 3])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in limits if overridable]
    weights = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in limits.items()]
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [None])
    graph = helper.make_graph(nodes, "g", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert propagates(model) is not overridable
    model.ir_version = 3  # every initializer was an input then
    assert propagates(model)


def test_values_are_not_followed_where_a_list_is_absurdly_long():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1 << 30])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
    )
    assert not propagates(helper.make_model(graph))


@pytest.mark.parametrize(
    ("shape", "followed"), [([1 << 62], False), ([-1], True), ([1, 1 << 40], True), ([1 << 10], True)]
)
def test_values_are_not_followed_where_a_shape_makes_such_a_list(shape, followed):
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(shape, np.int64), "shape")],
    )
    assert propagates(helper.make_model(graph)) is followed
