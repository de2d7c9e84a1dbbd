"""How exact is it? The worst difference from tile-concat-conv in float64, over random configurations.

    python benchmarks/exactness.py [--cases 1000]

Every implementation of the operator runs on the same random cases (both padding semantics, all padding modes, groups,
strides beyond the kernel, dilations, asymmetric pads, images smaller than the kernel). Border pixels, where some tap
falls outside the image, and interior pixels are reported apart. Writes benchmarks/results/exactness.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from msconv_deploy.ops import reference  # noqa: E402
from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingSemantics  # noqa: E402
from msconv_deploy.reporting.versions import installed_versions  # noqa: E402
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


def measure(count: int) -> dict[str, dict[str, float]]:
    worst = {name: {"border": 0.0, "interior": 0.0, "cases": 0} for name in (*IMPLEMENTATIONS, SIMPLE)}

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
        implementations = {name: row[0] for name, row in IMPLEMENTATIONS.items()}
        if case.config.tiled and case.config.group == 1:
            implementations[SIMPLE] = without_border_classes
        for name, implementation in implementations.items():
            error = np.abs(implementation(case) - expected)
            if scale == 0 and name == SIMPLE:  # every tap is outside: infinitely wrong, which says nothing more
                continue
            error = np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
            worst[name]["border"] = max(worst[name]["border"], float(error[border].max(initial=0)))
            worst[name]["interior"] = max(worst[name]["interior"], float(error[~border].max(initial=0)))
            worst[name]["cases"] += 1

    one()
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    worst = measure(args.cases)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {
        "command": f"python benchmarks/exactness.py --cases {args.cases}",
        "versions": installed_versions(),
        "worst": worst,
    }
    (RESULTS / "exactness.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = ["| implementation | cases | worst at the border | worst inside |", "|---|---|---|---|"]
    lines += [f"| {n} | {int(r['cases'])} | {r['border']:.1e} | {r['interior']:.1e} |" for n, r in worst.items()]
    (RESULTS / "exactness.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
