"""Constants of the cost estimate: seconds on one core of ONNX Runtime's CPU provider.

Measured by ``benchmarks/microbenchmarks.py`` on isolated operators, never on networks; its results lie in
``benchmarks/results/microbenchmarks.json``. Only their ratios matter for a decision, and those differ little between
machines: all of them scale with the clock and the caches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Cost of a kind of contraction.

    Attributes:
        mac: seconds per multiply-accumulate.
        byte: seconds per byte read and written.
        column: seconds per element of the im2col matrix [C*taps, output pixels].
    """

    mac: float
    byte: float
    column: float = 0.0


NODE = 4.0e-7
"""Seconds that any node takes, however small its tensors."""

CONTRACTIONS = {
    "blocked": Rate(9.5e-12, 6.8e-11),
    "blocked-1x1": Rate(1.0e-11, 0.0),
    "narrow": Rate(1.3e-11, 0.3e-11),
    "narrow-1x1": Rate(3.3e-11, 0.0),
    "plain": Rate(1.07e-11, 0.0, 2.7e-10),
    "plain-1x1": Rate(1.03e-11, 2.7e-11),
    "transposed": Rate(1.0e-11, 3.2e-10),
    "product": Rate(9.8e-12, 2.2e-11),
}
"""Of Conv in ONNX Runtime's NCHWc layout (``blocked``), in that layout with fewer input channels than a block
(``narrow``), and in NCHW (``plain``); of ConvTranspose (``transposed``); of Gemm and MatMul (``product``)."""

BYTES = {
    "elementwise": 3.5e-11,
    "copy": 3.85e-11,
    "transpose": 4.3e-11,
    "reorder": 3.5e-11,
    "resize": 1.1e-10,
    "heavy": 3.6e-11,
}
"""Seconds per byte read and written. ``copy``: Concat, Expand, Tile, Slice, Pad and Gather of rows; ``reorder``: into or
out of the NCHWc layout; ``heavy``: functions such as Sigmoid and Exp, normalizations, reductions."""

PIECE = {"Gather": 2.8e-9, "Concat": 4.5e-10, "Split": 4.4e-10}
"""Seconds per contiguous piece of memory that an operator copies: along the last axis a piece may be one element."""
