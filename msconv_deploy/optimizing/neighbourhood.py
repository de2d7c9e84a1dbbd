"""The part of a graph around a site, before and after its rewrite, as something that can be drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import onnx

from msconv_deploy.model_checks import propagates
from msconv_deploy.reporting.optimize import SiteReport, SiteView, View, ViewNode
from msconv_deploy.surgery.engine.editing import skeleton_of

_UP, _DOWN = 5, 2  # how many nodes far a neighbourhood reaches
_MOST = 40  # nodes of one drawing
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)

Kind = Literal["node", "input", "output", "weight", "site", "copy", "new"]


def site_views(
    original: onnx.ModelProto, rewritten: onnx.ModelProto, sites: Sequence[SiteReport], folder: Path
) -> list[SiteView]:
    """Drawings of the rewritten sites; weights are not read (``folder`` may hold external data)."""
    if not sites:
        return []
    before, after = _Graph(original), _Graph(rewritten)
    return [SiteView(node=site.node, before=_before(before, site), after=_after(after, site)) for site in sites]


class _Graph:
    """A model's nodes with their producers, consumers, shapes and types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        skeleton, _ = skeleton_of(model)
        with suppress(onnx.shape_inference.InferenceError, RuntimeError):  # drawn without shapes then
            skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=propagates(skeleton))
        graph = skeleton.graph
        self.nodes = list(graph.node)
        self.weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input} - set(self.weights)
        self.outputs = {value.name for value in graph.output}
        self.producer: dict[str, int] = {}
        self.consumers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.output:
                self.producer[name] = index
            for name in node.input:
                self.consumers[name].append(index)
        self.shape: dict[str, str] = {}
        self.integer: set[str] = set()
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            if kind.HasField("shape"):
                self.shape[value.name] = "×".join(_extent(d) for d in kind.shape.dim)
            if kind.elem_type in _INTEGERS:
                self.integer.add(value.name)

    def upstream(self, index: int) -> list[int]:
        """Nodes that compute a node's inputs, arithmetic on shapes left out."""
        producers = (self.producer.get(name) for name in self.nodes[index].input)
        return [p for p in producers if p is not None and not self.is_arithmetic(p)]

    def downstream(self, index: int) -> list[int]:
        consumers = (c for name in self.nodes[index].output for c in self.consumers[name])
        return [c for c in consumers if not self.is_arithmetic(c)]

    def is_arithmetic(self, index: int) -> bool:
        """Does the node compute with shapes and indices, or hold a constant?"""
        node = self.nodes[index]
        return node.op_type in ("Constant", "Shape") or all(name in self.integer for name in node.output if name)


def _extent(dim: onnx.TensorShapeProto.Dimension) -> str:
    """A number or a name; names that shape inference made up mean nothing to anybody."""
    name = "" if dim.dim_param.startswith("unk__") else dim.dim_param
    return str(dim.dim_value) if dim.HasField("dim_value") else name or "?"


def _before(graph: _Graph, site: SiteReport) -> View:
    named = [index for index, node in enumerate(graph.nodes) if site.node in (node.name, *node.output)]
    core = named[:1] or [graph.producer[name] for name in (site.output,) if name in graph.producer]
    copies = {text.split(" ", 1)[-1] for segment in site.segments for text in segment.found}
    chosen = _around(graph, core, _UP, _DOWN)
    kinds: dict[int, Kind] = {i: "copy" for i in chosen if graph.nodes[i].name in copies}
    return _view(graph, chosen, {**kinds, **dict.fromkeys(core, "site")})


def _after(graph: _Graph, site: SiteReport) -> View | None:
    new = [
        index
        for index, node in enumerate(graph.nodes)
        if any(p.key == "msconv.replaces" and site.node in (p.value, *p.value.split(",")) for p in node.metadata_props)
    ]
    drawn = [index for index in new if not graph.is_arithmetic(index)]
    if not drawn:
        return None
    chosen = _around(graph, drawn, 2, _DOWN)
    return _view(graph, chosen, dict.fromkeys(drawn, "new"))


def _around(graph: _Graph, core: Iterable[int], up: int, down: int) -> list[int]:
    """Nodes around some nodes, nearest first, at most so many as can be drawn."""
    chosen = dict.fromkeys(core)
    for step, reach in ((graph.upstream, up), (graph.downstream, down)):
        border = list(chosen) if step == graph.upstream else list(core)
        for _ in range(reach):
            border = [n for index in border for n in step(index) if n not in chosen]
            chosen.update(dict.fromkeys(border[: max(0, _MOST - len(chosen))]))
            border = [n for n in border if n in chosen]
    return sorted(chosen)


def _view(graph: _Graph, chosen: Sequence[int], kinds: dict[int, Kind]) -> View:
    nodes: list[ViewNode] = []
    edges: list[tuple[str, str]] = []
    inside, cut = set(chosen), False
    for index in chosen:
        node = graph.nodes[index]
        weights = ["×".join(map(str, graph.weights[name])) or "scalar" for name in node.input if name in graph.weights]
        made = next((graph.shape[name] for name in node.output if name in graph.shape), "")
        detail = " · ".join(filter(None, [made, f"W {weights[0]}" if weights and len(weights[0]) > 1 else ""]))
        nodes.append(
            ViewNode(key=f"n{index}", label=node.op_type, name=node.name, detail=detail, kind=kinds.get(index, "node"))
        )
        for name in dict.fromkeys(node.input):
            producer = graph.producer.get(name)
            if producer in inside:
                edges.append((f"n{producer}", f"n{index}"))
            elif name in graph.inputs:
                edges.append((f"i{name}", f"n{index}"))
                if all(n.key != f"i{name}" for n in nodes):
                    nodes.append(ViewNode(key=f"i{name}", label=name, detail=graph.shape.get(name, ""), kind="input"))
            elif producer is not None and not graph.is_arithmetic(producer):
                cut = True
        for name in node.output:
            if name in graph.outputs:
                nodes.append(ViewNode(key=f"o{name}", label=name, kind="output"))
                edges.append((f"n{index}", f"o{name}"))
            cut |= any(c not in inside and not graph.is_arithmetic(c) for c in graph.consumers[name])
    return View(nodes=nodes, edges=list(dict.fromkeys(edges)), cut=cut)
