"""Other spellings of one model: they mean the same, and an optimizer must see the same in them.

Each function returns a copy. Names of values (tensors), of nodes and of symbolic dims are kinds of their own: ONNX lets a
node have the name of a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import onnx
from onnx import helper

ODD_ENDINGS = (
    "",
    " with blanks ",
    "/msconv",
    "/msconv_part_1",
    ":0",
    ",comma",
    "ünï→",
    ".weight[0]",
    "%{x}",
    "'\"\\",
    "__",
    "/\n",
    "-" * 200,
)
_TOKEN = "«{}»"  # no name with one is part of another name with one


@dataclass
class Renaming:
    """A bijection of names, and the way back through any text in which the new ones occur."""

    values: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    dims: dict[str, str] = field(default_factory=dict)

    def back(self, text: str) -> str:
        """The text with every new name replaced by the old one; for names with a token only."""
        old = {new: old for names in (self.values, self.nodes, self.dims) for old, new in names.items()}
        pattern = re.compile("|".join(map(re.escape, sorted(old, key=len, reverse=True))))
        return pattern.sub(lambda found: old[found.group()], text)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from graphs_of(inner)


def odd_names(model: onnx.ModelProto, rng: Random) -> Renaming:
    """Every name becomes an odd one that occurs nowhere else, so that the way back is one of text."""
    numbers = iter(range(10**6))

    def odd(names: list[str]) -> dict[str, str]:
        return {name: _TOKEN.format(next(numbers)) + rng.choice(ODD_ENDINGS) for name in names}

    return Renaming(odd(_value_names(model)), odd(_node_names(model)), odd(_dim_names(model)))


def shuffled_names(model: onnx.ModelProto, rng: Random) -> Renaming:
    """The names that there are, but each for another tensor, node or dim."""

    def shuffled(names: list[str]) -> dict[str, str]:
        others = list(names)
        rng.shuffle(others)
        return dict(zip(names, others, strict=True))

    return Renaming(shuffled(_value_names(model)), shuffled(_node_names(model)), shuffled(_dim_names(model)))


def numbered_names(model: onnx.ModelProto, rng: Random) -> Renaming:
    """As TorchScript and tf2onnx write them: numbers for tensors, ``unk__3`` for dims; and nodes have names of tensors."""
    values = {name: str(i) for i, name in enumerate(_value_names(model))}
    made = {node.name: values[node.output[0]] for graph in graphs_of(model.graph) for node in graph.node if node.name}
    names = list(made.values())
    rng.shuffle(names)  # the name of some tensor, not of its own
    return Renaming(
        values,
        dict(zip(made, names, strict=True)),
        {name: f"unk__{i}" for i, name in enumerate(_dim_names(model))},
    )


def renamed(model: onnx.ModelProto, renaming: Renaming) -> onnx.ModelProto:
    return with_names(
        model,
        lambda name: renaming.values.get(name, name),
        lambda name: renaming.nodes.get(name, name),
        lambda name: renaming.dims.get(name, name),
    )


def with_names(
    model: onnx.ModelProto,
    value: Callable[[str], str] = str,
    node: Callable[[str], str] = str,
    dim: Callable[[str], str] = str,
) -> onnx.ModelProto:
    """The model with every name replaced by what the functions say."""
    copy = copy_of(model)
    for graph in graphs_of(copy.graph):
        for info in (*graph.input, *graph.output, *graph.value_info):
            info.name = value(info.name)
            for extent in info.type.tensor_type.shape.dim:
                if extent.dim_param:
                    extent.dim_param = dim(extent.dim_param)
        for tensor in graph.initializer:
            tensor.name = value(tensor.name)
        for each in graph.node:
            if each.name:
                each.name = node(each.name)
            for names in (each.input, each.output):
                names[:] = [value(name) if name else "" for name in names]
    return copy


def unnamed_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    return with_names(model, node=lambda _: "")


def nodes_of_one_name(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX does not ask that nodes have different names."""
    return with_names(model, node=lambda _: "node")


