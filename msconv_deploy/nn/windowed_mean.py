"""Mean over a window of slices around an index that differs from position to position."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.recording import recording

Ends = Literal["cut", "repeat"]
_NARROW = (torch.float16, torch.bfloat16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def windowed_mean(x: Tensor, index: Tensor, window: int, dim: int = 1, ends: Ends = "cut") -> Tensor:
    """``y[n,h,w] = mean of x[n,d,h,w] over d from index[n,h,w]-before to index[n,h,w]+after``.

    ``before = (window - 1) // 2`` and ``after = window // 2``: symmetric for an odd window; an even one has one more slice
    behind the index. An index outside of ``[0, D-1]`` is first moved to the nearest end.

    Args:
        x: floating, such as ``[N, D, H, W]``; any rank.
        index: integer, shaped as ``x`` without ``dim``, or broadcastable to that.
        window: number of slices, 1 or more; it may exceed D.
        dim: the dimension of the slices.
        ends: what happens where the window leaves ``[0, D-1]``. ``"cut"``: it is cut, the mean is over the slices that exist.
            ``"repeat"``: the outermost slice takes the place of those that do not exist, the mean is over ``window`` values.

    Returns:
        As ``x`` without ``dim``, in its dtype. Differentiable in ``x``. Each window is summed for itself, in float32 if the
        type is narrower: differences of cumulative sums, which would cost less for wide windows, cancel. ``min(window, D)``
        slices per position are gathered at once; in an exported graph ``window`` slices.

    Raises:
        BadInputError: an argument is wrong; the message names it.
    """
    _check(x, index, window, dim, ends)
    dim %= x.ndim
    last = x.shape[dim] - 1
    before, after = (window - 1) // 2, window // 2
    index = _between(index.long(), last)
    first, end = _between(index - before, last), _between(index + after, last)
    count = window if recording() else min(window, last + 1)
    slices = first.unsqueeze(dim) + torch.arange(count, device=x.device).reshape(-1, *[1] * (x.ndim - 1 - dim))
    places = _between(slices, last).expand(*x.shape[:dim], count, *x.shape[dim + 1 :])
    taken = x.gather(dim, places).masked_fill(slices > end.unsqueeze(dim), 0)
    wide = torch.float32 if x.dtype in _NARROW else x.dtype
    total = taken.sum(dim, dtype=wide)
    if ends == "cut":
        return (total / (end - first + 1)).to(x.dtype)
    missing_before, missing_after = first - (index - before), (index + after) - end
    for end_slice, missing in ((x.select(dim, 0), missing_before), (x.select(dim, -1), missing_after)):
        # Not by the factor 0 alone: an infinite value outside of the window is no part of the mean.
        total = total + (end_slice.to(wide) * missing).masked_fill(missing == 0, 0)
    return (total / window).to(x.dtype)


def _between(index: Tensor, last: Any) -> Tensor:
    """Clamped to [0, last], where ``last`` may be symbolic."""
    clamped: Tensor = last - (last - index.clamp(min=0)).clamp(min=0)
    return clamped


def _check(x: Tensor, index: Tensor, window: int, dim: int, ends: Ends) -> None:
    if not isinstance(window, int) or window < 1:
        raise BadInputError(f"windowed_mean: window must be an integer of at least 1, but is {window!r}")
    if ends not in get_args(Ends):
        raise BadInputError(f'windowed_mean: ends is {ends!r}; known are "cut" and "repeat"')
    if not x.is_floating_point():
        raise BadInputError(f"windowed_mean: x must be floating, but is {x.dtype}")
    if index.dtype not in _INTEGERS:
        raise BadInputError(f"windowed_mean: index must be integers, but is {index.dtype}: round it as you mean it")
    if not -x.ndim <= dim < x.ndim:
        raise BadInputError(f"windowed_mean: dim {dim} is not a dimension of x {list(x.shape)}")
    if recording():
        return
    kept = [n for i, n in enumerate(x.shape) if i != dim % x.ndim]
    if x.shape[dim] < 1:
        raise BadInputError(f"windowed_mean: x {list(x.shape)} has no slice along dim {dim}")
    if index.ndim != len(kept) or any(i not in (1, n) for i, n in zip(index.shape, kept, strict=True)):
        raise BadInputError(
            f"windowed_mean: index must be {kept}, which is x {list(x.shape)} without dim {dim}, or broadcastable to it, "
            f"but is {list(index.shape)}"
        )
