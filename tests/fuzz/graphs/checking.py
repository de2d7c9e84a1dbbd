"""Checking one case: optimize it, and compare with the original by means of our own."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from msconv_deploy.errors import MsconvError
from msconv_deploy.ops.forms import Form
from msconv_deploy.surgery.optimize import Result, optimize_model
from msconv_deploy.surgery.rules import tiled_distance
from msconv_deploy.validation.exposure import exposed
from msconv_deploy.validation.graph import graph_of
from msconv_deploy.validation.joins import extent_nodes, joins_of, undefined
from tests.fuzz.graphs.case import Case
from tests.fuzz.graphs.reference import (
    TOLERANCE,
    UNIT_ROUNDOFF,
    Exact,
    NotEvaluatedError,
    difference,
    explained,
    precision,
)
from tests.surgery.graphs import assert_interface_kept, feeds, passes_full_check, session

FINE = ("rewritten", "unchanged", "refused", "not run")
"""Kinds of outcomes that are no failures: ``refused`` is a model that ONNX Runtime does not load, ``not run`` one that it runs
at none of the sizes."""
FAILURES = {
    "wrong": "the rewritten model computes something else",
    "runs no more": "the rewritten model fails where the original runs",
    "loads no more": "ONNX Runtime refuses the rewritten model only",
    "invalid": "the rewritten model does not pass onnx.checker",
    "changed": "what had to stay was changed: interface, initializers, nodes of other domains, the original itself",
    "unstable": "a second run changes something, or two runs differ",
    "disagrees": "the product's own verification says something else",
    "error": "the optimizer refused a valid model",
    "raised": "the optimizer raised what is no MsconvError",
    "died": "the process ended while the optimizer or its result ran",
    "hung": "a graph took longer than its limit",
    "generator": "the generator made an invalid model, or failed",
}

Stage = Callable[[str], None]
"""Is told what is done now, so that one knows where a process died."""
ON_ORIGINAL = ("generate", "load the original", "run the original")
"""Stages in which nothing of ours runs."""
_CANCELLING = {"float32": 5e-3, "float64": 1e-6}
"""What `tiled-distance` may change, of distances of order 1: the square root of what a sum rounds."""


@dataclass
class Outcome:
    """What was seen of a case.

    Attributes:
        kind: of :data:`FINE`, or of :data:`FAILURES`.
        detail: in words.
        rewritten, left: rule -> sites.
        lowerings: lowering -> rewritten sites.
        sizes: at how many sizes both were compared.
        imprecise: comparisons in which the tolerance was exceeded and float64 showed that rounding explains it.
        empty: sizes at which a rewritten site computes nothing, so that the result may refuse them.
        noisy: sizes at which ONNX Runtime's optimizations change the original itself.
        verdict: of the product's own verification, where it was asked.
    """

    kind: str
    detail: str = ""
    rewritten: Counter = field(default_factory=Counter)
    left: Counter = field(default_factory=Counter)
    lowerings: Counter = field(default_factory=Counter)
    sizes: int = 0
    imprecise: int = 0
    empty: int = 0
    noisy: int = 0
    verdict: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in FINE


class CheckFailedError(Exception):
    """A case failed: (kind, detail)."""


def check(case: Case, stage: Stage = lambda _: None) -> Outcome:
    """Optimize a case, and compare."""
    outcome = Outcome("unchanged")
    try:
        _check(case, outcome, stage)
    except CheckFailedError as failure:
        outcome.kind, outcome.detail = failure.args
    return outcome


def _check(case: Case, outcome: Outcome, stage: Stage) -> None:
    try:
        onnx.checker.check_model(case.model)
    except Exception as error:
        raise CheckFailedError("generator", _first_line(error)) from None
    stage("load the original")
    original, refusal = _loaded(case.model)
    if case.deployed:
        _loaded(case.model, True)  # its optimizations may end the process by themselves
    stage("optimize")
    before = case.model.SerializeToString(deterministic=True)
    result = _optimized(case)
    if case.model.SerializeToString(deterministic=True) != before:
        raise CheckFailedError("changed", "the original itself")
    for site in result.sites:
        group = outcome.rewritten if site.decision == "rewritten" else outcome.left
        group[site.rule] += 1
        if site.decision == "rewritten":
            outcome.lowerings[f"{site.rule}: {site.lowering}"] += 1
        elif not site.reason:
            raise CheckFailedError("changed", f"{site.node}: left without a reason")
    if not result.changed:
        if result.model.SerializeToString(deterministic=True) != before:
            raise CheckFailedError("changed", "nothing was rewritten, but the model differs")
    else:
        outcome.kind = "rewritten"
        _check_result(case, result)
    if original is None:
        outcome.kind, outcome.detail = "refused", refusal
    elif result.changed:
        _compare(case, original, result, outcome, stage)
    if case.verified and original is not None and outcome.kind != "not run" and runs(case):
        _ask_the_product(case, outcome, stage)


def _loaded(model: onnx.ModelProto, optimize: bool = False):
    """(session, ""), or (None, why ONNX Runtime refuses the model)."""
    try:
        return session(model, optimize), ""
    except Exception as error:
        return None, _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _optimized(case: Case) -> Result:
    try:
        return optimize_model(case.model, Path(), case.when, form=Form(case.form), allow=case.allow)
    except MsconvError as error:
        raise CheckFailedError("error", str(error)) from None
    except Exception as error:
        raise CheckFailedError("raised", _where(error)) from None


def _where(error: Exception) -> str:
    """Type, place and message of an exception; the place is the innermost one in this project."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "msconv_deploy" in f.filename]
    place = f" in {Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{place}: {_first_line(error)}"


