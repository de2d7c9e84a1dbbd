"""What the tests of the kernels share: the library for the CPU, a table of hand-picked cases, the comparison."""

from __future__ import annotations

import functools
import shutil

import numpy as np
import pytest

from msconv_deploy.ops import reference
from msconv_deploy.ops.configuration import SOURCE_NAMES, MSConv2dConfig
from msconv_deploy.ops.shapes import weight_shape
from plugins.msconv.tests import build_host
from plugins.msconv.tests.harness import DATA_TYPES, Kernels, Problem, problem_of
from tests.oracle import border_and_interior, extents, scale_of
from tests.strategies import Case

NO_COMPILER = "needs a C++ compiler: install g++, or name one in CXX"
needs_compiler = pytest.mark.skipif(build_host.compiler() is None, reason=NO_COMPILER)

# Compute capability -> what mma.h is compiled for. sm_75 multiplies 8 deep and copies to shared memory at once.
ARCHITECTURES = {75: ("MSCONV_ARCH=750",), 80: ()}


@functools.cache
def kernels(compute_capability: int = 80) -> Kernels:
    return Kernels(build_host.library(defines=ARCHITECTURES[compute_capability]))


def patched_library(folder, file, text, replacement):
    """The library from a copy of the kernels in which one text, which must be there, is another."""
    copy = folder / "kernels"
    shutil.copytree(build_host.KERNELS, copy)
    source = (copy / file).read_text()
    assert text in source, f"{file} no longer contains {text!r}: seed this fault anew"
    (copy / file).write_text(source.replace(text, replacement))
    return Kernels(build_host.library(copy))


def case(config: MSConv2dConfig, channels, out_channels, height, width, batch=1, batches=(0, 0, 0, 0)) -> Case:
    """Random tensors for a configuration; ``batches`` gives those sources a batch of their own that are not 0."""
    rng = np.random.default_rng(7)
    lengths = {"nchw": (height, width), "nch": (height,), "ncw": (width,), "nc": ()}
    sources, weights = {}, {}
    for name, count, own in zip(SOURCE_NAMES, channels, batches, strict=True):
        if name in config.source_names:
            sources[name] = rng.standard_normal((own or batch, count, *lengths[name]))
            weights[name] = rng.standard_normal(weight_shape(config, name, count, out_channels))
    return Case(config, sources, weights, rng.standard_normal(out_channels) if config.has_bias else None, height, width)


def problem(case: Case, data_type: int = 0) -> Problem:
    shapes = {name: array.shape for name, array in case.sources.items()}
    channels = dict(zip(SOURCE_NAMES, case.in_channels, strict=True))
    return problem_of(case.config, shapes, channels, case.out_channels, data_type)


def wrong_regions(case: Case, data_type: int, actual: np.ndarray) -> list[str]:
    """Where the output is not what the NumPy reference gives in float64 from the inputs rounded to the type.

    An element may differ by the rounding of the result and by 1e-5 of the output's scale, for the sums are fp32.
    """
    dtype = DATA_TYPES[data_type]
    rounded = case.astype(dtype).astype(np.float64)
    expected = reference.msconv2d(rounded.config, rounded.sources, rounded.weights, rounded.bias)
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    half_unit = {0: 0.0, 1: 2.0**-11, 2: 2.0**-8}[data_type]
    allowed = 1.01 * half_unit * np.abs(expected) + 1e-5 * scale_of(rounded, expected)
    good = np.abs(actual.astype(np.float64) - expected) <= allowed  # false for NaN
    border = np.broadcast_to(border_and_interior(case.config, *extents(case.sources)), expected.shape)
    return [region for region, where in (("border", border), ("interior", ~border)) if not good[where].all()]


def _config(**attributes) -> MSConv2dConfig:
    return MSConv2dConfig(**({"sources": (1, 1, 1, 1), "kernel_shape": (3, 3), "pads": (1, 1, 1, 1)} | attributes))


