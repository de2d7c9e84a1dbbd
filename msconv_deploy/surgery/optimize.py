"""Optimizing a model: analyse, choose, rewrite, and put back together.

    read_model -> EditableModel -> (rules match -> choose -> rewrite) until nothing changes -> model

`inspect_model` stops before the rewriting. Both return sites as data; nothing here prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.ops.forms import default_opset
from msconv_deploy.surgery.choice.choose import Choice, When, choose
from msconv_deploy.surgery.choice.extents import InputShapes, check_input_shapes
from msconv_deploy.surgery.choice.timing import random_feeds
from msconv_deploy.surgery.choice.tune import Candidate, Plan
from msconv_deploy.surgery.choice.tune import tune as tune_plan
from msconv_deploy.surgery.engine.contraction import Contraction, Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.rules import tile_concat_conv
from msconv_deploy.surgery.rules.tile_concat_conv import Match
from msconv_deploy.surgery.sites import NearMiss, SegmentInfo, Site


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


Progress = Callable[[str], None]
Chooser = Callable[[EditableModel, Symbols, Sequence[Match]], list[Choice]]


def inspect_model(
    model: onnx.ModelProto, folder: Path, *, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> Result:
    """Find the sites of a model without changing it (its external data lies in ``folder``)."""
    shapes = _checked(model, input_shapes)
    return _one_pass(Result(model), folder, partial(choose, when="faster", shapes=shapes), dry=True)


def optimize_model(
    model: onnx.ModelProto,
    folder: Path,
    when: When = "faster",
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    tune: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Rewrite the sites of a model.

    Args:
        model: not changed.
        folder: where its external data lies.
        when: ``faster`` leaves sites whose estimated gain is below the margin; ``always`` rewrites every valid site.
        input_shapes: extents of inputs for the estimates, by name; defaults stand in for dynamic ones that are missing.
        tune: measure the candidates on this machine instead of estimating them.
        progress: is told in words what is done now.
    """
    shapes = _checked(model, input_shapes)
    if tune:
        return _tuned(model, folder, when, shapes, progress)
    return _all_passes(model, folder, partial(choose, when=when, shapes=shapes))


def _all_passes(model: onnx.ModelProto, folder: Path, chooser: Chooser) -> Result:
    result = Result(model)
    while True:  # a rewritten site whose output is uniform makes sites of those that read it
        before = sum(site.decision == "rewritten" for site in result.sites)
        result = _one_pass(result, folder, chooser)
        if sum(site.decision == "rewritten" for site in result.sites) == before:
            return result


def _tuned(model: onnx.ModelProto, folder: Path, when: When, shapes: InputShapes, progress: Progress | None) -> Result:
    """Optimize by measuring: see ``choice.tune``."""

    def optimized(plan: Plan | None, mode: When = "always") -> Result:
        def by_plan(editable: EditableModel, symbols: Symbols, matches: Sequence[Match]) -> list[Choice]:
            choices = choose(editable, symbols, matches, mode, shapes)
            for choice, found in zip(choices, matches, strict=True):
                spelling = choice.lowering if plan is None else plan.get(found.node.outputs[0].name)
                if plan is not None:
                    choice.rewrite, choice.reason = spelling is not None, "measured"
                choice.lowering = spelling or choice.lowering
            return choices

        return _all_passes(model, folder, by_plan)

    every, estimated = optimized(None), optimized(None, when)
    promising = sorted(every.sites, key=lambda site: site.estimated_gain or 1.0, reverse=True)
    leave = (None,) if when == "faster" else ()
    tuned = tune_plan(
        model,
        folder,
        random_feeds(model, shapes),
        [_plan(every), _plan(estimated)],
        [Candidate(site.output, (*site.spellings, *leave)) for site in promising],
        lambda plan: optimized(plan).model,
        may_keep_original=when == "faster",
        progress=progress,
    )
    return optimized(tuned.plan)


def _plan(result: Result) -> Plan:
    return {site.output: site.lowering for site in result.sites if site.decision == "rewritten"}


def _checked(model: onnx.ModelProto, shapes: InputShapes | None) -> InputShapes:
    check_input_shapes(model, shapes or {})
    return shapes or {}


def _one_pass(result: Result, folder: Path, chooser: Chooser, dry: bool = False) -> Result:
    opset = default_opset(result.model)
    editable = EditableModel(result.model, folder, opset)
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, opset)
    made = {node.name for node in result.model.graph.node if any(p.key == "msconv.rule" for p in node.metadata_props)}
    after = Result(result.model, [site for site in result.sites if site.decision == "rewritten"])
    matches = []
    for node in editable.graph.nodes:
        if node.name in made:
            continue
        found = tile_concat_conv.match(node, symbols, decomposer)
        if isinstance(found, Refusal):
            after.near_misses.append(NearMiss(node_name(node), node.op, found.reason, list(found.nodes)))
        elif isinstance(found, Match):
            matches.append(found)
    changed = False
    for found, choice in zip(matches, chooser(editable, symbols, matches), strict=True):
        site = _site(found, choice)
        after.sites.append(site)
        if choice.rewrite and not dry:
            changed |= _rewrite(editable, symbols, found, site)
    if changed:
        after.model = editable.export()
    return after


def _rewrite(editable: EditableModel, symbols: Symbols, found: Match, site: Site) -> bool:
    """Rewrite one site in the graph; False if something that is needed turns out not to be known."""
    prefix = editable.new_prefix(f"{site.node}/msconv")
    builder = tile_concat_conv.rewrite(editable, symbols, found, prefix, site.lowering)
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


def _site(found: Match, choice: Choice) -> Site:
    segments = [
        SegmentInfo(start, s.size, sorted(s.uniform), list(s.found))
        for start, s in zip(found.starts, found.segments, strict=True)
    ]
    node = found.node
    site = Site(
        node_name(node), node.op, node.outputs[0].name, _geometry(found.contraction), segments, tile_concat_conv.ID
    )
    site.lowering, site.reason, site.spellings = choice.lowering, choice.reason, list(choice.spellings)
    if choice.cost is not None:
        site.macs_before, site.macs_after = choice.cost.before.macs, choice.cost.after.macs
        site.bytes_before, site.bytes_after = choice.cost.before.bytes, choice.cost.after.bytes
        site.estimated_gain = choice.cost.gain
    return site


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
