"""How a runtime shall run; each adapter uses what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        threads: threads within an operator; None leaves the runtime's default.
        optimization: graph optimizations of ONNX Runtime.
        provider: execution provider of ONNX Runtime.
        plugins: TensorRT plugin libraries, beside those that are found.
    """

    threads: int | None = None
    optimization: Literal["none", "basic", "extended", "all"] = "all"
    provider: str = "CPUExecutionProvider"
    plugins: Sequence[Path] = ()
