"""Optimizing a file: read, rewrite, verify, and only then write.

A model in which nothing is rewritten is copied byte for byte, so running the tool on its own output changes nothing.
A result that differs from the original, or that could not be verified although that was asked for, is not written.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from msconv_deploy.errors import BadInputError, MsconvError
from msconv_deploy.files import check_writable, sha256_of
from msconv_deploy.model_files import explaining
from msconv_deploy.ops.forms import Form, convert_form, form_of
from msconv_deploy.optimizing.options import OptimizeOptions
from msconv_deploy.optimizing.reading import facts_of, read_source
from msconv_deploy.optimizing.sites import checked_sites, near_miss_reports, site_reports
from msconv_deploy.optimizing.writing import Outputs, write_outputs
from msconv_deploy.reporting import OptimizeReport
from msconv_deploy.reporting.optimize import Measurement
from msconv_deploy.surgery.choice.extents import Tensors, input_tensors
from msconv_deploy.surgery.optimize import Result, optimize_model
from msconv_deploy.validation.input_shapes import size_of_shapes, sizes_around
from msconv_deploy.validation.inputs import InputOptions, Inputs, check_ranges, complete_size, from_file, generate

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


def optimize_file(
    path: Path | str, output: Path | str, options: OptimizeOptions | None = None, progress: Progress = logger.info
) -> OptimizeReport:
    """Optimize an ONNX file into another one.

    Args:
        path: the original; never changed, unless ``output`` names it and ``options.force`` is given.
        output: the file to write, with its sidecar ``<stem>.json``.
        options: see :class:`OptimizeOptions`.
        progress: is told in words what is done now.

    Returns:
        The report. ``verdict`` is ``passed`` for a verified or unchanged model; ``differ`` and ``unverified`` results are
        not written (``written`` is empty), except unverified ones if ``options.verify`` is False.

    Raises:
        BadInputError: the model, an option or a place is wrong, or writing failed; nothing is written then.
    """
    return _Work(Path(path), Path(output), options or OptimizeOptions(), progress).run()


class _Work:
    def __init__(self, path: Path, output: Path, options: OptimizeOptions, progress: Progress) -> None:
        self.path, self.output, self.options, self.progress = path, output, options, progress
        self._timings: dict[str, float] = {}

    def run(self) -> OptimizeReport:
        options = self.options
        form = Form(options.form)
        with self._timed("read"):
            self.source = read_source(self.path, options.input_shapes)
            self._check_inputs()
        self._check_places()
        self.progress(f"looking for sites in {self.path}")
        with self._timed("optimize"), explaining(self.source.model, self.path):
            result = optimize_model(
                self.source.model,
                self.path.parent,
                options.when,
                input_shapes=self.shapes or None,
                tune=options.tune,
                form=Form.FUSED if form is Form.PLUGIN else form,  # what is verified has to run in ONNX Runtime
                allow=options.allow,
                progress=self.progress,
            )
        report = self._report(result)
        if not result.changed:
            report.verdict, report.reason = "passed", "nothing was rewritten: the file is the original, byte for byte"
        elif options.verify:
            with explaining(self.source.model, self.path):
                self._verify(report, result)
        else:
            report.reason = "verification was not asked for"
        if form is Form.PLUGIN and form_of(result.model) is Form.FUSED:
            result.model = convert_form(result.model, Form.PLUGIN)
            report.notes.append("verified in fused form, which has the same nodes with their bodies")
        return self._write(report, result)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _check_inputs(self) -> None:
        """Ranges and files fit the model; without given shapes, those of the first file count for the estimates."""
        inputs, options = self.source.inputs, self._input_options
        check_ranges(inputs, options)
        files = [from_file(inputs, file, options) for file in options.files]
        self.shapes = {name: list(shape) for name, shape in self.options.input_shapes.items()}
        if files and not self.shapes:
            self.shapes = {name: list(array.shape) for name, array in files[0].arrays.items()}

    @property
    def _input_options(self) -> InputOptions:
        sizes = sizes_around(self.source.size, self.source.inputs) if self.source.size else ()
        options = self.options
        return InputOptions(sizes, options.seed, options.input_ranges, options.input_files, also_defaults=True)

    def _check_places(self) -> None:
        """Everything that is to be written can be, and replaces neither the original nor another output."""
        options, output = self.options, self.output
        force = options.force
        if output.exists() and output.samefile(self.path) and not force:
            raise BadInputError(f"{output}: is the input; it is replaced only with --force")
        sidecar = output.with_suffix(".json")
        places = [output, sidecar, options.html]
        if options.json is not None and options.json.resolve() != sidecar.resolve():  # both are the same report
            places.append(options.json)
        if options.keep_failed:
            places.append(failed_path(output))
        seen: set[Path] = set()
        for place in filter(None, places):
            check_writable(place, force)
            resolved = place.resolve()
            if resolved in self.source.files and resolved != output.resolve():
                raise BadInputError(f"{place}: belongs to the input; choose another name")
            if resolved in seen:
                raise BadInputError(f"{place}: is named for two outputs; choose another name")
            seen.add(resolved)
        data = output.with_name(f"{output.name}.data").resolve()
        if data in seen:
            raise BadInputError(f"{data}: is where weights of the output may go; choose another name")
        if data in self.source.files and not (output.exists() and output.samefile(self.path)):
            raise BadInputError(f"{data}: belongs to the input; choose another name for the output")

    def _report(self, result: Result) -> OptimizeReport:
        options = self.options
        sites = site_reports(result.sites)
        facts = facts_of(self.source.model, self.path)
        return OptimizeReport(
            seed=options.seed,
            model=str(self.path),
            model_sha256=sha256_of(self.path),
            form=options.form,
            when=options.when,
            allowed=sorted(options.allow),
            tuned=options.tune,
            input_shapes=self.shapes,
            input_ranges=dict(options.input_ranges),
            input_files=[str(file) for file in options.input_files],
            verdict="unverified",
            unchanged=not result.changed,
            before=facts,
            after=facts.model_copy(
                update={
                    "nodes": len(result.model.graph.node),
                    "bytes": None if result.changed else facts.bytes,
                    "ir_version": result.model.ir_version,
                }
            ),
            measured=_measurement(result),
            rules=sorted({site.rule for site in result.sites if site.decision == "rewritten"}),
            sites=sites,
            near_misses=near_miss_reports(result.near_misses),
        )

    def _verify(self, report: OptimizeReport, result: Result) -> None:
        from msconv_deploy.validation.options import ValidationOptions
        from msconv_deploy.validation.rewrite import verify_rewrite

        source = self.source
        self.progress("comparing the result with the original")
        inputs = self._input_options
        with self._timed("verify"):
            check = verify_rewrite(
                self.path, source.model, result.model, checked_sites(result.sites), ValidationOptions(inputs=inputs)
            )
        report.verification = check.report
        report.verdict, report.reason = check.report.verdict, check.report.reason
        if check.inputs:
            with self._timed("count"):
                self._count_macs(report, result.model, [*self._estimated_inputs(), check.inputs[0]])

    def _estimated_inputs(self) -> list[Inputs]:
        """Random inputs of the shapes at which sites are estimated, so that all counts belong together; or none."""
        shapes = {name: tensor.shape for name, tensor in self._estimated_shapes().items()}
        try:
            size = complete_size(size_of_shapes(self.source.inputs, shapes), self.source.inputs)
            return [generate(self.source.inputs, size, self._input_options)]
        except BadInputError:  # the default extents contradict each other
            return []

    def _estimated_shapes(self) -> Tensors:
        known = {spec.name for spec in self.source.inputs}
        tensors = input_tensors(self.source.model, self.shapes)
        return {name: tensor for name, tensor in tensors.items() if name in known}

    def _count_macs(self, report: OptimizeReport, rewritten: onnx.ModelProto, candidates: Sequence[Inputs]) -> None:
        """On the first inputs on which the original runs."""
        from msconv_deploy.validation.macs import count_macs

        for inputs in candidates:
            try:
                before, after = (count_macs(self.path, model, inputs) for model in (self.source.model, rewritten))
            except MsconvError as error:  # the count is information, not the result
                reason = str(error)
                continue
            report.before.macs, report.after.macs = before, after
            report.macs_size = {name: list(array.shape) for name, array in inputs.arrays.items()}
            return
        report.notes.append(f"MACs were not counted: {reason}")

    def _write(self, report: OptimizeReport, result: Result) -> OptimizeReport:
        report.timings = {step: round(seconds, 3) for step, seconds in self._timings.items()}
        outputs = Outputs(self.output, self.options.html, self.options.json)
        if report.verdict == "differ" or (report.verdict == "unverified" and self.options.verify):
            model = failed_path(self.output) if self.options.keep_failed else None
            outputs = Outputs(model, self.options.html, self.options.json, sidecar=False)
        write_outputs(outputs, report, self.source, result, self.options.force)
        return report

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._timings[step] = self._timings.get(step, 0.0) + time.perf_counter() - start


def _measurement(result: Result) -> Measurement | None:
    """What tuning measured; None where nothing was, or from one pair of sessions only, which has no interval."""
    measured = result.measured
    if measured is None or not math.isfinite(measured.half_width):
        return None
    before, after = measured.seconds
    return Measurement(seconds_before=before, seconds_after=after, ratio=measured.ratio, half_width=measured.half_width)


def failed_path(output: Path) -> Path:
    """Where a result is kept that differs or could not be verified: ``OUT.failed.onnx``."""
    return output.with_name(f"{output.stem}.failed.onnx")
