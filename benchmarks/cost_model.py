"""Does the estimate decide well? What it promises at every site against what is measured, and the decisions that were wrong.

    python benchmarks/cost_model.py [--zoo FOLDER] [--pairs 8] [--seconds 0.3] [--only TEXT]

Whole files are compared, since a site alone says little: once with a site rewritten and once with it left, all other sites as
the mode has them. Mode `default` is the optimizer's own choice, mode `always` rewrites every valid site. The measured gain is
time with the site left over time with it rewritten, by the protocol of benchmarks/speed.py; the estimated gain of the file adds
the seconds that the estimate says the site saves to the measured time with it rewritten. By the site's own estimated ratio the
optimizer decides: rewritten from 1.05 on. Rules that decide without an estimate have no point in the plot; in mode `always`
what the optimizer does by default counts as their promise.

A decision is wrong if a site that is promised a gain is measured slower, or one that is not is measured faster when rewritten,
by more than the noise: the largest of 1%, the interval of the measurement, and what the file against itself (A/A) shows. Wrong
decisions are counted against the sites whose effect is beyond the noise. "Estimate off by" is exp(mean of |log(estimated /
measured)|) - 1. A file whose outputs change by more than 2e-4 fails the run.

Writes benchmarks/results/cost_model.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import model_sets  # noqa: E402
from benchmarks.conditions import conditions, in_words  # noqa: E402
from benchmarks.model_sets import Entry  # noqa: E402
from benchmarks.speed import TOLERANCE, as_data, difference, finite_feeds, outputs  # noqa: E402
from msconv_deploy.model_files import read_model  # noqa: E402
from msconv_deploy.ops.forms import Form  # noqa: E402
from msconv_deploy.surgery import optimize  # noqa: E402
from msconv_deploy.surgery.choice.choose import MARGIN, Choice, When, choose  # noqa: E402
from msconv_deploy.surgery.choice.estimates import Estimator, SiteCost  # noqa: E402
from msconv_deploy.surgery.choice.timing import Comparison, Feeds, compare  # noqa: E402
from msconv_deploy.surgery.engine.editing import EditableModel  # noqa: E402
from msconv_deploy.surgery.engine.symbols import Symbols  # noqa: E402
from msconv_deploy.surgery.optimize import Result, optimize_model  # noqa: E402
from msconv_deploy.surgery.rules.tile_concat_conv import Match  # noqa: E402
from msconv_deploy.surgery.sites import Site  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
LEAST_NOISE = 0.01
WORST = 10
"""Misjudgements in the table."""
Mode = Literal["default", "always"]
MODES: dict[Mode, When] = {"default": "faster", "always": "always"}
Plan = Mapping[str, str]
"""Output of a site -> its lowering; a site that is not there is left."""
Row = dict[str, Any]


@contextmanager
def recorded_costs() -> Iterator[list[SiteCost]]:
    """Every cost that the estimate makes: reports of sites keep only its ratio."""
    costs: list[SiteCost] = []
    estimated = Estimator.site

    def site(self: Estimator, *args: Any, **kwargs: Any) -> SiteCost:
        costs.append(estimated(self, *args, **kwargs))
        return costs[-1]

    with mock.patch.object(Estimator, "site", site):
        yield costs


def by_plan(model: onnx.ModelProto, entry: Entry, plan: Plan) -> Result:
    """The file with the sites of a plan rewritten, spelled as it says, and no others."""

    def chooser(editable: EditableModel, symbols: Symbols, matches: Sequence[Match]) -> list[Choice]:
        choices = choose(editable, symbols, matches, "always", entry.shapes)
        for choice, found in zip(choices, matches, strict=True):
            result = choice.epilogue.result if choice.epilogue is not None else found.node.outputs[0]
            choice.rewrite = result.name in plan
            choice.lowering = plan.get(result.name) or choice.lowering
        return choices

    def decide(output: str, _: str) -> tuple[bool, str]:
        return output in plan, "measured"

    return optimize._all_passes(model, entry.folder, chooser, decide, Form.PORTABLE, entry.shapes, entry.allow)


Key = tuple[tuple[str, str], ...]


def key_of(plan: Plan) -> Key:
    return tuple(sorted(plan.items()))


@dataclass(frozen=True)
class Built:
    """A file by a plan: the model, the sites that were indeed rewritten, and how far its outputs are from the original's."""

    model: onnx.ModelProto
    done: Key
    difference: float


