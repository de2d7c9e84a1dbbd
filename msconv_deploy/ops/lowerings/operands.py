"""What a lowering is given: the names of the operator's inputs in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msconv_deploy.ops.configuration import MSConv2dConfig


@dataclass(frozen=True)
class Operands:
    """Value names of the sources, of their weights, and of the bias (None if there is none)."""

    sources: Mapping[str, str]
    weights: Mapping[str, str]
    bias: str | None

    @classmethod
    def from_inputs(cls, config: MSConv2dConfig, inputs: Sequence[str]) -> Operands:
        """Split the operator's inputs, which come in the order of ``config.input_names``."""
        names = config.source_names
        return cls(
            dict(zip(names, inputs, strict=False)),
            dict(zip(names, inputs[len(names) :], strict=False)),
            inputs[2 * len(names)] if config.has_bias else None,
        )
