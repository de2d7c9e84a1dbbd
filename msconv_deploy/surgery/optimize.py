"""Optimizing a model: analyse, choose, rewrite, and put back together.

    read_model -> EditableModel -> (rules match -> choose -> rewrite) until nothing changes -> model

`tile-concat-conv` goes first; the passes of :func:`_passes` work on what it leaves.

`inspect_model` stops before the rewriting. Both return sites as data; nothing here prints.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.forms import Form, convert_form, default_opset
from msconv_deploy.ops.schema import register_schema
from msconv_deploy.surgery.broadcasts import broadcast_pass
from msconv_deploy.surgery.choice.choose import Choice, When, choose
from msconv_deploy.surgery.choice.extents import InputShapes, check_input_shapes
from msconv_deploy.surgery.choice.timing import Comparison, random_feeds
from msconv_deploy.surgery.choice.tune import Candidate, Plan
from msconv_deploy.surgery.choice.tune import tune as tune_plan
from msconv_deploy.surgery.distances import distance_pass
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.decomposition import Decomposer
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder, quiet_graphsurgeon
from msconv_deploy.surgery.engine.epilogue import Epilogue, taken_over
from msconv_deploy.surgery.engine.split_views import SplitViews
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.merges import merge_pass
from msconv_deploy.surgery.passes import Decider, Pass, always, faster
from msconv_deploy.surgery.rules import msconv_node, tile_concat_conv, tiled_distance
from msconv_deploy.surgery.rules.tile_concat_conv import Match
from msconv_deploy.surgery.sites import NearMiss, SegmentInfo, Site, geometry_text, node_name, rewritten_names
from msconv_deploy.surgery.unfolds import unfold_pass

OPTIONAL = (tiled_distance.ID,)
"""Rules that are applied only where they are allowed by name: their result rounds otherwise than the original does."""


def _passes(allow: Collection[str]) -> tuple[Pass, ...]:
    """What follows `tile-concat-conv`, in this order, each on the model that the one before leaves.

    Raises:
        BadInputError: a name is not one of :data:`OPTIONAL`.
    """
    unknown = sorted(set(allow) - set(OPTIONAL))
    if unknown:
        raise BadInputError(f"no rule {unknown[0]!r} needs to be allowed: those that do are {', '.join(OPTIONAL)}")
    return unfold_pass, merge_pass, partial(distance_pass, allowed=tiled_distance.ID in allow), broadcast_pass


@dataclass
class Result:
    """What was found in a model, and what was done to it.

    Attributes:
        model: the rewritten model; the original object itself if nothing was rewritten.
        sites: every contraction that reads copies, and every operator on copies, rewritten or left.
        near_misses: contractions below copies that are no sites, with the reason.
        measured: time of the original against that of the result, where it was tuned and is not the original.
    """

    model: onnx.ModelProto
    sites: list[Site] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
    measured: Comparison | None = None

    @property
    def changed(self) -> bool:
        return any(site.decision == "rewritten" for site in self.sites)


Progress = Callable[[str], None]
Chooser = Callable[[EditableModel, Symbols, Sequence[Match]], list[Choice]]


@quiet_graphsurgeon()
def inspect_model(
    model: onnx.ModelProto,
    folder: Path,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow: Collection[str] = (),
) -> Result:
    """Find the sites of a model without changing it (its external data lies in ``folder``).

    Args:
        input_shapes, allow: as for :func:`optimize_model`.
    """
    shapes = _checked(model, input_shapes)
    chooser = partial(choose, when="faster", shapes=shapes)
    found = _one_pass(Result(model), folder, chooser, dry=True)
    # What the other rules would find then: a rewrite of the contractions leaves them less.
    then = _all_passes(model, folder, chooser, faster, Form.PORTABLE, shapes, allow)
    for site in then.sites:
        if site.rule != tile_concat_conv.ID:
            site.decision = "left"
            found.sites.append(site)
    known = {(miss.node, miss.reason) for miss in found.near_misses}
    found.near_misses += [miss for miss in then.near_misses if (miss.node, miss.reason) not in known]
    return found


@quiet_graphsurgeon()
def optimize_model(
    model: onnx.ModelProto,
    folder: Path,
    when: When = "faster",
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    tune: bool = False,
    form: Form = Form.PORTABLE,
    allow: Collection[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Rewrite the sites of a model.

    Args:
        model: not changed.
        folder: where its external data lies.
        when: ``faster`` leaves sites whose estimated gain is below the margin; ``always`` rewrites every valid site.
        input_shapes: extents of inputs for the estimates, by name; defaults stand in for dynamic ones that are missing.
        tune: measure the candidates on this machine instead of estimating them.
        form: how rewritten sites are spelled. What MSConv2d does not cover is written in portable form in every form;
            the site's reason says why.
        allow: rules of :data:`OPTIONAL` to apply too, as ``when`` says.
        progress: is told in words what is done now.
    """
    shapes = _checked(model, input_shapes)
    if tune:
        return _tuned(model, folder, when, shapes, form, allow, progress)
    return _all_passes(model, folder, partial(choose, when=when, shapes=shapes), _decider(when), form, shapes, allow)


