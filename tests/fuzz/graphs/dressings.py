"""Dressings: what files look like around a network. Each takes a valid model and leaves a valid one.

Subgraphs, functions, initializers that are inputs, odd names, dead nodes, further outputs, unknown domains, long chains.
What a dressing adds computes the same at every size, so the values that are compared stay in their range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


# -- what is known of a model --------------------------------------------------------------------------------------------


def types_of(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Types of the main graph's tensors, as far as shape inference finds them."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        inferred = model.graph
    found = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            found[value.name] = value
    return found


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def names_read(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node and what its subgraphs read from outside."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        own = {v.name for v in (*graph.input, *graph.initializer)} | {n for inner in graph.node for n in inner.output}
        mentioned = [n for inner in graph.node for n in names_read(inner)] + [v.name for v in graph.output]
        names += [n for n in mentioned if n not in own]
    return names


def _all_names(graph: onnx.GraphProto) -> set[str]:
    names = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update((node.name, *node.input, *node.output))
        for inner in subgraphs(node):
            names |= _all_names(inner)
    return names


def _fresh(model: onnx.ModelProto, hint: str) -> str:
    taken, number = _all_names(model.graph), 0
    while f"{hint}{number}" in taken:
        number += 1
    return f"{hint}{number}"


def _computed_floats(model: onnx.ModelProto) -> list[str]:
    """Floating tensors that nodes of the main graph compute."""
    types = types_of(model)
    computed = [name for node in model.graph.node for name in node.output if name]
    return [n for n in computed if n in types and types[n].type.tensor_type.elem_type in _FLOATS]


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain == "")


def _import(model: onnx.ModelProto, domain: str) -> None:
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.add(domain=domain, version=1)


# -- parts that move into a body -----------------------------------------------------------------------------------------


def _cut(model: onnx.ModelProto, rng: Random) -> tuple[int, int, list[str], list[str]] | None:
    """A run of nodes [start, end), what it reads from outside and what others read of it; or None."""
    nodes = model.graph.node
    types = types_of(model)
    if not nodes:
        return None
    start = rng.randrange(len(nodes))
    end = min(len(nodes), start + rng.choice([1, 1, 1, 2, 3, 6]))
    made = {name for node in nodes[start:end] for name in node.output if name}
    read = list(dict.fromkeys(n for node in nodes[start:end] for n in names_read(node) if n not in made))
    later = {n for node in (*nodes[:start], *nodes[end:]) for n in names_read(node)}
    later |= {output.name for output in model.graph.output}
    results = [n for node in nodes[start:end] for n in node.output if n in later]
    if not results or any(n not in types for n in results):
        return None
    return start, end, read, results


def _replace(model: onnx.ModelProto, start: int, end: int, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = [*model.graph.node[:start], *nodes, *model.graph.node[end:]]
    kept = [_copy(node) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def _renamed(nodes: Iterable[onnx.NodeProto], suffix: str) -> tuple[list[onnx.NodeProto], Callable[[str], str]]:
    """Copies of nodes whose results have other names."""
    copies = [_copy(node) for node in nodes]
    names = {name: name + suffix for node in copies for name in node.output if name}
    for node in copies:
        node.name = node.name + suffix if node.name else ""
        _rename_in(node, names)
    return copies, lambda name: names.get(name, name)


def _rename_in(node: onnx.NodeProto, names: dict[str, str]) -> None:
    node.input[:] = [names.get(n, n) for n in node.input]
    node.output[:] = [names.get(n, n) for n in node.output]
    for graph in subgraphs(node):
        rename_graph(graph, names)


def rename_graph(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename the tensors of a graph and of its subgraphs."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        _rename_in(node, names)


def _typed(types: dict[str, onnx.ValueInfoProto], name: str, called: str) -> onnx.ValueInfoProto:
    """The type of a tensor without its shape, under another name."""
    return helper.make_tensor_value_info(called, types[name].type.tensor_type.elem_type, None)


def in_if(model: onnx.ModelProto, rng: Random) -> None:
    """Some nodes move into both branches of an If, which reads outer tensors."""
    cut = _cut(model, rng)
    if cut is None:
        return
    start, end, _, results = cut
    types, mark = types_of(model), _fresh(model, "branch")
    branches = []
    for side in ("then", "else"):
        nodes, called = _renamed(model.graph.node[start:end], f"_{mark}_{side}")
        outputs = [_typed(types, n, called(n)) for n in results]
        branches.append(helper.make_graph(nodes, f"{mark}_{side}", [], outputs))
    condition = f"{mark}_condition"
    if rng.random() < 0.5:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(rng.random() < 0.5), condition))
    else:
        model.graph.input.append(helper.make_tensor_value_info(condition, TensorProto.BOOL, []))
    node = helper.make_node("If", [condition], results, mark, then_branch=branches[0], else_branch=branches[1])
    _replace(model, start, end, [node])


def in_loop(model: onnx.ModelProto, rng: Random) -> None:
    """Some nodes move into a Loop of one turn, or a Scan over one slice; their results are scan outputs."""
    cut = _cut(model, rng)
    if cut is None:
        return
    start, end, read, results = cut
    types, mark = types_of(model), _fresh(model, "turn")
    nodes, called = _renamed(model.graph.node[start:end], f"_{mark}")
    outputs = [_typed(types, n, called(n)) for n in results]
    stacked = [f"{n}_{mark}_stacked" for n in results]
    around: list[onnx.NodeProto] = []
    floats = [n for n in read if n in types and types[n].type.tensor_type.elem_type in _FLOATS]
    constants: dict[str, np.ndarray] = {f"{mark}_axis": np.array([0], np.int64)}
    if floats and rng.random() < 0.4:
        scanned = rng.choice(floats)
        rename = {scanned: f"{mark}_slice"}
        for node in nodes:
            _rename_in(node, rename)
        given = _typed(types, scanned, f"{mark}_slice")
        body = helper.make_graph(nodes, mark, [given], outputs)
        around += _axes_node(model, "Unsqueeze", scanned, f"{mark}_sequence", f"{mark}_axis")
        around.append(helper.make_node("Scan", [f"{mark}_sequence"], stacked, mark, body=body, num_scan_inputs=1))
    else:
        condition = helper.make_tensor_value_info(f"{mark}_on", TensorProto.BOOL, [])
        kept = helper.make_tensor_value_info(f"{mark}_still", TensorProto.BOOL, [])
        number = helper.make_tensor_value_info(f"{mark}_number", TensorProto.INT64, [])
        nodes.append(helper.make_node("Identity", [condition.name], [kept.name]))
        body = helper.make_graph(nodes, mark, [number, condition], [kept, *outputs])
        constants[f"{mark}_trips"] = np.asarray(1, np.int64)
        constants[f"{mark}_first"] = np.asarray(True)
        around.append(helper.make_node("Loop", [f"{mark}_trips", f"{mark}_first"], stacked, mark, body=body))
    for name, wide in zip(results, stacked, strict=True):
        around += _axes_node(model, "Squeeze", wide, name, f"{mark}_axis")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    _replace(model, start, end, around)


def _axes_node(model: onnx.ModelProto, op: str, source: str, result: str, axis: str) -> list[onnx.NodeProto]:
    if _opset(model) < 13:
        return [helper.make_node(op, [source], [result], axes=[0])]
    return [helper.make_node(op, [source, axis], [result])]


def in_function(model: onnx.ModelProto, rng: Random) -> None:
    """Some nodes become a model-local function."""
    cut = _cut(model, rng)
    if cut is None:
        return
    start, end, read, results = cut
    name = _fresh(model, "part_")
    nodes = [_copy(node) for node in model.graph.node[start:end]]
    domain = "local.functions"
    imports = [e for e in model.opset_import if e.domain != domain]
    _import(model, domain)
    if any(node.domain == domain or _names_domain(node, domain) for node in nodes):
        imports = list(model.opset_import)
    model.functions.append(helper.make_function(domain, name, read, results, nodes, imports))
    _replace(model, start, end, [helper.make_node(name, read, results, name, domain=domain)])


def _names_domain(node: onnx.NodeProto, domain: str) -> bool:
    return any(inner.domain == domain or _names_domain(inner, domain) for g in subgraphs(node) for inner in g.node)


# -- initializers --------------------------------------------------------------------------------------------------------


def old_initializers(model: onnx.ModelProto, rng: Random) -> None:
    """Every initializer is an input, as IR version 3 wants it; some are, in newer ones: defaults that a caller may override."""
    everything = rng.random() < 0.5 and not model.functions and not model.metadata_props
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in inputs and (everything or rng.random() < 0.3):
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if everything:
        model.ir_version = 3


def constant_nodes(model: onnx.ModelProto, rng: Random) -> None:
    """Some initializers become Constant nodes, by any of their attributes."""
    inputs = {value.name for value in model.graph.input}
    chosen = [t for t in model.graph.initializer if t.name not in inputs and rng.random() < 0.5]
    nodes = []
    for tensor in chosen:
        array = numpy_helper.to_array(tensor)
        if _opset(model) >= 12 and array.dtype == np.int64 and array.ndim == 1 and array.size and rng.random() < 0.5:
            attribute = {"value_ints": array.tolist()}
        elif _opset(model) >= 12 and array.dtype == np.float32 and array.ndim == 0 and rng.random() < 0.5:
            attribute = {"value_float": float(array)}
        else:
            attribute = {"value": _copy_tensor(tensor)}
        nodes.append(helper.make_node("Constant", [], [tensor.name], **attribute))
    names = {t.name for t in chosen}
    kept = [_copy_tensor(t) for t in model.graph.initializer if t.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    _replace(model, 0, 0, nodes)


def _copy_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    return copied


def spare_parts(model: onnx.ModelProto, rng: Random) -> None:
    """Nodes, initializers and inputs that nothing reads."""
    floats = _computed_floats(model)
    kind = rng.randrange(4)
    if kind == 0 and floats:
        model.graph.node.append(helper.make_node("Relu", [rng.choice(floats)], [_fresh(model, "unread")]))
    elif kind == 1:
        model.graph.initializer.append(numpy_helper.from_array(np.arange(5.0), _fresh(model, "spare")))
    elif kind == 2:
        model.graph.input.append(helper.make_tensor_value_info(_fresh(model, "ignored"), TensorProto.FLOAT, ["N", 2]))
    elif floats:
        source = rng.choice(floats)
        shape, wide = _fresh(model, "unread_shape"), _fresh(model, "unread_copies")
        model.graph.node.append(helper.make_node("Shape", [source], [shape]))
        model.graph.node.append(helper.make_node("Expand", [source, shape], [wide]))


# -- outputs, nodes in between -------------------------------------------------------------------------------------------


def more_outputs(model: onnx.ModelProto, rng: Random) -> None:
    """Intermediate tensors, an input or an initializer are outputs too."""
    types = types_of(model)
    computed = [name for node in model.graph.node for name in node.output if name]
    wanted = [rng.choice(computed)] if computed else []
    if rng.random() < 0.2 and model.graph.input:
        wanted += [rng.choice(model.graph.input).name]
    known = {value.name for value in model.graph.output}
    for name in wanted:
        if name in types and name not in known and types[name].type.tensor_type.HasField("shape"):
            model.graph.output.append(types[name])
            known.add(name)


def identities(model: onnx.ModelProto, rng: Random) -> None:
    """An Identity behind many nodes, as PaddlePaddle's exporter writes them."""
    results = {output.name for output in model.graph.output}
    nodes, names = [], dict[str, str]()
    for node in model.graph.node:
        copied = _copy(node)
        _rename_in(copied, names)
        nodes.append(copied)
        if len(node.output) == 1 and node.output[0] not in results and rng.random() < 0.3:
            name = _fresh(model, f"{node.output[0]}_same")
            nodes.append(helper.make_node("Identity", [node.output[0]], [name]))
            names[node.output[0]] = name
    _replace(model, 0, len(model.graph.node), nodes)


