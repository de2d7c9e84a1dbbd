"""Sizes at which a model runs in ONNX Runtime although what it computes there is not defined.

In ONNX the inputs of a Concat have the same extents but along its axis. ONNX Runtime does not hold an empty input to that:
the result has the channels of such an input, and in them whatever was in memory; or the extents of the first input, where all
are empty and others have other ones. Tiny images come to it: of an extent of 1, an AveragePool with a window of 2 and no
padding makes 1 there ((1 - 2) / 2 is rounded towards zero), while the arithmetic that exporters write for the same extent makes
0, so that an Expand to it is empty. Two runs, or two spellings, then differ by as much as the values themselves, and neither is
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from msconv_deploy.validation.graph import OnnxGraph

_EXTENTS = "/msconv_extents"


@dataclass(frozen=True)
class Join:
    """A Concat of values, not of extents, in the main graph.

    Attributes:
        node: its name, or that of its output.
        axis: along which it joins; may count from the end.
        inputs: its tensors.
    """

    node: str
    axis: int
    inputs: Sequence[str]

    def undefined(self, shapes: Mapping[str, Sequence[int]]) -> str:
        """Why the result is not defined where the inputs have these shapes; empty if it is.

        An empty input with an extent of 0 along the axis adds nothing.
        """
        empty = [name for name in self.inputs if math.prod(shapes[name]) == 0 and _extent(shapes[name], self.axis)]
        filled = [name for name in self.inputs if math.prod(shapes[name])]
        if not empty:
            return ""
        others = filled or [name for name in empty[1:] if self._across(shapes[name]) != self._across(shapes[empty[0]])]
        if not others:
            return ""
        first, second = (f"{name} {list(shapes[name])}" for name in (others[0], empty[0]))
        why = "which has no values for the extent that it adds" if filled else "which differ in other extents"
        return f"what it computes there is not defined: Concat {self.node} joins {first} and {second}, {why}"

    def _across(self, shape: Sequence[int]) -> list[int]:
        """The extents but for that along the axis."""
        return [extent for index, extent in enumerate(shape) if index != self.axis % len(shape)]


def joins_of(model: onnx.ModelProto, graph: OnnxGraph) -> list[Join]:
    """The Concats of floats; those in functions and in bodies of control flow are not seen.

    Args:
        graph: analysis of the model.
    """
    found = []
    for node in model.graph.node:
        if node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
            continue
        dtype = graph.dtypes.get(node.output[0])
        if dtype is not None and dtype.kind in "iub":
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        found.append(Join(node.name or node.output[0], axis, tuple(node.input)))
    return found


def extent_nodes(joins: Iterable[Join]) -> list[onnx.NodeProto]:
    """Nodes that read the shape of everything that is joined; their outputs are to be exposed."""
    tensors = dict.fromkeys(name for join in joins for name in join.inputs)
    return [helper.make_node("Shape", [name], [name + _EXTENTS], name + _EXTENTS) for name in tensors]


def undefined(joins: Iterable[Join], values: Mapping[str, Any]) -> str:
    """Why one of the joins is not defined, given what :func:`extent_nodes` computed; empty if all are."""
    for join in joins:
        reason = join.undefined({name: [int(n) for n in values[name + _EXTENTS]] for name in join.inputs})
        if reason:
            return reason
    return ""


def _extent(shape: Sequence[int], axis: int) -> int:
    """Extent along the axis; 0 for a tensor without it, which ONNX Runtime passes over (``{0}``)."""
    return shape[axis] if -len(shape) <= axis < len(shape) else 0
