"""The pass of `merge-convs`: pairs of convolutions, the ones that gain most first.

A pair is merged only where multiply-accumulates and bytes do not rise, in any mode; by default where its estimated time before
is at least ``MARGIN`` times its time after, too. Of three convolutions in a row one pair is merged.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from msconv_deploy.ops.forms import default_opset
from msconv_deploy.surgery.candidates import Candidate
from msconv_deploy.surgery.choice.estimates import Estimator
from msconv_deploy.surgery.choice.extents import InputShapes
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.passes import Decider, PassResult
from msconv_deploy.surgery.rules import merge_convs
from msconv_deploy.surgery.rules.merge_convs import Match
from msconv_deploy.surgery.sites import NearMiss, SegmentInfo, Site, geometry_text, node_name, rewritten_names

MARGIN = 1.25
"""More than for other rules: kernels before and after are of different sizes, so that the errors of the estimate, up to 20% of
a convolution, do not cancel. (5x5 to one channel behind 5x5: estimated 1.06, measured 0.79.)"""


def merge_pass(model: onnx.ModelProto, folder: Path, decide: Decider, shapes: InputShapes) -> PassResult:
    """Apply the rule once at every pair."""
    result = PassResult(model)
    if not _has_pairs(model.graph):
        return result
    editable = EditableModel(model, folder, default_opset(model))
    symbols = Symbols(editable.inferred)
    made = rewritten_names(model)
    outputs = frozenset(str(tensor.name) for tensor in editable.graph.outputs)
    estimator: Estimator | None = None
    candidates: list[tuple[Match, Candidate]] = []
    for node in editable.graph.nodes:
        found = None if node.name in made else merge_convs.match(node, symbols, outputs)
        if isinstance(found, Match) and found.first.node.name in made:
            continue
        built: Candidate | Refusal | None = None
        if isinstance(found, Match):
            estimator = estimator or Estimator(editable, symbols, shapes)
            built = _candidate(editable, estimator, found)
            if isinstance(built, Candidate):
                candidates.append((found, built))
        refusal = built if isinstance(built, Refusal) else found
        if isinstance(refusal, Refusal):
            result.near_misses.append(NearMiss(node_name(node), node.op, refusal.reason, list(refusal.nodes)))
    merged = set[int]()
    for found, candidate in sorted(candidates, key=lambda pair: -(pair[1].site.estimated_gain or 0.0)):
        site, pair = candidate.site, {id(found.node), id(found.first.node)}
        apply, reason = decide(site.output, candidate.objection)
        if pair & merged:
            apply, reason = False, "one of the two is merged with another"
        site.reason = reason or candidate.gain_text
        if apply:
            candidate.insert(editable)
            merged |= pair
    result.sites = [candidate.site for _, candidate in candidates]
    if merged:
        result.model = editable.export()
    return result


def _has_pairs(graph: onnx.GraphProto) -> bool:
    """Does some convolution read another's result, with nothing that computes between? Before anything is imported."""
    above = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        found = above.get(node.input[0]) if node.op_type == "Conv" and node.input else None
        while found is not None and found.op_type in ("Identity", "Pad") and found.input:
            found = above.get(found.input[0])
        if found is not None and found.op_type == "Conv":
            return True
    return False


def _candidate(editable: EditableModel, estimator: Estimator, found: Match) -> Candidate | Refusal:
    """The rewrite of a pair with its cost, or why there is none; the weights are multiplied only if that may pay."""
    names = (str(found.node.name), str(found.first.node.name))
    tensors = estimator.tensors
    between, result = (tensors.get(str(c.node.outputs[0].name)) for c in (found.first, found.second))
    if between is None or result is None:
        return Refusal("not estimated, the shapes of its results are not known", names)
    before = sum(
        tensor.count * math.prod(contraction.stored.shape[1:])
        for tensor, contraction in ((between, found.first), (result, found.second))
    )
    after = result.count * math.prod(found.weight_shape[1:])
    if after > before:
        return Refusal(f"one convolution does {after} multiply-accumulates, the two {before}", names)
    site = _site(found)
    builder = GraphBuilder(editable.new_prefix(f"{site.node}/msconv"), editable.opset)
    refusal = merge_convs.rewrite(builder, found)
    if refusal is not None:
        return refusal
    replaced = tuple(node_name(n) for n in (found.node, *found.between, found.first.node))
    candidate = Candidate(found.node, site, builder, replaced, MARGIN)
    candidate.estimate_alone(estimator)
    cost = candidate.cost
    if cost is None:
        return Refusal(candidate.objection, names)
    if cost.after.bytes > cost.before.bytes:
        return Refusal(f"one convolution moves {cost.after.bytes} bytes, the two {cost.before.bytes}", names)
    return candidate


def _site(found: Match) -> Site:
    """The pair as data: the second one, with the first among what is replaced."""
    node, first = found.node, found.first.node
    above = [*found.between, first]
    segment = SegmentInfo(0, int(found.first.dims[1]), [], [f"{n.op} {node_name(n)}" for n in above])
    site = Site(
        node_name(node),
        node.op,
        str(node.outputs[0].name),
        geometry_text(found.axes, found.group),
        [segment],
        merge_convs.ID,
    )
    site.lowering, site.spellings = merge_convs.LOWERING, [merge_convs.LOWERING]
    return site
