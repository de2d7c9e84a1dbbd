"""Small ONNX models by hand: nodes one call at a time, spelled for the opset at hand, and what must hold of a rewrite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.optimize import Result, optimize_model
from msconv_deploy.surgery.rules import tile_concat_conv

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12, np.float16: 1e-2}


class Net:
    """Collects a graph. Dims are numbers or names; every name belongs to an axis of some input."""

    def __init__(self, opset: int = 17, dtype=np.float32, seed: int = 0) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.values = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[int, tuple]] = {}
        self.outputs: list[str] = []
        self.functions: list[onnx.FunctionProto] = []
        self.symbols: dict[str, tuple[str, int]] = {}
        self.ranks: dict[str, int] = {}
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{hint.lower()}_{self._count}"

    def input(self, *dims, dtype=None, name=None) -> str:
        name = name or self.name("in")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self.inputs[name] = (kind, tuple(dims))
        for axis, dim in enumerate(dims):
            if isinstance(dim, str):
                self.symbols.setdefault(dim, (name, axis))
        return name

    def constant(self, array, name=None) -> str:
        name = name or self.name("const")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random(self, *shape, name=None, dtype=None) -> str:
        return self.constant(self.values.standard_normal(shape).astype(dtype or self.dtype), name)

    def ints(self, *values) -> str:
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value) -> str:
        return self.constant(np.asarray(value, self.dtype))

    def node(self, op, *inputs, outputs=1, name=None, domain="", **attributes):
        """One node; returns the name of its output, or the names of several."""
        names = [outputs] if isinstance(outputs, str) else [self.name(op) for _ in range(outputs)]
        name = self.name(f"node_{op}") if name is None else name
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def with_axes(self, op, x, *axes, **attributes) -> str:
        """Squeeze, Unsqueeze: their axes are an input from opset 13."""
        if self.opset < 13:
            return self.node(op, x, axes=list(axes), **attributes)
        return self.node(op, x, self.ints(*axes), **attributes)

    def reduced(self, op, x, *axes, keepdims=0) -> str:
        """ReduceSum, ReduceMax and their like: their axes are an input from opset 13 or 18."""
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.node(op, x, axes=list(axes), keepdims=keepdims)
        return self.node(op, x, self.ints(*axes), keepdims=keepdims)

    def extent(self, symbol: str) -> str:
        """A run-time extent as an int64 tensor of one element."""
        tensor, axis = self.symbols[symbol]
        return self.node("Gather", self.node("Shape", tensor), self.ints(axis))

    def shape(self, dims) -> str:
        """A shape as a tensor."""
        if all(isinstance(d, int) for d in dims):
            return self.ints(*dims)
        parts = [self.ints(d) if isinstance(d, int) else self.extent(d) for d in dims]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def output(self, *names: str, rank: int = 4) -> None:
        """Graph outputs; ``rank`` is declared where shape inference does not find out."""
        self.outputs.extend(names)
        self.ranks.update(dict.fromkeys(names, rank))

    def model(self, **kwargs) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(n, kind, dims) for n, (kind, dims) in self.inputs.items()]
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        outputs = [helper.make_tensor_value_info(n, kind, None) for n in dict.fromkeys(self.outputs)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [
            helper.make_opsetid(d, 1) for d in sorted({n.domain for n in self.nodes} | {f.domain for f in self.functions})
            if d
        ]  # fmt: skip
        kwargs.setdefault("ir_version", max(8, helper.find_min_ir_version_for(imports, ignore_unknown=True)))
        model = helper.make_model(graph, opset_imports=imports, functions=self.functions, **kwargs)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)  # declares the outputs' extents
        for output, known in zip(model.graph.output, inferred.graph.output, strict=True):
            output.CopyFrom(known)
            if not output.type.tensor_type.HasField("shape"):
                rank = self.ranks[output.name]
                dims = [f"{output.name}_{i}" for i in range(rank)]
                output.CopyFrom(helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, dims))
        return model


def session(model: onnx.ModelProto, optimize: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(model: onnx.ModelProto, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; integers count up from 0."""
    rng = np.random.default_rng(seed)
    given = {}
    initialized = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in initialized:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes[d.dim_param] for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype.kind in "iu":
            given[value.name] = (np.arange(np.prod(shape, dtype=int)) % 3).reshape(shape).astype(dtype)
        elif dtype.kind == "b":
            given[value.name] = np.asarray(rng.random(shape) < 0.5)
        else:
            given[value.name] = rng.standard_normal(shape).astype(dtype)
    return given


