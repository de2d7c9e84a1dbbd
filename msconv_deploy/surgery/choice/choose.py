"""Choosing: which sites of a graph to rewrite, and how to spell each.

A site is rewritten by default where its estimated time before is at least ``MARGIN`` times its time after, with the
cheapest spelling. Sites that share a concatenation are judged together: all are taken to be rewritten first, and as long as
one falls short it is left and the others are judged again, since then the concatenation has to stay.

With "always" every valid site is rewritten, by the cheapest spelling that leaves no work on copies: `ones-channel`, which keeps
one channel of them, is for "faster" and for tuning.

Where a shape that matters is not known at the given or default extents, a site is rewritten if it does fewer
multiply-accumulates per output, which a rewrite always does unless the core is as large as its copies; the reason says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from msconv_deploy.surgery.choice.cost import UnknownShapeError
from msconv_deploy.surgery.choice.estimates import Estimator, Plan, SiteCost
from msconv_deploy.surgery.choice.extents import InputShapes
from msconv_deploy.surgery.engine.contraction import Refusal
from msconv_deploy.surgery.engine.editing import EditableModel
from msconv_deploy.surgery.engine.epilogue import Epilogue, epilogue_of
from msconv_deploy.surgery.engine.symbols import Symbols
from msconv_deploy.surgery.rules import tile_concat_conv
from msconv_deploy.surgery.rules.tile_concat_conv import Match

When = Literal["faster", "always"]

MARGIN = 1.05
"""Least ratio of estimated times before and after for which a site is rewritten by default: a gain that the estimate can
promise. Of an isolated contraction it is off by 7 to 20% on average (``benchmarks/results/microbenchmarks.json``), much of
which is the same before and after."""


@dataclass
class Choice:
    """What to do with a site.

    Attributes:
        rewrite: whether to rewrite it.
        lowering: the spelling, or the cheapest one if it is left.
        cost: before and after, None where it could not be estimated.
        reason: in words.
        spellings: all lowerings that the site could have.
        epilogue: arithmetic behind it that a rewrite takes over.
    """

    rewrite: bool
    lowering: str
    cost: SiteCost | None
    reason: str
    spellings: tuple[str, ...] = ()
    epilogue: Epilogue | None = None


def choose(
    editable: EditableModel, symbols: Symbols, matches: Sequence[Match], when: When, shapes: InputShapes
) -> list[Choice]:
    """A choice for each site, in their order."""
    if not matches:
        return []
    estimator = Estimator(editable, symbols, shapes)
    outputs = frozenset(tensor.name for tensor in editable.graph.outputs)
    epilogues = [epilogue_of(found.contraction, symbols, outputs) for found in matches]
    plans = [_plans(editable, symbols, *pair, estimator, when) for pair in zip(matches, epilogues, strict=True)]
    costs = _costs(estimator, matches, plans, [bool(p) for p in plans])
    rewritten = [bool(p) for p in plans]
    while when == "faster":
        short = [r and cost is not None and cost[1].gain < MARGIN for r, cost in zip(rewritten, costs, strict=True)]
        if not any(short):
            break
        rewritten = [r and not s for r, s in zip(rewritten, short, strict=True)]
        again = _costs(estimator, matches, plans, rewritten)
        costs = [new if kept else old for new, old, kept in zip(again, costs, rewritten, strict=True)]
    choices = [_choice(*parts, when) for parts in zip(plans, costs, rewritten, strict=True)]
    for choice, found, epilogue in zip(choices, matches, epilogues, strict=True):
        choice.spellings = tuple(tile_concat_conv.lowerings(symbols, found))
        choice.epilogue = epilogue
    return choices


def _plans(
    editable: EditableModel,
    symbols: Symbols,
    found: Match,
    epilogue: Epilogue | None,
    estimator: Estimator,
    when: When,
) -> list[Plan] | str:
    """The spellings of a site, or why there is none that can be estimated."""
    plans = []
    for lowering in tile_concat_conv.lowerings(symbols, found):
        if when == "always" and lowering == tile_concat_conv.ONES_CHANNEL:
            continue  # "always" promises that nothing is convolved with copies, and this keeps one channel of them
        builder = tile_concat_conv.rewrite(editable, symbols, found, "estimate", lowering)
        if isinstance(builder, Refusal):
            return builder.reason
        try:
            plans.append(estimator.plan(found.node, builder, lowering, epilogue.nodes if epilogue else ()))
        except UnknownShapeError as tensor:
            return f"not estimated, the shape of {tensor} is not known"
    return plans


def _costs(
    estimator: Estimator, matches: Sequence[Match], plans: Sequence[list[Plan] | str], rewritten: Sequence[bool]
) -> list[tuple[Plan, SiteCost] | None]:
    """The cheapest spelling of each site with its cost, None where a shape is not known."""
    nodes: list[gs.Node] = [m.node for m, r in zip(matches, rewritten, strict=True) if r]
    needed = {
        name
        for options, r in zip(plans, rewritten, strict=True)
        if r and not isinstance(options, str)
        for name in options[0].needed
    }
    found: list[tuple[Plan, SiteCost] | None] = []
    for match, options in zip(matches, plans, strict=True):
        best: tuple[Plan, SiteCost] | None = None
        for plan in options if not isinstance(options, str) else ():
            try:
                cost = estimator.site(match.node, plan, nodes, needed | plan.needed)
            except UnknownShapeError:
                best = None
                break
            if best is None or cost.after.seconds < best[1].after.seconds:
                best = (plan, cost)
        found.append(best)
    return found


def _choice(plans: list[Plan] | str, cost: tuple[Plan, SiteCost] | None, rewritten: bool, when: When) -> Choice:
    if isinstance(plans, str):
        return Choice(True, "", None, plans)
    if cost is None:
        return Choice(True, plans[0].lowering, None, "not estimated, a shape is not known: fewer multiply-accumulates")
    plan, site = cost
    if when == "always":
        return Choice(True, plan.lowering, site, f"estimated gain x{site.gain:.2f}")
    if rewritten:
        return Choice(True, plan.lowering, site, f"estimated gain x{site.gain:.2f}, at least x{MARGIN:.2f}")
    return Choice(False, plan.lowering, site, f"estimated gain x{site.gain:.2f}, less than x{MARGIN:.2f}")
