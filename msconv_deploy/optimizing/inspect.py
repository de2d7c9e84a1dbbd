"""Inspecting a file: which sites it has, and why others are none. Nothing is run and nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from msconv_deploy.files import sha256_of
from msconv_deploy.model_files import explaining
from msconv_deploy.optimizing.reading import facts_of, read_source
from msconv_deploy.optimizing.sites import near_miss_reports, site_reports
from msconv_deploy.reporting import InspectReport
from msconv_deploy.surgery.optimize import inspect_model


def inspect_file(
    path: Path | str, input_shapes: Mapping[str, Sequence[int]] | None = None, allow: Collection[str] = ()
) -> InspectReport:
    """Find the sites of a file.

    Args:
        input_shapes: input -> extents, for estimates of MACs and bytes.
        allow: rules to look for too that round otherwise than the original: ``tiled-distance``.

    Raises:
        BadInputError: see :func:`msconv_deploy.optimizing.reading.read_source`; or no such rule has to be allowed.
    """
    path, shapes = Path(path), {name: list(shape) for name, shape in (input_shapes or {}).items()}
    start = time.perf_counter()
    source = read_source(path, shapes)
    read = time.perf_counter()
    with explaining(source.model, path):
        result = inspect_model(source.model, path.parent, input_shapes=shapes or None, allow=allow)
    return InspectReport(
        model=str(path),
        model_sha256=sha256_of(path),
        facts=facts_of(source.model, path),
        input_shapes=shapes,
        sites=site_reports(result.sites),
        near_misses=near_miss_reports(result.near_misses),
        timings={"read": round(read - start, 3), "inspect": round(time.perf_counter() - read, 3)},
    )
