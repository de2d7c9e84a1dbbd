"""Values that cancel are judged by what a rounding of the inputs does to them; wrong ones are not excused by it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.runtimes import Settings
from msconv_deploy.validation import InputOptions, ValidationOptions
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.rewrite import OUTPUTS, verify_rewrite
from msconv_deploy.validation.rounding import carried_rounding
from msconv_deploy.validation.sensitivity import _changed

CANCELLED = 1e3
ONE_SIZE = ValidationOptions(inputs=InputOptions(sizes=[{"N": 1}]))


def scaled(factor: float, dtype=np.float32) -> onnx.ModelProto:
    """``(x + 1000) * factor - 1000`` of one number: what is left of x is as exact as 1000 is."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {"shift": CANCELLED, "factor": factor, "back": CANCELLED}
    nodes = [
        helper.make_node("Mul", ["x", "shift"], ["large"]),
        helper.make_node("Mul", ["large", "factor"], ["same"]),
        helper.make_node("Sub", ["same", "back"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, kind, ["N"]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(np.asarray(value, dtype), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def verified(tmp_path, factor: float, options: ValidationOptions, x: float):
    """The model with factor 1 against that with another one, near the x at which the result cancels."""
    original = scaled(1.0)
    onnx.save(original, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.array([x], np.float32))
    inputs = InputOptions(files=[tmp_path / "x.npz"])
    chosen = ValidationOptions(inputs=inputs, tolerance=options.tolerance)
    return verify_rewrite(tmp_path / "m.onnx", original, scaled(factor), [], chosen).report


NEAR_ONE = 1 + 2.0**-10
"""1000 times this is 1001 less a little: five digits of 1000 are left of it."""


def test_a_rounding_further_is_no_difference(tmp_path):
    """One unit in the last place of 1 in the factor: what every other order of the same products makes."""
    report = verified(tmp_path, 1 + 2.0**-23, ONE_SIZE, NEAR_ONE)
    (row,) = report.outputs
    assert (report.verdict, row.runtime) == ("passed", OUTPUTS)
    assert row.difference > row.policy_tolerance
    assert row.noise is not None
    assert row.difference <= row.tolerance


def test_a_wrong_value_is_not_excused(tmp_path):
    report = verified(tmp_path, 1 + 1e-4, ONE_SIZE, NEAR_ONE)
    assert report.verdict == "differ"


def test_the_users_own_tolerance_is_kept(tmp_path):
    report = verified(tmp_path, 1 + 2.0**-23, ValidationOptions(tolerance=1e-6), NEAR_ONE)
    assert report.verdict == "differ"


def test_far_beyond_the_noise_it_differs_however_large_the_noise(tmp_path):
    """Nearly all is cancelled: noise of a tenth of the value, and a difference of a hundred times the value."""
    x = 1 + 2.0**-20
    assert verified(tmp_path, 1.2, ONE_SIZE, x).verdict == "differ"
    assert verified(tmp_path, 1 + 2.0**-23, ONE_SIZE, x).verdict == "unverified"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_a_rounding_carries(dtype):
    """(x * 1000) - 1000 at 1.0625 moves by about 1000 roundings of 1; integers are left as they are."""
    import onnxruntime
    from polygraphy.backend.onnxrt import OnnxrtRunner

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = scaled(1.0, dtype)
    model.graph.node.append(helper.make_node("Identity", ["i"], ["j"]))
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, []))
    model.graph.output.append(helper.make_tensor_value_info("j", TensorProto.INT64, []))
    assert model.graph.input[0].type.tensor_type.elem_type == kind
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = Settings().threads or 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    arrays = {"x": np.full(3, 1.0625, dtype), "i": np.array(3)}
    expected = dict(zip(("y", "j"), session.run(None, arrays), strict=True))
    found = carried_rounding(OnnxrtRunner(lambda: session), Inputs("a", {"N": 3}, arrays), expected, 0)
    assert set(found) == {"y"}
    unit = np.finfo(dtype).eps
    wanted = 1000 * unit / float(expected["y"][0])
    assert 0.3 * wanted < found["y"].value < 3 * wanted


@pytest.mark.parametrize("value", [np.array(True), np.array(1.5, np.float32), np.array([1, 2], np.int64)])
def test_scalars_that_are_moved_stay_arrays(value):
    """Polygraphy refuses the numbers that NumPy makes of arrays without axes, and nothing is learned then."""
    moved = _changed(value, np.random.default_rng(0))
    assert isinstance(moved, np.ndarray)
    assert (moved.shape, moved.dtype) == (value.shape, value.dtype)
    assert (moved != value).all()