def long_chain(model: onnx.ModelProto, rng: Random) -> None:
    """Thousands of nodes behind an output."""
    types = types_of(model)
    outputs = [v.name for v in model.graph.output if v.type.tensor_type.elem_type in _FLOATS and v.name in types]
    if not outputs:
        return
    name, nodes = rng.choice(outputs), []
    length = rng.choice([300, 1000, 3000])
    ops = rng.choice([["Relu"], ["Identity"], ["Neg"], ["Relu", "Identity", "Abs"]])
    current = name
    for i in range(length):
        nodes.append(helper.make_node(ops[i % len(ops)], [current], [f"{name}_chain{i}"]))
        current = nodes[-1].output[0]
    model.graph.node.extend(nodes)
    output = onnx.ValueInfoProto()
    output.CopyFrom(types[name])
    output.name = current
    model.graph.output.append(output)


def twins(model: onnx.ModelProto, rng: Random) -> None:
    """A node a second time, with the same operands and weights, as a further output."""
    types = types_of(model)
    candidates = [
        node for node in model.graph.node
        if len(node.output) == 1 and node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm", "Expand", "Concat")
        and node.output[0] in types and types[node.output[0]].type.tensor_type.HasField("shape")
    ]  # fmt: skip
    if not candidates:
        return
    node = rng.choice(candidates)
    twin, name = _copy(node), _fresh(model, f"{node.output[0]}_twin")
    twin.output[0], twin.name = name, name
    model.graph.node.append(twin)
    output = onnx.ValueInfoProto()
    output.CopyFrom(types[node.output[0]])
    output.name = name
    model.graph.output.append(output)


