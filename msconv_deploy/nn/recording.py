"""Is a call being recorded, and by what?"""

from __future__ import annotations

import torch


def recording() -> bool:
    """Is this call being recorded? Extents may be symbolic then, and values cannot be looked at."""
    return torch.compiler.is_compiling() or recording_script()


def recording_script() -> bool:
    """Is this call being recorded by TorchScript, as its exporter does?"""
    recorded: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return recorded
