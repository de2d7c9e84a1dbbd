"""Validation of an ONNX file against a PyTorch module or another ONNX file.

The reference runs first, on every set of inputs; what it refuses is listed and blames nobody. Then every runtime runs
on what is left and is compared through Polygraphy's Comparator. A check that could not be made is ``unverified``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msconv_deploy.errors import BadInputError, MsconvError, UnverifiedError
from msconv_deploy.files import atomic_write, check_writable
from msconv_deploy.reporting import Case, Comparison, Divergence, RefusedCase, ValidationReport, Verdict
from msconv_deploy.reporting.validation import largest_differences
from msconv_deploy.runtimes import Settings, get_runtime
from msconv_deploy.validation.commands import polygraphy_command, shape_profile, trtexec_command
from msconv_deploy.validation.difference import TensorDifference, difference, is_float
from msconv_deploy.validation.graph import OnnxGraph, read_graph
from msconv_deploy.validation.inputs import (
    InputOptions,
    Inputs,
    Size,
    complete_size,
    default_sizes,
    from_file,
    generate,
    size_text,
)
from msconv_deploy.validation.tolerance import with_noise

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ValidationOptions:
    """How to validate.

    Attributes:
        runtimes: names of the runtimes to compare with the reference; None: ``torch`` (the module in its own dtype) and
            ``ort`` against a module, ``ort`` against an ONNX file.
        inputs: sizes, seed, ranges and files.
        settings: threads, graph optimization level and provider.
        tolerance: replaces the policy, for all outputs and intermediate tensors.
        save_to: folder for inputs and results in Polygraphy's JSON format; it must be new or empty unless ``force``.
        find_divergence: on disagreement, look for the first tensor that diverges.
        build_check: also parse and build with TensorRT-RTX in a subprocess.
    """

    runtimes: Sequence[str] | None = None
    inputs: InputOptions = field(default_factory=InputOptions)
    settings: Settings = field(default_factory=Settings)
    tolerance: float | None = None
    save_to: Path | None = None
    force: bool = False
    find_divergence: bool = True
    build_check: bool = False


def validate_onnx_against_module(
    onnx_path: Path | str,
    module: nn.Module,
    options: ValidationOptions | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ValidationReport:
    """Compare an ONNX file with the PyTorch module that it was exported from.

    The reference is a float64 copy of the module (weights widened, not rounded); if the module cannot run in float64,
    the module itself. ``torch`` in the result is the module in its own dtype against that reference: its rounding
    noise.

    Args:
        onnx_path: the file.
        module: in the dtype of the file; evaluated in eval mode.
        options: see :class:`ValidationOptions`.
        input_names: inputs of ``forward``, in order; default: those of the file. Passed by keyword if all of them are
            its parameters.
        output_names: outputs in the order that ``forward`` returns them; default: those of the file.

    Returns:
        The report; ``verdict`` is never raised (see ``ValidationReport.raise_for_verdict``).

    Raises:
        BadInputError: the file, a name, a size or an input file is wrong.
        NotAvailableError: a runtime is not installed.
        UnverifiedError: the reference runs on none of the inputs.
    """
    options = options or ValidationOptions()
    torch_runtime = get_runtime("torch")
    from msconv_deploy.runtimes.pytorch import NamedModule

    graph = read_graph(onnx_path)
    _check_names(graph, input_names, output_names)
    types = {spec.name: (spec.dtype, len(spec.dims)) for spec in graph.inputs}
    own = NamedModule(module, {n: types[n] for n in input_names or types}, list(output_names or _names(graph.outputs)))
    wide = own if own.dtype_name == "float64" else own.in_float64()
    noise = None if wide is own else torch_runtime.make_runner(own, options.settings, f"torch {own.dtype_name}")
    reference = _Reference(torch_runtime.make_runner(wide, options.settings, "torch float64"), noise)
    work = _Validation(graph, options, reference, ("torch", "ort"))
    if work.reference_refuses_everything() and noise is not None:
        reason = work.refused[-1].reason if work.refused else ""
        work.use_reference(_Reference(noise, None))
        if not work.reference_refuses_everything():
            work.notes.append(f"the module does not run in float64 ({reason}); the reference is it in {own.dtype_name}")
            wide = own

    def diverges(inputs: Inputs) -> Divergence:
        from msconv_deploy.validation.divergence import diverges_from_module

        noisy = own if work.knows_noise else None
        return diverges_from_module(graph, wide, noisy, inputs, options.settings, work.tensor_tolerance)

    return work.report(f"PyTorch module {type(module).__qualname__}", diverges)


def validate_onnx_against_onnx(
    onnx_path: Path | str, reference_path: Path | str, options: ValidationOptions | None = None
) -> ValidationReport:
    """Compare an ONNX file with another one that has the same inputs and outputs.

    The reference is the other file in ONNX Runtime without graph optimizations; its noise is the difference that
    optimizations make to it. Floating types may differ in width (float16 against float32).

    Returns:
        The report; ``verdict`` is never raised.

    Raises:
        BadInputError: a file is wrong, or their inputs or outputs do not match.
        NotAvailableError: a runtime is not installed, or cannot run an ONNX file.
        UnverifiedError: the reference runs on none of the inputs.
    """
    options = options or ValidationOptions()
    ort = get_runtime("ort")
    graph, other = read_graph(onnx_path), read_graph(reference_path)
    _check_same_interface(graph, other)
    plain = Settings(options.settings.threads, "none", options.settings.provider)
    optimized = Settings(options.settings.threads, "all", options.settings.provider)
    wide = {spec.name: spec.dtype for spec in other.inputs}
    reference = _Reference(
        ort.make_runner(Path(reference_path), plain, "reference"),
        ort.make_runner(Path(reference_path), optimized, "reference, optimized"),
        wide,
    )
    work = _Validation(graph, options, reference, ("ort",))

    def diverges(inputs: Inputs) -> Divergence:
        from msconv_deploy.validation.divergence import diverges_from_onnx

        return diverges_from_onnx(graph, Path(reference_path), inputs, options.settings, work.tensor_tolerance)

    return work.report(str(reference_path), diverges)


def _names(specs: Sequence[Any]) -> list[str]:
    return [spec.name for spec in specs]


def _check_names(graph: OnnxGraph, input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> None:
    for what, given, known in (("input", input_names, graph.inputs), ("output", output_names, graph.outputs)):
        missing = sorted(set(_names(known)) ^ set(given)) if given is not None else []
        if missing:
            raise BadInputError(
                f"{graph.path}: {what} names do not match: the file has {', '.join(_names(known))}; "
                f"in only one of the two: {', '.join(missing)}"
            )


def _check_same_interface(graph: OnnxGraph, other: OnnxGraph) -> None:
    for what, mine, theirs in (("inputs", graph.inputs, other.inputs), ("outputs", graph.outputs, other.outputs)):
        if set(_names(mine)) != set(_names(theirs)):
            raise BadInputError(
                f"{graph.path} has the {what} {', '.join(_names(mine))}, but the reference {other.path} has "
                f"{', '.join(_names(theirs))}: they cannot be compared"
            )
        dtypes = {spec.name: spec.dtype for spec in theirs}
        for spec in mine:
            one, two = spec.dtype, dtypes[spec.name]
            if one != two and not (_is_float_dtype(one) and _is_float_dtype(two)):
                raise BadInputError(
                    f"{graph.path}: {spec.name} is {one.name}, but {two.name} in the reference {other.path}"
                )


def _is_float_dtype(dtype: np.dtype) -> bool:
    return is_float(np.empty(0, dtype))


@dataclass(frozen=True)
class _Reference:
    """What the truth is computed with.

    Attributes:
        runner: the reference itself.
        noise_runner: the reference's computation in the tested model's type; None if that is the reference itself.
        input_dtypes: types that the reference wants where they differ from the tested file's.
    """

    runner: Any
    noise_runner: Any = None
    input_dtypes: Mapping[str, np.dtype] = field(default_factory=dict)

    def feed(self, inputs: Inputs) -> Inputs:
        arrays = {n: a.astype(self.input_dtypes.get(n, a.dtype), copy=False) for n, a in inputs.arrays.items()}
        return Inputs(inputs.name, inputs.size, arrays, inputs.origin)


@dataclass
class _Usable:
    """A set of inputs that the reference runs on."""

    inputs: Inputs
    expected: Any
    own: Any = None  # outputs of the noise runner, or why there are none
    own_reason: str = ""
    noise: dict[str, TensorDifference] = field(default_factory=dict)
    tolerances: dict[str, tuple[float, float, float | None, bool]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)  # runtime -> outputs


class _Validation:
    """One validation while it runs."""

    def __init__(
        self, graph: OnnxGraph, options: ValidationOptions, reference: _Reference, default_runtimes: tuple[str, ...]
    ) -> None:
        self.graph = graph
        self.options = options
        self.runtimes = list(dict.fromkeys(options.runtimes or default_runtimes))
        self.against_module = "torch" in default_runtimes
        self.notes: list[str] = []
        self.timings: dict[str, float] = {}
        for name in self.runtimes:  # names that are wrong are found before anything runs
            if get_runtime(name).SUBJECT == "module" and not self.against_module:
                raise BadInputError(
                    f"runtime {name} evaluates a PyTorch module, not an ONNX file: give a recipe for it"
                )
        self.runners = {
            name: get_runtime(name).make_runner(graph.path, options.settings, name)
            for name in self.runtimes
            if get_runtime(name).SUBJECT == "onnx"
        }
        if options.save_to is not None:
            _check_folder(options.save_to, options.force)
        self.use_reference(reference)

    # -- the reference ---------------------------------------------------------------------------------------------

    def use_reference(self, reference: _Reference) -> None:
        """Run the reference on all inputs and keep those that it accepts."""
        self.reference = reference
        self.usable: list[_Usable] = []
        self.refused: list[RefusedCase] = []
        with self._timed("reference"):
            for inputs in self._inputs():
                self._try(inputs)
            if not self.usable and not self.options.inputs.sizes and not self.options.inputs.files:
                for inputs in self._larger_inputs():
                    self._try(inputs)
                    if self.usable:
                        break

    @property
    def knows_noise(self) -> bool:
        """Is the reference's own noise known, and wanted?"""
        return self.options.tolerance is None and all(case.own is not None for case in self.usable)

    def reference_refuses_everything(self) -> bool:
        return not self.usable

    def _inputs(self) -> Iterator[Inputs]:
        options, specs = self.options.inputs, self.graph.inputs
        index = 0
        for path in options.files:
            yield from_file(specs, Path(path), options, index)
            index += 1
        sizes: list[Size] = [complete_size(size, specs) for size in options.sizes]
        for size in sizes or (default_sizes(specs) if not options.files else []):
            yield generate(specs, size, options, index)
            index += 1

    def _larger_inputs(self) -> Iterator[Inputs]:
        first = len(default_sizes(self.graph.inputs))
        tried = {size_text(case.size) for case in self.refused}
        for index, size in enumerate(default_sizes(self.graph.inputs, larger=True), first):
            if size_text(size) not in tried:
                yield generate(self.graph.inputs, size, self.options.inputs, index)

    def _try(self, inputs: Inputs) -> None:
        from msconv_deploy.validation.comparator import RunnerFailed, run

        try:
            expected = run(self.reference.runner, self.reference.feed(inputs))
        except RunnerFailed as failure:
            self.refused.append(RefusedCase(size=inputs.size, reason=str(failure)))
            return
        case = _Usable(inputs, expected)
        if self.reference.noise_runner is not None:
            try:
                case.own = run(self.reference.noise_runner, self.reference.feed(inputs))
            except RunnerFailed as failure:
                case.own_reason = str(failure)
            else:
                case.noise = {n: difference(np.asarray(case.own[n]), np.asarray(case.expected[n])) for n in case.own}
        case.tolerances = {name: self._tolerance(case, name) for name in expected}
        self.usable.append(case)

    # -- tolerances ------------------------------------------------------------------------------------------------

    def tensor_tolerance(self, name: str) -> float:
        """Of any tensor of the file, intermediate ones included; without noise."""
        return self.options.tolerance if self.options.tolerance is not None else self.graph.tolerance(name)

    def _tolerance(self, case: _Usable, name: str) -> tuple[float, float, float | None, bool]:
        """(tolerance, policy's tolerance, noise, can a difference be told from noise?) of an output."""
        policy = self.tensor_tolerance(name)
        found = case.noise.get(name)
        if found is None or found.exact or found.problem or found.unusable:
            return policy, policy, None, True
        if self.options.tolerance is not None:
            return policy, policy, found.value if math.isfinite(found.value) else None, True
        tolerance, usable = with_noise(policy, found.value)
        return tolerance, policy, found.value if math.isfinite(found.value) else None, usable

    # -- comparing -------------------------------------------------------------------------------------------------

    def report(self, reference_name: str, diverges: Callable[[Inputs], Divergence]) -> ValidationReport:
        """Compare all runtimes on all usable inputs and put the report together.

        Raises:
            UnverifiedError: there are no usable inputs.
        """
        if not self.usable:
            reasons = "\n".join(f"  {size_text(case.size)}: {case.reason}" for case in self.refused)
            raise UnverifiedError(
                f"{self.graph.path}: not verified: the reference runs on none of the inputs that were tried:\n"
                f"{reasons}\nGive a size that it accepts (--size), or inputs (--inputs FILE.npz)"
            )
        comparisons: list[Comparison] = []
        for runtime in self.runtimes:
            with self._timed(runtime):
                if runtime == "torch" and self.reference.noise_runner is None:
                    self.notes.append("torch: the module in its own dtype is the reference itself, so it has no row")
                    continue
                for case in self.usable:
                    comparisons += self._compare(runtime, case)
        insensitive, constant = self._insensitive()
        for comparison in comparisons:
            if comparison.output in constant and comparison.verdict == "passed" and not comparison.exact:
                comparison.verdict = "unverified"
                comparison.reason = "insensitive: no change of the inputs moves this output: agreement means nothing"
        verdict, reason = self._verdict(comparisons)
        divergence = None
        # Where a runtime does not run there are no tensors to look at: those rows have no shape.
        differing = {
            c.case for c in comparisons if c.verdict == "differ" and c.runtime != "torch" and c.shape is not None
        }
        if differing and self.options.find_divergence:
            smallest = min((c.inputs for c in self.usable if c.inputs.name in differing), key=lambda i: i.elements)
            with self._timed("divergence"):
                divergence = self._search(diverges, smallest)
        profile = shape_profile(self.graph, [c.inputs for c in self.usable])
        report = ValidationReport(
            seed=self.options.inputs.seed,
            model=str(self.graph.path),
            model_sha256=_sha256(self.graph.path),
            reference=reference_name,
            reference_runtime=self.reference.runner.name,
            runtimes=self.runtimes,
            runtime_versions={name: get_runtime(name).version() for name in self.runtimes},
            verdict=verdict,
            reason=reason,
            cases=[_case(c.inputs) for c in self.usable],
            refused=self.refused,
            comparisons=comparisons,
            largest_difference=largest_differences(comparisons, self.runtimes),
            insensitive_inputs=insensitive,
            notes=self.notes,
            divergence=divergence,
            trtexec_command=trtexec_command(self.graph.path, profile),
        )
        if self.options.save_to is not None:
            report.saved_to = str(self.options.save_to)
            report.polygraphy_commands = self._save(self.options.save_to)
        if self.options.build_check:
            from msconv_deploy.runtimes.tensorrt_rtx import check_build

            with self._timed("rtx"):
                report.build_checks.append(check_build(self.graph.path, profile))
        report.timings = {step: round(seconds, 3) for step, seconds in self.timings.items()}
        return report

    @staticmethod
    def _search(diverges: Callable[[Inputs], Divergence], inputs: Inputs) -> Divergence:
        """The first divergence; a search that fails says so and leaves the verdict alone."""
        from msconv_deploy.validation.divergence import SearchFailed

        try:
            return diverges(inputs)
        except (SearchFailed, MsconvError) as error:
            reason = f"the copy with intermediate tensors as outputs does not run: {error}"
            return Divergence(found=False, size=inputs.size, reason=reason)

    def _compare(self, runtime: str, case: _Usable) -> list[Comparison]:
        from msconv_deploy.validation.comparator import DifferenceFunction, RunnerFailed, compare, run

        failure = ""
        if runtime == "torch":
            tested, failure = case.own, case.own_reason
        else:
            try:
                tested = run(self.runners[runtime], case.inputs)
            except RunnerFailed as failed:
                tested, failure = None, str(failed)
        if tested is None:
            # The file promises sizes that the reference accepts; a module that cannot compute in its own type on this
            # machine (float16 on an old CPU) promises nothing.
            verdict: Verdict = "unverified" if runtime == "torch" else "differ"
            reason = f"{runtime} does not run at this size, but the reference does: {failure}"
            return [self._row(runtime, case, name, None, verdict, reason) for name in case.expected]
        case.results[runtime] = tested
        function = DifferenceFunction(lambda n: case.tolerances[n][0], lambda n: self.graph.border.get(n, 0))
        found = compare(tested, case.expected, function)
        return [self._judged(runtime, case, name, found[name]) for name in case.expected]

    def _judged(self, runtime: str, case: _Usable, name: str, found: TensorDifference) -> Comparison:
        tolerance, policy, noise, usable = case.tolerances[name]
        if found.unusable:
            return self._row(runtime, case, name, found, "unverified", found.unusable)
        if found.problem:
            own = case.noise.get(name)
            if found.exact and own is not None and own.exact and own.problem:
                reason = f"{found.problem}; so they do between the module in its own type and in float64 (ties?)"
                return self._row(runtime, case, name, found, "unverified", reason)
            return self._row(runtime, case, name, found, "differ", found.problem)
        if found.within(tolerance):
            # The module's own difference is the noise, so it cannot leave a tolerance that the noise has widened.
            noisy = runtime == "torch" and not found.within(policy)
            reason = "rounding noise of the module itself is above the policy's tolerance" if noisy else ""
            return self._row(runtime, case, name, found, "passed", reason)
        if not usable:
            amount = "unbounded" if noise is None else f"{noise:.2g}"
            reason = f"the reference's own rounding noise is {amount} here: no verdict is possible at this size"
            return self._row(runtime, case, name, found, "unverified", reason)
        return self._row(runtime, case, name, found, "differ")

    def _row(
        self, runtime: str, case: _Usable, name: str, found: TensorDifference | None, verdict: Verdict, reason: str = ""
    ) -> Comparison:
        tolerance, policy, noise, _ = case.tolerances[name]
        expected = np.asarray(case.expected[name])
        tested = case.results.get(runtime)
        value = np.asarray(tested[name]) if tested is not None else None
        exact = not is_float(expected)
        return Comparison(
            runtime=runtime,
            case=case.inputs.name,
            size=case.inputs.size,
            output=name,
            dtype=expected.dtype.name if value is None else value.dtype.name,
            shape=None if value is None else list(value.shape),
            difference=_finite(found.value) if found else None,
            border=_finite(found.border) if found else None,
            interior=_finite(found.interior) if found else None,
            border_width=found.border_width if found else None,
            exact=exact,
            tolerance=0.0 if exact else tolerance,
            policy_tolerance=0.0 if exact else policy,
            noise=noise,
            verdict=verdict,
            reason=reason,
        )

    def _insensitive(self) -> tuple[list[str], set[str]]:
        """(inputs that move no output, float outputs that no input moves), at the largest usable size."""
        from msconv_deploy.validation.comparator import RunnerFailed, run

        case = max(self.usable, key=lambda c: c.inputs.elements)
        insensitive: list[str] = []
        constant = {name for name in case.expected if is_float(np.asarray(case.expected[name]))}
        rng = np.random.default_rng([self.options.inputs.seed, len(self.usable) + 1000])
        with self._timed("sensitivity"):
            for name, array in case.inputs.arrays.items():
                changed = _changed(array, rng)
                if changed is None:
                    constant = set()  # an input that cannot be changed might be the one that matters
                    continue
                arrays = {**case.inputs.arrays, name: changed}
                try:
                    moved = run(self.reference.runner, self.reference.feed(Inputs("", case.inputs.size, arrays)))
                except RunnerFailed:  # the change left the input's valid range; nothing was learned
                    constant = set()
                    continue
                unmoved = {o for o in case.expected if self._same(case, o, np.asarray(moved[o]))}
                if unmoved == set(case.expected):
                    insensitive.append(name)
                constant &= unmoved
        return insensitive, (constant if case.inputs.arrays else set())

    @staticmethod
    def _same(case: _Usable, name: str, moved: np.ndarray) -> bool:
        expected = np.asarray(case.expected[name])
        return difference(moved, expected).within(case.tolerances[name][1])

    def _verdict(self, comparisons: list[Comparison]) -> tuple[Verdict, str]:
        differing = [c for c in comparisons if c.verdict == "differ"]
        if differing:
            worst = max(differing, key=lambda c: math.inf if c.difference is None else c.difference)
            amount = worst.reason or f"difference {worst.difference:.2e}, tolerance {worst.tolerance:.2e}"
            return "differ", (
                f"{len(differing)} of {len(comparisons)} comparisons differ; the worst: {worst.runtime}, "
                f"{size_text(worst.size)}, output {worst.output}: {amount}"
            )
        for runtime in self.runtimes:
            rows = [c for c in comparisons if c.runtime == runtime]
            outputs = {c.output for c in rows}
            unproven = sorted(outputs - {c.output for c in rows if c.verdict == "passed"})
            if unproven:
                why = next(c.reason for c in rows if c.output == unproven[0])
                return "unverified", f"{runtime}: no comparison of output {', '.join(unproven)} could be made: {why}"
        if not comparisons:
            return "unverified", "; ".join(self.notes) or "nothing was compared"
        return "passed", ""

    # -- files -----------------------------------------------------------------------------------------------------

    def _save(self, folder: Path) -> list[str]:
        """Write inputs and results of every case; returns the Polygraphy lines."""
        from msconv_deploy.validation.comparator import save_inputs, save_outputs

        lines = []
        for case in self.usable:
            stem = folder / case.inputs.name
            with atomic_write(f"{stem}.inputs.json", self.options.force) as path:
                save_inputs(case.inputs, str(path))
            for name, outputs in {"reference": case.expected, **case.results}.items():
                with atomic_write(f"{stem}.{name}.json", self.options.force) as path:
                    save_outputs(outputs, str(path))
            limits = {name: case.tolerances[name][0] * _largest(case.expected[name]) for name in case.expected}
            lines.append(
                polygraphy_command(self.graph.path, Path(f"{stem}.inputs.json"), Path(f"{stem}.reference.json"), limits)
            )
        return lines

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[step] = self.timings.get(step, 0.0) + time.perf_counter() - start


def _check_folder(folder: Path, force: bool) -> None:
    """Refuse a folder for results before anything runs.

    Raises:
        BadInputError: it is a file, or not empty without ``force``, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder}: is a file; name a folder for the results")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise BadInputError(f"{folder}: is not empty; choose another folder, or write into it with --force")
    check_writable(folder / "case0.inputs.json", force)


def _case(inputs: Inputs) -> Case:
    shapes = {name: list(array.shape) for name, array in inputs.arrays.items()}
    return Case(name=inputs.name, size=inputs.size, origin=inputs.origin, shapes=shapes)


def _changed(array: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Other values of the same kind and range; None if that is not possible (a constant integer input)."""
    if array.dtype.kind == "b":
        return ~array
    if array.dtype.kind in "iu":
        if array.size == 0 or array.min() == array.max():
            return None
        return (array.max() + array.min() - array).astype(array.dtype)
    spread = float(np.std(array.astype(np.float64))) or 1.0
    return (array.astype(np.float64) + spread * rng.standard_normal(array.shape)).astype(array.dtype)


def _largest(value: Any) -> float:
    array = np.asarray(value)
    if not is_float(array) or array.size == 0:
        return 0.0
    finite = array[np.isfinite(array)]
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