def _decider(when: When) -> Decider:
    return faster if when == "faster" else always


def _all_passes(
    model: onnx.ModelProto,
    folder: Path,
    chooser: Chooser,
    decide: Decider,
    form: Form,
    shapes: InputShapes,
    allow: Collection[str],
) -> Result:
    """All rules until nothing changes. No node that a rewrite made is rewritten again, so this ends."""
    result, passes = Result(model), _passes(allow)
    if form is not Form.PORTABLE:
        register_schema()  # shape inference meets our nodes from the second pass on
    while True:
        result = _contractions(result, folder, chooser, form)
        before = result.model
        for each in passes:
            found = each(result.model, folder, decide, shapes)
            result.model = found.model
            result.sites += found.sites
            result.near_misses += found.near_misses
        if result.model is before:
            break
    if any(site.lowering == msconv_node.LOWERING for site in result.sites if site.decision == "rewritten"):
        result.model = convert_form(result.model, form)
    return result


def _contractions(result: Result, folder: Path, chooser: Chooser, form: Form) -> Result:
    """`tile-concat-conv` until nothing changes: a rewritten site whose output is uniform makes sites of its readers."""
    while True:
        before = sum(site.decision == "rewritten" for site in result.sites)
        result = _one_pass(result, folder, chooser, form)
        if sum(site.decision == "rewritten" for site in result.sites) == before:
            return result


def _tuned(
    model: onnx.ModelProto,
    folder: Path,
    when: When,
    shapes: InputShapes,
    form: Form,
    allow: Collection[str],
    progress: Progress | None,
) -> Result:
    """Optimize by measuring: see ``choice.tune``."""

    measured_form = Form.FUSED if form is Form.PLUGIN else form  # the plugin form runs in TensorRT only

    def optimized(plan: Plan | None, mode: When = "always", wanted: Form = measured_form) -> Result:
        def by_plan(editable: EditableModel, symbols: Symbols, matches: Sequence[Match]) -> list[Choice]:
            choices = choose(editable, symbols, matches, mode, shapes)
            for choice, found in zip(choices, matches, strict=True):
                spelling = choice.lowering if plan is None else plan.get(_result(found, choice.epilogue).name)
                if plan is not None:
                    choice.rewrite, choice.reason = spelling is not None, "measured"
                choice.lowering = spelling or choice.lowering
            return choices

        def planned(output: str, objection: str) -> tuple[bool, str]:
            return _decider(mode)(output, objection) if plan is None else (output in plan, "measured")

        return _all_passes(model, folder, by_plan, planned, wanted, shapes, allow)

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
    result = optimized(tuned.plan, wanted=form)
    result.measured = tuned.comparison
    return result


def _plan(result: Result) -> Plan:
    return {site.output: site.lowering for site in result.sites if site.decision == "rewritten"}


def _checked(model: onnx.ModelProto, shapes: InputShapes | None) -> InputShapes:
    check_input_shapes(model, shapes or {})
    return shapes or {}


