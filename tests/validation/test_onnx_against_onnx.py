"""Validation of one ONNX file against another. None of it needs torch."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.errors import BadInputError, NotAvailableError, OutputsDifferError, UnverifiedError
from msconv_deploy.reporting import RefusedCase, ValidationReport
from msconv_deploy.runtimes import Settings
from msconv_deploy.validation import InputOptions, ValidationOptions, validate_onnx_against_onnx
from msconv_deploy.validation.cases import _at_default, _larger
from msconv_deploy.validation.graph import graph_of
from msconv_deploy.validation.inputs import default_sizes
from tests.validation.networks import single_op, two_convs

WRONG = {"w2": ((1, 3, 0, 0), 0.05)}
FLOAT = TensorProto.FLOAT


def options(*sizes: dict[str, int], **more) -> ValidationOptions:
    return ValidationOptions(inputs=InputOptions(sizes=sizes), **more)


def test_equal_files_pass_at_every_default_size(tmp_path):
    report = validate_onnx_against_onnx(two_convs(tmp_path / "a.onnx"), two_convs(tmp_path / "b.onnx"))
    assert report.verdict == "passed"
    assert len(report.cases) == len(report.comparisons) == 8
    assert report.runtimes == ["ort"]
    assert report.largest_difference["ort"] < 1e-6
    assert report.refused == report.insensitive_inputs == report.notes == []
    assert report.divergence is None
    report.raise_for_verdict()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["w1", "w2", "ws", "b1"])
def test_one_wrong_weight_is_caught_and_located(tmp_path, dtype, name):
    where = {"w1": (2, 1, 1, 1), "w2": (1, 3, 1, 1), "ws": (2, 5), "b1": (4,)}[name]
    right = two_convs(tmp_path / "right.onnx", dtype=dtype)
    wrong = two_convs(tmp_path / "wrong.onnx", dtype=dtype, change={name: (where, 0.5)})
    report = validate_onnx_against_onnx(wrong, right)
    assert report.verdict == "differ"
    assert "comparisons differ" in report.reason
    first = {"w1": ("t1", None), "b1": ("t1", None), "ws": ("s1", "t2"), "w2": ("y", "t3")}[name]
    assert (report.divergence.tensor, report.divergence.last_agreeing) == first
    assert report.divergence.difference > report.divergence.tolerance
    assert report.needed_tolerance == max(c.difference for c in report.comparisons)
    with pytest.raises(OutputsDifferError, match=r"wrong.onnx"):
        report.raise_for_verdict()


def test_a_wrong_corner_tap_is_seen_on_both_sides_but_not_where_it_falls_on_padding(tmp_path):
    right = two_convs(tmp_path / "right.onnx")
    report = validate_onnx_against_onnx(
        two_convs(tmp_path / "wrong.onnx", change=WRONG), right, options({"H": 24, "W": 24})
    )
    row = report.comparisons[0]
    assert row.border_width == 2
    assert row.interior > row.tolerance
    assert row.border > row.tolerance
    # At 1x1 the corner tap falls on padding: the wrong weight is really not there.
    report = validate_onnx_against_onnx(tmp_path / "wrong.onnx", right, options({"N": 1, "H": 1, "W": 1}))
    assert report.verdict == "passed"
    assert report.comparisons[0].interior is None


def test_the_first_divergence_is_found_through_functions(tmp_path):
    right = two_convs(tmp_path / "right.onnx")
    wrong = two_convs(tmp_path / "wrong.onnx", change={"w1": ((0, 0, 0, 0), 1.0)}, functions=True)
    report = validate_onnx_against_onnx(wrong, right)
    assert report.divergence.tensor == "t1"
    assert report.divergence.op_type == "Identity"  # the node inside the function that makes it


def test_external_data_stays_where_it_is(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wrong = two_convs(tmp_path / "a" / "m.onnx", change=WRONG, external=True)
    right = two_convs(tmp_path / "b" / "m.onnx", external=True)
    report = validate_onnx_against_onnx(wrong, right)
    assert report.divergence.tensor == "y"
    assert validate_onnx_against_onnx(right, right).verdict == "passed"


def test_float16_is_judged_by_its_own_tolerance(tmp_path):
    half, single = two_convs(tmp_path / "h.onnx", dtype="float16"), two_convs(tmp_path / "s.onnx")
    report = validate_onnx_against_onnx(half, single)  # half against single: only rounding differs
    assert report.verdict == "passed"
    assert 1e-5 < report.largest_difference["ort"] < 1e-2 < report.comparisons[0].tolerance * 2
    assert report.comparisons[0].dtype == "float16"
    strict = validate_onnx_against_onnx(half, single, options(tolerance=1e-6))
    assert strict.verdict == "differ"


def test_nan_and_infinity_differ(tmp_path):
    # log(x): NaN below zero; the reference takes the absolute value first.
    bad = single_op(tmp_path / "log.onnx", "Log", {"x": (FLOAT, ["N", 5])}, FLOAT)
    good = single_op(tmp_path / "abs.onnx", "Abs", {"x": (FLOAT, ["N", 5])}, FLOAT)
    report = validate_onnx_against_onnx(bad, good)
    assert report.verdict == "differ"
    assert "NaN" in report.reason
    assert report.largest_difference["ort"] is None
    assert report.needed_tolerance is None


def test_a_reference_that_is_nan_verifies_nothing(tmp_path):
    path = single_op(tmp_path / "log.onnx", "Log", {"x": (FLOAT, ["N", 50])}, FLOAT)
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "unverified"
    assert "NaN" in report.reason
    with pytest.raises(UnverifiedError):
        report.raise_for_verdict()
    positive = ValidationOptions(inputs=InputOptions(ranges={"x": (1.0, 2.0)}))
    assert validate_onnx_against_onnx(path, path, positive).verdict == "passed"


def test_integer_outputs_are_compared_exactly(tmp_path):
    x = {"x": (FLOAT, ["N", 9])}
    largest = single_op(tmp_path / "max.onnx", "ArgMax", x, TensorProto.INT64, axis=1)
    smallest = single_op(tmp_path / "min.onnx", "ArgMin", x, TensorProto.INT64, axis=1)
    same = validate_onnx_against_onnx(largest, largest)
    assert same.verdict == "passed"
    assert same.comparisons[0].exact
    report = validate_onnx_against_onnx(smallest, largest)
    assert report.verdict == "differ"
    assert "integer" in report.reason
    assert report.needed_tolerance is None


def test_sizes_that_the_reference_refuses_are_listed_and_blame_nobody(tmp_path):
    # Reshape to [N, 6, -1] accepts only H*W*3 divisible by 6.
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.array([0, 6, -1]), "shape")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "passed"
    assert {(r.size["H"], r.size["W"]) for r in report.refused} == {(17, 23), (1, 1), (1, 7), (5, 1)}
    assert all("Reshape" in r.reason or "reshape" in r.reason for r in report.refused)
    with pytest.raises(UnverifiedError, match="H=1,W=1"):
        validate_onnx_against_onnx(path, path, options({"N": 1, "H": 1, "W": 1}, {"N": 1, "H": 5, "W": 1}))


def convolution(path: Path, batch: int | str, weight: np.ndarray) -> Path:
    """Of an image of any size, without padding."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 3, "H", "W"])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_larger_sizes_are_tried_when_the_default_ones_are_refused(tmp_path):
    # A 60x60 kernel without padding needs a larger image than any of the first sizes.
    path = convolution(tmp_path / "m.onnx", "N", np.ones((1, 3, 60, 60), np.float32) / 100)
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "passed"
    assert [c.size for c in report.cases] == [{"N": 4, "H": 64, "W": 96}, {"N": 2, "H": 160, "W": 128}]
    assert len(report.refused) == 8


