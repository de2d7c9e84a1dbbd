"""What holds of a convolution holds of its optimized spelling: linearity, order of channels, samples, axes.

Powers of two and signs are exact in floating point, so that scaling and doubling are compared bit for bit; the rest is
numerically equal. Each relation compares optimized models with each other; that they agree with the original is asserted
beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from msconv_deploy.surgery.optimize import optimize_model
from tests.metamorphic.layers import Arrays, Layer, random_inputs, random_layer
from tests.surgery.graphs import compare, rewritten, session

SEEDS = 12
Edit = Callable[[onnx.ModelProto], onnx.ModelProto]


def computed(layer: Layer, inputs: Arrays, edit: Edit = lambda model: model, sites: int = 1) -> NDArray:
    """The result of the optimized layer. ``edit`` is for planted faults."""
    model = layer.model()
    result = optimize_model(model, Path(), "always")
    assert rewritten(result) == sites
    edited = edit(result.model)
    (found,) = session(edited).run(None, inputs)
    if edited is result.model:
        compare(session(model).run(None, inputs), [found], layer)
    return found


Relation = Callable[[Layer, Arrays, Random, Callable[..., NDArray]], None]


def scaling(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    y = computed(layer, inputs)
    for factor in (np.float32(4), np.float32(-0.5)):
        bias = None if layer.bias is None else factor * layer.bias
        assert np.array_equal(computed(replace(layer, weight=factor * layer.weight, bias=bias), inputs), factor * y)


def doubling(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    linear = replace(layer, bias=None)
    doubled = {name: 2 * array for name, array in inputs.items()}
    assert np.array_equal(computed(linear, doubled), 2 * computed(linear, inputs))


def superposition(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    """The result for all operands is the sum of those for each alone, as if the others were zero."""
    linear = replace(layer, bias=None)
    alone = [
        {other: array if other == name else np.zeros_like(array) for other, array in inputs.items()} for name in inputs
    ]
    compare([computed(linear, inputs)], [sum(computed(linear, each) for each in alone)], layer)


def order_of_channels(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    orders = {name: rng.sample(range(n), n) for name, n in layer.channels.items()}
    orders["x"] = orders["x"][::-1] if orders["x"] == sorted(orders["x"]) else orders["x"]
    permuted = {name: np.ascontiguousarray(array[:, orders[name]]) for name, array in inputs.items()}
    operands = tuple(rng.sample(layer.operands, 3))
    compare([computed(layer, inputs)], [computed(layer.permuted(orders).reordered(operands), permuted)], layer)


def two_convolutions(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    split = rng.randrange(1, len(layer.weight))
    compare([computed(layer, inputs)], [computed(replace(layer, split=split), inputs, sites=2)], layer)


def samples(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    each = [computed(layer, {name: array[n : n + 1] for name, array in inputs.items()}) for n in range(2)]
    compare([computed(layer, inputs)], [np.concatenate(each)], layer)


def transposition(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    turned = {name: np.ascontiguousarray(array.swapaxes(2, 3)) for name, array in inputs.items()}
    compare([computed(layer, inputs)], [computed(layer.transposed(), turned).swapaxes(2, 3)], layer)


def mirroring(layer: Layer, inputs: Arrays, rng: Random, computed: Callable[..., NDArray]) -> None:
    """At stride 1, where the last window ends with the image."""
    layer = replace(layer, strides=(layer.strides[0], 1))
    turned = {name: np.ascontiguousarray(array[..., ::-1]) for name, array in inputs.items()}
    compare([computed(layer, inputs)], [computed(layer.mirrored(), turned)[..., ::-1]], layer)


RELATIONS = [
    scaling,
    doubling,
    superposition,
    order_of_channels,
    two_convolutions,
    samples,
    transposition,
    mirroring,
]
named = pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.__name__)


def hold(relation: Relation, seeds: int = SEEDS, edit: Edit = lambda model: model) -> None:
    for seed in range(seeds):
        rng = Random(f"{relation.__name__} {seed}")
        layer = random_layer(rng)
        relation(layer, random_inputs(layer, rng), rng, partial(computed, edit=edit))


@named
def test_relation(relation):
    hold(relation)


# -- planted faults ------------------------------------------------------------------------------------------------------


def faulty(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a mistake in front of its output, or behind its image."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    y, x = graph.output[0].name, "x"
    outputs = graph.output[0].type.tensor_type.shape.dim[1].dim_value

    def constant(array: NDArray) -> str:
        graph.initializer.append(numpy_helper.from_array(array, f"constant {len(graph.initializer)}"))
        return graph.initializer[-1].name

    def ints(*numbers: int) -> str:
        return constant(np.array(numbers, np.int64))

    if name == "image":  # its first channel counts twice
        for node in graph.node:
            node.input[:] = ["wrong" if i == x and node.op_type != "Shape" else i for i in node.input]
        channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
        factor = np.ones((1, channels, 1, 1), np.float32)
        factor[:, 0] = 2
        graph.node.insert(0, helper.make_node("Mul", [x, constant(factor)], ["wrong"]))
        return copy
    for node in graph.node:
        node.output[:] = ["right" if o == y else o for o in node.output]
    if name == "offset":
        made = [helper.make_node("Add", ["right", constant(np.float32(0.01))], [y])]
    elif name == "first channel":
        factor = np.ones((1, outputs, 1, 1), np.float32)
        factor[:, 0] = 2
        made = [helper.make_node("Mul", ["right", constant(factor)], [y])]
    elif name == "first sample":
        made = [
            helper.make_node("Slice", ["right", ints(0), ints(1), ints(0)], ["first"]),
            helper.make_node("Shape", ["right"], ["shape"]),
            helper.make_node("Expand", ["first", "shape"], [y]),
        ]
    elif name == "first column":
        made = [
            helper.make_node("Slice", ["right", ints(1), ints(2**31), ints(3)], ["others"]),
            helper.make_node("Pad", ["others", ints(0, 0, 0, 1, 0, 0, 0, 0)], [y]),
        ]
    else:
        made = [helper.make_node("Relu", ["right"], [y])]
    graph.node.extend(made)
    return copy


@pytest.mark.parametrize(
    ("relation", "fault"),
    [
        (scaling, "offset"),
        (scaling, "relu"),
        (doubling, "offset"),
        (superposition, "relu"),
        (order_of_channels, "image"),
        (two_convolutions, "first channel"),
        (samples, "first sample"),
        (transposition, "first column"),
        (mirroring, "first column"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_fault_is_found(relation, fault):
    if fault == "first channel":  # of both convolutions, as a mistake in the rule would be
        relation = partial(_first_channels, relation)
        relation.__name__ = "two_convolutions"
    with pytest.raises(AssertionError):
        hold(relation, edit=partial(faulty, fault))


def _first_channels(relation: Relation, layer: Layer, inputs: Arrays, rng: Random, computed: Callable) -> None:
    def each(layer: Layer, inputs: Arrays, sites: int = 1) -> NDArray:
        if layer.split is None:
            return computed(layer, inputs)
        bias = (None, None) if layer.bias is None else (layer.bias[: layer.split], layer.bias[layer.split :])
        parts = zip((layer.weight[: layer.split], layer.weight[layer.split :]), bias, strict=True)
        return np.concatenate([computed(replace(layer, weight=w, bias=b, split=None), inputs) for w, b in parts], 1)

    relation(layer, inputs, rng, each)
