"""How to validate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msconv_deploy.runtimes import Settings
from msconv_deploy.validation.inputs import InputOptions


@dataclass(frozen=True)
class ValidationOptions:
    """How to validate.

    Attributes:
        runtimes: names of the runtimes to compare with the reference; None: ``torch`` (the module in its own dtype) and
            ``ort`` against a module, ``ort`` against an ONNX file.
        inputs: sizes, seed, ranges and files.
        settings: threads, graph optimization level and provider.
        tolerance: replaces the policy, for all outputs and intermediate tensors.
        save_to: folder for inputs and results in Polygraphy's JSON format; it must be new or empty unless ``force``.
        find_divergence: on disagreement, look for the first tensor that diverges.
        build_check: also parse and build with TensorRT-RTX in a subprocess.
    """

    runtimes: Sequence[str] | None = None
    inputs: InputOptions = field(default_factory=InputOptions)
    settings: Settings = field(default_factory=Settings)
    tolerance: float | None = None
    save_to: Path | None = None
    force: bool = False
    find_divergence: bool = True
    build_check: bool = False
