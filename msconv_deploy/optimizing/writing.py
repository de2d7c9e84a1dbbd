"""Writing the results of an optimization: the model, its sidecar and the reports appear together or not at all."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from msconv_deploy.files import atomic_write, sha256_of
from msconv_deploy.model_files import staged_copy, staged_model
from msconv_deploy.optimizing.neighbourhood import site_views
from msconv_deploy.optimizing.reading import Source
from msconv_deploy.reporting import OptimizeReport
from msconv_deploy.reporting.html import optimize_page
from msconv_deploy.surgery.optimize import Result


@dataclass(frozen=True)
class Outputs:
    """What to write.

    Attributes:
        model: the ONNX file; None: no model.
        html, json: reports that were asked for.
        sidecar: also the report beside the model, ``<stem>.json``.
    """

    model: Path | None
    html: Path | None
    json: Path | None
    sidecar: bool = True

    @property
    def json_places(self) -> list[Path]:
        places = [self.model.with_suffix(".json")] if self.model is not None and self.sidecar else []
        if self.json is not None and self.json.resolve() not in [place.resolve() for place in places]:
            places.append(self.json)
        return places


def write_outputs(outputs: Outputs, report: OptimizeReport, source: Source, result: Result, force: bool) -> None:
    """Write everything, and note in the report what was written, its size and its hash.

    Raises:
        BadInputError: a place cannot be written to; nothing is written then.
    """
    with ExitStack() as stack:
        if outputs.model is not None and result.changed:
            staged = stack.enter_context(staged_model(result.model, outputs.model, source.path.parent, force))
            report.written = [str(outputs.model.with_name(file.name)) for file in staged]
            report.output_sha256 = sha256_of(staged[0])
            report.after.bytes = sum(file.stat().st_size for file in staged)
        elif outputs.model is not None:
            copied = stack.enter_context(staged_copy(source.model, source.path, outputs.model, force))
            report.written = [str(file) for file in copied]
            report.output_sha256 = report.model_sha256
        texts = dict.fromkeys(outputs.json_places, report.to_json())
        if outputs.html is not None:
            views = site_views(source.model, result.model, report.rewritten, source.path.parent)
            texts[outputs.html] = optimize_page(report, views)
        temporaries = {place: stack.enter_context(atomic_write(place, force)) for place in texts}
        for place, temporary in temporaries.items():
            temporary.write_text(texts[place], encoding="utf-8", errors="backslashreplace")  # names of files