@dataclass
class Measured:
    """Compares models of one file, each pair of plans once."""

    entry: Entry
    original: onnx.ModelProto
    feeds: Feeds
    pairs: int
    seconds: float

    def __post_init__(self) -> None:
        self.expected = outputs(self.original, self.entry.folder, self.feeds)
        self.models: dict[Key, Built] = {}
        self.found: dict[tuple[Key, Key], Comparison] = {}

    def model(self, plan: Plan) -> Built:
        key = key_of(plan)
        if key not in self.models:
            result = by_plan(self.original, self.entry, plan)
            done = {s.output: s.lowering for s in result.sites if s.decision == "rewritten"}
            actual = outputs(result.model, self.entry.folder, self.feeds)
            self.models[key] = Built(result.model, key_of(done), difference(self.expected, actual))
        return self.models[key]

    def compare(self, first: Plan, second: Plan) -> Comparison:
        key = key_of(first), key_of(second)
        if key not in self.found:
            models = self.model(first).model, self.model(second).model
            self.found[key] = compare(
                *models, self.entry.folder, self.feeds, pairs=self.pairs, seconds_per_pair=self.seconds
            )
        return self.found[key]


def measure(entry: Entry, pairs: int, seconds: float) -> list[Row]:
    """A row for every site of a file in either mode."""
    original = read_model(entry.folder / entry.file)
    feeds = finite_feeds(original, entry.folder, entry.shapes)
    measured = Measured(entry, original, feeds, pairs, seconds)
    chosen: dict[Mode, Result] = {}
    costs: dict[Mode, dict[float, SiteCost]] = {}
    for mode, when in MODES.items():
        with recorded_costs() as recorded:
            chosen[mode] = optimize_model(original, entry.folder, when, input_shapes=entry.shapes, allow=entry.allow)
        costs[mode] = {cost.gain: cost for cost in recorded}
    by_default = {site.output for site in chosen["default"].sites if site.decision == "rewritten"}
    rows = []
    control: Comparison | None = None
    for mode, result in chosen.items():
        base = {s.output: s.lowering for s in result.sites if s.decision == "rewritten"}
        for site in result.sites:
            row: Row = {"file": entry.file, "collection": entry.collection, "mode": mode} | described(site)
            plans = {k: v for k, v in base.items() if k != site.output}, base | {site.output: site.lowering}
            left, rewritten = (measured.model(plan) for plan in plans)
            row["difference"] = max(left.difference, rewritten.difference)
            rows.append(row)
            if left.done == rewritten.done:
                row["note"] = "the file is the same with it and without"
                continue
            control = control or measured.compare({}, {})
            comparison = measured.compare(*plans)
            promised = promises(site, mode, by_default)
            row |= judged(promised, comparison, control, costs[mode].get(site.estimated_gain or math.nan))
    return rows


def described(site: Site) -> Row:
    return {
        "site": site.node,
        "op": site.op,
        "rule": site.rule,
        "lowering": site.lowering,
        "decision": site.decision,
        "estimated_ratio": site.estimated_gain,
    }


def promises(site: Site, mode: Mode, by_default: Collection[str]) -> bool:
    """Does the optimizer expect a rewrite of this site to be faster?"""
    if mode == "default":
        return site.decision == "rewritten"
    return site.output in by_default if site.estimated_gain is None else site.estimated_gain >= MARGIN


