"""How a runtime shall run; each adapter uses what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        threads: threads within an operator; None leaves the runtime's default.
        optimization: graph optimizations of ONNX Runtime.
        provider: execution provider of ONNX Runtime.
    """

    threads: int | None = None
    optimization: Literal["none", "basic", "extended", "all"] = "all"
    provider: str = "CPUExecutionProvider"