def contributed(model: onnx.ModelProto, rng: Random) -> None:
    """An operator of ONNX Runtime's own domain in the middle."""
    types = types_of(model)
    floats = [n for n in _computed_floats(model) if types[n].type.tensor_type.elem_type == TensorProto.FLOAT]
    if not floats:
        return
    source, name = rng.choice(floats), _fresh(model, "contributed")
    _import(model, "com.microsoft")
    nodes = []
    for node in model.graph.node:
        copied = _copy(node)
        if any(n == name for n in copied.output):
            return
        if nodes and any(nodes_made == source for made in nodes for nodes_made in made.output):
            copied.input[:] = [name if n == source else n for n in copied.input]
        nodes.append(copied)
        if source in copied.output:
            nodes.append(helper.make_node("QuickGelu", [source], [name], name, domain="com.microsoft", alpha=1.0))
    _replace(model, 0, len(model.graph.node), nodes)


def unknown(model: onnx.ModelProto, rng: Random) -> None:
    """An operator that no runtime here has: the model cannot run, and all of it that is not understood has to stay."""
    floats = _computed_floats(model)
    if not floats:
        return
    _import(model, "com.example.unheard")
    name = _fresh(model, "mystery")
    source = rng.choice(floats)
    if rng.random() < 0.5:
        node = helper.make_node("Mystery", [source], [name], name, domain="com.example.unheard", level=3, note="ü")
        model.graph.node.append(node)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]))
        return
    nodes, seen = [], False
    for node in model.graph.node:
        copied = _copy(node)
        if seen:
            copied.input[:] = [name if n == source else n for n in copied.input]
        nodes.append(copied)
        if source in copied.output:
            seen = True
            nodes.append(helper.make_node("Mystery", [source], [name], name, domain="com.example.unheard"))
    _replace(model, 0, len(model.graph.node), nodes)


