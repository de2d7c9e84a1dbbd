"""`ones-channel`: what is equal at every pixel becomes the weights of one extra channel of ones.

    conv(concat(x, tile(v)), W) + b  =  conv(concat(x, 1), concat(W_x, V)) + b      V[o,0,taps] = sum_c W_v[o,c,taps] v[c]

Zero padding is exact by itself, because the channel of ones is padded like the tile was. Valid for a Conv without groups
whose cores have batch extent 1, since weights are the same for all samples; the dense channels may have any batch. Costs
one channel of the convolution and a copy of the dense channels, and takes ONNX Runtime's blocked layout away unless V is
constant; saves the pass over the output that adding a term would be, and leaves an activation behind it where it was.

The ones are a padding of the channel axis: one node at any extent, and as fast as joining a stored channel of ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msconv_deploy.surgery.engine.contraction import Contraction
from msconv_deploy.surgery.engine.cores import Core, CoreEmitter, Literal
from msconv_deploy.surgery.engine.decomposition import Segment
from msconv_deploy.surgery.engine.editing import GraphBuilder


def refusal(contraction: Contraction, uniform: Sequence[Segment], border: bool) -> str | None:
    """Why this lowering cannot be used, or None.

    Args:
        uniform: the uniform segments.
        border: whether some term differs at the border.
    """
    first = contraction.first_spatial
    spatial = set(range(first, first + len(contraction.axes)))
    if contraction.node.op != "Conv":
        return "the channel of ones is for Conv only"
    if contraction.group != 1:
        return "the channel of ones would have to be in every group"
    if any(not spatial <= s.uniform for s in uniform):
        return "one channel of ones carries only what is equal at every pixel"
    if contraction.factors or any(s.core.dims[0] != 1 for s in uniform):
        return "the weights of the channel of ones would differ from sample to sample"
    if not border:
        return "nothing differs at the border, so that a bias does the same without a channel"
    return None


def emit_ones(builder: GraphBuilder, x: str, spatial: int, dtype: np.dtype[Any]) -> str:
    """The dense channels [N, C, *spatial] and behind them one channel of ones: [N, C+1, *spatial]."""
    rank = spatial + 2
    amounts = [0] * (2 * rank)
    amounts[rank + 1] = 1
    one = builder.constant(np.ones((), dtype), "one")
    return builder.add("Pad", x, builder.ints(amounts), one, hint="with_ones")


def emit_weight(
    builder: GraphBuilder, emitter: CoreEmitter, core: Core, weight: NDArray[Any], dense: NDArray[Any]
) -> str:
    """The weight of the dense channels and the channel of ones, [O, C+1, *kernel].

    Args:
        core: [1, V, *ones].
        weight: [O, V, *kernel] of its channels.
        dense: [O, C, *kernel].
    """
    outputs, kernel = weight.shape[0], weight.shape[2:]
    if isinstance(core, Literal):
        summed = np.tensordot(weight.astype(np.float64), core.array.astype(np.float64).reshape(-1), axes=(1, 0))
        return builder.constant(np.concatenate([dense, summed[:, None].astype(dense.dtype)], axis=1))
    taps = np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1], *[1] * len(kernel))
    values = builder.add("Conv", emitter.emit(core), builder.constant(taps), hint="taps")  # [1, O*taps, *ones]
    own = builder.add("Reshape", values, builder.ints([outputs, 1, *kernel]), hint="ones_weight")
    return builder.add("Concat", builder.constant(dense), own, axis=1, hint="weights")
