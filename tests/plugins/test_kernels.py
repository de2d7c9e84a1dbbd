"""The CUDA kernels' own source, run on the CPU behind the shim, against the NumPy reference in float64."""

import ctypes
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msconv_deploy.ops.configuration import MSConv2dConfig
from plugins.msconv.tests.harness import (
    CHOOSE,
    DATA_TYPES,
    FFMA,
    IMPLICIT_GEMM,
    PATH_NAMES,
    TENSOR_CORE,
    KernelError,
    Tensors,
)
from tests.plugins.kernel_cases import ARCHITECTURES, CASES, case, kernels, needs_compiler, problem, wrong_regions
from tests.strategies import cases

pytestmark = needs_compiler


def run_everything(case, compute_capability=80):
    """All types on all paths that can run them."""
    library = kernels(compute_capability)
    for data_type, dtype in enumerate(DATA_TYPES):
        described = problem(case, data_type)
        assert library.check(described) is None
        for path in library.available_paths(described, compute_capability):
            output = library.run(described, case.sources, case.weights, case.bias, path, compute_capability)
            wrong = wrong_regions(case, data_type, output)
            assert not wrong, f"{PATH_NAMES[path]} in {dtype} is wrong in the {' and '.join(wrong)}"


@pytest.mark.parametrize("name", CASES)
def test_every_path_in_every_type(name):
    run_everything(CASES[name])


@pytest.mark.parametrize("name", ["tiled 3x3", "slices of channels", "strides", "1x1", "circular"])
def test_the_code_of_sm_75(name):
    run_everything(CASES[name], 75)


@settings(max_examples=150, deadline=None)
@given(cases(activations=tuple(range(7))))
def test_random_cases(case):
    run_everything(case)


def test_all_paths_are_run():
    """The table would be worth little if a path refused all of it."""
    offered = {
        path: sum(path in kernels().available_paths(problem(case, 1), 80) for case in CASES.values())
        for path in (FFMA, TENSOR_CORE, IMPLICIT_GEMM)
    }
    assert offered[FFMA] == len(CASES)
    assert offered[TENSOR_CORE] > 20
    assert offered[IMPLICIT_GEMM] > 5


def test_paths_by_type_and_device():
    def paths(name, data_type, compute_capability):
        return kernels().available_paths(problem(CASES[name], data_type), compute_capability)

    for data_type, oldest in ((1, 75), (2, 80)):
        assert paths("slices of channels", data_type, oldest)[0] == IMPLICIT_GEMM
        assert paths("tiled 3x3", data_type, oldest)[0] == TENSOR_CORE
        assert paths("groups", data_type, oldest) == [FFMA]
        assert paths("rows and columns", data_type, oldest) == [FFMA]
        assert paths("tiled 3x3", data_type, oldest - 1) == [FFMA]
    for compute_capability in (75, 90, 120):
        assert paths("slices of channels", 0, compute_capability) == [FFMA]


@pytest.mark.parametrize("data_type", [1, 2])
def test_results_are_rounded_to_nearest_even(data_type):
    """The product of two 16-bit numbers is exact in fp32, so the result has one rounding: also to subnormals and infinity."""
    dtype = DATA_TYPES[data_type]
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**16, 4000, dtype=np.uint16).view(dtype).astype(np.float32)
    values = values[np.isfinite(values)]
    config = MSConv2dConfig((1, 0, 0, 0), (1, 1), has_bias=0)
    for factor in np.array([1, 1.0078125, 0.3, 2.0**-7, 2.0**6], dtype).astype(np.float32):
        image, weight = values.reshape(1, 1, 1, -1), np.full((8, 1, 1, 1), factor)
        described = problem(case(config, (1, 0, 0, 0), 8, 1, values.size), data_type)
        actual = kernels().run(described, {"nchw": image}, {"nchw": weight}, None, FFMA)
        with np.errstate(over="ignore"):
            expected = (values * factor).astype(dtype)
        assert (actual[0, :, 0].astype(np.float32) == expected.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("activation", "params", "expected"),
    [
        (0, (0, 0), [np.nan, np.inf, -np.inf, -3]),
        (1, (0, 0), [np.nan, np.inf, 0, 0]),
        (2, (0.5, 0), [np.nan, np.inf, -np.inf, -1.5]),
        (4, (0, 0), [np.nan, 1, 0, 1 / (1 + np.exp(3))]),
        (5, (0, 0), [np.nan, 1, -1, np.tanh(-3)]),
        (6, (-2, 2), [np.nan, 2, -2, -2]),
        (6, (2, -2), [np.nan, -2, -2, -2]),
    ],
)
def test_activations_of_what_is_no_number(activation, params, expected):
    config = MSConv2dConfig((1, 0, 0, 0), (1, 1), has_bias=0, activation=activation, activation_params=params)
    image = np.array([np.nan, np.inf, -np.inf, -3], np.float32).reshape(1, 1, 1, 4)
    described = problem(case(config, (1, 0, 0, 0), 1, 1, 4))
    actual = kernels().run(described, {"nchw": image}, {"nchw": np.ones((1, 1, 1, 1))}, None)
    np.testing.assert_allclose(actual.ravel(), expected, rtol=1e-6)


def test_a_batch_of_zero_does_nothing():
    described = problem(CASES["tiled 3x3"])
    described.extents.batch = 0
    for index in range(4):
        described.extents.source_batch[index] = 0
    assert kernels().check(described) is None
    assert kernels().workspace_bytes(described) == 0
    kernels().enqueue(described, Tensors(), CHOOSE, 80)  # not even a pointer is needed


