"""Optimizing a model: analyse, choose, rewrite, and put back together.

    read_model -> EditableModel -> (rules match -> choose -> rewrite) until nothing changes -> model

`inspect_model` stops before the rewriting. Both return sites as data; nothing here prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.ops.forms import default_opset
from msconv_deploy.surgery.engine.contraction import Contraction, Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.rules import tile_concat_conv
from msconv_deploy.surgery.rules.tile_concat_conv import Match
from msconv_deploy.surgery.sites import NearMiss, SegmentInfo, Site

When = Literal["faster", "always"]
_MAX_PASSES = 8


@dataclass
class Result:
    """What was found in a model, and what was done to it.

    Attributes:
        model: the rewritten model; the original object itself if nothing was rewritten.
        sites: every contraction that reads copies, rewritten or left.
        near_misses: contractions below copies that are no sites, with the reason.
    """

    model: onnx.ModelProto
    sites: list[Site] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return any(site.decision == "rewritten" for site in self.sites)


def inspect_model(model: onnx.ModelProto, folder: Path) -> Result:
    """Find the sites of a model without changing it (its external data lies in ``folder``)."""
    return _one_pass(Result(model), folder, "always", dry=True)


def optimize_model(model: onnx.ModelProto, folder: Path, when: When = "faster") -> Result:
    """Rewrite the sites of a model.

    Args:
        model: not changed.
        folder: where its external data lies.
        when: ``faster`` leaves sites whose estimated gain is below the margin; ``always`` rewrites every valid site.
    """
    result = Result(model)
    for _ in range(_MAX_PASSES):  # a rewritten site whose output is uniform makes sites of those that read it
        before = sum(site.decision == "rewritten" for site in result.sites)
        result = _one_pass(result, folder, when)
        if sum(site.decision == "rewritten" for site in result.sites) == before:
            break
    return result


def _one_pass(result: Result, folder: Path, when: When, dry: bool = False) -> Result:
    opset = default_opset(result.model)
    editable = EditableModel(result.model, folder, opset)
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, opset)
    made = {node.name for node in result.model.graph.node if any(p.key == "msconv.rule" for p in node.metadata_props)}
    kept = [site for site in result.sites if site.decision == "rewritten"]
    after = Result(result.model, kept)
    changed = False
    for node in list(editable.graph.nodes):
        if node.name in made:
            continue
        found = tile_concat_conv.match(node, symbols, decomposer)
        if isinstance(found, Refusal):
            after.near_misses.append(NearMiss(node_name(node), node.op, found.reason, list(found.nodes)))
        elif isinstance(found, Match):
            site = _site(found)
            after.sites.append(site)
            if not dry and _rewrite(editable, symbols, found, site, len(after.sites)):
                changed = True
    if changed:
        after.model = editable.export()
    return after


def _rewrite(editable: EditableModel, symbols: Symbols, found: Match, site: Site, number: int) -> bool:
    """Rewrite one site in the graph; False if something that is needed turns out not to be known."""
    builder = tile_concat_conv.rewrite(editable, symbols, found, editable.new_prefix(f"{site.node}/msconv"))
    if isinstance(builder, Refusal):
        site.reason = builder.reason
        return False
    found.node.outputs.clear()
    editable.insert(builder, {"msconv.rule": site.rule, "msconv.replaces": site.node})
    site.decision = "rewritten"
    return True


def node_name(node: gs.Node) -> str:
    """A node's name, or that of its first output where it has none."""
    return str(node.name or (node.outputs[0].name if node.outputs else node.op))


def _site(found: Match) -> Site:
    segments = [
        SegmentInfo(start, s.size, sorted(s.uniform), list(s.found))
        for start, s in zip(found.starts, found.segments, strict=True)
    ]
    node = found.node
    return Site(
        node_name(node), node.op, node.outputs[0].name, _geometry(found.contraction), segments, tile_concat_conv.ID
    )


def _geometry(contraction: Contraction) -> str:
    if not contraction.axes:
        return ""
    axes = contraction.axes
    parts = ["kernel " + "x".join(str(a.kernel) for a in axes)]
    if any(a.stride != 1 for a in axes):
        parts.append("stride " + "x".join(str(a.stride) for a in axes))
    if any(a.dilation != 1 for a in axes):
        parts.append("dilation " + "x".join(str(a.dilation) for a in axes))
    if any(a.padded for a in axes):
        parts.append("pad " + " ".join(f"{a.pad_before},{a.pad_after}" for a in axes))
    if contraction.group != 1:
        parts.append(f"group {contraction.group}")
    return ", ".join(parts)
