"""Models to start from: small ones made here, which between them use every part of the format, and the zoo's smaller files.

A source is an ONNX file with the files beside it that it needs, in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from msconv_deploy.model_files import read_model
from msconv_deploy.ops.forms import Form
from msconv_deploy.surgery.optimize import optimize_model
from tests.tile_models import plain_conv, tiled_conv

ZOO = Path(__file__).parents[4] / "shared" / "zoo"
LARGEST_OF_ZOO = 120_000
"""Bytes of the largest file of the zoo that is mutated."""


@dataclass(frozen=True)
class Source:
    """Bytes of an ONNX file and, by name, of the files beside it."""

    name: str
    model: bytes
    beside: dict[str, bytes] = field(default_factory=dict)


@cache
def made_sources() -> tuple[Source, ...]:
    """The models that are made here, smallest parts of everything that a reader of ONNX files meets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [_from_file(folder, "tiled", tiled_conv(folder / "tiled.onnx"))]
        found.append(_from_file(folder, "external", tiled_conv(folder / "external.onnx", external=True)))
        found.append(_from_file(folder, "plain", plain_conv(folder / "plain.onnx")))
        found.append(_from_file(folder, "plain_external", plain_conv(folder / "plain_external.onnx", external=True)))
        model = read_model(folder / "tiled.onnx")
        fused = optimize_model(model, folder, "always", form=Form.FUSED).model
        found.append(Source("fused", fused.SerializeToString()))
        found.append(Source("static", tiled_conv(folder / "static.onnx", dims=(1, 3, 8, 6)).read_bytes()))
    found += [Source(model.graph.name, model.SerializeToString()) for model in _by_hand()]
    return tuple(found)


def zoo_sources() -> tuple[Source, ...]:
    """The smaller files of the zoo; none where it is not beside the checkout."""
    files = sorted(ZOO.glob("*.onnx"))
    return tuple(Source(f.stem, f.read_bytes()) for f in files if f.stat().st_size <= LARGEST_OF_ZOO)


def _from_file(folder: Path, name: str, path: Path) -> Source:
    locations = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return Source(name, path.read_bytes(), {location: (folder / location).read_bytes() for location in locations})


def _by_hand() -> Iterator[onnx.ModelProto]:
    yield _half()
    yield _sparse()
    yield _branches()
    yield _loop()
    yield _functions()
    yield _constants()
    yield _quantized()
    yield _strings()
    yield _product()
    yield _shapes()
    yield _large_weight()
    yield _typed_fields()


def _info(name: str, *dims: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def _values(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
    opset: int = 17,
    domains: tuple[str, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def _half() -> onnx.ModelProto:
    """A tile-concat-conv in float16, tiled by `Tile`."""
    half = TensorProto.FLOAT16
    return _model(
        "half",
        [
            helper.make_node("Tile", ["s", "repeats"], ["tiled"], "tile"),
            helper.make_node("Concat", ["x", "tiled"], ["joined"], "concat", axis=1),
            helper.make_node("Conv", ["joined", "w"], ["y"], "conv", pads=[1, 1, 1, 1]),
        ],
        [_info("x", 1, 2, 6, 5, kind=half), _info("s", 1, 3, 1, 1, kind=half)],
        [_info("y", 1, 4, 6, 5, kind=half)],
        {"repeats": np.array([1, 1, 6, 5]), "w": _values(4, 5, 3, 3, dtype=np.float16)},
    )


def _sparse() -> onnx.ModelProto:
    model = _model(
        "sparse", [helper.make_node("MatMul", ["x", "w"], ["y"])], [_info("x", "N", 4)], [_info("y", "N", 3)], {}
    )
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 5, 11]), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    return model


def _branches() -> onnx.ModelProto:
    """`If` with two bodies that read a tensor of the graph around them."""

    def body(name: str, op: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(_values(1, 3, 1, 1), f"{name}_w")
        return helper.make_graph(
            [helper.make_node(op, ["x", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [_info(f"{name}_y", "N", 3, "H", "W")],
            [weight],
        )

    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=body("then", "Add"), else_branch=body("else", "Mul"))
    inputs = [_info("x", "N", 3, "H", "W"), _info("c", kind=TensorProto.BOOL)]
    return _model("branches", [node], inputs, [_info("y", "N", 3, "H", "W")], {})


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "x"], ["next"]),
            helper.make_node("Identity", ["condition"], ["again"]),
        ],
        "body",
        [
            _info("i", kind=TensorProto.INT64),
            _info("condition", kind=TensorProto.BOOL),
            _info("state", "N", 2),
        ],
        [_info("again", kind=TensorProto.BOOL), _info("next", "N", 2)],
    )
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y"], "loop", body=body)]
    return _model("loop", nodes, [_info("x", "N", 2)], [_info("y", "N", 2)], {"trips": np.array(3)})


