"""One validation from beginning to end.

The reference runs first, on every set of inputs; what it refuses is listed and blames nobody. Then every runtime runs
on what is left and is compared through Polygraphy's Comparator. A check that could not be made is ``unverified``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msconv_deploy.errors import BadInputError, MsconvError, UnverifiedError
from msconv_deploy.files import sha256_of
from msconv_deploy.ops.symbolic import size_text
from msconv_deploy.reporting import Comparison, Divergence, ValidationReport
from msconv_deploy.reporting.validation import largest_differences
from msconv_deploy.runtimes import get_runtime
from msconv_deploy.runtimes.prepared import PreparedRunner
from msconv_deploy.validation import results
from msconv_deploy.validation.cases import Failure, Reference, UsableCase, collect
from msconv_deploy.validation.commands import shape_profile, trtexec_command
from msconv_deploy.validation.graph import OnnxGraph
from msconv_deploy.validation.inputs import Inputs
from msconv_deploy.validation.judging import judge, not_run, overall
from msconv_deploy.validation.options import ValidationOptions
from msconv_deploy.validation.sensitivity import insensitive, withdraw

DivergenceSearch = Callable[[Inputs], Divergence]


class Validation:
    """One validation while it runs.

    Args:
        graph: of the tested file.
        options: see :class:`ValidationOptions`.
        reference: what the truth is computed with.
        default_runtimes: if the options name none; with ``torch`` among them there is a module to run.

    Raises:
        BadInputError: a runtime, a size, an input file or the folder for results is wrong.
        NotAvailableError: a runtime is not installed, or cannot run the file.
    """

    def __init__(
        self, graph: OnnxGraph, options: ValidationOptions, reference: Reference, default_runtimes: tuple[str, ...]
    ) -> None:
        self.graph = graph
        self.options = options
        self.notes: list[str] = []
        self.runtimes = list(dict.fromkeys(options.runtimes or default_runtimes))
        self._timings: dict[str, float] = {}
        adapters = {name: get_runtime(name) for name in self.runtimes}  # wrong names are found before anything runs
        for name, adapter in adapters.items():
            if adapter.SUBJECT == "module" and "torch" not in default_runtimes:
                raise BadInputError(
                    f"runtime {name} evaluates a PyTorch module, not an ONNX file: give a recipe for it"
                )
        if all(adapter.SUBJECT == "module" for adapter in adapters.values()):
            raise BadInputError(
                f"{graph.path}: of the runtimes {', '.join(self.runtimes)} none runs the ONNX file, so that nothing would be "
                "learned about it: add ort, or trt"
            )
        self._runners = {
            name: adapter.make_runner(graph.path, options.settings, name)
            for name, adapter in adapters.items()
            if adapter.SUBJECT == "onnx"
        }
        if options.save_to is not None:
            results.check_folder(options.save_to, options.force)
        self.use_reference(reference)

    def use_reference(self, reference: Reference) -> None:
        """Run the reference on all inputs and keep those that it accepts in ``usable``, the others in ``refused``."""
        self.reference = reference
        with self._timed("reference"):
            self.usable, self.refused = collect(self.graph, reference, self.options)
        self._prepare()

    def _prepare(self) -> None:
        """Let runners build what they need for the usable inputs."""
        shapes = [{name: array.shape for name, array in case.inputs.arrays.items()} for case in self.usable]
        for name, runner in self._runners.items():
            if shapes and isinstance(runner, PreparedRunner):
                with self._timed(f"{name} build"):
                    self.notes.append(runner.prepare(shapes))

    @property
    def knows_noise(self) -> bool:
        """Is the reference's own noise known, and wanted?"""
        return self.options.tolerance is None and all(case.own is not None for case in self.usable)

    def report(self, reference_name: str, search: DivergenceSearch) -> ValidationReport:
        """Compare all runtimes on all usable inputs.

        Args:
            reference_name: for the report.
            search: finds the first diverging tensor, given inputs for which the outputs differ.

        Raises:
            UnverifiedError: there are no usable inputs.
        """
        if not self.usable:
            reasons = "\n".join(f"  {size_text(case.size)}: {case.reason}" for case in self.refused)
            raise UnverifiedError(
                f"{self.graph.path}: not verified: the reference runs on none of the inputs that were tried:\n{reasons}\n"
                "Give a size that it accepts (--size), or inputs (--inputs FILE.npz)"
            )
        comparisons = [row for runtime in self.runtimes for row in self._compare_all(runtime)]
        with self._timed("sensitivity"):
            unmoving, constant = insensitive(self.graph, self.reference, self.usable, self.options.inputs.seed)
        withdraw(comparisons, constant)
        verdict, reason = overall(comparisons, self.runtimes, self.notes)
        profile = shape_profile(self.graph, [case.inputs for case in self.usable])
        report = ValidationReport(
            seed=self.options.inputs.seed,
            model=str(self.graph.path),
            model_sha256=sha256_of(self.graph.path),
            reference=reference_name,
            reference_runtime=self.reference.runner.name,
            runtimes=self.runtimes,
            runtime_versions={name: get_runtime(name).version() for name in self.runtimes},
            verdict=verdict,
            reason=reason,
            cases=[case.describe() for case in self.usable],
            refused=self.refused,
            comparisons=comparisons,
            largest_difference=largest_differences(comparisons, self.runtimes),
            insensitive_inputs=unmoving,
            notes=self.notes,
            divergence=self._first_divergence(comparisons, search),
            trtexec_command=trtexec_command(self.graph.path, profile),
        )
        if self.options.save_to is not None:
            folder = self.options.save_to
            report.saved_to = str(folder)
            report.polygraphy_commands = results.save(folder, self.graph.path, self.usable, self.options.force)
        if self.options.build_check:
            from msconv_deploy.runtimes.tensorrt_rtx import check_build

            with self._timed("rtx"):
                report.build_checks.append(check_build(self.graph.path, profile))
        report.timings = {step: round(seconds, 3) for step, seconds in self._timings.items()}
        return report

    def _compare_all(self, runtime: str) -> list[Comparison]:
        if runtime == "torch" and self.reference.noise_runner is None:
            self.notes.append("torch: the module in its own dtype is the reference itself, so it has no row")
            return []
        with self._timed(runtime):
            return [row for case in self.usable for row in self._compare(runtime, case)]

    def _compare(self, runtime: str, case: UsableCase) -> list[Comparison]:
        from msconv_deploy.validation.comparator import DifferenceFunction, RunnerFailed, compare, run

        if runtime == "torch":  # it has run already, to measure the noise
            if case.own is None:
                return not_run(runtime, case, case.own_failure or Failure("it was not run"))
            tested = case.own
        else:
            try:
                tested = run(self._runners[runtime], case.inputs)
            except RunnerFailed as failure:
                return not_run(runtime, case, failure.kind)
        case.results[runtime] = tested
        function = DifferenceFunction(lambda n: case.tolerances[n].value, lambda n: self.graph.border.get(n, 0))
        found = compare(tested, case.expected, function)
        return [judge(runtime, case, name, found[name]) for name in case.expected]

    def _first_divergence(self, comparisons: list[Comparison], search: DivergenceSearch) -> Divergence | None:
        """At the smallest size that differs. A search that fails says so and leaves the verdict alone."""
        from msconv_deploy.validation.divergence import SearchFailed

        # Intermediate tensors are seen in ONNX Runtime only. Where the file does not run there is nothing to look at:
        # those rows have no shape.
        names = {c.case for c in comparisons if c.verdict == "differ" and c.runtime == "ort" and c.shape is not None}
        if not names or not self.options.find_divergence:
            return None
        smallest = min((c.inputs for c in self.usable if c.inputs.name in names), key=lambda inputs: inputs.elements)
        with self._timed("divergence"):
            try:
                return search(smallest)
            except (SearchFailed, MsconvError) as error:
                reason = f"the copy with intermediate tensors as outputs does not run: {error}"
                return Divergence(found=False, size=smallest.size, reason=reason)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._timings[step] = self._timings.get(step, 0.0) + time.perf_counter() - start
