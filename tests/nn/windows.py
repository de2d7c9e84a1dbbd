"""Random sliding windows over images, and what they see: padded by NumPy, cut by `F.unfold`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from tests.oracle import PAD_MODE

MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass
class Windows:
    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]
    mode: str
    seed: int

    @property
    def arguments(self):
        return {
            "stride": self.stride,
            "padding": self.pads,
            "dilation": self.dilation,
            "padding_mode": self.mode,
        }

    def random(self, *shape):
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(self.seed + len(shape)))

    @property
    def image(self):
        return self.random(self.batch, self.channels, self.height, self.width)

    @property
    def outputs(self):
        extents = (self.height, self.width)
        pads = (self.pads[0] + self.pads[2], self.pads[1] + self.pads[3])
        shape = zip(extents, pads, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((n + p - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in shape)

    def padded(self, x):
        top, left, bottom, right = self.pads
        widths = ((0, 0), (0, 0), (top, bottom), (left, right))
        return torch.from_numpy(np.pad(x.numpy(), widths, mode=PAD_MODE[MODES.index(self.mode)]))

    def unfolded(self, x):
        """[N, C, kh*kw, L]."""
        x = torch.nn.functional.unfold(self.padded(x), self.kernel, self.dilation, 0, self.stride)
        return x.unflatten(1, (-1, self.kernel[0] * self.kernel[1]))


@st.composite
def windows(draw, max_kernel=4, channels=(1, 2, 3, 4), largest=9):
    """Images smaller than the kernel, strides beyond it, padding wider than it: all are likely."""
    mode = draw(st.sampled_from(("zeros", *MODES)))
    kernel, dilation, stride = (tuple(draw(st.integers(1, n)) for _ in range(2)) for n in (max_kernel, 3, 5))
    extents = [draw(st.integers(1, largest)) for _ in range(2)]
    pads = []
    for k, d, n in zip(kernel * 2, dilation * 2, extents * 2, strict=True):
        limit = {"zeros": d * k + 2, "reflect": n - 1, "replicate": d * k + 2, "circular": n}[mode]
        pads.append(draw(st.integers(0, limit)))
    for axis in (0, 1):  # a larger image never makes the padding wrong
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        extents[axis] = max(extents[axis], reach - pads[axis] - pads[axis + 2])
    batch, count, seed = draw(st.integers(1, 3)), draw(st.sampled_from(channels)), draw(st.integers(0, 2**20))
    return Windows(batch, count, *extents, kernel, stride, dilation, tuple(pads), mode, seed)