def _functions() -> onnx.ModelProto:
    """A function that calls another one, of a domain of its own, and an import that nothing uses."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    slope = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(slope)
    inner = helper.make_function("own", "Inner", ["a"], ["b"], [leaky], imports, ["slope"])
    nodes = [helper.make_node("Inner", ["p"], ["q"], domain="own", slope=0.25), helper.make_node("Neg", ["q"], ["r"])]
    outer = helper.make_function("own", "Outer", ["p"], ["r"], nodes, imports)
    nodes = [helper.make_node("Outer", ["x"], ["t"], domain="own"), helper.make_node("Conv", ["t", "w"], ["y"])]
    return _model(
        "functions",
        nodes,
        [_info("x", "N", 2, "H", "W")],
        [_info("y", "N", 2, "H", "W")],
        {"w": _values(2, 2, 1, 1)},
        domains=("own", "ai.onnx.ml"),
        functions=(inner, outer),
    )


def _constants() -> onnx.ModelProto:
    """`Constant` nodes with each kind of value, and shape arithmetic on them."""
    nodes = [
        helper.make_node("Constant", [], ["ints"], value_ints=[1, 2, 4, 4]),
        helper.make_node("Constant", [], ["floats"], value_floats=[0.5, 2.0]),
        helper.make_node("Constant", [], ["float"], value_float=0.5),
        helper.make_node("Constant", [], ["int"], value_int=1),
        helper.make_node("Constant", [], ["tensor"], value=numpy_helper.from_array(_values(1, 2, 1, 1))),
        helper.make_node("Expand", ["tensor", "ints"], ["tiled"]),
        helper.make_node(
            "ConstantOfShape", ["ints"], ["ones"], value=numpy_helper.from_array(np.array([1], np.float32))
        ),
        helper.make_node("Cast", ["int"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["ones", "float"], ["sum"]),
        helper.make_node("Concat", ["x", "tiled", "sum"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w", "floats"], ["t"]),
        helper.make_node("Mul", ["t", "cast"], ["y"]),
    ]
    outputs = [_info("y", 1, 2, 3, 3)]
    return _model("constants", nodes, [_info("x", 1, 1, 4, 4)], outputs, {"w": _values(2, 5, 2, 2)})


def _quantized() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], ["dw"]),
        helper.make_node("Conv", ["d", "dw"], ["y"]),
    ]
    weights = {
        "scale": np.float32(0.5),
        "zero": np.uint8(3),
        "w": np.arange(8, dtype=np.int8).reshape(2, 1, 2, 2),
        "w_zero": np.int8(0),
    }
    weights = {name: np.asarray(array) for name, array in weights.items()}
    return _model("quantized", nodes, [_info("x", "N", 1, "H", "W")], [_info("y", "N", 2, "H", "W")], weights)


def _strings() -> onnx.ModelProto:
    """A tensor of strings, compared with a constant string; opset 19 is the first to compare them."""
    nodes = [
        helper.make_node("Gather", ["words", "x"], ["word"], axis=0),
        helper.make_node("Equal", ["word", "wanted"], ["y"]),
    ]
    weights = {"words": np.array(["a", "bc", "déf"], object), "wanted": np.array(["bc"], object)}
    inputs, outputs = [_info("x", "N", kind=TensorProto.INT64)], [_info("y", "N", kind=TensorProto.BOOL)]
    return _model("strings", nodes, inputs, outputs, weights, opset=19)


def _product() -> onnx.ModelProto:
    """Gemm of a concat with an expanded vector, the bias in an optional place that is left empty."""
    nodes = [
        helper.make_node("Expand", ["s", "shape"], ["tiled"], "expand"),
        helper.make_node("Concat", ["x", "tiled"], ["joined"], "concat", axis=1),
        helper.make_node("Gemm", ["joined", "w"], ["t"], "gemm", transB=1),
        helper.make_node("Clip", ["t", "", "six"], ["y"], "clip"),
    ]
    weights = {"shape": np.array([5, 3]), "w": _values(4, 5), "six": np.array(6, np.float32)}
    return _model("product", nodes, [_info("x", 5, 2), _info("s", 1, 3)], [_info("y", 5, 4)], weights)


def _shapes() -> onnx.ModelProto:
    """Coordinates of the image's own size: Shape, Range, Reshape, Expand, Transpose, Split, ConvTranspose."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "three"], ["width"], axis=0),
        helper.make_node("Range", ["zero", "width", "one"], ["columns"]),
        helper.make_node("Cast", ["columns"], ["coordinates"], to=1),
        helper.make_node("Slice", ["shape", "from_two", "to_three"], ["height"]),
        helper.make_node("Concat", ["one_one", "height", "minus"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["coordinates", "row"], ["row4"]),
        helper.make_node("Shape", ["row4"], ["last"]),
        helper.make_node("Slice", ["last", "to_three", "to_four"], ["last1"]),
        helper.make_node("Concat", ["one_one", "height", "last1"], ["full"], axis=0),
        helper.make_node("Expand", ["row4", "full"], ["grid"]),
        helper.make_node("Concat", ["x", "grid"], ["joined"], axis=1),
        helper.make_node("ConvTranspose", ["joined", "w"], ["t"], strides=[2, 2]),
        helper.make_node("Transpose", ["t"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("Split", ["turned"], ["y", "z"], axis=1),
    ]
    integers = {
        "three": 3,
        "zero": 0,
        "one": 1,
        "from_two": [2],
        "to_three": [3],
        "to_four": [4],
        "one_one": [1, 1],
        "minus": [-1],
        "row": [1, 1, 1, -1],
    }
    weights = {name: np.array(value, np.int64) for name, value in integers.items()} | {"w": _values(3, 2, 2, 2)}
    outputs = [_info("y", "N", 1, "A", "B"), _info("z", "N", 1, "A", "B")]
    return _model("shapes", nodes, [_info("x", 1, 2, "H", "W")], outputs, weights)


def _large_weight() -> onnx.ModelProto:
    """A weight that is large enough to stay in the file while the model is in memory, at a tiled operand."""
    nodes = [
        helper.make_node("Expand", ["s", "shape"], ["tiled"]),
        helper.make_node("Concat", ["x", "tiled"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w"], ["y"]),
    ]
    weights = {"shape": np.array([1, 64, 4, 4]), "w": _values(130, 66, 2, 2)}
    inputs = [_info("x", 1, 2, 4, 4), _info("s", 1, 64, 1, 1)]
    return _model("large_weight", nodes, inputs, [_info("y", 1, 130, 3, 3)], weights)


def _typed_fields() -> onnx.ModelProto:
    """Weights in the typed fields of TensorProto instead of its raw bytes; one is a graph input with a default, too."""
    model = _model(
        "typed_fields",
        [
            helper.make_node("Add", ["x", "f"], ["a"]),
            helper.make_node("Cast", ["a"], ["d"], to=TensorProto.DOUBLE),
            helper.make_node("Mul", ["d", "g"], ["m"]),
            helper.make_node("Cast", ["m"], ["b"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["b", "i"], ["y"]),
        ],
        [_info("x", 2, 3), _info("f", 3)],
        [_info("y", 3, 2)],
        {},
    )
    model.graph.initializer.extend(
        [
            helper.make_tensor("f", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
            helper.make_tensor("g", TensorProto.DOUBLE, [1], [0.5]),
            helper.make_tensor("i", TensorProto.INT64, [2], [3, 2]),
            helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
            helper.make_tensor("u", TensorProto.UINT64, [1], [7]),
        ]
    )
    return model
