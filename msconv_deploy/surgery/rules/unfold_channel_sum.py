"""`unfold-channel-sum`: windows times one filter, summed over channels only, are a 1x1 convolution and shifted slices.

    y[n, u, v, i, j]  =  sum over c of w[c, u, v] * x[n, c, i*s + u*d - p, j*s + v*d - p]
                      =  z[n, (u, v), i*s + u*d - p, j*s + v*d - p]     with z = conv(x, w as [kh*kw, C, 1, 1])

for ReduceSum of a Mul and Einsum: the taps stay apart in the result. ``z`` is padded with zeros where the image was, which is
exact since the convolution has no bias.

Valid wherever the filter is constant, float32 or float16. Costs C*kh*kw multiply-accumulates per pixel of the image instead
of per window (so a stride makes it dearer: strides beyond 1 pay only where the windows themselves are what costs), and one
copy of the result; saves the windows, C times as large as the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from msconv_deploy.ops.node_builder import TO_THE_END
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import GraphBuilder
from msconv_deploy.surgery.engine.windows import Role, WindowFinder, Windows, WindowWriter
from msconv_deploy.surgery.rules.unfold_matmul import windows_and_weights

ID = "unfold-channel-sum"
LOWERING = "shifted-slices"


@dataclass(frozen=True, eq=False)
class Match:
    """A sum over channels of windows times a filter.

    Attributes:
        node: the sum.
        windows: what it reads.
        weight: [1, C, *kernel].
    """

    node: gs.Node
    windows: Windows
    weight: NDArray[Any]


def match(node: gs.Node, finder: WindowFinder) -> Match | Refusal | None:
    """The sum at a node, why it is left, or None if it is no sum over channels of windows."""
    found = windows_and_weights(node, finder)
    if found is None or isinstance(found, Refusal):
        return None  # `unfold-matmul` gives the reason
    _, windows, weight = found
    if windows.weighted != windows.tapped:
        return None
    if len(weight) != 1:
        return Refusal("it has several filters, whose taps stay apart", (str(node.name),))
    return Match(node, windows, weight)


def rewrite(builder: GraphBuilder, found: Match) -> None:
    """The 1x1 convolution, its padding, and one slice per tap; into a builder."""
    windows = found.windows
    spatial = len(windows.spatial)
    writer = WindowWriter(builder, windows)
    taps = list(np.ndindex(*windows.kernel))
    pointwise = np.ascontiguousarray(np.moveaxis(found.weight[0].reshape(found.weight.shape[1], -1), 1, 0))
    pointwise = pointwise.reshape(*pointwise.shape, *[1] * spatial)
    z = builder.add("Conv", writer.source(), builder.constant(pointwise), hint="products", kernel_shape=[1] * spatial)
    z = builder.pad(z, "constant", spatial + 2, windows.pads_by_axis)
    axes, steps = builder.ints(list(range(1, spatial + 2))), builder.ints([1, *(a.stride for a in windows.axes)])
    slices = []
    for index, tap in enumerate(taps):
        shifts = [a.dilation * t for a, t in zip(windows.axes, tap, strict=True)]
        behind = [a.reach - 1 - shift for a, shift in zip(windows.axes, shifts, strict=True)]
        starts = builder.ints([index, *shifts])
        ends = builder.ints([index + 1, *(-n if n else TO_THE_END for n in behind)])
        slices.append(builder.add("Slice", z, starts, ends, axes, steps, hint="tap"))
    channels = tuple(Role("tap", a) for a, axis in zip(windows.spatial, windows.axes, strict=True) if axis.kernel > 1)
    writer.finish("Concat", *slices, channels=channels, axis=1)