@settings(max_examples=200, deadline=None)
@given(cases(modes=(0,)), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2))
def test_workspace_never_shrinks_as_the_input_grows(case, rows, columns, batch):
    """TensorRT asks once, for the largest shapes of a profile."""
    small, large = problem(case), problem(case)
    large.extents.height += rows
    large.extents.width += columns
    large.extents.batch += batch
    for index in range(4):
        large.extents.source_batch[index] = large.extents.batch
    assert kernels().workspace_bytes(small) <= kernels().workspace_bytes(large)


WRONG = {
    "sources": [((2, 0, 0, 0), "sources must be"), ((0, 0, 0, 0), "sources is")],
    "has_bias": [(2, "has_bias must be 0 or 1")],
    "kernel_shape": [
        ((0, 3), "kernel_shape must be"),
        ((3, -1), "kernel_shape must be"),
        ((3, 30), "kernel_shape: a width"),
    ],
    "strides": [((0, 1), "strides must be"), ((1, -2), "strides must be")],
    "dilations": [((1, 0), "dilations must be"), ((2**30, 1), "dilations: a kernel of 3")],
    "pads": [((0, 0, -1, 0), "pads must be"), ((0, 2**30, 0, 2**30), "width 9 with pads")],
    "group": [((0), "group must be"), (4, "group: nchw has 6 channels")],
    "padding_semantics": [(2, "padding_semantics is 2; known are 0 source, 1 tiled")],
    "padding_mode": [(-1, "padding_mode is -1"), (4, "padding_mode is 4")],
    "activation": [(7, "activation is 7; known are"), (-1, "activation is -1")],
}


@pytest.mark.parametrize(
    ("name", "value", "message"), [(name, *pair) for name, pairs in WRONG.items() for pair in pairs]
)
def test_wrong_attributes_are_named(name, value, message):
    described = problem(case(MSConv2dConfig((1, 0, 0, 1), (3, 3)), (6, 0, 0, 2), 8, 7, 9))
    field = getattr(described.attributes, name)
    if isinstance(field, ctypes.Array):
        field[:] = value
    else:
        setattr(described.attributes, name, value)
    assert kernels().check(described).startswith(message)
    with pytest.raises(KernelError, match=message[:20]):
        kernels().enqueue(described, Tensors(), CHOOSE, 80)


def test_every_attribute_has_a_wrong_value():
    assert set(WRONG) == {f.name for f in dataclasses.fields(MSConv2dConfig)} - {"activation_params"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": 3}, "data type is 3"),
        ({"batch": -1}, "batch must be"),
        ({"batch": 3}, "batch is 3, but every source has batch 1"),
        ({"source_batch": (2, 0, 0, 1)}, "sources: nchw has batch 2; it must be 1 or 1"),
        ({"channels": (0, 0, 0, 2)}, "sources: nchw is present and must have at least 1 channel"),
        ({"channels": (2**30, 0, 0, 2)}, "sources: nchw has 1073741824 channels; with a kernel of 3 x 3"),
        ({"out_channels": 0}, "output channels must be"),
        ({"height": 0}, "height must be at least 1"),
        ({"height": 2}, "kernel_shape: a height of 2"),
        ({"width": 2**31}, "width 2147483648"),
        ({"height": 2**30, "width": 2**30}, "sources: nchw or its weight has more elements|the output of"),
        ({"group": 3, "out_channels": 8}, "group: 8 output channels are not divisible by 3"),
        ({"padding_semantics": 1, "sources": (0, 0, 0, 1)}, "padding_semantics tiled: no source defines the height"),
        ({"padding_semantics": 1, "sources": (0, 1, 0, 1)}, "padding_semantics tiled: no source defines the width"),
        ({"padding_mode": 1, "pads": (7, 0, 0, 0)}, "pads: reflect padding of 7 and 0 needs a height of at least 8"),
        ({"padding_mode": 3, "pads": (0, 0, 0, 10)}, "pads: circular padding of 0 and 10 needs a width of at least 10"),
    ],
)
def test_wrong_problems_say_why(change, message):
    described = problem(case(MSConv2dConfig((1, 0, 0, 1), (3, 3)), (6, 0, 0, 2), 8, 7, 9))
    for name, value in change.items():
        owner = next(o for o in (described, described.attributes, described.extents) if hasattr(o, name))
        if isinstance(value, tuple):
            getattr(owner, name)[:] = value
        else:
            setattr(owner, name, value)
    with pytest.raises(KernelError, match=f"^({message})"):
        kernels().enqueue(described, Tensors(), CHOOSE, 80)


def test_missing_tensors_are_named():
    given = CASES["tiled 3x3"]
    described = problem(given)
    memory = np.zeros(1 << 20, np.uint8)
    complete = Tensors()
    for index in range(4):
        complete.sources[index] = complete.weights[index] = memory.ctypes.data
    complete.bias = complete.output = complete.workspace = memory.ctypes.data
    for name, message in (
        ("bias", "has_bias is 1, but the bias is missing"),
        ("output", "the output is missing"),
        ("workspace", "the workspace is missing"),
        ("sources", "sources: ncw is present, but its tensor is missing"),
        ("weights", "sources: ncw is present, but its weight is missing"),
    ):
        tensors = Tensors.from_buffer_copy(complete)
        if name in ("sources", "weights"):
            getattr(tensors, name)[2] = None
        else:
            setattr(tensors, name, None)
        with pytest.raises(KernelError, match=message):
            kernels().enqueue(described, tensors, CHOOSE, 80)


def test_a_path_that_cannot_run_is_refused():
    described = problem(CASES["groups"], 1)
    for path in (TENSOR_CORE, IMPLICIT_GEMM, 4, -1):
        with pytest.raises(
            KernelError, match=f"path {path} cannot run this problem on a device of compute capability 80"
        ):
            kernels().enqueue(described, Tensors(), path, 80)
    assert set(ARCHITECTURES) == {75, 80}