def nodes_named_like_their_results(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copy_of(model)
    for graph in graphs_of(copy.graph):
        for node in graph.node:
            node.name = node.output[0]
    return copy


def reordered_nodes(model: onnx.ModelProto, rng: Random) -> onnx.ModelProto:
    """The nodes in another topological order."""
    copy = copy_of(model)
    made = {name for node in model.graph.node for name in node.output}
    waiting, order, known = list(model.graph.node), [], set()
    while waiting:
        ready = [node for node in waiting if all(name in known or name not in made for name in _read(node))]
        node = rng.choice(ready)
        waiting.remove(node)
        order.append(node)
        known.update(node.output)
    del copy.graph.node[:]
    copy.graph.node.extend(order)
    return copy


def reordered_initializers(model: onnx.ModelProto, rng: Random) -> onnx.ModelProto:
    copy = copy_of(model)
    tensors = list(model.graph.initializer)
    rng.shuffle(tensors)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensors)
    return copy


def initializers_as_nodes(model: onnx.ModelProto, rng: Random, probability: float = 0.7) -> onnx.ModelProto:
    """Some initializers as Constant nodes, as the TorchScript exporter writes them; not those that are inputs too."""
    copy = copy_of(model)
    inputs = {value.name for value in model.graph.input}
    moved = [t for t in model.graph.initializer if t.name not in inputs and rng.random() < probability]
    names = {tensor.name for tensor in moved}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    constants = [helper.make_node("Constant", [], [t.name], name=f"Constant of {t.name}", value=t) for t in moved]
    nodes = list(model.graph.node)
    del copy.graph.initializer[:], copy.graph.node[:]
    copy.graph.initializer.extend(kept)
    copy.graph.node.extend([*constants, *nodes])
    return copy


def nodes_as_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constant nodes that hold a tensor as initializers; the way back of :func:`initializers_as_nodes`."""
    copy = copy_of(model)
    nodes = list(model.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            copy.graph.node.add().CopyFrom(node)
    return copy


def annotated(model: onnx.ModelProto) -> onnx.ModelProto:
    """With doc strings and metadata wherever ONNX has a place for them."""
    copy = copy_of(model)
    copy.doc_string, copy.graph.doc_string = "of the model", "of the graph"
    copy.metadata_props.add(key="annotated", value="model")
    copy.graph.metadata_props.add(key="annotated", value="graph")
    for node in copy.graph.node:
        node.doc_string = f"made on line {len(node.name)}"
        node.metadata_props.add(key="annotated", value="node")
    for tensor in copy.graph.initializer:
        tensor.doc_string = "a weight"
    for value in (*copy.graph.input, *copy.graph.output):
        value.doc_string = "a value"
    return copy


def with_value_infos(model: onnx.ModelProto) -> onnx.ModelProto:
    """With what shape inference finds of the tensors between, as most exporters write it."""
    copy = copy_of(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(inferred.graph.value_info)
    return copy


def without_value_infos(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copy_of(model)
    for graph in graphs_of(copy.graph):
        del graph.value_info[:]
    return copy


def _read(node: onnx.NodeProto) -> list[str]:
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names += [value.name for value in graph.output]
            names += [name for inner in graph.node for name in _read(inner)]
    return names


def _value_names(model: onnx.ModelProto) -> list[str]:
    names: dict[str, None] = {}
    for graph in graphs_of(model.graph):
        names.update(dict.fromkeys(v.name for v in (*graph.input, *graph.output, *graph.initializer)))
        names.update(dict.fromkeys(name for node in graph.node for name in (*node.input, *node.output) if name))
    return list(names)


def _node_names(model: onnx.ModelProto) -> list[str]:
    return list(dict.fromkeys(n.name for graph in graphs_of(model.graph) for n in graph.node if n.name))


def _dim_names(model: onnx.ModelProto) -> list[str]:
    dims = [d for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim]
    return list(dict.fromkeys(d.dim_param for d in dims if d.dim_param))