def symbols_of(model: onnx.ModelProto) -> list[str]:
    dims = [d for v in model.graph.input for d in v.type.tensor_type.shape.dim]
    return sorted({d.dim_param for d in dims if d.dim_param})


def assert_interface_kept(model: onnx.ModelProto, result: onnx.ModelProto) -> None:
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert list(result.opset_import) == list(model.opset_import)
    assert list(result.metadata_props) == list(model.metadata_props)
    assert list(result.functions) == list(model.functions)
    assert (result.ir_version, result.producer_name, result.doc_string) == (
        model.ir_version,
        model.producer_name,
        model.doc_string,
    )


def passes_full_check(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:
        return False
    return True


def rewritten(result: Result, rule: str = "tile-concat-conv") -> int:
    """How many sites of a rule were rewritten."""
    return sum(site.decision == "rewritten" and site.rule == rule for site in result.sites)


def reasons(result: Result) -> str:
    """All refusals, in one text."""
    return " | ".join([site.reason for site in result.sites] + [miss.reason for miss in result.near_misses])


def spelled(model: onnx.ModelProto, pick: Callable[[list[str]], str | None]) -> onnx.ModelProto | None:
    """The model with its sites in chosen lowerings, or None where nothing was rewritten.

    Args:
        pick: one of the lowerings that a site is offered, or None to leave it.
    """
    editable = EditableModel(model, Path(), model.opset_import[0].version)
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, editable.opset)
    matches = [tile_concat_conv.match(node, symbols, decomposer) for node in list(editable.graph.nodes)]
    changed = False
    for found in matches:
        if not isinstance(found, tile_concat_conv.Match):
            continue
        lowering = pick(tile_concat_conv.lowerings(symbols, found))
        if lowering is None:
            continue
        prefix = editable.new_prefix(f"{found.node.outputs[0].name}/msconv")
        built = tile_concat_conv.rewrite(editable, symbols, found, prefix, lowering)
        if not isinstance(built, Refusal):
            found.node.outputs.clear()
            editable.insert(built, {"msconv.rule": "test"})
            changed = True
    return editable.export() if changed else None


def optimized(model: onnx.ModelProto, sizes=(), folder: Path = Path(), tolerance: float | None = None) -> Result:
    """Optimize a model and assert everything that must hold of the result.

    Args:
        sizes: values of the symbolic dims to run at; sizes at which the original fails are skipped.
    """
    before = model.SerializeToString(deterministic=True)
    result = optimize_model(model, folder, "always")
    assert model.SerializeToString(deterministic=True) == before, "the original was changed"
    if not result.changed:
        assert result.model is model or result.model.SerializeToString(deterministic=True) == before
        return result
    onnx.checker.check_model(result.model)
    if passes_full_check(model):
        onnx.checker.check_model(result.model, full_check=True)
    assert_interface_kept(model, result.model)
    again = optimize_model(result.model, folder, "always")
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True), (
        "a second run changes something"
    )
    original, rewrite = session(model), session(result.model)
    ran = 0
    for number, assignment in enumerate(sizes or [dict.fromkeys(symbols_of(model), 2)]):
        given = feeds(model, assignment, number)
        try:
            expected = original.run(None, given)
        except Exception:
            continue
        ran += 1
        compare(expected, rewrite.run(None, given), assignment, tolerance)
    result.ran = ran
    return result


def compare(expected, got, label, tolerance: float | None = None) -> None:
    for e, g in zip(expected, got, strict=True):
        assert e.dtype == g.dtype, label
        assert e.shape == g.shape, (label, e.shape, g.shape)
        if not e.size:
            continue
        if e.dtype.kind in "iub":
            assert np.array_equal(e, g), label
            continue
        finite = np.isfinite(e)
        assert np.array_equal(finite, np.isfinite(g)), label
        if not finite.any():
            continue
        e, g = e[finite].astype(np.float64), g[finite].astype(np.float64)
        limit = TOLERANCE[expected[0].dtype.type] if tolerance is None else tolerance
        error = np.abs(e - g).max()
        floor = 0.1  # outputs of order 1 that cancel almost to nothing keep the rounding errors of their parts
        assert error <= limit * max(np.abs(e).max(), floor), (label, error, np.abs(e).max())
