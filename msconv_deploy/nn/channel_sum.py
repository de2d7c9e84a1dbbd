"""`ChannelSumConv2d`: sliding windows times one filter, summed over channels only."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.geometry import (
    Mode,
    Numbers,
    Padding,
    check_image,
    checked_mode,
    describe,
    padded,
    pair,
    tap_slices,
    window_axes,
)
from msconv_deploy.nn.recording import recording
from msconv_deploy.ops.configuration import PaddingMode
from msconv_deploy.ops.conv_matrix import check_extents

Layout = Literal["windows", "taps"]


class ChannelSumConv2d(nn.Module):
    """Every window times one filter ``[C, kh, kw]``, summed over the channels; the taps of the window stay apart.

    ``y[n, l, u, v] = sum_c x[n, c, i*s - p + u*d, j*s - p + v*d] * weight[c, u, v] + bias[u, v]``, where window
    ``l = i*W' + j``: ``(F.unfold(x) * weight).sum(channels)`` without the unfolded tensor of C*kh*kw channels. A
    product at a tap depends on the input position alone, so all taps are one 1x1 convolution with kh*kw outputs, and
    each tap is then a shifted, strided slice of its output: H*W*C*kh*kw multiply-accumulates, whatever the stride.

    Args:
        in_channels: C.
        kernel_size, stride, dilation, padding_mode, device, dtype: as in `nn.Conv2d`.
        padding: as in `nn.Conv2d`, or (top, left, bottom, right).
        bias: learn one number per tap?
        layout: of the output. ``"windows"``: ``[N, L, kh, kw]`` with L = H'*W' windows, row by row, as in `F.unfold`;
            ``"taps"``: ``[N, kh*kw, H', W']``, the taps as channels, which is how it is computed and what a convolution
            reads next.

    Raises:
        BadInputError: (a ValueError) an argument or the input is wrong; the message names it.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Padding = 0,
        dilation: Numbers = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        layout: Layout = "windows",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(in_channels, int) or in_channels < 1:
            raise BadInputError(f"{name}: in_channels must be an integer of at least 1, but is {in_channels!r}")
        if layout not in get_args(Layout):
            raise BadInputError(f'{name}: layout is {layout!r}; known are "windows" and "taps"')
        self.in_channels = in_channels
        self.kernel_size = pair(name, "kernel_size", kernel_size)
        self.rows, self.columns = window_axes(name, self.kernel_size, stride, padding, dilation)
        self.padding_mode: Mode = padding_mode
        self.layout: Layout = layout
        self._mode = checked_mode(name, padding_mode)
        self.weight = nn.Parameter(torch.empty(in_channels, *self.kernel_size, device=device, dtype=dtype))
        own_bias = nn.Parameter(torch.empty(self.kernel_size, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialization of `nn.Conv2d`: uniform with bound 1/sqrt(fan in), which is C here."""
        bound = 1 / math.sqrt(self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        axes = (self.rows, self.columns)
        if not recording():
            check_image(type(self).__name__, x, self.in_channels, self.weight.dtype)
            check_extents(type(self).__name__, x.shape[2:], axes, self._mode)
        weight = self.weight.flatten(1).t()[:, :, None, None]
        bias = None if self.bias is None else self.bias.flatten()
        if self._mode == PaddingMode.ZEROS and all(axis.pad_before == axis.pad_after for axis in axes):
            products = F.conv2d(x, weight, bias, padding=[axis.pad_before for axis in axes])
        else:
            products = F.conv2d(padded(x, axes, self._mode), weight, bias)
        # One channel per tap, and each as its tap sees it. The channel is cut first: in ONNX every slice is a copy.
        y = torch.cat([products[:, t : t + 1, h, w] for t, (h, w) in enumerate(tap_slices(*axes))], 1)
        return y if self.layout == "taps" else y.flatten(2).transpose(1, 2).unflatten(2, self.kernel_size)

    def extra_repr(self) -> str:
        geometry = describe(self.rows, self.columns, self._mode)
        return f"{self.in_channels}, {geometry}, bias={self.bias is not None}, layout={self.layout!r}"
