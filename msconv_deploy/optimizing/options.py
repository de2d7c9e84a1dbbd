"""How to optimize a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class OptimizeOptions:
    """How to optimize a file.

    Attributes:
        when: ``faster`` rewrites the sites whose estimated gain is above the margin, ``always`` every valid site.
        allow: rules to apply too that round otherwise than the original: ``tiled-distance``.
        form: of the written model.
        tune: measure the candidates on this machine instead of estimating them.
        input_shapes: input -> extents, for estimates and as one of the sizes of the verification.
        input_files: NumPy ``.npz`` files with inputs for the verification.
        input_ranges: input -> (low, high) of random values.
        seed: of all random numbers.
        verify: compare the result with the original before it is written.
        keep_failed: write a result that differs or could not be verified to ``<stem>.failed.onnx``.
        html: also write the report as an HTML page.
        json: also write the report as JSON, beside the sidecar.
        force: replace files that exist, the input too if the output names it.
    """

    when: Literal["faster", "always"] = "faster"
    allow: Collection[str] = ()
    form: Literal["portable", "fused", "plugin"] = "portable"
    tune: bool = False
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    input_files: Sequence[Path] = ()
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seed: int = 0
    verify: bool = True
    keep_failed: bool = False
    html: Path | None = None
    json: Path | None = None
    force: bool = False
