"""The two tensor-core paths on the CPU shim, and the instructions that they are made of.

Most data here are small integers. Every sum of products is then exact in fp32, in any order, so that the kernels' output must
equal the float64 oracle's rounded once to fp16 or bf16, bit for bit: a wrong index, a lost product or a second rounding cannot
hide behind a tolerance.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.shapes import weight_shape
from plugins.msconv.tests import build_host, harness
from plugins.msconv.tests.harness import FFMA, IMPLICIT_GEMM, TENSOR_CORE
from tests.oracle import source_oracle, tile_concat_conv
from tests.plugins.kernel_cases import ARCHITECTURES, kernels, needs_compiler, patched_library
from tests.strategies import cases

pytestmark = needs_compiler

FLOAT16, BFLOAT16 = 1, 2
TENSOR_CORE_PATHS = (TENSOR_CORE, IMPLICIT_GEMM)


# ----------------------------------------------------------------------------------------------------------------------
# Problems


@dataclass(frozen=True)
class Layer:
    """A layer and the sizes that it is run on. Batches of the sources are 1 or ``batch``."""

    channels: tuple[int, int, int, int]
    out_channels: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    semantics: int = 1
    mode: int = 0
    has_bias: bool = True
    batch: int = 1
    shared: tuple[int, ...] = ()  # sources of batch 1
    group: int = 1
    activation: int = 0
    activation_params: tuple[float, float] = (0.0, 0.0)

    @property
    def config(self) -> MSConv2dConfig:
        return MSConv2dConfig(
            sources=tuple(int(c > 0) for c in self.channels),
            kernel_shape=self.kernel,
            has_bias=self.has_bias,
            strides=self.strides,
            dilations=self.dilations,
            pads=self.pads,
            group=self.group,
            padding_semantics=PaddingSemantics(self.semantics),
            padding_mode=PaddingMode(self.mode),
            activation=self.activation,
            activation_params=self.activation_params,
        )

    def tensors(self, rng: np.random.Generator, draw):
        """Sources, weights, bias: ``draw(rng, shape)``."""
        height, width = self.size
        shapes = {"nchw": (height, width), "nch": (height,), "ncw": (width,), "nc": ()}
        sources, weights = {}, {}
        for index, (name, extent) in enumerate(shapes.items()):
            channels = self.channels[index]
            if channels:
                sources[name] = draw(rng, (1 if index in self.shared else self.batch, channels, *extent))
                weights[name] = draw(rng, weight_shape(self.config, name, channels, self.out_channels))
        return sources, weights, draw(rng, self.out_channels) if self.has_bias else None


def integers(rng, shape):
    return rng.integers(-4, 5, shape).astype(np.float64)


def normals(rng, shape):
    return rng.standard_normal(shape)


def problem_of(layer: Layer, sources, data_type):
    shapes = {name: source.shape for name, source in sources.items()}
    return harness.problem_of(
        layer.config, shapes, {name: shape[1] for name, shape in shapes.items()}, layer.out_channels, data_type
    )


def oracle(config, sources, weights, bias):
    """float64, without activation."""
    return (tile_concat_conv if config.tiled else source_oracle)(config, sources, weights, bias)


def rounded(x, data_type):
    """Rounded once, beyond the range to infinity."""
    with np.errstate(over="ignore"):
        return x.astype(harness.DATA_TYPES[data_type])


def assert_identical(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    different = actual.view(np.uint16) != expected.view(np.uint16)
    different &= ~((actual == 0) & (expected == 0))  # the sign of a zero sum depends on the order
    assert not different.any(), (
        f"{different.sum()} of {different.size} differ, the first at {np.argwhere(different)[0]}"
    )


def run_paths(layer, data_type, draw=integers, seed=0, capability=80):
    """Outputs by path, of the tensor-core paths that are available, and the exact result in float64."""
    sources, weights, bias = layer.tensors(np.random.default_rng(seed), draw)
    dtype = harness.DATA_TYPES[data_type]
    sources, weights = ({name: x.astype(dtype) for name, x in part.items()} for part in (sources, weights))
    bias = None if bias is None else bias.astype(dtype)
    problem = problem_of(layer, sources, data_type)
    library = kernels(capability)
    paths = [p for p in library.available_paths(problem, capability) if p in TENSOR_CORE_PATHS]
    outputs = {path: library.run(problem, sources, weights, bias, path, capability) for path in paths}
    expected = oracle(
        layer.config,
        *({k: v.astype(np.float64) for k, v in part.items()} for part in (sources, weights)),
        None if bias is None else bias.astype(np.float64),
    )
    return outputs, expected


FEW_CHANNELS = {
    "several tiles, 128-bit stores": Layer((3, 4, 0, 0), 64, (12, 136)),
    "odd width, K and O fill no tile": Layer((3, 4, 0, 0), 20, (9, 37)),
    "all sources, two blocks along O": Layer((3, 4, 2, 5), 70, (5, 40), batch=2),
    "width 4 more than a multiple of 8": Layer((2, 0, 3, 0), 17, (4, 44)),
    "image only, no bias: no tables": Layer((3, 0, 0, 0), 16, (7, 21), has_bias=False),
    "one output channel": Layer((4, 0, 0, 3), 1, (6, 10)),
    "source semantics, shared batches": Layer(
        (5, 2, 2, 2), 17, (13, 15), (2, 5), (2, 3), (2, 1), (0, 2, 3, 1), semantics=0, batch=2, shared=(0, 2)
    ),
    "image smaller than the kernel": Layer((3, 2, 2, 2), 9, (2, 3), (5, 5), pads=(4, 3, 2, 4)),
    "no interior class": Layer((3, 2, 2, 2), 9, (9, 9), (3, 2), (6, 5), pads=(2, 1, 2, 1)),
    "dilation beyond the image": Layer((2, 1, 1, 0), 12, (5, 4), (3, 3), dilations=(4, 5), pads=(4, 5, 4, 5)),
    "7 x 7": Layer((3, 4, 0, 0), 32, (11, 33), (7, 7), pads=(3, 3, 3, 3)),
    "1 x 1": Layer((7, 3, 0, 2), 33, (5, 34), (1, 1), pads=(0, 0, 0, 0)),
    "1 x k": Layer((2, 0, 2, 0), 18, (3, 70), (1, 9), (1, 2), pads=(0, 3, 0, 5)),
    "one row, one column": Layer((3, 1, 1, 1), 24, (1, 1)),
    "reflect": Layer((3, 2, 2, 1), 20, (6, 9), pads=(2, 3, 1, 2), mode=1),
    "replicate": Layer((3, 2, 2, 1), 20, (6, 35), (3, 5), pads=(2, 3, 1, 2), mode=2),
    "circular": Layer((3, 2, 2, 1), 20, (6, 35), (3, 5), (2, 1), pads=(5, 3, 1, 9), mode=3, batch=3, shared=(1,)),
}

MANY_CHANNELS = {
    "64+64 -> 64": Layer((64, 64, 0, 0), 64, (9, 11)),
    "256+64 -> 256, 1 x 1, rows of 8 pixels": Layer((256, 64, 0, 0), 256, (6, 8), (1, 1), pads=(0, 0, 0, 0)),
    "256+64 -> 256, 1 x 1, odd plane": Layer((256, 64, 0, 0), 256, (5, 7), (1, 1), pads=(0, 0, 0, 0)),
    "1 x 1 over two pixel blocks": Layer((40, 0, 8, 4), 80, (9, 24), (1, 1), pads=(0, 0, 0, 0), batch=2),
    "1 x 1 with a stride": Layer((40, 3, 8, 4), 70, (9, 24), (1, 1), (2, 2), pads=(0, 0, 0, 0), semantics=0),
    "K odd: narrow weights": Layer((19, 4, 0, 0), 40, (7, 12)),
    "K 8 more than a multiple of 32": Layer((40, 0, 0, 9), 24, (6, 31), (1, 1), pads=(0, 0, 0, 0)),
    "O fills no tile": Layer(
        (33, 2, 2, 2), 130, (10, 13), (3, 3), (2, 1), (2, 1), (3, 0, 1, 2), batch=2, shared=(0, 3)
    ),
    "rows shorter than 8 pixels": Layer((16, 3, 3, 3), 65, (40, 3)),
    "one column": Layer((32, 3, 3, 3), 5, (150, 1)),
    "image smaller than the kernel": Layer((24, 2, 2, 2), 9, (2, 3), (5, 5), pads=(4, 3, 2, 4)),
    "reflect": Layer((16, 2, 2, 1), 20, (6, 9), pads=(2, 3, 1, 2), mode=1),
    "replicate": Layer((16, 2, 2, 1), 20, (6, 35), (3, 5), pads=(2, 3, 1, 2), mode=2, semantics=0),
    "circular": Layer((16, 2, 2, 1), 20, (6, 35), (3, 5), (2, 1), pads=(5, 3, 1, 9), mode=3),
}


def named(layers):
    return [pytest.param(layer, id=name) for name, layer in layers.items()]


@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("layer", named(FEW_CHANNELS))
def test_few_channels_are_exact(layer, data_type):
    outputs, expected = run_paths(layer, data_type)
    assert TENSOR_CORE in outputs
    for output in outputs.values():
        assert_identical(output, rounded(expected, data_type))


@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("layer", named(MANY_CHANNELS))
def test_many_channels_are_exact(layer, data_type):
    outputs, expected = run_paths(layer, data_type)
    assert IMPLICIT_GEMM in outputs
    for output in outputs.values():
        assert_identical(output, rounded(expected, data_type))


@pytest.mark.parametrize("layer", named(FEW_CHANNELS | MANY_CHANNELS))
def test_the_code_for_sm_75_is_exact(layer):
    outputs, expected = run_paths(layer, FLOAT16, capability=75)
    assert outputs
    for output in outputs.values():
        assert_identical(output, rounded(expected, FLOAT16))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    cases(modes=(0, 0, 0, 1, 2, 3)), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from((FLOAT16, BFLOAT16))
)
def test_random_problems_are_exact(case, out_channels, seed, data_type):
    config = replace(case.config, group=1, sources=(1, *case.config.sources[1:]))
    batch = max(source.shape[0] for source in case.sources.values())
    layer = Layer(
        tuple(c or int(name == "nchw") for c, name in zip(case.in_channels, ("nchw", "nch", "ncw", "nc"), strict=True)),
        out_channels, (case.height, case.width), config.kernel_shape, config.strides, config.dilations, config.pads,
        int(config.tiled), int(config.padding_mode), config.has_bias, batch,
        tuple(i for i, s in enumerate(("nchw", "nch", "ncw", "nc")) if s in case.sources and case.sources[s].shape[0] == 1),
    )  # fmt: skip
    outputs, expected = run_paths(layer, data_type, seed=seed)
    assert outputs
    for output in outputs.values():
        assert_identical(output, rounded(expected, data_type))


def test_a_block_walks_over_several_tiles(tmp_path):
    """The weights stay, the patch is replaced: down a stripe of columns, to the next stripe, to the next image."""
    library = patched_library(tmp_path, "paths.h", "kManyBlocks = 4096", "kManyBlocks = 2")
    layer = Layer((3, 4, 0, 2), 20, (10, 40), batch=3)
    sources, weights, bias = layer.tensors(np.random.default_rng(0), integers)
    output = library.run(problem_of(layer, sources, FLOAT16), sources, weights, bias, TENSOR_CORE)
    assert_identical(output, rounded(oracle(layer.config, sources, weights, bias), FLOAT16))


# ----------------------------------------------------------------------------------------------------------------------
# Numbers

NUMBERS = {
    TENSOR_CORE: Layer((3, 2, 2, 2), 20, (6, 19)),
    IMPLICIT_GEMM: Layer((32, 2, 2, 2), 20, (6, 19)),
}


@pytest.mark.parametrize("path", TENSOR_CORE_PATHS, ids=harness.PATH_NAMES.get)
@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(
    ("activation", "params", "function"),
    [
        (0, (0.0, 0.0), lambda x: x),
        (1, (0.0, 0.0), lambda x: np.maximum(x, 0)),
        (2, (0.1, 0.0), lambda x: np.where(x < 0, 0.1 * x, x)),
        (3, (0.0, 0.0), lambda x: x / (1 + np.exp(-x))),
        (4, (0.0, 0.0), lambda x: 1 / (1 + np.exp(-x))),
        (5, (0.0, 0.0), np.tanh),
        (6, (-0.5, 2.0), lambda x: np.clip(x, -0.5, 2.0)),
    ],
    ids=["none", "relu", "leaky_relu", "silu", "sigmoid", "tanh", "clip"],
)
def test_activations(path, data_type, activation, params, function):
    layer = replace(NUMBERS[path], activation=activation, activation_params=params)
    outputs, linear = run_paths(layer, data_type, normals)
    expected = function(linear)
    half_step = {FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}[data_type]
    error = np.abs(outputs[path].astype(np.float64) - expected)
    assert (error <= half_step * np.abs(expected) + 3e-6 * np.abs(linear).max()).all()


@pytest.mark.parametrize("path", TENSOR_CORE_PATHS, ids=harness.PATH_NAMES.get)
def test_sums_beyond_fp16_are_kept_in_fp32(path):
    """Partial sums far beyond 65504 cancel; a result beyond it becomes infinity, once."""
    layer = replace(NUMBERS[path], channels=(32, 0, 0, 0), kernel=(1, 1), pads=(0, 0, 0, 0), has_bias=False)
    rows, columns = layer.size
    source = np.full((1, 32, rows, columns), 240.0, np.float16)
    weight = np.full((20, 32, 1, 1), 240.0, np.float16)
    weight[:, 16:] = -240.0
    weight[:, 31] = -239.75  # the sum is 60 = 240 * 0.25
    weight[1] = 240.0
    weight[2] = -240.0
    problem = problem_of(layer, {"nchw": source}, FLOAT16)
    output = kernels().run(problem, {"nchw": source}, {"nchw": weight}, None, path)
    expected = np.full((20, rows, columns), 60.0)
    expected[1], expected[2] = np.inf, -np.inf
    np.testing.assert_array_equal(output[0].astype(np.float64), expected)


@pytest.mark.parametrize("path", TENSOR_CORE_PATHS, ids=harness.PATH_NAMES.get)
def test_infinities_reach_only_the_outputs_that_read_them(path):
    """What fills K, O and the tiles up takes no part: zero times infinity would be NaN."""
    layer = replace(NUMBERS[path], channels=(5 if path == TENSOR_CORE else 11, 0, 0, 0), has_bias=False)
    rng = np.random.default_rng(3)
    source = rng.integers(1, 4, (1, layer.channels[0], *layer.size)).astype(np.float16)
    weight = rng.integers(1, 4, (layer.out_channels, layer.channels[0], 3, 3)).astype(np.float16)
    source[0, 0, 2, 7] = np.inf
    source[0, -1, 5, 18] = -np.inf
    problem = problem_of(layer, {"nchw": source}, FLOAT16)
    output = kernels().run(problem, {"nchw": source}, {"nchw": weight}, None, path)
    with np.errstate(invalid="ignore"):
        expected = oracle(layer.config, {"nchw": source.astype(np.float64)}, {"nchw": weight.astype(np.float64)}, None)
    assert np.isinf(expected).sum() == layer.out_channels * (9 + 4)
    assert_identical(output, rounded(expected, FLOAT16))


# ----------------------------------------------------------------------------------------------------------------------
# Which problems the paths take


def paths_of(layer, data_type, capability):
    sources, _, _ = layer.tensors(np.random.default_rng(0), integers)
    return kernels().available_paths(problem_of(layer, sources, data_type), capability)


@pytest.mark.parametrize(
    ("change", "data_type", "capability", "expected"),
    [
        ({}, FLOAT16, 80, [TENSOR_CORE, FFMA]),
        ({}, FLOAT16, 75, [TENSOR_CORE, FFMA]),
        ({}, FLOAT16, 70, [FFMA]),
        ({}, BFLOAT16, 80, [TENSOR_CORE, FFMA]),
        ({}, BFLOAT16, 75, [FFMA]),
        ({}, 0, 90, [FFMA]),
        ({"channels": (4, 0, 0, 0), "group": 2}, FLOAT16, 80, [FFMA]),
        ({"channels": (0, 3, 3, 0)}, FLOAT16, 80, [FFMA]),
        ({"channels": (16, 4, 0, 0)}, FLOAT16, 80, [TENSOR_CORE, IMPLICIT_GEMM, FFMA]),
        ({"channels": (32, 4, 0, 0)}, FLOAT16, 80, [IMPLICIT_GEMM, TENSOR_CORE, FFMA]),
        ({"channels": (64, 4, 0, 0)}, FLOAT16, 80, [IMPLICIT_GEMM, FFMA]),
        ({"strides": (200, 300), "size": (500, 700)}, FLOAT16, 80, [FFMA]),
    ],
)
def test_availability(change, data_type, capability, expected):
    layer = replace(Layer((3, 4, 0, 0), 32, (8, 40)), **change)
    assert paths_of(layer, data_type, capability) == expected


# ----------------------------------------------------------------------------------------------------------------------
# Seeded faults: each must be seen by the test that is named


FAULTS = {
    "fragment rows exchanged": (
        "tensor_core.cu", "r / 8 * 2 + c / 8 * 4", "r / 8 * 4 + c / 8 * 2", FEW_CHANNELS["1 x 1"]),
    "no barrier after staging the image": (
        "tensor_core.cu", "loadPatch(p, n, tileRow, tileColumn, patch);\n        __syncthreads();",
        "loadPatch(p, n, tileRow, tileColumn, patch);", FEW_CHANNELS["7 x 7"]),
    "K offset without dilation": (
        "tensor_core.cu", "v * p.columns.dilation", "v", FEW_CHANNELS["dilation beyond the image"]),
    "tail of a row stored": (
        "tensor_core.cu", "p.target.columns - column}", "kLanePixels}", FEW_CHANNELS["odd width, K and O fill no tile"]),
    "no barrier between slices": (
        "implicit_gemm.cu", "waitForCopies();\n        }\n        __syncthreads();", "waitForCopies();\n        }",
        MANY_CHANNELS["64+64 -> 64"]),
    "copies not waited for": (
        "implicit_gemm.cu", "            waitForCopies();\n", "", MANY_CHANNELS["64+64 -> 64"]),
    "last slice not cut": (
        "implicit_gemm.cu", "k < p.reduction ? plane : -1", "plane", MANY_CHANNELS["K 8 more than a multiple of 32"]),
    "next row begins with the same row's table": (
        "tensor_core_epilogue.h", "row += column == target.columns ? 1 : 0;", "", MANY_CHANNELS["rows shorter than 8 pixels"]),
    "pixels in the order of the mma": (
        "implicit_gemm.cu", "pair / 16 * 16 + pair % 4 * 4 + pair % 16 / 4", "pair", MANY_CHANNELS["64+64 -> 64"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_seeded_faults_are_seen(name, tmp_path):
    file, right, wrong, layer = FAULTS[name]
    faulty = patched_library(tmp_path, file, right, wrong)
    path = TENSOR_CORE if layer in FEW_CHANNELS.values() else IMPLICIT_GEMM
    sources, weights, bias = layer.tensors(np.random.default_rng(0), integers)
    try:
        output = faulty.run(problem_of(layer, sources, FLOAT16), sources, weights, bias, path)
    except harness.KernelError:
        return
    with pytest.raises(AssertionError, match="differ"):
        assert_identical(output, rounded(oracle(layer.config, sources, weights, bias), FLOAT16))


# ----------------------------------------------------------------------------------------------------------------------
# The instructions, one warp at a time. The layouts here are a second source, not the formulas of the emulation: CUTLASS's
# MMA_Traits<SM80_16x8x16_F32F16F16F32_TN> gives them as shapes and strides, (lane % 4, lane / 4), (value's bits) -> index in
# the matrix counted column by column.

A_STRIDES = ((32, 1), (16, 8, 128))  # of 16 x 16, (m, k)
B_STRIDES = ((16, 1), (8, 64))  # of 8 x 16, (n, k)
D_STRIDES = ((32, 1), (16, 8))  # of 16 x 8, (m, n)


def fragment_indices(strides):
    """[lane, value] -> index in the column-major matrix."""
    (quad, group), bits = strides
    lanes, values = np.arange(32)[:, None], np.arange(2 ** len(bits))
    return lanes % 4 * quad + lanes // 4 * group + sum((values >> bit & 1) * step for bit, step in enumerate(bits))


def to_fragments(matrix, strides):
    return np.ascontiguousarray(matrix.ravel(order="F")[fragment_indices(strides)])


def from_fragments(values, strides, shape):
    flat = np.full(np.prod(shape), np.nan, values.dtype)
    flat[fragment_indices(strides)] = values
    return flat.reshape(shape, order="F")


@functools.cache
def instructions(compute_capability: int = 80) -> ctypes.CDLL:
    source = build_host.TESTS / "mma_instructions.cu"
    return ctypes.CDLL(str(build_host.shared_object(source, ARCHITECTURES[compute_capability])))


def call(function, *arguments):
    pointers = [x.ctypes.data_as(ctypes.c_void_p) if isinstance(x, np.ndarray) else x for x in arguments]
    assert function(*pointers) == 0


@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(np.float16, 80), (ml_dtypes.bfloat16, 80), (np.float16, 75)],
    ids=["m16n8k16 fp16", "m16n8k16 bf16", "two m16n8k8 fp16"],
)
def test_mma_is_a_matrix_product(dtype, capability):
    rng = np.random.default_rng(5)
    a, b, d = (rng.standard_normal(shape) for shape in ((16, 16), (16, 8), (16, 8)))
    a, b, d = a.astype(dtype), b.astype(dtype), d.astype(np.float32)
    sums = to_fragments(d, D_STRIDES)
    call(
        instructions(capability).msconvMultiply, int(dtype is not np.float16), to_fragments(a, A_STRIDES),
        to_fragments(b.T, B_STRIDES), sums,
    )  # fmt: skip
    expected = a.astype(np.float64) @ b.astype(np.float64) + d
    np.testing.assert_allclose(from_fragments(sums, D_STRIDES, (16, 8)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("capability", [80, 75])
def test_ldmatrix_gives_the_fragments_of_four_matrices(transposed, capability):
    matrices = np.arange(1, 257, dtype=np.uint16).reshape(4, 8, 8)
    valid = np.ones(32, np.int32)
    valid[[3, 17]] = 0  # rows that the copy must fill with zeros
    registers = np.zeros((32, 4, 2), np.uint16)
    call(instructions(capability).msconvLoadMatrices, transposed, matrices, valid, registers)
    expected = np.where(valid.reshape(4, 8, 1) != 0, matrices, 0)
    for m in range(4):  # lane 4 g + q holds row g, columns 2 q and 2 q + 1: the matrix row by row
        loaded = registers[:, m].reshape(8, 8)
        np.testing.assert_array_equal(loaded, expected[m].T if transposed else expected[m])


def test_select_bytes():
    a, b = (np.full(32, value, np.uint32) for value in (0x33221100, 0x77665544))
    selectors = np.resize(np.array([0x5410, 0x2210, 0x2222, 0x7654, 0x0123], np.uint32), 32)
    results = np.zeros(32, np.uint32)
    call(instructions().msconvSelectBytes, a, b, selectors, results)
    expected = [0x55441100, 0x22221100, 0x22222222, 0x77665544, 0x00112233]
    np.testing.assert_array_equal(results, np.resize(np.array(expected, np.uint32), 32))
