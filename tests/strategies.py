"""Random configurations of the operator with tensors to match, for property-based tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.shapes import weight_shape


@dataclass
class Case:
    config: MSConv2dConfig
    sources: dict
    weights: dict
    bias: np.ndarray | None
    height: int
    width: int

    @property
    def in_channels(self):
        return [self.sources[n].shape[1] if n in self.sources else 0 for n in ("nchw", "nch", "ncw", "nc")]

    @property
    def out_channels(self):
        return next(iter(self.weights.values())).shape[0]

    def astype(self, dtype):
        return Case(
            self.config,
            {k: v.astype(dtype) for k, v in self.sources.items()},
            {k: v.astype(dtype) for k, v in self.weights.items()},
            None if self.bias is None else self.bias.astype(dtype),
            self.height,
            self.width,
        )


@st.composite
def cases(
    draw, semantics=None, max_kernel=5, activations=(0,), modes=(0, 0, 1, 2, 3), max_batch=3, equal_batches=False
):
    """Images smaller than the kernel, strides beyond it, asymmetric pads, no interior class: all are likely here."""
    tiled = draw(st.booleans()) if semantics is None else bool(semantics)
    choices = [s for s in np.ndindex(2, 2, 2, 2) if any(s)]
    if tiled:
        choices = [s for s in choices if (s[0] or s[1]) and (s[0] or s[2])]
    sources = draw(st.sampled_from(choices))
    kernel = tuple(draw(st.integers(1, max_kernel)) for _ in range(2))
    dilations = tuple(draw(st.integers(1, 3)) for _ in range(2))
    strides = tuple(draw(st.integers(1, 6)) for _ in range(2))
    mode = draw(st.sampled_from(modes))
    height, width = (draw(st.integers(1, 9)) for _ in range(2))
    pads = []
    for k, d, extent in zip(kernel * 2, dilations * 2, (height, width) * 2, strict=True):
        limit = {0: d * k + 1, 1: extent - 1, 2: d * k, 3: extent}[mode]
        pads.append(draw(st.integers(0, min(limit, d * k + 1))))
    for axis, extent in ((0, height), (1, width)):  # grow until the kernel fits, or enlarge the image
        need = dilations[axis] * (kernel[axis] - 1) + 1 - (pads[axis] + pads[axis + 2] + extent)
        if need > 0:
            if axis == 0:
                height += need
            else:
                width += need
    group = draw(st.sampled_from((1, 1, 1, 2, 3)))
    if not (sources[0] or (not tiled and (sources[1] or sources[2]))):
        group = 1
    activation = draw(st.sampled_from(activations))
    config = MSConv2dConfig(
        sources=sources,
        kernel_shape=kernel,
        has_bias=draw(st.booleans()),
        strides=strides,
        dilations=dilations,
        pads=tuple(pads),
        group=group,
        padding_semantics=PaddingSemantics(int(tiled)),
        padding_mode=PaddingMode(mode),
        activation=activation,
        activation_params={2: (0.1, 0.0), 6: (-0.5, 0.75)}.get(activation, (0.0, 0.0)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.integers(1, max_batch))
    out_channels = group * draw(st.integers(1, 3))
    extents = {"nchw": (height, width), "nch": (height,), "ncw": (width,), "nc": ()}
    tensors, weights = {}, {}
    for name in config.source_names:
        grouped = name == "nchw" or (not tiled and name != "nc")
        channels = draw(st.integers(1, 4)) * (group if grouped else 1)
        n = batch if equal_batches else draw(st.sampled_from((1, batch)))
        tensors[name] = rng.standard_normal((n, channels, *extents[name]))
        weights[name] = rng.standard_normal(weight_shape(config, name, channels, out_channels))
    bias = rng.standard_normal(out_channels) if config.has_bias else None
    return Case(config, tensors, weights, bias, height, width)