# -- names and notes -----------------------------------------------------------------------------------------------------


def odd_names(model: onnx.ModelProto, rng: Random) -> None:
    """Unicode, paths, very long ones, none at all, and such as the optimizer would give."""
    style = rng.choice(["unicode", "paths", "long", "numbers", "msconv", "mixed"])
    names: dict[str, str] = {}
    taken = {""}
    for count, old in enumerate(sorted(_all_names(model.graph) - {""})):
        new = _odd(rng, style if style != "mixed" else rng.choice(["unicode", "long", "msconv", "paths"]), old, count)
        while new in taken:
            new += "_"
        taken.add(new)
        names[old] = new
    rename_graph(model.graph, names)
    for number, node in enumerate(model.graph.node):
        choice = rng.random()
        if choice < 0.3:
            node.name = ""
        elif choice < 0.6:
            node.name = rng.choice(
                [node.output[0], f"{node.output[0]}/msconv", f"{node.op_type}/msconv_{number}", "ü/ö ä"]
            )
            if node.name == "ü/ö ä":
                node.name += str(number)


def _odd(rng: Random, style: str, old: str, count: int) -> str:
    if style == "unicode":
        return rng.choice(["卷积", "плитка ", "naïve.", "💧", "‮x"]) + str(count)
    if style == "paths":
        return f"/model/layer.{count}/{old}:0"
    if style == "long":
        return f"{old}_" + "very_long_" * 60 + str(count)
    if style == "msconv":
        return rng.choice(
            [f"{old}/msconv", f"{old}/msconv_weight", f"{old}/msconv1_add", f"msconv{count}", f"/msconv_{count}"]
        )
    return str(count)


def notes(model: onnx.ModelProto, rng: Random) -> None:
    """Metadata, doc strings, what shape inference found, and what another optimizer wrote."""
    model.doc_string, model.graph.doc_string = "about the model", "about the graph"
    model.metadata_props.add(key="author", value="kept")
    if rng.random() < 0.5:
        found = onnx.shape_inference.infer_shapes(model)
        del model.graph.value_info[:]
        model.graph.value_info.extend(found.graph.value_info)
    for node in model.graph.node:
        if rng.random() < 0.3:
            node.doc_string = "about a node"
            node.metadata_props.add(key="origin", value=node.op_type)


DRESSINGS: dict[str, tuple[float, Callable[[onnx.ModelProto, Random], None]]] = {
    "twins": (0.06, twins),
    "identities": (0.08, identities),
    "contributed": (0.04, contributed),
    "unknown-domain": (0.02, unknown),
    "spare-parts": (0.12, spare_parts),
    "more-outputs": (0.12, more_outputs),
    "if": (0.08, in_if),
    "loop": (0.07, in_loop),
    "function": (0.08, in_function),
    "long-chain": (0.004, long_chain),
    "constant-nodes": (0.12, constant_nodes),
    "old-initializers": (0.06, old_initializers),
    "notes": (0.15, notes),
    "odd-names": (0.15, odd_names),
}
"""Name -> (how often, function), in the order in which they are applied: names come last."""
