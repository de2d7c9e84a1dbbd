"""How exact is it? The worst difference from tile-concat-conv in float64, over random configurations.

    python benchmarks/exactness.py [--cases 1000]

Every implementation of the operator runs on the same random cases (both padding semantics, all padding modes, groups,
strides beyond the kernel, dilations, asymmetric pads, images smaller than the kernel). Border pixels, where some tap
falls outside the image, and interior pixels are reported apart. What cannot run on this machine is listed with the reason;
an implementation that is farther off than the conformance test allows fails the run. Writes
benchmarks/results/exactness.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.conditions import conditions, in_words  # noqa: E402
from msconv_deploy.ops import reference  # noqa: E402
from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingSemantics  # noqa: E402
from tests.oracle import border_and_interior, extents, scale_of, source_oracle, tile_concat_conv  # noqa: E402
from tests.strategies import cases  # noqa: E402
from tests.test_conformance import IMPLEMENTATIONS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SIMPLE = "summed weights without border classes (wrong)"


def without_border_classes(case):
    """The popular rewrite: the weights of every vector summed over all taps, whatever the padding."""
    config = MSConv2dConfig(**{**case.config.attributes(), "padding_semantics": PaddingSemantics.SOURCE})
    axes = {"nchw": (), "nch": (3,), "ncw": (2,), "nc": (2, 3)}
    weights = {name: w.sum(axes[name]) if axes[name] else w for name, w in case.weights.items()}
    return reference.msconv2d(config, case.sources, weights, case.bias)


def measure(count: int) -> dict[str, dict[str, Any]]:
    """Worst differences of each implementation, or why it is ``skipped``."""
    worst: dict[str, dict[str, Any]] = {
        name: {"border": 0.0, "interior": 0.0, "cases": 0} for name in (*IMPLEMENTATIONS, SIMPLE)
    }

    @seed(0)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def one(case):
        case = case.astype(np.float32).astype(np.float64)
        oracle = tile_concat_conv if case.config.tiled else source_oracle
        expected = oracle(case.config, case.sources, case.weights, case.bias)
        scale = scale_of(case, expected)
        border = np.broadcast_to(border_and_interior(case.config, *extents(case.sources)), expected.shape)
        implementations = {n: row[0] for n, row in IMPLEMENTATIONS.items() if "skipped" not in worst[n]}
        if case.config.tiled and case.config.group == 1:
            implementations[SIMPLE] = without_border_classes
        for name, implementation in implementations.items():
            try:
                error = np.abs(implementation(case) - expected)
            except pytest.skip.Exception as reason:  # the conformance test's word for what this machine lacks
                worst[name]["skipped"] = str(reason)
                continue
            error = np.where(np.isnan(error), np.inf, error)  # not a number would be lost in a maximum
            if scale == 0 and name == SIMPLE:  # every tap is outside: infinitely wrong, which says nothing more
                continue
            error = np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
            worst[name]["border"] = max(worst[name]["border"], float(error[border].max(initial=0)))
            worst[name]["interior"] = max(worst[name]["interior"], float(error[~border].max(initial=0)))
            worst[name]["cases"] += 1

    one()
    return worst


def wrong(worst: dict[str, dict[str, Any]]) -> list[str]:
    """Implementations that are farther off than the conformance test allows; not a number is."""
    return [
        name
        for name, (_, tolerance, _) in IMPLEMENTATIONS.items()
        if not max(worst[name]["border"], worst[name]["interior"]) <= tolerance
    ]


def cells(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"0 | not measured: {row['skipped']} | "
    return f"{row['cases']} | {row['border']:.1e} | {row['interior']:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    when, worst = conditions(), measure(args.cases)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {
        "command": f"python benchmarks/exactness.py --cases {args.cases}",
        "conditions": when,
        "worst": worst,
    }
    (RESULTS / "exactness.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = [f"`{content['command']}`; {in_words(when)}", ""]
    lines += ["| implementation | cases | worst at the border | worst inside |", "|---|---|---|---|"]
    lines += [f"| {name} | {cells(row)} |" for name, row in worst.items()]
    (RESULTS / "exactness.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    failed = wrong(worst)
    for name in failed:
        print(f"WRONG: {name} is farther off than the conformance test allows", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
