"""Making a failing case small: what can be taken away while it fails in the same way is taken away.

Steps, until none of them helps: drop sizes, outputs, nodes (a node is replaced by one of its inputs, or its result becomes an
input of the graph), extents, attributes, weights' digits. A candidate has to be valid for ``onnx.checker`` and to run in ONNX
Runtime if the first case does; the kind of failure has to stay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.graphs.case import Case
from tests.fuzz.graphs.checking import Outcome, check, runs
from tests.fuzz.graphs.dressings import names_read, types_of
from tests.surgery.graphs import symbols_of

Check = Callable[[Case], Outcome]


def shrunken(case: Case, outcome: Outcome, seconds: float = 60.0, checked: Check = check) -> Case:
    """A small case that fails as the given one does; the given one where nothing can be taken away.

    Args:
        outcome: of the case.
        seconds: after which the best one so far is returned.
        checked: what decides how a case fails.
    """
    wanted, end, runnable = _signature(outcome), time.monotonic() + seconds, runs(case)

    def fails(candidate: Case) -> bool:
        if time.monotonic() > end:
            return False
        try:
            return _signature(checked(candidate)) == wanted and (runs(candidate) or not runnable)
        except Exception:
            return False

    smaller = True
    while smaller and time.monotonic() < end:
        smaller = False
        for step in (
            _fewer_sizes,
            _fewer_outputs,
            _halves,
            _fewer_nodes,
            _no_extras,
            _smaller_extents,
            _attributes,
            _weights,
        ):
            found = _exhausted(case, step, fails)
            smaller |= found is not case
            case = found
    return case


def _signature(outcome: Outcome) -> tuple[str, str]:
    """What has to stay: the kind; of an exception its type and place, of a checker's message what is not a name."""
    if outcome.kind == "raised":
        place = re.match(r"(on its own result: )?\w+( in [\w.]+:\S+)?", outcome.detail)
        return outcome.kind, place.group() if place else ""
    if outcome.kind == "invalid":
        return outcome.kind, re.sub(r"\(.*?\)|'.*?'|\d+", "", outcome.detail)[:60]
    return outcome.kind, ""


def _exhausted(case: Case, step: Callable[[Case], Iterator[Case]], fails: Callable[[Case], bool]) -> Case:
    """Apply a step as long as one of its candidates still fails."""
    while True:
        for candidate in step(case):
            if fails(candidate):
                case = candidate
                break
        else:
            return case


# -- steps: each yields candidates that are smaller ----------------------------------------------------------------------


