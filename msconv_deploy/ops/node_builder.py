"""Emit ONNX nodes one call at a time, spelled for the opset at hand.

Only what the lowerings need: constants are `Constant` nodes (a function has no initializers), and operators whose
spelling changed between opsets 11 and 28 have a method that hides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from msconv_deploy.errors import BadInputError

MIN_OPSET = 11

TO_THE_END = 2**63 - 1
"""The end of a Slice that takes all there is."""


class NodeBuilder:
    """Collects nodes whose value names all start with one prefix.

    Args:
        prefix: put in front of every value and node name, so that a body can be pasted anywhere.
        opset: version of the default domain that the nodes will live in.
    """

    def __init__(self, prefix: str, opset: int) -> None:
        if opset < MIN_OPSET:
            raise BadInputError(f"opset {opset} is not supported: the oldest is {MIN_OPSET}")
        self.prefix = prefix
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def name(self, hint: str) -> str:
        """A value name that is new in this builder."""
        count = self._names.get(hint, 0)
        self._names[hint] = count + 1
        return f"{self.prefix}_{hint}" if count == 0 else f"{self.prefix}_{hint}_{count}"

    def add(
        self, op_type: str, *inputs: str, hint: str | None = None, output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node with one output; returns the output's name."""
        output = output or self.name(hint or op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def ints(self, values: int | Sequence[Any], hint: str = "ints") -> str:
        """An int64 constant: a scalar for an int, else a tensor. Equal constants are emitted once."""
        array = np.asarray(values, np.int64)
        key = (array.shape, array.tobytes())
        if key not in self._constants:
            output = self.name(hint)
            value = numpy_helper.from_array(array, output)
            self.nodes.append(helper.make_node("Constant", [], [output], name=output, value=value))
            self._constants[key] = output
        return self._constants[key]

    def scalar_like(self, value: float, like: str) -> str:
        """A scalar of the element type of another value, whatever that is."""
        if self.opset < 15:
            raise BadInputError(
                f"a constant of unknown element type needs opset 15 or later (CastLike), not {self.opset}"
            )
        output = self.name("number")
        tensor = numpy_helper.from_array(np.asarray(value, np.float32), output)
        self.nodes.append(helper.make_node("Constant", [], [output], name=output, value=tensor))
        return self.add("CastLike", output, like)

    def extent(self, x: str, axis: int) -> str:
        """Extent of one axis, an int64 scalar."""
        return self.add("Gather", self.add("Shape", x), self.ints(axis), hint="extent")

    def unsqueeze(self, x: str, *axes: int) -> str:
        if self.opset < 13:
            return self.add("Unsqueeze", x, axes=list(axes))
        return self.add("Unsqueeze", x, self.ints(list(axes)))

    def reduce_sum(self, x: str, *axes: int) -> str:
        """Sum over axes, which disappear."""
        if self.opset < 13:
            return self.add("ReduceSum", x, axes=list(axes), keepdims=0)
        return self.add("ReduceSum", x, self.ints(list(axes)), keepdims=0)

    def maximum(self, a: str, b: str) -> str:
        """Elementwise maximum of int64 values (`Max` takes integers from opset 12)."""
        if self.opset < 12:
            return self.add("Where", self.add("Greater", a, b), a, b)
        return self.add("Max", a, b)

    def minimum(self, a: str, b: str) -> str:
        """Elementwise minimum of int64 values."""
        if self.opset < 12:
            return self.add("Where", self.add("Less", a, b), a, b)
        return self.add("Min", a, b)

    def pad(self, x: str, mode: str, rank: int, pads: dict[int, tuple[int, int]]) -> str:
        """Pad some axes by constant amounts. ``mode``: constant (zeros), reflect, edge or wrap.

        `Pad` knows wrap from opset 19; before, the two strips are sliced and concatenated.
        """
        pads = {axis: amounts for axis, amounts in pads.items() if any(amounts)}
        if not pads:
            return x
        if mode == "wrap" and self.opset < 19:
            for axis, (before, after) in pads.items():
                parts = [x]
                if before:
                    parts.insert(0, self._slice(x, axis, -before, np.iinfo(np.int64).max))
                if after:
                    parts.append(self._slice(x, axis, 0, after))
                x = self.add("Concat", *parts, axis=axis, hint="wrapped")
            return x
        amounts = [pads.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(rank)]
        return self.add("Pad", x, self.ints(amounts, "pads"), mode=mode, hint="padded")

    def _slice(self, x: str, axis: int, start: int, end: int) -> str:
        return self.add("Slice", x, self.ints([start]), self.ints([end]), self.ints([axis]))
