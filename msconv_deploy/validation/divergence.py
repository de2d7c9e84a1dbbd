"""Where do two networks part? The first tensor, in order of execution, that leaves its tolerance.

Intermediate tensors become extra outputs of copies in memory; the files are not touched, and weights in external
files stay where they are. Exposing a tensor keeps ONNX Runtime from fusing over it, so a fault of a fusion may vanish:
the result says so then.
"""

from __future__ import annotations

import ast
import logging
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import inliner

from msconv_deploy.reporting import Divergence
from msconv_deploy.runtimes import Settings
from msconv_deploy.validation.difference import TensorDifference, difference, is_float
from msconv_deploy.validation.graph import OnnxGraph, load_structure
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.tolerance import with_noise

if TYPE_CHECKING:
    from msconv_deploy.runtimes.pytorch import NamedModule

logger = logging.getLogger(__name__)

_CHUNK = 32  # tensors fetched at once, which bounds the memory that they take
_CANDIDATES = 8  # tensors of one submodule's scope that are looked at, from its last backwards

Tolerance = Callable[[str], float]


class SearchFailed(Exception):  # noqa: N818  (an outcome that is reported, not an error for the user)
    """The copy with exposed tensors does not run."""


class ExposedModel:
    """A copy of a file whose intermediate tensors can be read: functions inlined, tensors added as outputs."""

    def __init__(self, path: Path, settings: Settings, model: onnx.ModelProto | None = None) -> None:
        """``model``: what to look into instead of the file; it must be ours to change."""
        self.path = path
        self.settings = settings
        if model is None:
            model = load_structure(path)
        # A call of a function says where it comes from; the nodes of its body do not. Its outputs keep their names.
        self.caller = {name: node for node in model.graph.node for name in node.output if name}
        self.model = inliner.inline_local_functions(model) if model.functions else model
        self.producer: dict[str, onnx.NodeProto] = {}
        self.position: dict[str, int] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for index, node in enumerate(self.model.graph.node):
            for name in node.output:
                self.producer[name] = node
                self.position[name] = index
            for name in node.input:
                self.consumers[name].append(node)
        self._session: Any = None

    def expose(self, names: Iterable[str]) -> None:
        """Make the tensors readable; once, before :meth:`fetch`."""
        from msconv_deploy.runtimes.onnx_runtime import make_session

        outputs = {o.name for o in self.model.graph.output}
        for name in names:
            if name not in outputs:
                self.model.graph.output.append(onnx.ValueInfoProto(name=name))  # ONNX Runtime infers the type
        self._session = make_session(self.path, self.settings, self.model)

    def fetch(self, inputs: Inputs, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Values of exposed tensors; floats are fed in the width that this file wants.

        Raises:
            SearchFailed: ONNX Runtime failed.
        """
        wanted = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in self.model.graph.input
        }
        feed = {name: array.astype(wanted[name], copy=False) for name, array in inputs.arrays.items() if name in wanted}
        try:
            return dict(zip(names, self._session.run(list(names), feed), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise SearchFailed(str(error).strip()) from error


@dataclass(frozen=True)
class _Pair:
    """A tensor of the tested model beside what the reference computed for it."""

    tensor: str
    reference: str
    module: str | None
    found: TensorDifference
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.found.within(self.tolerance)


def diverges_from_onnx(
    graph: OnnxGraph, reference: Path, inputs: Inputs, settings: Settings, tolerance: Tolerance
) -> Divergence:
    """Compare all float tensors that bear the same name in both files.

    Args:
        graph: of the tested file.
        inputs: a set for which the outputs differ.
        settings: of the tested run; the reference runs without graph optimizations.
        tolerance: of a tensor by name.
    """
    tested = ExposedModel(graph.path, settings)
    other = ExposedModel(reference, Settings(threads=settings.threads, optimization="none"))
    return _between(graph, tested, other, inputs, tolerance)


def diverges_between(
    graph: OnnxGraph,
    path: Path,
    tested: onnx.ModelProto,
    reference: onnx.ModelProto,
    inputs: Inputs,
    settings: Settings,
    tolerance: Tolerance,
) -> Divergence:
    """The same for two models in memory whose external data lies beside ``path``; both are copied.

    Args:
        graph: of the reference.
    """
    plain = Settings(threads=settings.threads, optimization="none")
    copies = (onnx.ModelProto(), onnx.ModelProto())
    for copy, model in zip(copies, (tested, reference), strict=True):
        copy.CopyFrom(model)
    one, other = ExposedModel(path, plain, copies[0]), ExposedModel(path, plain, copies[1])
    return _between(graph, one, other, inputs, tolerance)


def _between(
    graph: OnnxGraph, tested: ExposedModel, other: ExposedModel, inputs: Inputs, tolerance: Tolerance
) -> Divergence:
    common = [
        name
        for name in sorted(tested.producer, key=tested.position.__getitem__)
        if name and name in other.producer and is_float_type(graph, name)
    ]
    tested.expose(common)
    other.expose(common)
    pairs: list[_Pair] = []
    for chunk in _chunks(common):
        values, expected = tested.fetch(inputs, chunk), other.fetch(inputs, chunk)
        for name in chunk:
            if not all(hasattr(value[name], "shape") for value in (values, expected)):
                continue  # a sequence or an optional: inference does not always know
            found = difference(values[name], expected[name], graph.border.get(name, 0))
            pairs.append(_Pair(name, name, None, found, tolerance(name)))
        if not all(p.agrees for p in pairs):
            break
    return _report(pairs, tested, inputs)


def diverges_from_module(
    graph: OnnxGraph,
    reference: NamedModule,
    own: NamedModule | None,
    inputs: Inputs,
    settings: Settings,
    tolerance: Tolerance,
) -> Divergence:
    """Compare the output of every submodule with the ONNX tensor that ends its scope.

    The dynamo exporter writes a node's module path into its metadata (``pkg.torch.onnx.name_scopes``), the legacy one
    into its name (``/blocks/blocks.0/conv/Conv``). A submodule maps to the last tensor of its scope that has its
    output's shape. Submodules that run more than once are left to their parents. A tensor that disagrees although
    everything that is computed from it agrees again is passed over: the exporter spelled it differently there (a
    BatchNorm folded into the convolution before it, for instance).

    Args:
        reference: evaluated as it is, so pass the float64 copy.
        own: the module in its own dtype, whose distance from the reference is the noise of each submodule; None to do
            without.
    """
    tested = ExposedModel(graph.path, settings)
    expected = _submodule_outputs(reference, inputs)
    noisy = {} if own is None else _submodule_outputs(own, inputs)
    root_outputs = {name: expected.pop("=" + name) for name in reference.output_names}
    candidates = _scope_tensors(tested, set(expected))
    names = {t for tensors in candidates.values() for t in tensors if is_float_type(graph, t)} | set(root_outputs)
    tested.expose(names)
    owner: dict[str, tuple[str, np.ndarray]] = {}  # tensor -> (module, reference value); the innermost module wins
    pairs: list[_Pair] = []

    def add(tensor: str, module: str | None, value: np.ndarray, actual: np.ndarray) -> None:
        found = difference(actual, value, graph.border.get(tensor, 0))
        key = module or "=" + tensor
        noise = difference(noisy[key], value).value if key in noisy else None
        allowed, _ = with_noise(tolerance(tensor), noise)
        pairs.append(_Pair(tensor, module if module is not None else tensor, module, found, allowed))

    for module in sorted(expected, key=lambda m: -m.count(".")):
        tensors = [t for t in candidates.get(module, []) if t in names]
        for tensor in tensors:
            if tensor in owner:
                break  # the scope of this module ends with that of an inner one, which is more precise
            actual = tested.fetch(inputs, [tensor])[tensor]
            if actual.shape == expected[module].shape:
                owner[tensor] = (module, expected[module])
                add(tensor, module, expected[module], actual)
                break
    for name, value in root_outputs.items():
        if name not in owner and name in tested.producer:
            add(name, None, value, tested.fetch(inputs, [name])[name])
    pairs.sort(key=lambda p: tested.position.get(p.tensor, -1))
    if not any(p.module for p in pairs):
        return Divergence(
            found=False,
            size=inputs.size,
            reason="no node of the file says which PyTorch submodule it came from (exporters write it, later tools may "
            "drop it), so the difference cannot be traced to one",
        )
    return _report(_without_respellings(pairs, tested), tested, inputs)


def is_float_type(graph: OnnxGraph, name: str) -> bool:
    """Does the tensor hold floats? A type that inference does not know counts as one: its values are read anyway."""
    dtype = graph.dtypes.get(name)
    return dtype is None or is_float(dtype)


def _chunks(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _CHUNK):
        yield names[start : start + _CHUNK]


def _report(pairs: list[_Pair], tested: ExposedModel, inputs: Inputs) -> Divergence:
    """The first disagreeing pair and the last agreeing one before it."""
    agreeing: _Pair | None = None
    for pair in pairs:
        if pair.agrees:
            agreeing = pair
            continue
        node = tested.producer.get(pair.tensor)
        return Divergence(
            found=True,
            size=inputs.size,
            tensor=pair.tensor,
            reference_tensor=pair.reference,
            node=node.name if node is not None else None,
            op_type=node.op_type if node is not None else None,
            module=pair.module,
            difference=pair.found.value if np.isfinite(pair.found.value) else None,
            tolerance=pair.tolerance,
            last_agreeing=agreeing.tensor if agreeing else None,
            last_agreeing_module=agreeing.module if agreeing else None,
            tensors_compared=len(pairs),
            reason=pair.found.problem or pair.found.unusable,
        )
    return Divergence(
        found=False,
        size=inputs.size,
        tensors_compared=len(pairs),
        last_agreeing=agreeing.tensor if agreeing else None,
        reason="every compared tensor agrees once it is exposed as an output: the difference comes from a graph "
        "optimization that exposing prevents (try --optimization none), or from between the compared tensors"
        if pairs
        else "the two files have no intermediate tensor in common",
    )


# -- PyTorch submodules ----------------------------------------------------------------------------------------------


def _submodule_outputs(reference: NamedModule, inputs: Inputs) -> OrderedDict[str, np.ndarray]:
    """Output of every submodule that runs exactly once and returns one tensor; the network's own as ``=name``."""
    import torch

    from msconv_deploy.runtimes.pytorch import evaluate, to_numpy

    calls: dict[str, int] = defaultdict(int)
    outputs: OrderedDict[str, np.ndarray] = OrderedDict()

    def hook(path: str) -> Callable[[Any, Any, Any], None]:
        def record(module: Any, args: Any, output: Any) -> None:
            calls[path] += 1
            if isinstance(output, torch.Tensor):
                outputs[path] = to_numpy(output).copy()  # a later in-place operation would change it

        return record

    handles = [m.register_forward_hook(hook(path)) for path, m in reference.module.named_modules() if path]
    try:
        results = evaluate(reference, inputs.arrays)
    finally:
        for handle in handles:
            handle.remove()
    once = OrderedDict((path, value) for path, value in outputs.items() if calls[path] == 1 and is_float(value.dtype))
    once.update(("=" + name, to_numpy(value)) for name, value in results.items())
    return once


def _scope_tensors(tested: ExposedModel, modules: set[str]) -> dict[str, list[str]]:
    """Module path -> tensors computed inside its scope, the last one first."""
    known = modules | {m.rpartition(".")[0] for m in modules}
    tensors: dict[str, list[str]] = defaultdict(list)
    for node in reversed(tested.model.graph.node):
        for name in node.output:
            scope = node_scope(tested.caller.get(name, node), known) if name else ""
            while scope:
                if scope in modules and len(tensors[scope]) < _CANDIDATES:
                    tensors[scope].append(name)
                scope = scope.rpartition(".")[0]
    return tensors


def node_scope(node: onnx.NodeProto, modules: set[str]) -> str:
    """Path of the innermost known submodule that the node was exported from; empty if the node does not say."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            return next((str(s) for s in reversed(scopes) if s in modules), "")
    # Legacy: /parent/parent.0/conv/Conv. A part repeats its container's name ("parent.0") or follows it ("conv").
    path = last = ""
    for part in node.name.split("/")[1:-1]:
        inside = path.removesuffix(last) + part if last and part.startswith(last + ".") else ""
        below = f"{path}.{part}" if path else part
        path = next((p for p in (inside, below) if p and (p in modules or _is_prefix(p, modules))), path)
        last = part
    return path


def _is_prefix(path: str, modules: set[str]) -> bool:
    return any(m.startswith(path + ".") for m in modules)


def _without_respellings(pairs: list[_Pair], tested: ExposedModel) -> list[_Pair]:
    """Drop disagreeing pairs whose nearest compared descendants all agree."""
    by_tensor: Mapping[str, _Pair] = {p.tensor: p for p in pairs}

    def nearest(tensor: str) -> list[_Pair]:
        reached, seen, queue = [], {tensor}, deque([tensor])
        while queue:
            for node in tested.consumers.get(queue.popleft(), []):
                for name in node.output:
                    if name in seen:
                        continue
                    seen.add(name)
                    if name in by_tensor:
                        reached.append(by_tensor[name])
                    else:
                        queue.append(name)
        return reached

    kept = []
    for pair in pairs:
        after = [] if pair.agrees else nearest(pair.tensor)
        if not (after and all(p.agrees for p in after)):
            kept.append(pair)
    return kept
