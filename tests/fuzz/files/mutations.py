"""Ways to spoil an ONNX file: its bytes, its protobuf fields, its model, and the external data beside it.

Each takes the case as it is and a generator of random numbers; what it cannot be applied to it leaves alone.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, TensorProto, helper

from tests.fuzz.files import wire
from tests.fuzz.files.sources import Source

CANARY = b"<what lies outside of the model's folder is nobody's business>"
OUTSIDE = "outside.bin"
"""Name of the file with the canary, in the folder above the model's."""

HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
ODD = (0, 1, -1, 2, 7, 255, 4096, -(2**31), -(2**63), *HUGE)


@dataclass
class Case:
    """A file that is being spoilt.

    Attributes:
        data: bytes of the ONNX file.
        beside: files in its folder: bytes, or a function that makes something that is no plain file.
    """

    data: bytes
    beside: dict[str, bytes | Callable[[Path], None]] = field(default_factory=dict)


Mutation = Callable[[Case, Random, Sequence[Source]], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__.lstrip("_").replace("_", "-")] = function
    return function


# -- bytes -----------------------------------------------------------------------------------------------------------


@mutation
def _flip(case: Case, rng: Random, others: Sequence[Source]) -> None:
    data = bytearray(case.data)
    for _ in range(rng.choice((1, 1, 2, 8, 40)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    case.data = bytes(data)


@mutation
def _random_bytes(case: Case, rng: Random, others: Sequence[Source]) -> None:
    at = rng.randrange(len(case.data) + 1)
    case.data = case.data[:at] + rng.randbytes(rng.choice((1, 4, 64))) + case.data[at + rng.choice((0, 0, 1, 4)) :]


@mutation
def _delete(case: Case, rng: Random, others: Sequence[Source]) -> None:
    at = rng.randrange(len(case.data) + 1)
    case.data = case.data[:at] + case.data[at + rng.choice((1, 2, 8, 100)) :]


@mutation
def _duplicate(case: Case, rng: Random, others: Sequence[Source]) -> None:
    start = rng.randrange(len(case.data) + 1)
    piece = case.data[start : start + rng.choice((1, 8, 100, 1000))]
    at = rng.choice((start, rng.randrange(len(case.data) + 1), len(case.data)))
    case.data = case.data[:at] + piece + case.data[at:]


@mutation
def _splice(case: Case, rng: Random, others: Sequence[Source]) -> None:
    other = rng.choice(others).model
    head, tail = rng.randrange(len(case.data) + 1), rng.randrange(len(other) + 1)
    case.data = rng.choice((case.data[:head] + other[tail:], case.data + other, case.data[:head] + other))


@mutation
def _truncate(case: Case, rng: Random, others: Sequence[Source]) -> None:
    at = rng.choice((0, 1, 2, rng.randrange(len(case.data) + 1), len(case.data) - 1, len(case.data) // 2))
    case.data = case.data[: max(at, 0)]


@mutation
def _zeros(case: Case, rng: Random, others: Sequence[Source]) -> None:
    at, length = rng.randrange(len(case.data) + 1), rng.choice((1, 16, 300))
    case.data = case.data[:at] + bytes(length) + case.data[at + length :]


# -- protobuf --------------------------------------------------------------------------------------------------------


def _of_fields(change: Callable[[list[wire.Field], list[wire.Place], Random], None]) -> Mutation:
    """A mutation of the tree of fields; all places are equally likely, so that the deep ones are not rare."""

    def apply(case: Case, rng: Random, others: Sequence[Source]) -> None:
        try:
            tree = wire.parse(case.data)
        except (ValueError, IndexError):
            return
        found = list(wire.places(tree))
        if found:
            change(tree, found, rng)
            case.data = wire.serialized(tree)

    apply.__name__ = change.__name__
    return mutation(apply)


@_of_fields
def _number(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    """Another number in a varint."""
    numbers = [place for place in found if isinstance(place.here.content, int)]
    if numbers:
        rng.choice(numbers).here.content = rng.choice((*ODD, 1 << 64, 1 << 70))


@_of_fields
def _length(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    """A length that does not fit."""
    sized = [place for place in found if place.here.wire_type == wire.LENGTH_DELIMITED]
    if sized:
        rng.choice(sized).here.length = rng.choice((0, 1, 5, 200, 1 << 20, *HUGE, 1 << 64))


@_of_fields
def _field_number(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    rng.choice(found).here.number = rng.choice((*range(0, 27), 1 << 20, 1 << 29))


@_of_fields
def _wire_type(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    rng.choice(found).here.wire_type = rng.randrange(8)


@_of_fields
def _drop(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    place = rng.choice(found)
    del place.siblings[place.index]


@_of_fields
def _double(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    place = rng.choice(found)
    place.siblings.insert(rng.choice((place.index, len(place.siblings))), place.here)


@_of_fields
def _swap(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    """Two fields change places, or one goes where it does not belong."""
    one, two = rng.choice(found), rng.choice(found)
    if rng.random() < 0.5:
        two = wire.Place(one.siblings, rng.randrange(len(one.siblings)), one.depth)
    one.siblings[one.index], two.siblings[two.index] = two.here, one.here
    # A message must not come to lie in itself: written once, with the cut ones as bytes.
    _cut_circles(tree, set())


def _cut_circles(fields: list[wire.Field], above: set[int]) -> None:
    for item in fields:
        if isinstance(item.content, list):
            if id(item.content) in above:
                item.content = b""
            else:
                _cut_circles(item.content, above | {id(item.content)})


@_of_fields
def _text(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    """A string that is empty, no UTF-8, very long, hostile to terminals and paths, or another one of the file."""
    texts = [place for place in found if place.here.text]
    if texts:
        other = rng.choice(texts).here.content
        rng.choice(texts).here.content = rng.choice(
            (
                b"",
                b"\xff\xfe\x80",
                b"\xed\xa0\x80",
                b"a\x00b",
                b"[bold]x[/] \x1b[2J\r\n",
                b"n" * 100_000,
                b"../x",
                other,
            )
        )


@_of_fields
def _deep(tree: list[wire.Field], found: list[wire.Place], rng: Random) -> None:
    """A node whose body has a node whose body ...; protobuf reads up to a hundred messages deep."""
    depth = rng.choice((10, 20, 30, 40, 200, 5000))
    graph = b""
    for _ in range(depth):
        attribute = wire.serialized([wire.Field(1, 2, b"body"), wire.Field(20, 0, 5), wire.Field(6, 2, graph)])
        node = [wire.Field(2, 2, b"y"), wire.Field(4, 2, b"If"), wire.Field(5, 2, attribute)]
        graph = wire.serialized([wire.Field(1, 2, wire.serialized(node))])
    graphs = [item for item in tree if item.number == 7 and isinstance(item.content, list)]
    if graphs:
        graphs[0].content.insert(0, wire.parse(graph, None)[0])


# -- the model -------------------------------------------------------------------------------------------------------


def _of_model(change: Callable[[onnx.ModelProto, Random], None]) -> Mutation:
    def apply(case: Case, rng: Random, others: Sequence[Source]) -> None:
        model = onnx.ModelProto()
        try:
            model.ParseFromString(case.data)
            change(model, rng)
            case.data = model.SerializeToString()
        except (DecodeError, EncodeError, ValueError, TypeError):
            return  # spoilt before in a way that leaves no model to change

    apply.__name__ = change.__name__
    return mutation(apply)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        stack += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    found = [t for graph in _graphs(model) for t in graph.initializer]
    found += [t for graph in _graphs(model) for s in graph.sparse_initializer for t in (s.values, s.indices)]
    return found + [a.t for graph in _graphs(model) for n in graph.node for a in n.attribute if a.HasField("t")]


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for g in _graphs(model) for n in g.node] + [n for f in model.functions for n in f.node]


@_of_model
def _dims(model: onnx.ModelProto, rng: Random) -> None:
    """Extents of a weight that are negative, gigantic, too many, or do not fit its data."""
    tensors = _tensors(model)
    if not tensors:
        return
    tensor = rng.choice(tensors)
    change = rng.randrange(5)
    if change == 0 or not tensor.dims:
        tensor.dims.append(rng.choice(ODD))
    elif change == 1:
        tensor.dims.pop()
    elif change == 2:
        tensor.dims.extend([rng.choice((1, 2))] * rng.choice((5, 30, 5000)))
    else:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD)
    if rng.random() < 0.3:
        for name in ("raw_data", "float_data", "int64_data"):
            tensor.ClearField(name)


@_of_model
def _extents(model: onnx.ModelProto, rng: Random) -> None:
    """Extents of a weight that do fit its data, but not the operator that reads it."""
    tensors = [tensor for tensor in _tensors(model) if tensor.dims]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    dims = list(tensor.dims)
    change = rng.randrange(4)
    if change == 0:
        rng.shuffle(dims)
    elif change == 1:
        dims = [math.prod(dims)]
    elif change == 2:
        dims.insert(rng.randrange(len(dims) + 1), 1)
    else:
        dims = [0, *dims[1:]]
        for name in ("raw_data", "float_data", "int64_data"):
            tensor.ClearField(name)
        tensor.raw_data = b""
    del tensor.dims[:]
    tensor.dims.extend(dims)


@_of_model
def _values(model: onnx.ModelProto, rng: Random) -> None:
    """Other numbers in a constant of integers: shapes, axes, repeats, indices, or how often a loop runs."""
    tensors = [
        t for t in _tensors(model) if t.data_type == TensorProto.INT64 and t.raw_data and len(t.raw_data) % 8 == 0
    ]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    numbers = list(struct.unpack(f"<{len(tensor.raw_data) // 8}q", tensor.raw_data))
    numbers[rng.randrange(len(numbers))] = rng.choice((-(2**63), -100, -2, -1, 0, 1, 2, 3, 5, 64, 10_000, *HUGE))
    tensor.raw_data = struct.pack(f"<{len(numbers)}q", *numbers)


@_of_model
def _without(model: onnx.ModelProto, rng: Random) -> None:
    """Nothing said of the tensors between, a weight that comes from outside, or no node at all."""
    change = rng.randrange(3)
    if change == 0:
        del model.graph.value_info[:]
        for value in (*model.graph.input, *model.graph.output):
            if rng.random() < 0.5:
                value.type.tensor_type.ClearField("shape")
    elif change == 1 and model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        if rng.random() < 0.5:
            model.graph.initializer.remove(tensor)
    elif change == 2 and model.graph.node:
        node = rng.choice(model.graph.node)
        model.graph.node.remove(node)
        for other in model.graph.node:
            for index, name in enumerate(other.input):
                if node.input and name in node.output:
                    other.input[index] = node.input[0]


@_of_model
def _data_type(model: onnx.ModelProto, rng: Random) -> None:
    tensors = _tensors(model)
    if tensors:
        rng.choice(tensors).data_type = rng.choice((*range(0, 30), 1000, -1, 2**31 - 1))


@_of_model
def _value_dims(model: onnx.ModelProto, rng: Random) -> None:
    """Extents of an input, output or intermediate tensor; or none at all."""
    values = [v for g in _graphs(model) for v in (*g.input, *g.output, *g.value_info)]
    if not values:
        return
    value = rng.choice(values)
    kind = value.type.tensor_type
    if rng.random() < 0.2:
        kind.ClearField("shape")
    elif rng.random() < 0.2 or not kind.shape.dim:
        kind.shape.dim.add(dim_value=rng.choice(ODD))
    elif rng.random() < 0.3:
        rng.choice(kind.shape.dim).dim_param = rng.choice(
            (
                "",
                "1",
                "-3",
                "N",
                "2*N",
                "H/0",
                "H//0",
                "N**N**9999",
                "9**9**9",
                "(" * 300,
                "__import__('os')",
                "x y",
                "é",
            )
        )
    else:
        rng.choice(kind.shape.dim).dim_value = rng.choice((*ODD, 3000, 20_000))


@_of_model
def _value_type(model: onnx.ModelProto, rng: Random) -> None:
    values = [v for g in _graphs(model) for v in (*g.input, *g.output)]
    if not values:
        return
    value = rng.choice(values)
    change = rng.randrange(5)
    if change == 0:
        value.ClearField("type")
    elif change == 1:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif change == 2:
        value.type.optional_type.elem_type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif change == 3:
        value.type.map_type.key_type = rng.choice((1, 7, 99))
    else:
        value.type.tensor_type.elem_type = rng.choice((*range(0, 30), 1000, -5))


@_of_model
def _edge(model: onnx.ModelProto, rng: Random) -> None:
    """A name that a node reads or writes: none, of another tensor (a circle, two producers), or of nothing."""
    nodes = _nodes(model)
    if not nodes:
        return
    node = rng.choice(nodes)
    names = [name for n in nodes for name in (*n.input, *n.output)] + ["", "nowhere"]
    side = rng.choice([side for side in (node.input, node.output) if len(side)] or [node.input])
    change = rng.randrange(4)
    if change == 0 or not side:
        side.append(rng.choice(names))
    elif change == 1:
        side.pop()
    else:
        side[rng.randrange(len(side))] = rng.choice(names)


@_of_model
def _order(model: onnx.ModelProto, rng: Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@_of_model
def _attribute(model: onnx.ModelProto, rng: Random) -> None:
    """Of another type than the operator's, another value, unknown, double, or missing."""
    nodes = [node for node in _nodes(model) if node.attribute]
    if not nodes:
        return
    node = rng.choice(nodes)
    attribute = rng.choice(node.attribute)
    name = attribute.name
    change = rng.randrange(6)
    if change == 0:
        attribute.type = rng.choice(range(0, 16))
    elif change == 1 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((*ODD, 3, 5, -2, 100))
    elif change == 2:
        node.attribute.append(attribute)
    elif change == 3:
        node.attribute.remove(attribute)
    elif change == 4 and attribute.type == AttributeProto.INT:
        attribute.i = rng.choice((*ODD, 3, -2, 100))
    else:
        value = rng.choice((1.5, -7, "text", b"\xff", [1, 2], [0.5], ["a"], [2**62] * 3, [1] * 100))
        attribute.CopyFrom(helper.make_attribute(name, value))


@_of_model
def _operator(model: onnx.ModelProto, rng: Random) -> None:
    nodes = _nodes(model)
    if not nodes:
        return
    node = rng.choice(nodes)
    if rng.random() < 0.3:
        node.domain = rng.choice(("", "ai.onnx", "own", "nowhere", "msconv", "com.microsoft", "ai.onnx.ml"))
    else:
        operators = (
            "Conv",
            "Tile",
            "Expand",
            "Concat",
            "Reshape",
            "Loop",
            "If",
            "Scan",
            "Nothing",
            "",
            "Resize",
            "Pad",
        )
        operators += ("MSConv2d", "MSConv2d_00000000", "Einsum", "Split", "Slice", "SequenceAt", "Range", "Constant")
        node.op_type = rng.choice((*operators, *(other.op_type for other in nodes)))


@_of_model
def _opset(model: onnx.ModelProto, rng: Random) -> None:
    change = rng.randrange(4)
    if change == 0 or not model.opset_import:
        model.opset_import.add(domain=rng.choice(("", "ai.onnx", "own", "nowhere")), version=rng.choice((*ODD, 11)))
    elif change == 1:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    elif change == 2:
        model.ir_version = rng.choice((*ODD, 3, 13))
    else:
        rng.choice(model.opset_import).version = rng.choice((*ODD, 10**9, 1, 7, 11, 13, 18, 21, 26, 27))


@_of_model
def _function(model: onnx.ModelProto, rng: Random) -> None:
    """A function that calls itself, one of another domain, two of a name, one that hides an operator."""
    name, domain = rng.choice((("Self", "own"), ("Conv", ""), ("Outer", "own"), ("MSConv2d_12345678", "msconv")))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(domain or "own", 1)]
    body = [helper.make_node(rng.choice((name, "Outer", "Neg")), ["a"], ["b"], domain=domain)]
    for _ in range(rng.choice((1, 2))):
        model.functions.append(helper.make_function(domain, name, ["a"], ["b"], body, imports))
    if model.graph.node:
        node = rng.choice(model.graph.node)
        node.op_type, node.domain = name, domain
        del node.attribute[:]
        del node.input[1:]
    if rng.random() < 0.7 and domain not in {entry.domain for entry in model.opset_import}:
        model.opset_import.add(domain=domain, version=1)


@_of_model
def _bomb(model: onnx.ModelProto, rng: Random) -> None:
    """Constants from which a runtime would make a tensor of gigabytes or more."""
    amount = rng.choice((2**28, 2**31, 2**34, 2**40, 2**62))
    operator = rng.choice(("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "Resize", "Trilu"))
    first = rng.choice([value.name for value in model.graph.input] or ["bomb_one"])
    tensors = {
        "bomb_shape": (TensorProto.INT64, [2], [amount, rng.choice((1, 4, amount))]),
        "bomb_one": (TensorProto.FLOAT, [1, 1], [1.0]),
        "bomb_start": (TensorProto.INT64, [], [0]),
        "bomb_end": (TensorProto.INT64, [], [amount]),
        "bomb_step": (TensorProto.INT64, [], [1]),
        "bomb_pads": (TensorProto.INT64, [4], [0, 0, amount, 1]),
        "bomb_values": (TensorProto.FLOAT, [2], [0.0, 1.0]),
    }
    inputs = {
        "ConstantOfShape": ["bomb_shape"],
        "Expand": ["bomb_one", "bomb_shape"],
        "Tile": ["bomb_one", "bomb_shape"],
        "Range": ["bomb_start", "bomb_end", "bomb_step"],
        "Pad": ["bomb_one", "bomb_pads"],
        "OneHot": ["bomb_step", "bomb_end", "bomb_values"],
        "Resize": ["bomb_one", "", "", "bomb_shape"],
        "Trilu": ["bomb_one"],
    }[operator]
    model.graph.initializer.extend(helper.make_tensor(name, *tensor) for name, tensor in tensors.items())
    nodes = [helper.make_node(operator, inputs, ["bomb"], "bomb")]
    nodes.append(helper.make_node("ReduceMax", ["bomb"], ["bomb_max"], keepdims=0))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == first and operator != "Range":
                nodes.append(helper.make_node("Add", [first, "bomb_max"], ["bombed"]))
                node.input[index] = "bombed"
                break
        else:
            continue
        break
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


# -- external data ---------------------------------------------------------------------------------------------------

EXTERNAL = "data.bin"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link_out(path: Path) -> None:
    path.symlink_to(Path("..") / OUTSIDE)


def _link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _folder(path: Path) -> None:
    path.mkdir()


@mutation
def _external(case: Case, rng: Random, others: Sequence[Source]) -> None:
    """A weight whose bytes are said to lie elsewhere, in every place where there is something to find or to break."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(case.data)
        tensors = _tensors(model)
    except (DecodeError, ValueError):
        return
    if not tensors:
        return
    tensor = rng.choice(tensors)
    size = max(len(tensor.raw_data), 4)
    what: Sequence[bytes | Callable[[Path], None]] = (
        bytes(size),
        bytes(size),
        bytes(size // 2),
        b"",
        _fifo,
        _link_out,
        _link_to_device,
        _link_to_itself,
        _folder,
    )
    case.beside[EXTERNAL] = rng.choice(what)
    location = rng.choice(
        (
            *[EXTERNAL] * 8,
            f"../{OUTSIDE}",
            f"./sub/../../{OUTSIDE}",
            "/dev/zero",
            "/dev/stdin",
            "/etc/passwd",
            "",
            ".",
            "..",
            *("missing.bin", "a\x00b", "n" * 5000, "model.onnx", "CON", "~/x", f"{EXTERNAL}/", "*", "é", "//"),
        )
    )
    offset, length = (
        rng.choice((None, None, "0", "-1", "x", "", "1e3", str(2**62), str(2**70), "٣")) for _ in range(2)
    )
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    entries = {"location": location, "offset": offset, "length": length}
    if rng.random() < 0.5:
        entries["length"] = str(size)
    for key, value in entries.items():
        if value is not None and rng.random() < 0.95:
            tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.1:
        tensor.external_data.add(key=rng.choice(("location", "msconv.inline", "checksum")), value=f"../{OUTSIDE}")
    tensor.data_location = TensorProto.EXTERNAL
    case.data = model.SerializeToString()


@mutation
def _beside(case: Case, rng: Random, others: Sequence[Source]) -> None:
    """The external data of a source: cut short, gone, or replaced."""
    for name in list(case.beside):
        content = case.beside[name]
        if isinstance(content, bytes):
            del case.beside[name]
            if rng.random() < 0.8:
                case.beside[name] = rng.choice((b"", content[: len(content) // 2], _fifo, _link_out, _folder))


_WEIGHTS = dict.fromkeys(("attribute", "bomb", "edge", "extents", "operator", "value-dims", "values", "without"), 3)
"""How often a mutation is drawn, where not once: what passes the first checks reaches further."""


def mutated(source: Source, others: Sequence[Source], rng: Random) -> tuple[Case, list[str]]:
    """A spoilt copy of a source, and by which mutations: mostly one, so that what it breaks is told apart."""
    case = Case(source.model, dict(source.beside))
    kinds = rng.choices(
        sorted(MUTATIONS), [_WEIGHTS.get(kind, 1) for kind in sorted(MUTATIONS)], k=rng.choice((1, 1, 1, 2, 3))
    )
    for kind in kinds:
        MUTATIONS[kind](case, rng, others)
    return case, kinds