def test_default_sizes_beside_a_huge_static_extent_are_not_tried_unasked(tmp_path):
    """At the largest the input would take 12 GiB; what is small is tried, and the user may ask for anything."""
    path = convolution(tmp_path / "m.onnx", 4096, np.ones((1, 3, 1, 1), np.float32))
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "passed"
    assert [case.size for case in report.cases] == [
        {"H": h, "W": w} for h, w in ((17, 23), (33, 18), (1, 1), (2, 3), (3, 2), (1, 7), (5, 1))
    ]
    (refused,) = report.refused
    assert (refused.size, "18,874,368 values, too many" in refused.reason) == ({"H": 32, "W": 48}, True)
    larger = list(_larger(graph_of(onnx.load(path), path), ValidationOptions(), 0))
    assert [refused.size["H"] for refused in larger] == [64, 160, 256, 512]
    asked = validate_onnx_against_onnx(path, path, options({"H": 32, "W": 48}))
    assert (asked.verdict, [case.size["H"] for case in asked.cases]) == ("passed", [32])


def test_a_model_that_is_huge_at_any_size_is_tried_at_the_smallest(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 1 << 25])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    model = graph_of(onnx.load(path), path)
    found = {size["N"]: _at_default(model, size, ValidationOptions(), 0) for size in default_sizes(model.inputs)}
    assert {n: isinstance(one, RefusedCase) for n, one in found.items()} == {1: False, 4: True, 2: True}


