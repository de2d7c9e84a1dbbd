"""One small graph for each rule, and one that the rule refuses, in ONNX's text form. They are run when the site is built."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser, shape_inference

from msconv_deploy.surgery.choice.choose import When
from msconv_deploy.surgery.optimize import Result, optimize_model
from msconv_deploy.surgery.rules import (
    drop_expand,
    merge_convs,
    sink_broadcast,
    tile_concat_conv,
    tiled_distance,
    unfold_channel_sum,
    unfold_matmul,
    unfold_max,
)
from msconv_deploy.surgery.sites import Site

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
SEED = 0


@dataclass(frozen=True)
class Graph:
    """A graph in text.

    Attributes:
        text: without its header.
        weights: the inputs that are weights: they get random values, and are not inputs any more.
        allow: rules that are allowed by name.
    """

    text: str
    weights: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    def model(self) -> onnx.ModelProto:
        """The model, with its weights."""
        model = parser.parse_model(HEADER + self.text)
        values = np.random.default_rng(SEED)
        for value in [v for v in model.graph.input if v.name in self.weights]:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            array = values.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:], initial=1.0))
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value.name))
            model.graph.input.remove(value)
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        return model

    def optimized(self, when: When = "always") -> Result:
        """Rewritten, as ``msconv optimize --when`` does it."""
        return optimize_model(self.model(), Path(), when, allow=self.allow)


@dataclass(frozen=True)
class Example:
    """What a rule does to one graph, and a graph that it leaves.

    Attributes:
        title: of the graph, in words.
        left: a graph that is almost the same, which is left as it is.
        left_because: what is different there, in words.
    """

    rule: str
    title: str
    graph: Graph
    left: Graph
    left_because: str


@dataclass(frozen=True)
class Facts:
    """What is counted of a model.

    Attributes:
        nodes: without constants.
        operators: their types with how many of each, in order of appearance.
        largest: bytes of the largest tensor that a node writes.
    """

    nodes: int
    operators: str
    largest: int


@dataclass(frozen=True)
class Outcome:
    """What came of an example.

    Attributes:
        site: of the rule.
        difference: max|a-b| / max|b| over the output, before and after, in ONNX Runtime.
        refusal: what is said of the graph that is left.
    """

    before: Facts
    after: Facts
    site: Site
    difference: float
    refusal: str


def run(example: Example) -> Outcome:
    """Run an example.

    Raises:
        ValueError: the rule does not do what the example is there to show.
    """
    original, result = example.graph.model(), example.graph.optimized()
    sites = [s for s in result.sites if s.rule == example.rule and s.decision == "rewritten"]
    left = example.left.optimized("faster")
    refusals = [s.reason for s in left.sites if s.rule == example.rule and s.decision == "left"]
    refusals += [miss.reason for miss in left.near_misses]
    if not sites or left.changed or not refusals:
        raise ValueError(f"the example of {example.rule} shows nothing: {result.sites}, {left.sites}, {refusals}")
    return Outcome(facts(original), facts(result.model), sites[0], _difference(original, result.model), refusals[0])


def facts(model: onnx.ModelProto) -> Facts:
    """Count."""
    counts = Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    written = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    sizes = [_bytes(value) for value in (*inferred.value_info, *inferred.output) if value.name in written]
    words = ", ".join(op if count == 1 else f"{count} {op}" for op, count in counts.items())
    return Facts(sum(counts.values()), words, max(sizes))


def _bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    elements: int = math.prod(d.dim_value for d in kind.shape.dim)
    return elements * int(helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)


def _difference(original: onnx.ModelProto, other: onnx.ModelProto) -> float:
    from msconv_deploy.runtimes import Settings
    from msconv_deploy.runtimes.onnx_runtime import make_session
    from msconv_deploy.validation.difference import difference

    values = np.random.default_rng(SEED + 1)
    feeds = {
        value.name: values.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in original.graph.input
    }
    outputs = [
        make_session(Path("example.onnx"), Settings(optimization="none"), model).run(None, feeds)[0]
        for model in (other, original)
    ]
    return difference(*outputs).value


_TILE = """\
example (float[1,16,64,64] image, float[1,16] vector, float[32,32,3,3] w, float[32] b) => (float[1,32,64,64] y) {
  axes = Constant<value_ints = [2, 3]>()
  shape = Constant<value_ints = [1, 16, 64, 64]>()
  core = Unsqueeze(vector, axes)
  tile = Expand(core, shape)
  joined = Concat<axis = 1>(image, tile)
  y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(joined, w, b)
}"""

_SINK = """\
example (float[1,16,64,64] image, float[1,16,1,1] vector) => (float[1,32,64,64] y) {
  shape = Constant<value_ints = [1, 16, 64, 64]>()
  tile = Expand(vector, shape)
  gate = Sigmoid(tile)
  y = Concat<axis = 1>(image, gate)
}"""

_DROP = """\
example (float[1,16,64,64] image, float[1,16,1,1] scale) => (float[1,16,64,64] y) {
  shape = Constant<value_ints = [1, 16, 64, 64]>()
  tile = Expand(scale, shape)
  y = Mul(image, tile)
}"""

_AFTER_CONV = """\
example (float[1,16,64,64] image, float[1,16,1,1] shift, float[16,16,3,3] w) => (float[1,16,64,64] y) {
  shape = Constant<value_ints = [1, 16, 64, 64]>()
  convolved = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, w)
  tile = Expand(shift, shape)
  y = Add(convolved, tile)
}"""

_PATCHES = """\
example (float[1,3,64,64] image, float[192,48] w) => (float[1,64,48] y) {
  split = Constant<value_ints = [1, 3, 8, 8, 8, 8]>()
  rows = Constant<value_ints = [1, 64, 192]>()
  grid = Reshape(image, split)
  patches = Transpose<perm = [0, 2, 4, 1, 3, 5]>(grid)
  columns = Reshape(patches, rows)
  y = MatMul(columns, w)
}"""

_INDICES = ", ".join(str(tap + position) for tap in range(3) for position in range(62))

_WINDOWS = f"""\
  across = Constant<value = int64[3,62] {{{_INDICES}}}>()
  down = Gather<axis = 2>(image, across)
  windows = Gather<axis = 4>(down, across)"""

_CHANNEL_SUM = f"""\
example (float[1,16,64,64] image, float[1,16,3,1,3,1] w) => (float[1,3,62,3,62] y) {{
{_WINDOWS}
  axis = Constant<value_ints = [1]>()
  products = Mul(windows, w)
  y = ReduceSum<keepdims = 0>(products, axis)
}}"""

_MAXIMUM = f"""\
example (float[1,16,64,64] image) => (float[1,16,62,62] y) {{
{_WINDOWS}
  y = ReduceMax<axes = [2, 4], keepdims = 0>(windows)
}}"""

_TWO_CONVS = """\
example (float[1,8,64,64] image, float[32,8,3,3] w1, float[32] b1, float[8,32,1,1] w2, float[8] b2) => (float[1,8,64,64] y) {
  wide = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, w1, b1)
  y = Conv<kernel_shape = [1, 1]>(wide, w2, b2)
}"""

_DISTANCES = """\
example (float[256,1,32] points, float[1,128,32] centres) => (float[256,128] y) {
  two = Constant<value_float = 2.0>()
  axis = Constant<value_ints = [2]>()
  apart = Sub(points, centres)
  squares = Pow(apart, two)
  y = ReduceSum<keepdims = 0>(squares, axis)
}"""

EXAMPLES = (
    Example(
        tile_concat_conv.ID,
        "A vector, tiled over the image and joined to it, in front of a 3x3 convolution",
        Graph(_TILE, ("w", "b")),
        Graph(_TILE, ("b",)),
        "the convolution's weights are an input of the graph",
    ),
    Example(
        unfold_matmul.ID,
        "Patches of 8x8, cut out by reshaping, times a matrix",
        Graph(_PATCHES, ("w",)),
        Graph(_PATCHES),
        "the matrix is an input of the graph",
    ),
    Example(
        unfold_channel_sum.ID,
        "Windows of 3x3 times one filter, summed over the channels",
        Graph(_CHANNEL_SUM, ("w",)),
        Graph(_CHANNEL_SUM),
        "the filter is an input of the graph",
    ),
    Example(
        unfold_max.ID,
        "The maximum of every window of 3x3",
        Graph(_MAXIMUM),
        Graph(_MAXIMUM.replace("axes = [2, 4]", "axes = [1, 2, 4]").replace("float[1,16,62,62] y", "float[1,62,62] y")),
        "the maximum is taken over the channels too",
    ),
    Example(
        merge_convs.ID,
        "A 3x3 convolution to many channels and a 1x1 convolution back, with nothing between",
        Graph(_TWO_CONVS, ("w1", "b1", "w2", "b2")),
        Graph(
            _TWO_CONVS.replace("[8,32,1,1]", "[8,32,3,3]").replace(
                "kernel_shape = [1, 1]", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
            ),
            ("w1", "b1", "w2", "b2"),
        ),
        "both are 3x3 with padding 1",
    ),
    Example(
        tiled_distance.ID,
        "Squared distances of 256 points from 128 centres",
        Graph(_DISTANCES, allow=(tiled_distance.ID,)),
        Graph(_DISTANCES),
        "the rule is not allowed by name",
    ),
    Example(
        sink_broadcast.ID,
        "A sigmoid of a tiled vector, joined to the image",
        Graph(_SINK),
        Graph(_SINK.replace(" y) {", " y, float[1,16,64,64] tile) {")),
        "the tile is an output of the graph as well",
    ),
    Example(
        drop_expand.ID,
        "A scale, expanded to the image's extents before it is multiplied",
        Graph(_DROP),
        Graph(_AFTER_CONV, ("w",)),
        "the operator is an addition, and the other operand comes from a convolution",
    ),
)