def _fewer_sizes(case: Case) -> Iterator[Case]:
    if case.verified:
        yield replace(case, verified=False)
    if case.deployed:
        yield replace(case, deployed=False)
    if len(case.sizes) > 1:
        for position in range(len(case.sizes)):
            yield replace(case, sizes=[case.sizes[position]])
    for number, size in enumerate(case.sizes):
        for symbol, value in size.items():
            for less in {1, value // 2, value - 1} - {value}:
                if 0 < less < value:
                    changed = {**size, symbol: less}
                    yield replace(case, sizes=[*case.sizes[:number], changed, *case.sizes[number + 1 :]])


def _fewer_outputs(case: Case) -> Iterator[Case]:
    if len(case.model.graph.output) > 1:
        for position in range(len(case.model.graph.output)):
            model = _copy(case.model)
            kept = onnx.ValueInfoProto()
            kept.CopyFrom(model.graph.output[position])
            del model.graph.output[:]
            model.graph.output.append(kept)
            yield _pruned(case, model)
        for position in range(len(case.model.graph.output)):
            model = _copy(case.model)
            del model.graph.output[position]
            yield _pruned(case, model)


def _halves(case: Case) -> Iterator[Case]:
    """Long chains: the first nodes become inputs, or the result is what an early node computes."""
    nodes = case.model.graph.node
    types = types_of(case.model)
    for part in (2, 4, 8):
        size = len(nodes) // part
        if size < 2:
            return
        for start in range(0, len(nodes) - size + 1, size):
            model = _copy(case.model)
            for node in case.model.graph.node[start : start + size]:
                _bypassed(model, node, types)
            candidate = _pruned(case, model)
            if len(candidate.model.graph.node) < len(nodes):
                yield candidate


def _fewer_nodes(case: Case) -> Iterator[Case]:
    types = types_of(case.model)
    for number in range(len(case.model.graph.node) - 1, -1, -1):
        node = case.model.graph.node[number]
        for name in dict.fromkeys(n for n in node.input if n):  # instead of its result, one of its operands
            model = _copy(case.model)
            del model.graph.node[number]
            _read_instead(model, {output: name for output in node.output if output}, types)
            yield _pruned(case, model)
        model = _copy(case.model)
        if _cut_off(model, number, types):
            yield _pruned(case, model)


def _no_extras(case: Case) -> Iterator[Case]:
    """Options, texts, inputs and bodies that are not needed."""
    for options in ({"form": "portable"}, {"allow": ()}, {"when": "always"}):
        candidate = replace(case, **options)
        if candidate != case:
            yield candidate
    for field in ("value_info", "doc_string", "metadata_props", "quantization_annotation"):
        model = _copy(case.model)
        model.graph.ClearField(field)
        if model != case.model:
            yield replace(case, model=model)
    model = _copy(case.model)
    for field in ("doc_string", "metadata_props"):
        model.ClearField(field)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    if model != case.model:
        yield replace(case, model=model)
    for position in range(len(case.model.functions)):
        model = _copy(case.model)
        del model.functions[position]
        yield replace(case, model=model)


def _smaller_extents(case: Case) -> Iterator[Case]:
    """An extent that inputs, weights and shapes have in common, one less everywhere; a symbolic one as a number."""
    for symbol in symbols_of(case.model):
        if len(case.sizes) == 1:
            model = _copy(case.model)
            for value in (*model.graph.input, *model.graph.output):
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param == symbol:
                        dim.dim_value = case.sizes[0][symbol]
            yield replace(case, model=model, sizes=[{s: n for s, n in case.sizes[0].items() if s != symbol}])
    found = {
        dim.dim_value
        for value in case.model.graph.input
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_value > 1
    }
    found |= {n for tensor in case.model.graph.initializer for n in tensor.dims if n > 1}
    for extent in sorted(found, reverse=True):
        for less in sorted({1, extent // 2, extent - 1} - {0, extent}):
            yield replace(case, model=_resized(case.model, extent, less))
            yield replace(case, model=_resized(case.model, extent, less, shapes=False))


def _resized(model: onnx.ModelProto, extent: int, less: int, shapes: bool = True) -> onnx.ModelProto:
    model = _copy(model)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value == extent:
                dim.dim_value = less
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        cut = array[tuple(slice(less) if n == extent else slice(None) for n in array.shape)]
        if shapes and array.dtype == np.int64:
            cut = np.where(array == extent, less, array)
        if cut.shape != array.shape or not np.array_equal(cut, array):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(cut), tensor.name))
    for output in model.graph.output:
        _undeclare(output)
    return model


def _undeclare(output: onnx.ValueInfoProto) -> None:
    """Only the rank of an output is declared."""
    for number, dim in enumerate(output.type.tensor_type.shape.dim):
        dim.dim_param = f"{output.name}_{number}"


def _attributes(case: Case) -> Iterator[Case]:
    """Attributes that are left out, or their numbers 0 or 1; optional operands that are left out."""
    for number, node in enumerate(case.model.graph.node):
        for position, attribute in enumerate(node.attribute):
            model = _copy(case.model)
            del model.graph.node[number].attribute[position]
            yield replace(case, model=model)
            simple = 0 if attribute.name == "pads" else 1
            for place, value in enumerate(attribute.ints):
                if value > simple:
                    model = _copy(case.model)
                    model.graph.node[number].attribute[position].ints[place] = value - 1
                    yield replace(case, model=model)
        if len(node.input) > 2 and node.op_type in ("Conv", "ConvTranspose", "Gemm", "Clip"):
            model = _copy(case.model)
            del model.graph.node[number].input[-1]
            yield _pruned(case, model)


def _weights(case: Case) -> Iterator[Case]:
    """Weights of few digits."""
    for number, tensor in enumerate(case.model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            for simple in (np.ones_like(array), np.round(array), np.round(array, 1)):
                if not np.array_equal(simple, array) and np.any(simple):
                    if (
                        np.all(np.round(array) == array)
                        and simple is not np.ones_like(array)
                        and not (simple == 1).all()
                    ):
                        continue
                    model = _copy(case.model)
                    model.graph.initializer[number].CopyFrom(numpy_helper.from_array(simple, tensor.name))
                    yield replace(case, model=model)


# -- graph surgery of its own --------------------------------------------------------------------------------------------


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _read_instead(model: onnx.ModelProto, names: dict[str, str], types: dict[str, onnx.ValueInfoProto]) -> None:
    """Readers of some tensors read others; an output that is one of them is the other one."""
    for node in model.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
    known = {output.name for output in model.graph.output}
    kept = []
    for output in model.graph.output:
        if output.name in names:
            if names[output.name] in known:
                continue
            output.name = names[output.name]
            if output.name in types and types[output.name].type.tensor_type.HasField("shape"):
                output.CopyFrom(types[output.name])
            else:
                _undeclare(output)
            known.add(output.name)
        copied = onnx.ValueInfoProto()
        copied.CopyFrom(output)
        kept.append(copied)
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _bypassed(model: onnx.ModelProto, node: onnx.NodeProto, types: dict[str, onnx.ValueInfoProto]) -> None:
    """Take a node with one floating operand of its result's type out of the way."""
    kinds = {n: types[n].type.tensor_type.elem_type for n in (*node.input, *node.output) if n in types}
    if len(node.output) != 1 or not node.input or kinds.get(node.output[0]) != kinds.get(node.input[0]):
        return
    for number, own in enumerate(model.graph.node):
        if own.output[:] == node.output[:]:
            source = own.input[0]
            del model.graph.node[number]
            _read_instead(model, {node.output[0]: source}, types)
            return


def _cut_off(model: onnx.ModelProto, number: int, types: dict[str, onnx.ValueInfoProto]) -> bool:
    """The results of a node become inputs of the graph."""
    node = model.graph.node[number]
    results = {output.name for output in model.graph.output}
    for name in node.output:
        if name not in types or name in results or not types[name].type.tensor_type.HasField("shape"):
            return False
        dims = types[name].type.tensor_type.shape.dim
        known = set(symbols_of(model))
        if any(not d.HasField("dim_value") and d.dim_param not in known for d in dims):
            return False
        if types[name].type.tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            return False
    made = list(node.output)
    del model.graph.node[number]
    model.graph.input.extend(types[name] for name in made)
    return True


def _pruned(case: Case, model: onnx.ModelProto) -> Case:
    """Without nodes, initializers, inputs and sizes that nothing needs."""
    needed, kept = {output.name for output in model.graph.output}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(names_read(node))
    nodes = []
    for node in reversed(kept):
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        nodes.append(copied)
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        [v for v in model.graph.input if v.name in needed],
        list(model.graph.output),
        [t for t in model.graph.initializer if t.name in needed],
    )
    smaller = _copy(model)
    smaller.graph.CopyFrom(graph)
    used = {(node.domain, node.op_type) for node in smaller.graph.node}
    used |= {(n.domain, n.op_type) for f in smaller.functions for n in f.node}
    functions = [f for f in smaller.functions if (f.domain, f.name) in used]
    if len(functions) < len(smaller.functions):
        copies = [onnx.FunctionProto() for _ in functions]
        for copied, function in zip(copies, functions, strict=True):
            copied.CopyFrom(function)
        del smaller.functions[:]
        smaller.functions.extend(copies)
    symbols = set(symbols_of(smaller))
    sizes: list[dict[str, int]] = []
    for size in case.sizes:
        left = {symbol: n for symbol, n in size.items() if symbol in symbols}
        if left not in sizes:
            sizes.append(left)
    return replace(case, model=smaller, sizes=sizes)