def test_a_file_that_fails_where_the_reference_runs_differs(tmp_path):
    static, dynamic = (1, 3, 8, 8), ("N", 3, "H", "W")
    reference = two_convs(tmp_path / "static.onnx", dims=static)
    general = two_convs(tmp_path / "dynamic.onnx", dims=dynamic)
    report = validate_onnx_against_onnx(reference, general)  # static file: its only size
    assert report.verdict == "passed"
    assert report.cases[0].size == {}
    # The other way round the reference refuses all but one of the file's sizes.
    report = validate_onnx_against_onnx(general, reference, options({"N": 1, "H": 8, "W": 8}, {"N": 4, "H": 9, "W": 9}))
    assert report.verdict == "passed"
    assert [r.size["H"] for r in report.refused] == [9]
    # A file that promises dynamic sizes but cannot keep it: its Reshape holds a traced extent.
    shape = numpy_helper.from_array(np.array([1, 3, 8, 8]), "shape")
    model = onnx.load(general)
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["frozen"], "freeze"))
    model.graph.node[1].input[0] = "frozen"
    onnx.save(model, tmp_path / "frozen.onnx")
    sizes = options({"N": 1, "H": 8, "W": 8}, {"N": 1, "H": 9, "W": 9})
    report = validate_onnx_against_onnx(tmp_path / "frozen.onnx", general, sizes)
    assert report.verdict == "differ"
    assert [c.verdict for c in report.comparisons] == ["passed", "differ"]
    assert "does not run at this size, but the reference does" in report.reason
    assert report.divergence is None  # nothing runs, so there is nothing to look at


