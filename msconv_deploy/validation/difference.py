"""The difference between two tensors: one definition for the whole project."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorDifference:
    """``max|a-b| / max|b|`` over one tensor, b the reference.

    Attributes:
        value: the difference; infinite where b is zero everywhere and a is not, or where a mismatch has no size (then
            ``problem`` says why). For integers and booleans: 0 or infinite.
        border, interior: largest ``|a-b|`` over border and interior pixels of a 4-D tensor, both over the same
            ``max|b|``; None where there is no such part.
        border_width: pixels on each side that count as border; None if the tensor is not 4-D.
        exact: compared for equality.
        problem: why the tensors cannot agree (shapes, kinds, NaN, infinities); empty if numbers were compared.
        unusable: why the reference cannot judge (it holds NaN, or nothing finite); empty if it can.
    """

    value: float
    border: float | None = None
    interior: float | None = None
    border_width: int | None = None
    exact: bool = False
    problem: str = ""
    unusable: str = ""

    def within(self, tolerance: float) -> bool:
        return not self.problem and not self.unusable and self.value <= tolerance


def is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def difference(a: np.ndarray, b: np.ndarray, border_reach: int = 0) -> TensorDifference:
    """Compare ``a`` with the reference ``b``.

    Infinities of one sign in one place agree; every other NaN or infinity in only one of the two is a mismatch. A NaN
    in the reference makes it unusable: nothing can be learned from it.

    Args:
        a, b: floating tensors may differ in width; the difference is computed in float64.
        border_reach: how far the border reaches into the tensor, see :func:`border_width_of`.
    """
    if a.shape != b.shape:
        return TensorDifference(math.inf, problem=f"shape {list(a.shape)}, but the reference has {list(b.shape)}")
    if is_float(a.dtype) != is_float(b.dtype) or (not is_float(b.dtype) and a.dtype != b.dtype):
        return TensorDifference(math.inf, problem=f"type {a.dtype.name}, but the reference has {b.dtype.name}")
    if not is_float(b.dtype):
        wrong = int(np.count_nonzero(a != b))
        problem = f"{wrong} of {b.size} integer or boolean values differ" if wrong else ""
        return TensorDifference(math.inf if wrong else 0.0, exact=True, problem=problem)
    if b.size == 0:
        return TensorDifference(0.0)
    x, y = a.astype(np.float64), b.astype(np.float64)
    undefined = int(np.isnan(y).sum())
    if undefined:
        return TensorDifference(math.nan, unusable=f"the reference is NaN in {undefined} of {y.size} values")
    finite = np.isfinite(y)
    with np.errstate(invalid="ignore"):
        error = np.where(x == y, 0.0, np.abs(x - y))  # equal infinities differ by zero
    wrong = int(np.count_nonzero(~np.isfinite(error)))
    if wrong:
        odd = "NaN" if np.isnan(x).any() else "infinite"
        return TensorDifference(math.inf, problem=f"{wrong} of {x.size} values are {odd} where the reference is not")
    if not finite.any():
        return TensorDifference(math.nan, unusable="the reference has no finite value")
    scale = float(np.abs(y[finite]).max())
    width = border_width_of(b.shape, border_reach)
    border = interior = None
    if width is not None:
        inside = error[:, :, width : error.shape[2] - width, width : error.shape[3] - width]
        mask = np.ones(error.shape[2:], dtype=bool)
        mask[width : error.shape[2] - width, width : error.shape[3] - width] = False
        border = _ratio(float(error[:, :, mask].max()), scale)
        interior = _ratio(float(inside.max()), scale) if inside.size else None
    return TensorDifference(_ratio(float(error.max()), scale), border, interior, width)


def border_width_of(shape: tuple[int, ...], reach: int) -> int | None:
    """Width of the border ring of a 4-D tensor ``[N, C, H, W]``; None for other ranks.

    The ring is as wide as border effects reach (half the dilated kernels, summed along the network), at least 1, and at
    most a quarter of the shorter side, so that an interior remains. Below 3 pixels there is no interior: all is border.
    """
    if len(shape) != 4:
        return None
    shorter = min(shape[2:])
    return max(1, min(reach, shorter // 4))


def _ratio(error: float, scale: float) -> float:
    if error == 0.0:
        return 0.0
    return error / scale if scale > 0.0 else math.inf
