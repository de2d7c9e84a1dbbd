"""Random problems for every path of the kernels: small, with borders, odd extents, strides, dilations, groups, all sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.configuration import SOURCE_NAMES, MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.shapes import output_shape, weight_shape
from plugins.msconv.tests import harness

EXTENTS = {"nchw": (0, 1), "nch": (0,), "ncw": (1,), "nc": ()}


@dataclass(frozen=True)
class RandomCase:
    """A configuration with tensors, float64."""

    config: MSConv2dConfig
    sources: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    bias: np.ndarray | None
    out_channels: int

    def problem(self, data_type: int) -> harness.Problem:
        """As the kernels take it; ``data_type`` is an index into ``harness.DATA_TYPES``."""
        shapes = {name: array.shape for name, array in self.sources.items()}
        channels = {name: shape[1] for name, shape in shapes.items()}
        return harness.problem_of(self.config, shapes, channels, self.out_channels, data_type)


def random_cases(count: int, seed: int) -> Iterator[RandomCase]:
    """``count`` valid cases; what the operator refuses is drawn again."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        try:
            case = _draw(rng)
        except BadInputError:
            continue
        made += 1
        yield case


def _draw(rng: np.random.Generator) -> RandomCase:
    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    tiled = bool(pick(0, 1))
    mode = PaddingMode(int(rng.choice([0, 0, 0, 1, 2, 3])))
    group = int(rng.choice([1, 1, 1, 1, 2, 3]))
    kernel = (pick(1, 5), pick(1, 5))
    size = (pick(1, 40), pick(1, 70))
    limits = {0: kernel[0] + 2, 1: min(size) - 1, 2: kernel[0], 3: min(size)}
    activation = pick(0, 6)
    config = MSConv2dConfig(
        sources=tuple(int(s) for s in rng.integers(0, 2, 4)),  # type: ignore[arg-type]
        kernel_shape=kernel,
        has_bias=pick(0, 1),
        strides=(pick(1, 3), pick(1, 3)),
        dilations=(pick(1, 2), pick(1, 2)),
        pads=tuple(pick(0, max(0, min(limits[int(mode)], 4))) for _ in range(4)),  # type: ignore[arg-type]
        group=group,
        padding_semantics=PaddingSemantics(int(tiled)),
        padding_mode=mode,
        activation=activation,  # type: ignore[arg-type]
        activation_params={2: (0.1, 0.0), 6: (-0.5, 0.75)}.get(activation, (0.0, 0.0)),
    )
    batch = pick(1, 3)
    out_channels = group * int(rng.choice([1, 3, 8, 16, 33, 64]))
    sources, weights = {}, {}
    for name in config.source_names:
        grouped = name == "nchw" or (not tiled and name != "nc")
        channels = int(rng.choice([1, 2, 3, 5, 16, 40])) * (group if grouped else 1)
        shape = (int(rng.choice([1, batch])), channels, *(size[axis] for axis in EXTENTS[name]))
        sources[name] = rng.standard_normal(shape)
        weights[name] = rng.standard_normal(weight_shape(config, name, channels, out_channels))
    output_shape(config, {name: array.shape for name, array in sources.items()}, out_channels)
    bias = rng.standard_normal(out_channels) if config.has_bias else None
    assert set(sources) <= set(SOURCE_NAMES)
    return RandomCase(config, sources, weights, bias, out_channels)