def relus(path, dims):
    """y = relu(x), w = relu(z), for dimensions of the two."""
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in (("x", "y"), ("z", "w"))]
    x, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in zip("xz", dims, strict=True))
    y, w = (helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yw")
    graph = helper.make_graph(nodes, "g", [x, z], [y, w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize("dim", ["H - 5", "H/2"])
def test_default_sizes_without_an_extent_are_refused_and_the_others_are_compared(tmp_path, dim):
    path = relus(tmp_path / "m.onnx", ([1, "H"], [1, dim]))
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "passed"
    assert len(report.cases) >= 2
    assert report.refused
    assert all("not an extent" in case.reason for case in report.refused)
    with pytest.raises(BadInputError, match="not an extent"):  # a size that the user asks for
        validate_onnx_against_onnx(path, path, options({"H": 3}))


def test_outputs_without_values_verify_nothing(tmp_path):
    path = single_op(tmp_path / "m.onnx", "Cast", {"x": (TensorProto.FLOAT, ["N", 0])}, TensorProto.INT64, to=7)
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "unverified"
    assert "it has no values at this size" in report.reason


def test_a_run_that_was_stopped_is_unverified(tmp_path, monkeypatch):
    """It might have ended well. Its reference ends at once."""
    monkeypatch.setenv("MSCONV_RUN_SECONDS", "0.5")
    bool_, int_ = (
        helper.make_tensor_value_info(n, t, []) for n, t in (("c", TensorProto.BOOL), ("i", TensorProto.INT64))
    )
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("a", "b")]
    out = helper.make_tensor_value_info("d", TensorProto.BOOL, [])
    body = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["a"], ["b"])]
    body = helper.make_graph(body, "body", [int_, bool_, tensors[0]], [out, tensors[1]])
    constants = [
        helper.make_tensor("m", TensorProto.INT64, [], [2**40]),
        helper.make_tensor("t", TensorProto.BOOL, [], [True]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy")
    nodes = {
        "slow": helper.make_node("Loop", ["m", "t", "x"], ["y"], body=body),
        "fast": helper.make_node("Identity", ["x"], ["y"]),
    }
    for name, node in nodes.items():
        graph = helper.make_graph([node], "g", [x], [y], constants if name == "slow" else [])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    report = validate_onnx_against_onnx(tmp_path / "slow.onnx", tmp_path / "fast.onnx", options({"N": 1}))
    assert report.verdict == "unverified"
    assert "was stopped" in report.reason


def test_a_reference_of_narrower_type_is_judged_by_its_own_rounding(tmp_path):
    wide, narrow = two_convs(tmp_path / "f.onnx"), two_convs(tmp_path / "h.onnx", dtype="float16")
    for tested, reference in ((wide, narrow), (narrow, wide)):
        report = validate_onnx_against_onnx(tested, reference)
        assert report.verdict == "passed"
        assert all(c.policy_tolerance > 1e-3 for c in report.comparisons)
    wrong = two_convs(tmp_path / "wrong.onnx", change={"w2": ((1, 3, 1, 1), 0.5)})
    assert validate_onnx_against_onnx(wrong, narrow).verdict == "differ"


def test_long_reductions_may_sum_in_another_order(tmp_path):
    """The mean over an image at once, and over its rows and then its columns."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 512, 512])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    spellings = {
        "mean": [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        "parts": [
            helper.make_node("ReduceMean", ["x"], ["t"], axes=[2], keepdims=1),
            helper.make_node("ReduceMean", ["t"], ["y"], axes=[3], keepdims=1),
        ],
    }
    for name, nodes in spellings.items():
        model = helper.make_model(
            helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        onnx.save(model, tmp_path / f"{name}.onnx")
    report = validate_onnx_against_onnx(tmp_path / "parts.onnx", tmp_path / "mean.onnx", options({"N": 1}))
    assert report.verdict == "passed", report.reason
    assert all(c.policy_tolerance < 1e-3 for c in report.comparisons)


def test_insensitive_inputs_and_outputs_are_not_passed_silently(tmp_path):
    zero = {"ws": ((slice(None), slice(None)), 0.0)}
    path = two_convs(tmp_path / "m.onnx", change=zero)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "ws":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((4, 8), np.float32), "ws"))
    onnx.save(model, path)
    report = validate_onnx_against_onnx(path, path)
    assert report.insensitive_inputs == ["s"]
    assert report.verdict == "passed"
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((2, 8, 3, 3), np.float32), "w2"))
    onnx.save(model, path)
    report = validate_onnx_against_onnx(path, path)
    assert report.verdict == "unverified"
    assert "insensitive" in report.reason
    assert report.insensitive_inputs == ["x", "s"]


def test_interfaces_must_match(tmp_path):
    a = two_convs(tmp_path / "a.onnx")
    b = single_op(tmp_path / "b.onnx", "Relu", {"x": (FLOAT, ["N"])}, FLOAT)
    with pytest.raises(BadInputError, match=r"inputs x, s, but the reference .* has x"):
        validate_onnx_against_onnx(a, b)
    c = single_op(tmp_path / "c.onnx", "Neg", {"x": (TensorProto.INT64, ["N"])}, TensorProto.INT64)
    with pytest.raises(BadInputError, match="x is float32, but int64"):
        validate_onnx_against_onnx(b, c)


def test_runtimes_that_do_not_fit(tmp_path):
    path = two_convs(tmp_path / "a.onnx")
    with pytest.raises(BadInputError, match="'orx' is unknown; available are torch, ort"):
        validate_onnx_against_onnx(path, path, ValidationOptions(runtimes=["orx"]))
    with pytest.raises(NotAvailableError, match="TensorRT"):
        validate_onnx_against_onnx(path, path, ValidationOptions(runtimes=["trt"]))
    with pytest.raises(NotAvailableError, match="has no FooExecutionProvider"):
        validate_onnx_against_onnx(path, path, ValidationOptions(settings=Settings(provider="FooExecutionProvider")))


def test_the_plugin_form_is_explained(tmp_path):
    model = onnx.load(two_convs(tmp_path / "a.onnx"))
    node = model.graph.node[0]
    node.op_type, node.domain = "MSConv2d", "msconv"
    required = {"sources": [1, 0, 0, 0], "kernel_shape": [3, 3]}
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in required.items() if k not in given)
    onnx.save(model, tmp_path / "plugin.onnx")
    with pytest.raises(NotAvailableError, match="convert --form fused"):
        validate_onnx_against_onnx(tmp_path / "plugin.onnx", tmp_path / "a.onnx")


def test_inputs_from_a_file(tmp_path):
    right, wrong = two_convs(tmp_path / "a.onnx"), two_convs(tmp_path / "b.onnx", change=WRONG)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(1).standard_normal((2, 3, 6, 6)), s=np.ones((2, 4)))
    files = ValidationOptions(inputs=InputOptions(files=[tmp_path / "in.npz"]))
    report = validate_onnx_against_onnx(wrong, right, files)
    assert [(c.origin, c.size) for c in report.cases] == [("file", {"N": 2, "H": 6, "W": 6})]
    assert report.verdict == "differ"


def test_the_report_survives_a_round_trip(tmp_path):
    right, wrong = two_convs(tmp_path / "a.onnx"), two_convs(tmp_path / "b.onnx", change=WRONG)
    report = validate_onnx_against_onnx(wrong, right, options({"H": 9, "W": 9}))
    content = json.loads(report.to_json())
    assert ValidationReport.model_validate(content) == report
    assert content["schema_version"] == 1
    assert content["seed"] == 0
    assert content["versions"]["onnxruntime"] == content["runtime_versions"]["ort"]
    assert set(content["timings"]) >= {"reference", "ort", "divergence"}
    assert len(content["model_sha256"]) == 64


# -- Polygraphy ------------------------------------------------------------------------------------------------------


def run_line(line: str) -> subprocess.CompletedProcess:
    program, *arguments = shlex.split(line)
    assert program == "polygraphy"
    script = Path(sys.executable).with_name("polygraphy")
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_polygraphy_line_passes_and_fails_as_it_should(tmp_path, dtype):
    from polygraphy.comparator import RunResults

    right = two_convs(tmp_path / "a.onnx", dtype=dtype, external=dtype == "float32")
    folder = tmp_path / "saved"
    report = validate_onnx_against_onnx(right, right, options({"N": 2, "H": 9, "W": 7}, save_to=folder))
    (line,) = report.polygraphy_commands
    passed = run_line(line)
    assert passed.returncode == 0, passed.stdout[-3000:] + passed.stderr[-3000:]
    if dtype == "float16":
        return  # every run of the program takes seconds; that it fails is shown for float32
    stored = RunResults.load(str(folder / "case0.reference.json"))
    outputs = stored[0][1][0]
    values = outputs["y"].copy()
    values[0, 0, 3, 3] += 3 * report.comparisons[0].tolerance * np.abs(values).max()
    outputs["y"] = values
    stored.save(str(folder / "case0.reference.json"))
    failed = run_line(line)
    assert failed.returncode == 1, failed.stdout[-3000:] + failed.stderr[-3000:]
    assert "Mismatched outputs: ['y']" in failed.stdout + failed.stderr


def test_a_folder_with_results_is_not_overwritten(tmp_path):
    path = two_convs(tmp_path / "a.onnx")
    folder = tmp_path / "saved"
    one = options({"H": 5, "W": 5}, save_to=folder)
    validate_onnx_against_onnx(path, path, one)
    assert sorted(p.name for p in folder.iterdir()) == ["case0.inputs.json", "case0.ort.json", "case0.reference.json"]
    with pytest.raises(BadInputError, match="is not empty"):
        validate_onnx_against_onnx(path, path, one)
    validate_onnx_against_onnx(path, path, options({"H": 5, "W": 5}, save_to=folder, force=True))
    with pytest.raises(BadInputError, match="is a file"):
        validate_onnx_against_onnx(path, path, options(save_to=path))


def test_trtexec_line(tmp_path):
    path = two_convs(tmp_path / "a.onnx")
    report = validate_onnx_against_onnx(path, path, options({"N": 1, "H": 8, "W": 9}, {"N": 4, "H": 5, "W": 30}))
    arguments = shlex.split(report.trtexec_command)
    assert arguments[:3] == ["trtexec", f"--onnx={path}", "--stronglyTyped"]
    assert "--minShapes=x:1x3x5x9,s:1x4" in arguments
    assert "--optShapes=x:1x3x8x9,s:1x4" in arguments
    assert "--maxShapes=x:4x3x8x30,s:4x4" in arguments
    static = two_convs(tmp_path / "s.onnx", dims=(1, 3, 8, 8))
    report = validate_onnx_against_onnx(static, static)
    assert report.trtexec_command.endswith("--stronglyTyped")


def test_nothing_is_printed(tmp_path, capfd):
    right, wrong = two_convs(tmp_path / "a.onnx"), two_convs(tmp_path / "b.onnx", change=WRONG)
    validate_onnx_against_onnx(wrong, right)
    assert capfd.readouterr() == ("", "")