# -- what has to hold of the result's file -----------------------------------------------------------------------------


def _check_result(case: Case, result: Result) -> None:
    model = result.model
    try:
        onnx.checker.check_model(model, full_check=passes_full_check(case.model))
    except Exception as error:
        raise CheckFailedError("invalid", _first_line(error)) from None
    try:
        assert_interface_kept(case.model, _without_our_functions(case.model, model))
    except AssertionError as error:
        raise CheckFailedError("changed", f"interface: {_first_line(error)}") from None
    given = {t.name: t for t in case.model.graph.initializer}
    for tensor in model.graph.initializer:
        own = given.get(tensor.name, tensor)
        if own.SerializeToString(deterministic=True) != tensor.SerializeToString(deterministic=True):
            raise CheckFailedError("changed", f"initializer {tensor.name}")
    known = {node.SerializeToString(deterministic=True) for node in case.model.graph.node}
    names = {name for node in case.model.graph.node for name in node.output}
    for node in model.graph.node:
        made = any(entry.key == "msconv.rule" for entry in node.metadata_props)
        made |= node.op_type == "Constant" and names.isdisjoint(node.output)  # weights of files before IR version 4
        if not made and node.SerializeToString(deterministic=True) not in known:
            raise CheckFailedError("changed", f"{node.op_type} {node.name} of the original")
    if case.when == "faster" and case.form == "fused":
        return  # an MSConv2d node hides what the estimate of its neighbours is made of
    try:
        again = optimize_model(model, Path(), case.when, form=Form(case.form), allow=case.allow)
    except Exception as error:
        raise CheckFailedError("raised", f"on its own result: {_where(error)}") from None
    if again.model.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True):
        rules = sorted({site.rule for site in again.sites if site.decision == "rewritten"})
        raise CheckFailedError("unstable", f"a second run changes something: {', '.join(rules)}")


def _without_our_functions(original: onnx.ModelProto, result: onnx.ModelProto) -> onnx.ModelProto:
    """The result without what the fused form adds: functions and the import of their domain."""
    if len(result.functions) == len(original.functions):
        return result
    bare = onnx.ModelProto()
    bare.CopyFrom(result)
    del bare.functions[:], bare.opset_import[:]
    bare.functions.extend(f for f in result.functions if f.domain != "msconv")
    bare.opset_import.extend(e for e in result.opset_import if e.domain != "msconv")
    return bare


# -- comparing ---------------------------------------------------------------------------------------------------------


def _compare(case: Case, original, result: Result, outcome: Outcome, stage: Stage) -> None:
    stage("load the result")
    rewritten, refusal = _loaded(result.model, case.deployed)
    if rewritten is None:
        if case.deployed and _loaded(case.model, True)[0] is None:
            return  # its optimizations refuse the original as well
        raise CheckFailedError("loads no more", refusal)
    kind = precision(case.model)
    tolerance, floor = TOLERANCE[kind], 0.1
    if outcome.rewritten[tiled_distance.ID]:
        tolerance, floor = _CANCELLING[kind], 1.0
    exact: Exact | None = None
    for number, given in enumerate(inputs_of(case)):
        if case.deployed and any(not array.size for array in given.values()):
            continue  # what ONNX Runtime's optimizations insert (Reshape_token) is not made for nothing
        stage("run the original")
        try:
            expected = original.run(None, given)
        except Exception:
            continue
        stage("run the result")
        try:
            got = rewritten.run(None, given)
        except Exception as error:
            if _computes_nothing(case, result, number, given):
                outcome.empty += 1
                continue
            raise CheckFailedError("runs no more", f"at {case.sizes[number]}: {_first_line(error)}") from None
        outcome.sizes += 1
        for position, (e, g) in enumerate(zip(expected, got, strict=True)):
            found = difference(np.asarray(e), np.asarray(g), tolerance, floor)
            if not found:
                continue
            if np.shape(e) != np.shape(g) and _computes_nothing(case, result, number, given):
                outcome.empty += 1
                break
            if case.deployed and _differs_by_itself(case, given, expected, tolerance):
                outcome.noisy += 1
                break
            exact = exact or _exact(case, kind)
            near = _explained(exact, given, position, e, g, tolerance)
            if near is None:  # no third opinion
                moved = _moved(original, given, position, np.asarray(e), UNIT_ROUNDOFF[kind])
                near = explained(np.asarray(e, np.float64), moved, np.asarray(e), np.asarray(g), tolerance)
            if not near:
                name = case.model.graph.output[position].name
                raise CheckFailedError("wrong", f"{name} at {case.sizes[number]}: {found}")
            outcome.imprecise += 1
    if not outcome.sizes:
        outcome.kind = "not run"