def judged(promised: bool, found: Comparison, control: Comparison, cost: SiteCost | None) -> Row:
    """What was measured, what was estimated for the file, and whether the decision was wrong by more than the noise."""
    noise = max(LEAST_NOISE, found.half_width, control.half_width, abs(control.ratio - 1))
    row: Row = {"measured": as_data(found), "control": as_data(control), "noise": noise}
    if cost is not None:
        row["estimated"] = max(0.0, 1 + (cost.before.seconds - cost.after.seconds) / found.seconds[1])
    row["promised"] = promised
    row["undecided"] = abs(found.ratio - 1) <= noise
    row["wrong"] = found.ratio < 1 - noise if promised else found.ratio > 1 + noise
    return row


# -- the report --------------------------------------------------------------------------------------------------------


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; ties get their mean rank. None for fewer than three points or where one does not vary."""
    if len(first) < 3:
        return None
    a, b = (_ranks(np.asarray(values)) for values in (first, second))
    if not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[places]


def summary(rows: list[Row]) -> dict[str, Row]:
    """For each mode: how estimates rank, and how many decisions were wrong, of each kind."""
    made = {}
    for mode in MODES:
        own = [row for row in rows if row["mode"] == mode]
        known = [row for row in own if "measured" in row]
        pairs = [row for row in known if "estimated" in row]
        decided = [row for row in known if not row["undecided"]]
        promised = [row for row in known if row["promised"]]
        not_promised = [row for row in known if not row["promised"]]
        off = [abs(math.log(max(row["estimated"], 1e-3) / row["measured"]["ratio"])) for row in pairs]
        made[mode] = {
            "sites": len(own),
            "measured": len(known),
            "with_estimate": len(pairs),
            "rank_correlation": rank_correlation(
                [row["estimated"] for row in pairs], [row["measured"]["ratio"] for row in pairs]
            ),
            "mean_error": math.expm1(sum(off) / len(off)) if off else None,
            "undecided": sum(row["undecided"] for row in known),
            "wrong": sum(row["wrong"] for row in decided),
            "beyond_noise": len(decided),
            "promised": len(promised),
            "promised_and_slower": sum(row["wrong"] for row in promised),
            "not_promised": len(not_promised),
            "not_promised_and_faster": sum(row["wrong"] for row in not_promised),
            "wrong_share": sum(row["wrong"] for row in decided) / len(decided) if decided else None,
        }
    return made


def worst(rows: list[Row]) -> list[Row]:
    """The wrong decisions that cost most, each site once."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in sorted(filter(lambda r: r.get("wrong"), rows), key=lambda r: -abs(math.log(r["measured"]["ratio"]))):
        found.setdefault((row["file"], row["site"], row["lowering"]), row)
    return list(found.values())[:WORST]