def _one_pass(result: Result, folder: Path, chooser: Chooser, form: Form = Form.PORTABLE, dry: bool = False) -> Result:
    opset = default_opset(result.model)
    editable = EditableModel(result.model, folder, opset)
    symbols = Symbols(editable.inferred)
    decomposer = Decomposer(symbols, opset)
    views = SplitViews(symbols, decomposer)
    made = rewritten_names(result.model)
    after = Result(result.model, [site for site in result.sites if site.decision == "rewritten"])
    matches = []
    for node in editable.graph.nodes:
        if node.name in made:
            continue
        found = tile_concat_conv.match(node, symbols, decomposer, views)
        if isinstance(found, Refusal):
            after.near_misses.append(NearMiss(node_name(node), node.op, found.reason, list(found.nodes)))
        elif isinstance(found, Match):
            matches.append(found)
    changed = False
    for found, choice in zip(matches, chooser(editable, symbols, matches), strict=True):
        site = _site(found, choice)
        after.sites.append(site)
        if choice.rewrite and not dry:
            changed |= _rewrite(editable, symbols, found, choice.epilogue, site, form)
    if changed:
        after.model = editable.export()
    return after


def _result(found: Match, epilogue: Epilogue | None) -> gs.Tensor:
    """The tensor that a rewrite computes."""
    return epilogue.result if epilogue is not None else found.node.outputs[0]


def _rewrite(
    editable: EditableModel, symbols: Symbols, found: Match, epilogue: Epilogue | None, site: Site, form: Form
) -> bool:
    """Rewrite one site in the graph; False if something that is needed turns out not to be known."""
    prefix = editable.new_prefix(f"{site.node}/msconv")
    own, result = found.node.outputs[0], _result(found, epilogue)
    symbols.dims(own), symbols.dims(result)  # known from the original nodes, which are about to go
    if epilogue is not None:
        found = replace(found, contraction=taken_over(found.contraction, epilogue, editable, prefix))
    builder = _as_node(editable, found, site, prefix) if form is not Form.PORTABLE else None
    if builder is None:
        written = tile_concat_conv.rewrite(editable, symbols, found, prefix, site.lowering)
        if isinstance(written, Refusal):
            site.reason = written.reason
            return False
        builder = written
    builder.rename(own.name, result.name)
    found.node.outputs.clear()
    result.inputs.clear()
    editable.insert(builder, {"msconv.rule": site.rule, "msconv.replaces": ",".join([site.node, *site.taken_over])})
    site.decision = "rewritten"
    return True


def _as_node(editable: EditableModel, found: Match, site: Site, prefix: str) -> GraphBuilder | None:
    """The site as one MSConv2d node; None, with the reason in the site, where it has to be portable."""
    builder = GraphBuilder(prefix, editable.opset)
    refusal = msconv_node.write_node(builder, found)
    if refusal is not None:
        site.reason += f"; in portable form: {refusal.reason}"
        return None
    site.lowering = msconv_node.LOWERING
    return builder


def _site(found: Match, choice: Choice) -> Site:
    segments = [
        SegmentInfo(start, s.size, sorted(s.uniform), list(s.found))
        for start, s in zip(found.starts, found.segments, strict=True)
    ]
    node = found.node
    output = str(_result(found, choice.epilogue).name)
    site = Site(
        node_name(node),
        node.op,
        output,
        geometry_text(found.contraction.axes, found.contraction.group),
        segments,
        tile_concat_conv.ID,
    )
    site.lowering, site.reason, site.spellings = choice.lowering, choice.reason, list(choice.spellings)
    if choice.epilogue is not None:
        site.taken_over, site.contracted = [node_name(n) for n in choice.epilogue.nodes], str(node.outputs[0].name)
        site.reason += f"; {', '.join(n.op for n in choice.epilogue.nodes)} behind it in its weights"
    if choice.cost is not None:
        site.macs_before, site.macs_after = choice.cost.before.macs, choice.cost.after.macs
        site.bytes_before, site.bytes_after = choice.cost.before.bytes, choice.cost.after.bytes
        site.estimated_gain = choice.cost.gain
    return site
