"""Sites and near-misses of the surgery as parts of reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from msconv_deploy.reporting.optimize import NearMissReport, SiteReport
from msconv_deploy.surgery.engine.contraction import CONTRACTIONS
from msconv_deploy.surgery.sites import NearMiss, Site
from msconv_deploy.validation.cancellation import CheckedDistance
from msconv_deploy.validation.site_sensitivity import CheckedSite


def site_reports(sites: Sequence[Site]) -> list[SiteReport]:
    """Fields that reports do not know are left out."""
    return [SiteReport.model_validate(_known(asdict(site))) for site in sites]


def _known(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name in SiteReport.model_fields}


def near_miss_reports(near_misses: Sequence[NearMiss]) -> list[NearMissReport]:
    return [NearMissReport.model_validate(asdict(near_miss)) for near_miss in near_misses]


def checked_sites(sites: Sequence[Site]) -> list[CheckedSite]:
    """The rewritten sites, as verification wants them; operands are moved where a contraction sums their channels."""
    return [
        CheckedSite(
            node=site.node,
            output=site.output,
            contracted=site.contracted,
            channels=sum(segment.size for segment in site.segments),
            uniform=[
                (segment.start, segment.size)
                for segment in site.segments
                if segment.uniform and site.op in CONTRACTIONS
            ],
            distance=None if site.distance is None else CheckedDistance(**asdict(site.distance)),
        )
        for site in sites
        if site.decision == "rewritten"
    ]