def table(content: Row) -> str:
    lines = [
        f"`{content['command']}`; {in_words(content['conditions'])} A site rewritten against the same site left, the others "
        "as the mode has them; time over time of the whole file.",
        "",
        "| mode | sites measured | rank correlation | estimate off by, mean | promised, but slower | "
        "not promised, but faster | wrong, of those beyond the noise | within the noise |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for mode, total in content["summary"].items():
        cells = [f"{total['measured']} of {total['sites']}"]
        cells += [_text(total["rank_correlation"], ".2f") + f" ({total['with_estimate']} sites)"]
        cells += [_text(total["mean_error"], ".1%"), f"{total['promised_and_slower']} of {total['promised']}"]
        cells += [f"{total['not_promised_and_faster']} of {total['not_promised']}"]
        cells += [f"{total['wrong']} of {total['beyond_noise']}", f"{total['undecided']} of {total['measured']}"]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Wrong by more than the noise, the costliest first:"
        if content["worst"]
        else "No decision was wrong beyond the noise.",
    ]
    if content["worst"]:
        lines += [
            "",
            "| file | site | rule, lowering | mode | decision | site's estimated ratio | file, estimated | file, measured | "
            "noise |",
            "|---|---|---|---|---|---:|---:|---:|---:|",
        ]
    for row in content["worst"]:
        cells = [row["file"].removesuffix(".onnx"), row["site"], f"{row['rule']}, {row['lowering']}", row["mode"]]
        cells += [row["decision"], _text(row["estimated_ratio"], ".2f"), _text(row.get("estimated"), ".2f")]
        cells += [f"{row['measured']['ratio']:.2f}", f"± {row['noise']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _text(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def point(row: Row) -> tuple[float, float]:
    """Estimated and measured gain of the file."""
    return max(row["estimated"], 0.05), row["measured"]["ratio"]


def plot(content: Row, path: Path) -> None:
    """Measured over estimated gain of the file, one point for each site; red is a wrong decision."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    values = [value for row in content["rows"] if "estimated" in row for value in point(row)] or [1.0]
    ends = np.array([min(values) / 1.3, max(values) * 1.3])
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained", sharex=True, sharey=True)
    for axes, mode in zip(panels, MODES, strict=True):
        rows = [row for row in content["rows"] if row["mode"] == mode and "estimated" in row]
        for collection, marker in ((model_sets.NETWORKS, "o"), (model_sets.ZOO, "D")):
            own = [row for row in rows if row["collection"] == collection]
            if not own:
                continue
            x, y = (np.array(values) for values in zip(*map(point, own), strict=True))
            noise = np.array([row["noise"] for row in own])
            whiskers = [y - y / (1 + noise), y * noise]
            colors = ["tab:red" if row["wrong"] else "tab:blue" if row["promised"] else "gray" for row in own]
            axes.errorbar(x, y, whiskers, fmt="none", ecolor="silver", elinewidth=0.8, zorder=1)
            axes.scatter(x, y, 22, colors, marker=marker, alpha=0.8, label=collection, zorder=2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlim=ends, ylim=ends)
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.axhline(1, color="silver", linewidth=0.8)
        axes.axvline(1, color="silver", linewidth=0.8)
        found = content["summary"][mode]["rank_correlation"]
        axes.set_title(f"{mode}: rank correlation {_text(found, '.2f')}", fontsize=10)
        axes.set_xlabel("estimated gain of the file")
        if rows:
            axes.legend(fontsize=8)
    panels[0].set_ylabel("measured gain of the file")
    figure.supxlabel(
        "a point for each site; blue: a gain is promised, grey: none is, red: wrong beyond the noise", fontsize=9
    )
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_sets.add_arguments(parser)
    parser.add_argument("--pairs", type=int, default=8, help="of fresh sessions; fewer than 8 only for a quick look")
    parser.add_argument("--seconds", type=float, default=0.3, help="of runs in each pair, at least 5 runs are made")
    args = parser.parse_args()
    when = conditions()
    rows: list[Row] = []
    try:
        with model_sets.chosen(args) as entries:
            for index, entry in enumerate(entries, 1):
                found = measure(entry, args.pairs, args.seconds)
                rows += found
                said = [f"{row['mode']} {row['measured']['ratio']:.2f}" for row in found if "measured" in row]
                wrong = sum(row.get("wrong", False) for row in found)
                print(f"[{index}/{len(entries)}] {entry.name}: {', '.join(said) or 'nothing to compare'}"
                      + (f"; {wrong} wrong" if wrong else ""), flush=True)  # fmt: skip
    except FileNotFoundError as error:
        print(f"cost_model: {error}", file=sys.stderr)
        return 2
    if not rows:
        print(f"no site in any file with {args.only!r} in its name", file=sys.stderr)
        return 2
    options = [*model_sets.as_options(args), f"--pairs {args.pairs}"]
    options += [f"--seconds {args.seconds:g}"] * (args.seconds != 0.3)
    content: Row = {
        "command": " ".join(["python benchmarks/cost_model.py", *options]),
        "conditions": when,
        "summary": summary(rows),
        "worst": worst(rows),
        "rows": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "cost_model.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "cost_model.md").write_text(table(content))
    plot(content, RESULTS / "cost_model.png")
    print(table(content))
    differing = sorted({row["file"] for row in rows if not row["difference"] <= TOLERANCE})
    for file in differing:
        print(f"WRONG: {file}: the outputs change", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
