"""Passes: rules that are applied at every node of a graph, one pass after another until nothing changes.

A pass gets the model and the word of a :data:`Decider` at each of its sites; what it rewrites keeps its output's name, and
its nodes carry the rule's id and the names of what they replace, so that no pass takes them up again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from msconv_deploy.surgery.choice.extents import InputShapes
from msconv_deploy.surgery.sites import NearMiss, Site

Decider = Callable[[str, str], tuple[bool, str]]
"""(output tensor, why it may not be faster or an empty text) -> whether to rewrite, and the reason if there is one."""


def faster(_: str, objection: str) -> tuple[bool, str]:
    """Apply what cannot be slower."""
    return not objection, objection


def always(_: str, objection: str) -> tuple[bool, str]:
    """Apply whatever is valid."""
    return True, objection


@dataclass
class PassResult:
    """What a pass found and did; the model is the given object itself if nothing was rewritten."""

    model: onnx.ModelProto
    sites: list[Site] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)


Pass = Callable[[onnx.ModelProto, Path, Decider, InputShapes], PassResult]
"""(model, folder of its external data, decider, shapes of inputs for estimates) -> what was done."""
