"""Candidates: matches with their rewrites, as long as these are not inserted, and what the estimate says of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from msconv_deploy.surgery.choice.choose import MARGIN
from msconv_deploy.surgery.choice.cost import UnknownShapeError
from msconv_deploy.surgery.choice.estimates import Estimator, Plan, SiteCost
from msconv_deploy.surgery.engine.editing import EditableModel, GraphBuilder
from msconv_deploy.surgery.passes import Decider, PassResult
from msconv_deploy.surgery.sites import Site


@dataclass
class Candidate:
    """A match with its rewrite.

    Attributes:
        last: the node whose output is computed otherwise.
        site: the match as data; gets the costs.
        builder: the rewrite.
        replaced: names of the nodes that it stands for.
        margin: least ratio of estimated times for which it is rewritten by default.
        plan, cost: what the estimate says; None where a shape is not known.
        unknown: the tensor of that shape.
    """

    last: gs.Node
    site: Site
    builder: GraphBuilder
    replaced: tuple[str, ...]
    margin: float = MARGIN
    plan: Plan | None = None
    cost: SiteCost | None = None
    unknown: str = ""

    def make_plan(self, estimator: Estimator) -> None:
        try:
            self.plan = estimator.plan(self.last, self.builder, self.site.lowering)
        except UnknownShapeError as tensor:
            self.unknown = str(tensor)

    def estimate(self, estimator: Estimator, rewritten: Collection[gs.Node], needed: Collection[str]) -> None:
        """Find the cost, where there is a plan.

        Args:
            rewritten: the last nodes of all candidates that are rewritten.
            needed: tensors that other rewrites read.
        """
        if self.plan is None:
            return
        try:
            self.cost = estimator.site(self.last, self.plan, rewritten, {*needed, *self.plan.needed})
        except UnknownShapeError as tensor:
            self.unknown = str(tensor)
            return
        cost, site = self.cost, self.site
        site.macs_before, site.macs_after = cost.before.macs, cost.after.macs
        site.bytes_before, site.bytes_after = cost.before.bytes, cost.after.bytes
        site.estimated_gain = cost.gain

    def estimate_alone(self, estimator: Estimator) -> None:
        """Plan and cost, as if nothing else was rewritten."""
        self.make_plan(estimator)
        self.estimate(estimator, [self.last], ())

    @property
    def objection(self) -> str:
        """Why it is not certain that the rewrite saves time; empty if it is."""
        if self.cost is None:
            return f"not estimated, the shape of {self.unknown} is not known"
        gain = self.cost.gain
        return f"estimated gain x{gain:.2f}, less than x{self.margin:.2f}" if gain < self.margin else ""

    @property
    def gain_text(self) -> str:
        assert self.cost is not None
        return f"estimated gain x{self.cost.gain:.2f}, at least x{self.margin:.2f}"

    def insert(self, editable: EditableModel) -> None:
        """Put the rewrite in the place of the node."""
        self.last.outputs.clear()
        editable.insert(self.builder, {"msconv.rule": self.site.rule, "msconv.replaces": ",".join(self.replaced)})
        self.site.decision = "rewritten"


def settle(candidates: Sequence[Candidate], decide: Decider, editable: EditableModel, result: PassResult) -> None:
    """Decide on every candidate, insert those that are to be rewritten, and put sites and model into the result."""
    for candidate in candidates:
        site = candidate.site
        apply, reason = decide(site.output, candidate.objection)
        site.reason = reason or candidate.gain_text
        if apply:
            candidate.insert(editable)
        result.sites.append(site)
    if any(site.decision == "rewritten" for site in result.sites):
        result.model = editable.export()