def _table() -> dict[str, Case]:
    tiled = _config(padding_semantics=1)
    one = (3, 1, 1, 1)
    cases = {
        "tiled 3x3": case(tiled, (3, 2, 2, 2), 8, 11, 37, batch=2),
        "source 3x3": case(_config(), (3, 2, 2, 2), 8, 11, 37, batch=2),
        "several blocks": case(tiled, one, 35, 18, 70),
        "two tiles of channels": case(_config(sources=(1, 0, 0, 1), padding_semantics=1), (5, 0, 0, 3), 70, 9, 33),
        "slices of channels": case(_config(sources=(1, 0, 0, 1), padding_semantics=1), (45, 0, 0, 3), 9, 9, 33),
        "one channel per slice": case(
            _config(kernel_shape=(7, 9), pads=(3, 4, 3, 4), padding_semantics=1), one, 8, 9, 8
        ),
        "1x1": case(_config(kernel_shape=(1, 1), pads=(0,) * 4), (6, 2, 2, 2), 16, 9, 34),
        "1x1 with padding": case(_config(kernel_shape=(1, 1), padding_semantics=1), one, 8, 5, 6),
        "5x5": case(_config(kernel_shape=(5, 5), pads=(2, 2, 2, 2), padding_semantics=1), one, 9, 13, 14),
        "7x7": case(_config(kernel_shape=(7, 7), pads=(3, 3, 3, 3), padding_semantics=1), one, 9, 10, 40),
        "strides": case(_config(strides=(2, 3), padding_semantics=1), one, 9, 19, 100),
        "dilations": case(_config(dilations=(2, 3), pads=(2, 3, 2, 3), padding_semantics=1), one, 9, 12, 21),
        "asymmetric pads": case(_config(kernel_shape=(3, 4), pads=(0, 3, 2, 1), padding_semantics=1), one, 9, 7, 11),
        "no interior": case(_config(kernel_shape=(5, 5), pads=(4, 4, 4, 4), padding_semantics=1), one, 8, 2, 3),
        "outputs in the padding": case(_config(pads=(7, 5, 6, 9), padding_semantics=1), one, 8, 3, 4),
        "strides beyond the kernel": case(_config(strides=(7, 50), padding_semantics=1), one, 8, 15, 120),
        "a pixel": case(_config(padding_semantics=1), (70, 3, 3, 3), 40, 1, 1, batch=3),
        "groups": case(_config(group=2), (6, 4, 2, 3), 20, 6, 9),
        "tiled groups": case(_config(group=2, padding_semantics=1), (6, 3, 1, 1), 20, 6, 9),
        "narrow groups": case(_config(group=3), (6, 3, 3, 2), 15, 6, 9),
        "depthwise": case(_config(group=5), (5, 5, 5, 2), 5, 6, 19, batch=2),
        "broadcast batches": case(tiled, (2, 2, 2, 2), 8, 5, 6, batch=3, batches=(1, 0, 1, 0)),
        "one image for all": case(tiled, (2, 2, 2, 2), 8, 5, 6, batch=2, batches=(1, 1, 1, 0)),
        "rows only": case(_config(sources=(0, 1, 0, 0)), (0, 3, 0, 0), 5, 200, 1),
        "columns only": case(_config(sources=(0, 0, 1, 0)), (0, 0, 3, 0), 5, 1, 200),
        "scalars only": case(_config(sources=(0, 0, 0, 1)), (0, 0, 0, 70), 5, 1, 1, batch=3),
        "rows and columns": case(_config(sources=(0, 1, 1, 0), padding_semantics=1), (0, 9, 9, 0), 5, 9, 140),
        "columns and scalars": case(
            _config(sources=(1, 0, 1, 1), padding_semantics=1), (1, 0, 3, 40), 9, 6, 140, batch=2
        ),
        "image only": case(_config(sources=(1, 0, 0, 0), has_bias=0), (3, 0, 0, 0), 9, 6, 9),
        "rows without columns": case(_config(sources=(0, 1, 0, 1), has_bias=0), (0, 3, 0, 2), 5, 9, 1, batch=2),
        "many classes": case(_config(kernel_shape=(9, 9), pads=(8, 8, 8, 8), padding_semantics=1), one, 8, 11, 12),
        "many taps": case(
            _config(sources=(1, 0, 1, 1), kernel_shape=(33, 33), pads=(32, 16, 0, 16), padding_semantics=1),
            (1, 0, 1, 2),
            2,
            2,
            3,
        ),
        "many metadata channels": case(tiled, (1, 90, 80, 70), 8, 5, 6),
        "reflect": case(_config(padding_mode=1, padding_semantics=1), one, 9, 5, 34),
        "replicate": case(_config(padding_mode=2, pads=(4, 5, 6, 7)), one, 9, 5, 34),
        "circular": case(_config(padding_mode=3, pads=(4, 3, 2, 5)), one, 9, 5, 34),
    }
    for activation in range(1, 7):
        params = {2: (0.1, 0.0), 6: (-0.5, 0.75)}.get(activation, (0.0, 0.0))
        config = _config(sources=(1, 1, 0, 0), activation=activation, activation_params=params)
        cases[f"{config.activation.name.lower()}"] = case(config, (3, 1, 0, 0), 9, 5, 6)
    return cases


CASES = _table()
