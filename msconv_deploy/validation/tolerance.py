"""How large a difference rounding alone may make. One policy for the whole project.

*Difference* is ``max|a-b| / max|b|`` over one tensor, b the reference. Every tensor has a tolerance

    8 * sqrt(sum of u_store^2 over the operators that round) + 8 * sqrt(sum over contractions of u_acc^2 * K)

along the path that leads to it with the largest sum. In a network of one dtype this is

    8 * u_store * sqrt(depth) + 8 * u_acc * sqrt(K_1 + ... + K_depth)

where u is the unit roundoff (half the spacing of numbers around 1; Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 2.1), ``u_store`` that of the tensor's type, ``u_acc`` that of the type in which products
are summed: float32 for float32, float16 and bfloat16, float64 for float64; K is the number of products in one output
value.

Why this form:

* Each operator rounds its result once to the storage type: a relative error of at most u_store. Errors of consecutive
  operators behave like independent random numbers, so their variances add (Higham and Mary, "A new approach to
  probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019: sqrt(n)*u in place of the worst case n*u).
* Summing K products in any order has a relative error of about u_acc * sqrt(K) (same paper).
* Along a path, not over all nodes: relative errors of parallel branches do not add when the branches do.
* 8 covers what the model leaves out: that values can cancel, that the largest error of many pixels is wanted and not
  the typical one, and that both sides round.

Over random networks of 1 to 11 convolutions in float32, float16 and bfloat16 the error was 9 to 240 times smaller than
this (``tests/validation/test_tolerance.py`` measures it again), while a weight that is wrong by a few percent is usually
orders of magnitude above. Some networks amplify rounding beyond any such bound (an InstanceNorm on a 1x1 image leaves
nothing but rounding errors). So the reference also measures its *own* noise, the difference that it makes to itself
when it computes in the model's own type (PyTorch: against a float64 copy; ONNX: optimizations on against off), and the
tolerance is the larger of the policy and ``NOISE_FACTOR`` times that noise. Above ``NOISE_LIMIT`` a noisy size cannot
tell right from wrong and is reported as unverified.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from msconv_deploy.errors import BadInputError

SAFETY = 8.0
NOISE_FACTOR = 4.0
NOISE_LIMIT = 0.05

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_ACCUMULATION = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}


def unit_roundoff(dtype: np.dtype | str) -> float:
    """Half the distance from 1 to the next number of the type.

    Raises:
        BadInputError: the type is not a floating type of this project.
    """
    name = dtype if isinstance(dtype, str) else dtype.name
    if name not in UNIT_ROUNDOFF:
        raise BadInputError(f"no tolerance is defined for {name}; known are {', '.join(UNIT_ROUNDOFF)}")
    return UNIT_ROUNDOFF[name]


def accumulation_roundoff(dtype: np.dtype | str) -> float | None:
    """The unit roundoff of the type in which products of this one are summed; None for one that does not round."""
    name = _ACCUMULATION.get(dtype if isinstance(dtype, str) else dtype.name)
    return None if name is None else UNIT_ROUNDOFF[name]


def policy_tolerance(dtype: np.dtype | str, depth: int, reductions: Iterable[int]) -> float:
    """The closed form for a network of one dtype: ``depth`` roundings, contractions of these reduction sizes."""
    name = dtype if isinstance(dtype, str) else dtype.name
    path = ErrorPath().rounded(name, depth).accumulated(name, sum(reductions))
    return path.tolerance(name)


@dataclass(frozen=True)
class ErrorPath:
    """Sums of squared unit roundoffs along one path."""

    storage: float = 0.0
    accumulation: float = 0.0

    @property
    def weight(self) -> float:
        return self.storage + self.accumulation

    @staticmethod
    def heaviest(paths: Iterable[ErrorPath]) -> ErrorPath:
        """The path with the largest sum; the empty path if there is none."""
        return max(paths, key=lambda p: p.weight, default=ErrorPath())

    def rounded(self, dtype: np.dtype | str, times: int = 1) -> ErrorPath:
        """The path after that many more roundings to the type. Types without rounding (integers) change nothing."""
        u = UNIT_ROUNDOFF.get(dtype if isinstance(dtype, str) else dtype.name, 0.0)
        return ErrorPath(self.storage + times * u**2, self.accumulation)

    def accumulated(self, dtype: np.dtype | str, products: int) -> ErrorPath:
        """The path after that many more products have been summed."""
        u = accumulation_roundoff(dtype) or 0.0
        return ErrorPath(self.storage, self.accumulation + products * u**2)

    def tolerance(self, dtype: np.dtype | str) -> float:
        """Tolerance of a tensor of this type at the end of the path; at least what one rounding to the type needs."""
        u = UNIT_ROUNDOFF.get(dtype if isinstance(dtype, str) else dtype.name, 0.0)
        return SAFETY * (math.sqrt(max(self.storage, u**2)) + math.sqrt(self.accumulation))


def with_noise(policy: float, noise: float | None) -> tuple[float, bool]:
    """(tolerance, usable). ``usable`` is False where the noise is so large that a difference above the policy's
    tolerance means nothing; the tolerance is the policy's then."""
    if noise is None:
        return policy, True
    wanted = max(policy, NOISE_FACTOR * noise)
    usable = math.isfinite(wanted) and wanted <= max(policy, NOISE_LIMIT)
    return (wanted if usable else policy), usable