def _differs_by_itself(case: Case, given: dict[str, NDArray], expected: list[NDArray], tolerance: float) -> bool:
    """Do ONNX Runtime's own optimizations change what the original computes?"""
    optimized, _ = _loaded(case.model, True)
    if optimized is None:
        return True
    try:
        got = optimized.run(None, given)
    except Exception:
        return True
    return any(difference(np.asarray(e), np.asarray(g), tolerance) for e, g in zip(expected, got, strict=True))


def runs(case: Case) -> bool:
    """Does the original run at any of the sizes?"""
    original, _ = _loaded(case.model)
    if original is None:
        return False
    for given in inputs_of(case):
        try:
            original.run(None, given)
        except Exception:
            continue
        return True
    return False


def _computes_nothing(case: Case, result: Result, number: int, given: dict[str, NDArray]) -> bool:
    """Is there no window in the image of a rewritten site, no pixel in it, nothing that it computes, or nothing defined?

    Of windows that do not fit into an image there are none, where a convolution refuses the image; one without pixels has
    windows of padding alone; -1 in the shape of a Reshape is not known of nothing. A rewrite may refuse all of these, as the
    product's verification says. An empty batch, of detections perhaps, is no such case: it is looked at with one sample.
    """
    size = case.sizes[number]
    if not size.get("N", 1):
        given = feeds(case.model, {**size, "N": 1}, number)
    windows = any(site.decision == "rewritten" and site.rule.startswith("unfold") for site in result.sites)
    if windows and any(not array.size for array in given.values()):
        return True
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    known = {value.name for value in model.graph.output}
    wanted = {site.output for site in result.sites if site.decision == "rewritten"} - known
    computed = {name for node in model.graph.node for name in node.output}
    joins = joins_of(model, graph_of(model, Path(), sums=False))
    extents = extent_nodes(joins)
    wanted = sorted(wanted & computed)
    with exposed(model, [*wanted, *(node.output[0] for node in extents)], extents):
        values, refusal = _loaded(model)
        names = [value.name for value in model.graph.output]
    if refusal:
        return False
    found = dict(zip(names, values.run(None, given), strict=True))
    return any(not np.size(found[name]) for name in (*wanted, *known)) or bool(undefined(joins, found))


def _exact(case: Case, kind: str) -> Exact | None:
    try:
        return Exact(case.model, UNIT_ROUNDOFF[kind])
    except NotEvaluatedError:
        return None


def _moved(original, given: dict[str, NDArray], position: int, e: NDArray, unit: float) -> float:
    """How far the original's own output moves where every input moves by a rounding."""
    rng, far = np.random.default_rng(0), 0.0
    for _ in range(4):
        off = {
            name: (a * (1 + unit * rng.choice([-1, 1], a.shape))).astype(a.dtype) if a.dtype.kind == "f" else a
            for name, a in given.items()
        }
        apart = np.abs(np.asarray(original.run(None, off)[position], np.float64) - e)
        far = max(far, float(np.nanmax(apart, initial=0)))
    return far


def _explained(exact: Exact | None, given, position: int, e: NDArray, g: NDArray, tolerance: float) -> bool | None:
    """Does rounding explain the difference? None where float64 cannot be had."""
    if exact is None:
        return None
    try:
        value, moved = exact.run(given)[position]
    except NotEvaluatedError:
        return None
    return explained(np.asarray(value), moved, e, g, tolerance)


def inputs_of(case: Case) -> Iterator[dict[str, NDArray]]:
    """Inputs at every size; at every second one, defaults that a caller may override are overridden."""
    defaults = {t.name: t for t in case.model.graph.initializer}
    overridable = [v.name for v in case.model.graph.input if v.name in defaults] if case.model.ir_version >= 4 else []
    for number, assignment in enumerate(case.sizes):
        given = feeds(case.model, assignment, number)
        rng = np.random.default_rng(number)
        for name in overridable if number % 2 else ():
            array = numpy_helper.to_array(defaults[name])
            if array.dtype.kind == "f":
                factors = 1 + np.abs(rng.standard_normal(array.shape))  # a variance stays positive
                given[name] = (array * factors).astype(array.dtype)
        yield given


# -- the product's own word ----------------------------------------------------------------------------------------------


def _ask_the_product(case: Case, outcome: Outcome, stage: Stage) -> None:
    """Optimize the model as a file, verified."""
    from msconv_deploy.optimizing import OptimizeOptions, optimize_file

    stage("verify")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(case.model.SerializeToString())
        options = OptimizeOptions(when=case.when, allow=case.allow, form=case.form)
        try:
            report = optimize_file(path, path.with_name("out.onnx"), options)
        except MsconvError as error:
            raise CheckFailedError("disagrees", f"optimize_file: {error}") from None
        except Exception as error:
            raise CheckFailedError("raised", f"optimize_file: {_where(error)}") from None
    outcome.verdict = report.verdict
    if report.verdict == "differ":
        raise CheckFailedError("disagrees", f"its verification says that the result differs: {report.reason}")
