"""Does a rewritten model compute what its original computes? Both are in memory; nothing is written for it.

Three checks:

* Sites: the output of every rewritten contraction becomes an extra output of both models, which run without graph
  optimizations. Up to the first rewritten site both then compute the same bits, so the tolerance is the policy's, from
  dtype and reduction sizes. Below another site rounding differences arrive at the operand too; only there may four
  times the original's own noise at that tensor widen the tolerance.
* Outputs: the models as they are deployed, with optimizations, against the original without; the tolerance is the
  larger of the policy's and four times the original's own noise.
* Both are widened where a pairwise distance is rewritten, by a bound from its operands (:mod:`.cancellation`), and where
  values differ, by four times what the original makes of a rounding of its inputs and of the sites' sums (:mod:`.rounding`).
* Interface: inputs, outputs, their order, types and symbolic dims, opsets, metadata.

Sizes at which the original computes nothing, or nothing defined (:mod:`.joins`), count for neither comparison.

Tolerances come from the *original* graph, so that a rewrite cannot loosen what it is measured by.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from msconv_deploy.errors import MsconvError
from msconv_deploy.ops.symbolic import size_text
from msconv_deploy.reporting import Comparison, Verification
from msconv_deploy.reporting.validation import RefusedCase
from msconv_deploy.validation.cancellation import allowances
from msconv_deploy.validation.cases import Failure, OutputTolerance, Reference, UsableCase, collect, tensor_tolerance
from msconv_deploy.validation.difference import TensorDifference, difference
from msconv_deploy.validation.exposure import exposed
from msconv_deploy.validation.graph import OnnxGraph, graph_of
from msconv_deploy.validation.inputs import Inputs, mentioned_sizes
from msconv_deploy.validation.interface import interface_changes
from msconv_deploy.validation.joins import extent_nodes, joins_of, undefined
from msconv_deploy.validation.judging import judge, not_run, overall
from msconv_deploy.validation.magnitudes import movable, summed_magnitudes
from msconv_deploy.validation.options import ValidationOptions
from msconv_deploy.validation.rounding import carried_rounding
from msconv_deploy.validation.sensitivity import insensitive
from msconv_deploy.validation.site_sensitivity import CheckedSite, insensitive_sites
from msconv_deploy.validation.tolerance import NOISE_FACTOR, NOISE_LIMIT, with_noise

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

logger = logging.getLogger(__name__)

_INSENSITIVE = "insensitive: moving the tiled operand does not move this tensor, so agreement proves nothing"
SITES, OUTPUTS = "ort, no optimizations", "ort"


@dataclass
class RewriteCheck:
    """A verification and what it learned on the way.

    Attributes:
        report: the result.
        inputs: the sets of inputs that the original runs on, those of the user first.
    """

    report: Verification
    inputs: list[Inputs] = field(default_factory=list)


def verify_rewrite(
    path: Path,
    original: onnx.ModelProto,
    rewritten: onnx.ModelProto,
    sites: Sequence[CheckedSite],
    options: ValidationOptions | None = None,
) -> RewriteCheck:
    """Compare a rewritten model with its original.

    Args:
        path: file of the original; the external data of both models lies beside it.
        original, rewritten: outputs are added to them for a while and removed again; otherwise they are not changed.
        sites: the rewritten ones.
        options: inputs, threads and tolerance.

    Returns:
        The result. It is ``unverified`` where the original runs on none of the inputs, where no comparison of some
        tensor was possible, or where a site is insensitive.

    Raises:
        BadInputError: the original is refused by ONNX Runtime, or an input file, size or range is wrong.
    """
    options = options or ValidationOptions()
    report = Verification(verdict="unverified", interface_changes=interface_changes(original, rewritten))
    if report.interface_changes:
        report.verdict, report.reason = "differ", "; ".join(report.interface_changes)
        return RewriteCheck(report)
    work = _Work(path, original, rewritten, sites, options)
    report.not_computed = work.not_computed
    report.cases = [case.describe() for case in work.cases]
    report.refused = work.refused
    if not work.cases:
        first = work.refused[0]
        report.reason = (
            f"the original runs on none of the {len(work.refused)} sets of inputs that were tried (at "
            f"{size_text(first.size)}: {first.reason}). Give a shape that it accepts (--input-shape), or inputs "
            "(--inputs FILE.npz)"
        )
        return RewriteCheck(report)
    report.sites = work.compare_sites()
    report.outputs = work.compare_outputs()
    report.insensitive_inputs = insensitive(
        work.graph, work.reference, work.of_outputs(work.cases), options.inputs.seed
    )[0]
    report.insensitive_sites = work.insensitive_sites()
    for row in report.sites:
        if row.output in report.insensitive_sites and row.verdict == "passed":
            row.verdict, row.reason = "unverified", _INSENSITIVE
    runtimes = [SITES, OUTPUTS] if report.sites else [OUTPUTS]
    report.verdict, report.reason = overall(report.comparisons, runtimes, [])
    if report.verdict == "differ" and options.find_divergence:
        work.find_divergence(report)
    return RewriteCheck(report, [case.inputs for case in work.cases])


class _Work:
    """Both models, the original's results, and the comparisons."""

    def __init__(
        self,
        path: Path,
        original: onnx.ModelProto,
        rewritten: onnx.ModelProto,
        sites: Sequence[CheckedSite],
        options: ValidationOptions,
    ) -> None:
        self.path, self.original, self.rewritten, self.options = path, original, rewritten, options
        computed = {name for node in rewritten.graph.node for name in node.output}
        self.sites = [site for site in sites if site.output in computed]
        self.not_computed = [site.output for site in sites if site.output not in computed]
        self.site_outputs = [site.output for site in self.sites]
        self.graph: OnnxGraph = graph_of(original, path, sums=False)
        self.outputs = [spec.name for spec in self.graph.outputs]
        self._joins = joins_of(original, self.graph)
        self._extents = extent_nodes(self._joins)
        self.reference = Reference(
            self._runner(original, "reference", "none", self.site_outputs, self._extents),
            self._runner(original, "reference, optimized", "all"),
        )
        self._allowances: dict[str, dict[str, float]] = {}  # of the sets of inputs, by name
        self.cases, self.refused = self._computing(*collect(self.graph, self.reference, options))
        if not self.cases and options.inputs.wants_defaults:
            sizes = mentioned_sizes(original, self.graph.inputs)
            inputs = replace(options.inputs, sizes=sizes, files=(), also_defaults=False)
            if sizes:
                found = collect(self.graph, self.reference, replace(options, inputs=inputs))
                self.cases, refused = self._computing(*found)
                self.refused += refused

    def _computing(
        self, cases: Sequence[UsableCase], refused: Sequence[RefusedCase]
    ) -> tuple[list[UsableCase], list[RefusedCase]]:
        """Cases in which every site computes something, and something defined; the others are refused for all comparisons.

        They are images smaller than a window, for instance. Nothing can be learned there: neither that a rewrite is right
        nor that it is wrong.
        """
        usable, without = [], list(refused)
        extents = {node.output[0] for node in self._extents}
        for case in cases:
            empty = [name for name in self.site_outputs if not np.asarray(case.expected[name]).size]
            reason = (
                f"it computes nothing there: {empty[0]} is empty" if empty else undefined(self._joins, case.expected)
            )
            if reason:
                without.append(RefusedCase(size=case.inputs.size, reason=reason))
            else:
                usable.append(_restricted(case, [name for name in case.expected if name not in extents]))
        return usable, without

    def _runner(
        self,
        model: onnx.ModelProto,
        name: str,
        optimization: Any,
        tensors: Iterable[str] = (),
        nodes: Sequence[onnx.NodeProto] = (),
    ) -> BaseRunner:
        from polygraphy.backend.onnxrt import OnnxrtRunner

        from msconv_deploy.runtimes.onnx_runtime import make_session

        settings = replace(self.options.settings, optimization=optimization)
        with exposed(model, [*tensors, *(name for node in nodes for name in node.output)], nodes):
            return OnnxrtRunner(make_session(self.path, settings, model), name=name)

    # -- comparisons -----------------------------------------------------------------------------------------------

    def of_outputs(self, cases: Sequence[UsableCase]) -> list[UsableCase]:
        """The cases with graph outputs alone."""
        return [_restricted(case, self.outputs) for case in cases]

    def compare_sites(self) -> list[Comparison]:
        """Outputs of the sites, without optimizations on both sides."""
        if not self.sites:
            return []
        cases = [_without_noise(_restricted(case, self.site_outputs)) for case in self.cases]
        self._allow_cancellation(cases)
        rows = self._compare(SITES, self.rewritten, "none", cases, self.site_outputs)
        below = _below(self.original, self.site_outputs)
        if any(row.verdict == "differ" and row.output in below and row.shape is not None for row in rows):
            self._widen(cases, below)
            self._allow_cancellation(cases)
            rows = [row for case in cases for row in _judged(SITES, case, self.graph)]
        return self._with_rounding(SITES, cases, rows)

    def compare_outputs(self) -> list[Comparison]:
        """Graph outputs, of the model as it is deployed."""
        cases = self.of_outputs(self.cases)
        self._allow_cancellation(cases)
        return self._with_rounding(OUTPUTS, cases, self._compare(OUTPUTS, self.rewritten, "all", cases, ()))

    def _compare(
        self, runtime: str, model: onnx.ModelProto, optimization: str, cases: list[UsableCase], tensors: Sequence[str]
    ) -> list[Comparison]:
        from msconv_deploy.validation.comparator import RunnerFailed, run

        try:
            runner = self._runner(model, runtime, optimization, tensors)
        except MsconvError as error:
            return [row for case in cases for row in not_run(runtime, case, Failure(str(error)))]
        rows = []
        for case in cases:
            try:
                case.results[runtime] = run(runner, case.inputs)
            except RunnerFailed as failure:
                case.failures[runtime] = failure.kind
                rows += not_run(runtime, case, failure.kind)
            else:
                rows += _judged(runtime, case, self.graph)
        return rows

    def _widen(self, cases: Sequence[UsableCase], below: set[str]) -> None:
        """Let the original's own noise widen the tolerance of the tensors below another site."""
        from msconv_deploy.validation.comparator import RunnerFailed, run

        if self.options.tolerance is not None:
            return
        runner = self._runner(self.original, "reference, optimized", "all", self.site_outputs)
        for case in cases:
            try:
                own = run(runner, case.inputs)
            except RunnerFailed:
                continue
            for name in below & set(case.expected):
                noise = difference(np.asarray(own[name]), np.asarray(case.expected[name]))
                if noise.exact or noise.problem or noise.unusable:
                    continue
                case.noise[name] = noise
                policy = case.tolerances[name].policy
                value, usable = with_noise(policy, noise.value)
                case.tolerances[name] = OutputTolerance(value, policy, noise.value, usable)

    def _with_rounding(self, runtime: str, cases: Sequence[UsableCase], rows: list[Comparison]) -> list[Comparison]:
        """Values that differ, judged again by what a rounding of the inputs and sums does to them in the original."""
        differing = {
            (row.case, row.output): row.difference for row in rows if row.verdict == "differ" and not row.exact
        }
        if self.options.tolerance is not None or all(amount is None for amount in differing.values()):
            return rows
        for case in cases:
            amounts = {name: differing.get((case.inputs.name, name)) for name in case.expected}
            values = {name: np.asarray(case.expected[name]) for name, amount in amounts.items() if amount is not None}
            if not values:
                continue
            found = self._carried_rounding(case.inputs, values)
            for name, noise in found.items():
                policy = case.tolerances[name].policy
                value, usable = with_noise(policy, noise.value)
                # A difference far beyond the noise stays one, however large the noise is.
                if usable or (amounts[name] or 0.0) <= NOISE_FACTOR * noise.value:
                    case.noise[name] = noise
                    widest = max(value, case.tolerances[name].value)
                    case.tolerances[name] = OutputTolerance(widest, policy, noise.value, usable)
        return [row for case in cases for row in _judged(runtime, case, self.graph)]

    def _carried_rounding(self, inputs: Inputs, expected: Mapping[str, Any]) -> dict[str, TensorDifference]:
        """By tensor; the sums of pairwise distances have bounds of their own and stay where they are."""
        sums = [site.own_output for site in self.sites if site.distance is None]
        seed = self.options.inputs.seed
        try:
            with movable(self.original, summed_magnitudes(self.path, self.original, sums, inputs)) as moves:
                runner = self._runner(self.original, "reference, moved", "none", self.site_outputs)
        except Exception as error:  # whatever a runtime raises, for want of memory for instance
            logger.info("only the inputs are moved, not the sums of the sites: %s", error)
            return carried_rounding(self.reference.runner, inputs, expected, seed)
        return carried_rounding(runner, inputs, expected, seed, moves)

    def _allow_cancellation(self, cases: Sequence[UsableCase]) -> None:
        """Let the bounds of pairwise distances widen the tolerances of what they reach."""
        distances = {site.output: site.distance for site in self.sites if site.distance is not None}
        if not distances or self.options.tolerance is not None:
            return
        for case, whole in zip(cases, self.cases, strict=True):
            if whole.inputs.name not in self._allowances:
                expected = {name: np.asarray(value) for name, value in whole.expected.items()}
                self._allowances[whole.inputs.name] = allowances(
                    self.path, self.original, distances, whole.inputs, expected, self.options.inputs.seed
                )
            for name, amount in self._allowances[whole.inputs.name].items():
                if name in case.tolerances and amount > case.tolerances[name].value:
                    tolerance = case.tolerances[name]
                    usable = amount <= NOISE_LIMIT
                    case.tolerances[name] = replace(
                        tolerance, value=amount if usable else tolerance.value, usable=usable and tolerance.usable
                    )

    # -- what agreement is worth, and where it ends ------------------------------------------------------------------

    def insensitive_sites(self) -> list[str]:
        """At the smallest usable size; those that do not move there are tried again at the largest."""
        ordered = sorted(self.cases, key=lambda case: case.inputs.elements)
        still = self.sites
        for case in dict.fromkeys((0, len(ordered) - 1)):
            if not still:
                break
            chosen = ordered[case]
            expected = {site.output: np.asarray(chosen.expected[site.output]) for site in still}
            unmoved = insensitive_sites(
                self.path, self.original, self.graph, still, chosen.inputs, expected, self.options.inputs.seed
            )
            still = [site for site in still if site.output in unmoved]
        return [site.output for site in still]

    def find_divergence(self, report: Verification) -> None:
        """The first tensor that leaves its tolerance, at the smallest size that differs."""
        from msconv_deploy.validation.divergence import SearchFailed, diverges_between

        names = {row.case for row in report.comparisons if row.verdict == "differ" and row.shape is not None}
        differing = [case.inputs for case in self.cases if case.inputs.name in names]
        if not differing:
            return
        smallest = min(differing, key=lambda inputs: inputs.elements)
        tolerance = partial(tensor_tolerance, self.graph, self.options)
        try:
            report.divergence = diverges_between(
                self.graph, self.path, self.rewritten, self.original, smallest, self.options.settings, tolerance
            )
        except (SearchFailed, MsconvError):
            report.divergence = None


