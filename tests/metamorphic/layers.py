"""One tile-concat-conv that can be changed as algebra changes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.surgery.graphs import Net

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Layer:
    """conv(concat(x, tile(s), tile(r))): an image, a vector and a line of vectors along one spatial axis.

    Attributes:
        weight: [O, C, kh, kw] with C the channels of x, s and r in the order of ``operands``.
        bias: [O], or None.
        pads: top, left, bottom, right.
        line: axis that r has: 2 for rows, 3 for columns.
        operands: order in the concatenation.
        split: output channels of the first of two convolutions, whose results are concatenated; None: there is one.
    """

    channels: dict[str, int]
    weight: NDArray
    bias: NDArray | None
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    line: int
    operands: tuple[str, ...] = ("x", "s", "r")
    split: int | None = None

    def model(self) -> onnx.ModelProto:
        net = Net(17)
        x = net.input("N", self.channels["x"], "H", "W", name="x")
        s = net.input("N", self.channels["s"], 1, 1, name="s")
        r = net.input("N", self.channels["r"], *(("H", 1) if self.line == 2 else (1, "W")), name="r")
        full = {"x": x}
        for name, core in (("s", s), ("r", r)):
            full[name] = net.node("Expand", core, net.shape(["N", self.channels[name], "H", "W"]))
        joined = net.node("Concat", *(full[name] for name in self.operands), axis=1)
        parts = [slice(0, None)] if self.split is None else [slice(0, self.split), slice(self.split, None)]
        attributes = {"strides": self.strides, "dilations": self.dilations, "pads": self.pads}
        results = []
        for part in parts:
            constants = [self.weight[part]] + ([] if self.bias is None else [self.bias[part]])
            results.append(net.node("Conv", joined, *(net.constant(c) for c in constants), **attributes))
        net.output(results[0] if self.split is None else net.node("Concat", *results, axis=1))
        return net.model()

    def columns(self, operand: str) -> slice:
        """Where an operand lies in the channels of the weight."""
        start = sum(self.channels[o] for o in self.operands[: self.operands.index(operand)])
        return slice(start, start + self.channels[operand])

    def transposed(self) -> Layer:
        """Height and width exchanged."""
        top, left, bottom, right = self.pads
        return replace(
            self,
            weight=np.ascontiguousarray(self.weight.transpose(0, 1, 3, 2)),
            strides=self.strides[::-1],
            dilations=self.dilations[::-1],
            pads=(left, top, right, bottom),
            line=5 - self.line,
        )

    def mirrored(self) -> Layer:
        """Left and right exchanged."""
        top, left, bottom, right = self.pads
        return replace(self, weight=np.ascontiguousarray(self.weight[..., ::-1]), pads=(top, right, bottom, left))

    def reordered(self, operands: tuple[str, ...]) -> Layer:
        """The concatenation in another order."""
        weight = np.concatenate([self.weight[:, self.columns(o)] for o in operands], 1)
        return replace(self, operands=operands, weight=weight)

    def permuted(self, orders: dict[str, list[int]]) -> Layer:
        """The channels of the operands in other orders: channel i of each is what channel ``order[i]`` was."""
        weight = self.weight.copy()
        for operand, order in orders.items():
            weight[:, self.columns(operand)] = self.weight[:, self.columns(operand)][:, order]
        return replace(self, weight=weight)


def random_layer(rng: Random) -> Layer:
    values = np.random.default_rng(rng.randrange(10**6))
    channels = {"x": rng.choice([1, 2, 3]), "s": rng.choice([1, 2, 4]), "r": rng.choice([1, 2])}
    kernel = (rng.choice([1, 2, 3, 4]), rng.choice([1, 2, 3]))
    outputs = rng.choice([2, 3, 5])
    return Layer(
        channels,
        values.standard_normal((outputs, sum(channels.values()), *kernel)).astype(np.float32),
        values.standard_normal(outputs).astype(np.float32) if rng.random() < 0.5 else None,
        (rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2])),
        (rng.choice([1, 1, 2]), rng.choice([1, 1, 2])),
        tuple(rng.choice([0, 1, 1, 2, 3]) for _ in range(4)),
        rng.choice([2, 3]),
    )


def random_inputs(layer: Layer, rng: Random, samples: int = 2) -> Arrays:
    """An image that is large enough for one output pixel, small enough for borders that meet."""
    values = np.random.default_rng(rng.randrange(10**6))
    height, width = (
        1 + d * (k - 1) + rng.randrange(6) for k, d in zip(layer.weight.shape[2:], layer.dilations, strict=True)
    )
    line = (height, 1) if layer.line == 2 else (1, width)
    shapes = {"x": (height, width), "s": (1, 1), "r": line}
    return {
        name: values.standard_normal((samples, layer.channels[name], *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
