"""From differences to verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from msconv_deploy.ops.symbolic import size_text
from msconv_deploy.reporting import Comparison, Verdict
from msconv_deploy.validation.cases import Failure, UsableCase
from msconv_deploy.validation.difference import TensorDifference, is_float


def judge(runtime: str, case: UsableCase, name: str, found: TensorDifference) -> Comparison:
    """The verdict on one output of one runtime at one size."""
    tolerance = case.tolerances[name]
    if found.unusable:
        return row(runtime, case, name, found, "unverified", found.unusable)
    if found.problem:
        own = case.noise.get(name)
        if found.exact and own is not None and own.exact and own.problem:
            reason = f"{found.problem}; so they do between the module in its own type and in float64 (ties?)"
            return row(runtime, case, name, found, "unverified", reason)
        return row(runtime, case, name, found, "differ", found.problem)
    if np.asarray(case.expected[name]).size == 0:
        return row(runtime, case, name, found, "unverified", "it has no values at this size: nothing was compared")
    if found.within(tolerance.value):
        # The module's own difference is the noise, so it cannot leave a tolerance that the noise has widened.
        noisy = runtime == "torch" and not found.within(tolerance.policy)
        reason = "rounding noise of the module itself is above the policy's tolerance" if noisy else ""
        return row(runtime, case, name, found, "passed", reason)
    if not tolerance.usable:
        amount = "unbounded" if tolerance.noise is None else f"{tolerance.noise:.2g}"
        reason = f"the reference's own rounding noise is {amount} here: no verdict is possible at this size"
        return row(runtime, case, name, found, "unverified", reason)
    return row(runtime, case, name, found, "differ")


def not_run(runtime: str, case: UsableCase, failure: Failure) -> list[Comparison]:
    """The runtime failed where the reference runs.

    A file promises the sizes that its dynamic dimensions allow, so for a file that is a difference. A module that
    cannot compute in its own type on this machine (float16 on an old CPU) promises nothing: unverified. So is a run that was
    stopped: it might have ended well.
    """
    verdict: Verdict = "unverified" if runtime == "torch" or failure.unverified else "differ"
    reason = f"{runtime} does not run at this size, but the reference does: {failure.reason}"
    return [row(runtime, case, name, None, verdict, reason) for name in case.expected]


def row(
    runtime: str, case: UsableCase, name: str, found: TensorDifference | None, verdict: Verdict, reason: str = ""
) -> Comparison:
    """A row of the report; ``found`` is None where there is nothing to compare."""
    tolerance = case.tolerances[name]
    expected = np.asarray(case.expected[name])
    tested = case.results.get(runtime)
    value = None if tested is None else np.asarray(tested[name])
    exact = not is_float(expected.dtype)
    return Comparison(
        runtime=runtime,
        case=case.inputs.name,
        size=case.inputs.size,
        output=name,
        dtype=(expected if value is None else value).dtype.name,
        shape=None if value is None else list(value.shape),
        difference=_finite(found.value) if found else None,
        border=_finite(found.border) if found else None,
        interior=_finite(found.interior) if found else None,
        border_width=found.border_width if found else None,
        exact=exact,
        tolerance=0.0 if exact else tolerance.value,
        policy_tolerance=0.0 if exact else tolerance.policy,
        noise=tolerance.noise,
        verdict=verdict,
        reason=reason,
    )


def overall(comparisons: Sequence[Comparison], runtimes: Sequence[str], notes: Sequence[str]) -> tuple[Verdict, str]:
    """The verdict on the whole: passed only if every runtime agrees in every output at one size at least, and differs
    nowhere. The reason is empty if it passed."""
    differing = [c for c in comparisons if c.verdict == "differ"]
    if differing:
        worst = max(differing, key=lambda c: math.inf if c.difference is None else c.difference)
        amount = worst.reason or f"difference {worst.difference:.2e}, tolerance {worst.tolerance:.2e}"
        return "differ", (
            f"{len(differing)} of {len(comparisons)} comparisons differ; the worst: {worst.runtime}, "
            f"{size_text(worst.size)}, output {worst.output}: {amount}"
        )
    for runtime in runtimes:
        rows = [c for c in comparisons if c.runtime == runtime]
        unproven = sorted({c.output for c in rows} - {c.output for c in rows if c.verdict == "passed"})
        if unproven:
            why = next(c.reason for c in rows if c.output == unproven[0])
            return "unverified", f"{runtime}: no comparison of output {', '.join(unproven)} could be made: {why}"
    if not comparisons:
        return "unverified", "; ".join(notes) or "nothing was compared"
    return "passed", ""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