def _restricted(case: UsableCase, names: Sequence[str]) -> UsableCase:
    """The case with some of its tensors only, and with results of its own."""
    return UsableCase(
        case.inputs,
        {name: case.expected[name] for name in names},
        case.own,
        case.own_failure,
        {name: noise for name, noise in case.noise.items() if name in names},
        {name: case.tolerances[name] for name in names},
    )


def _without_noise(case: UsableCase) -> UsableCase:
    """The case with the policy's tolerances, also for a site that is a graph output."""
    fixed = {name: OutputTolerance(t.policy, t.policy, None, True) for name, t in case.tolerances.items()}
    return replace(case, noise={}, tolerances=fixed)


def _judged(runtime: str, case: UsableCase, graph: OnnxGraph) -> list[Comparison]:
    """Every tensor of the case against what the runtime computed; none if it did not run."""
    tested: Mapping[str, Any] | None = case.results.get(runtime)
    if tested is None:
        return not_run(runtime, case, case.failures.get(runtime, Failure("see the log")))
    rows = []
    for name, value in case.expected.items():
        found = difference(np.asarray(tested[name]), np.asarray(value), graph.border.get(name, 0))
        rows.append(judge(runtime, case, name, found))
    return rows


def _below(model: onnx.ModelProto, tensors: Iterable[str]) -> set[str]:
    """Those of the tensors that are computed from others of them."""
    sites = set(tensors)
    reached: set[str] = set()
    found: set[str] = set()
    for node in model.graph.node:  # in topological order
        after = any(name in reached or name in sites for name in _read(node))
        for name in node.output:
            if after:
                reached.add(name)
                if name in sites:
                    found.add(name)
    return found


def _read(node: onnx.NodeProto) -> Iterable[str]:
    """Inputs of a node and of its bodies."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)
