"""Which sites are rewritten, how they are spelled, and tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from msconv_deploy.optimizing.optimize import optimize_file
from msconv_deploy.optimizing.options import OptimizeOptions
from msconv_deploy.surgery.choice import tune as tuning
from msconv_deploy.surgery.choice.choose import MARGIN
from msconv_deploy.surgery.choice.timing import Comparison, compare, random_feeds
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from tests.surgery.graphs import Net, feeds, session
from tests.surgery.graphs import compare as assert_equal


def net_of(image=8, vector=4, outputs=8, extent=16, batch=1, kernel=3, pad=0, activation=True):
    net = Net()
    x, v = net.input(batch, image, extent, extent, name="image"), net.input(batch, vector, name="vector")
    expanded = net.node("Expand", net.with_axes("Unsqueeze", v, 2, 3), net.ints(batch, vector, extent, extent))
    both = net.node("Concat", x, expanded, axis=1)
    weights = net.random(outputs, image + vector, kernel, kernel), net.random(outputs)
    y = net.node("Conv", both, *weights, pads=[pad] * 4, name="site", outputs="site_output")
    net.output(net.node("Relu", y) if activation else y)
    return net.model()


def test_many_copies_are_worth_a_rewrite() -> None:
    result = optimize_model(net_of(image=8, vector=64, extent=64), Path())
    (site,) = result.sites
    assert site.decision == "rewritten"
    assert site.estimated_gain is not None
    assert site.estimated_gain > MARGIN
    assert site.macs_before is not None
    assert site.macs_after is not None
    assert site.macs_after < site.macs_before / 4
    assert site.bytes_before
    assert site.bytes_after
    assert "estimated gain" in site.reason


def test_few_copies_beside_many_channels_are_left() -> None:
    model = net_of(image=64, vector=1, outputs=64, kernel=1, extent=64, batch=2)
    result = optimize_model(model, Path())
    (site,) = result.sites
    assert (site.decision, result.changed) == ("left", False)
    assert result.model is model
    assert f"less than x{MARGIN:.2f}" in site.reason


def test_always_rewrites_it_nevertheless() -> None:
    result = optimize_model(net_of(image=64, vector=1, outputs=64, kernel=1, extent=64, batch=2), Path(), "always")
    assert result.sites[0].decision == "rewritten"


def test_inspect_says_what_would_be_done_and_changes_nothing() -> None:
    model = net_of(image=8, vector=64, extent=64)
    before = model.SerializeToString()
    result = inspect_model(model, Path())
    assert (result.sites[0].decision, result.changed) == ("left", False)
    assert result.sites[0].estimated_gain is not None
    assert model.SerializeToString() == before


def test_extents_of_the_caller_decide() -> None:
    net = Net()
    x, v = net.input("n", 8, "h", "w", name="image"), net.input("n", 16, name="vector")
    expanded = net.node("Expand", net.with_axes("Unsqueeze", v, 2, 3), net.shape(("n", 16, "h", "w")))
    y = net.node("Conv", net.node("Concat", x, expanded, axis=1), net.random(8, 24, 3, 3))
    net.output(y)
    large = inspect_model(net.model(), Path(), input_shapes={"image": [1, 8, 200, 200]}).sites[0]
    small = inspect_model(net.model(), Path(), input_shapes={"image": [1, 8, 4, 4]}).sites[0]
    assert large.macs_before == 198 * 198 * 8 * 24 * 9
    assert small.macs_before == 2 * 2 * 8 * 24 * 9
    assert large.estimated_gain is not None
    assert small.estimated_gain is not None
    assert large.estimated_gain > small.estimated_gain


@pytest.mark.parametrize(
    ("batch", "pad", "spellings"),
    [
        (1, 0, ["broadcast-add", "dynamic-bias", "expanded-add"]),
        (2, 0, ["broadcast-add", "expanded-add"]),
        (1, 1, ["border-gather", "ones-channel"]),
    ],
)
def test_every_spelling_is_right(batch, pad, spellings, monkeypatch) -> None:
    model = net_of(batch=batch, pad=pad)
    assert inspect_model(model, Path()).sites[0].spellings == spellings
    expected = session(model).run(None, feeds(model, {}))
    for spelling in spellings:
        made = built(model, {"site_output": spelling}, monkeypatch)
        assert_equal(expected, session(made).run(None, feeds(model, {})), spelling)
        assert_equal(expected, session(made, optimize=True).run(None, feeds(model, {})), spelling)


def built(model, plan, monkeypatch):
    """The model of a plan, through the door that tuning uses."""
    found = []

    def fake(original, folder, given, starts, candidates, build, **_):
        found.append(build(plan))
        return tuning.Tuned(plan, None)

    monkeypatch.setattr("msconv_deploy.surgery.optimize.tune_plan", fake)
    result = optimize_model(model, Path(), tune=True)
    assert result.sites[0].lowering == plan["site_output"]
    return found[0]


# -- tuning ------------------------------------------------------------------------------------------------------------


def tune_with(ratio_of, starts, candidates, **options):
    """Run the search with invented times: ``ratio_of(plan)`` is the speed of a plan; models are plans here."""

    def compared(first, second, folder, given, **_):
        return Comparison(ratio_of(second) / ratio_of(first), 0.0, (1.0, 1.0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "compare", compared)
        return tuning.tune({}, Path(), {}, starts, candidates, dict, **options)


def test_tuning_finds_the_fastest_plan_from_a_bad_start() -> None:
    speed = {("a", "x"): 0.9, ("a", "y"): 1.3, ("b", "x"): 0.8}

    def ratio(plan):
        return float(np.prod([speed[item] for item in plan.items()]))

    candidates = [tuning.Candidate("a", ("x", "y", None)), tuning.Candidate("b", ("x", None))]
    tuned = tune_with(ratio, [{"a": "x", "b": "x"}], candidates)
    assert tuned.plan == {"a": "y"}
    assert tuned.comparison is not None
    assert tuned.comparison.ratio == pytest.approx(1.3)


def test_tuning_keeps_the_original_where_everything_is_slower() -> None:
    tuned = tune_with(lambda plan: 0.9 ** len(plan), [{"a": "x"}], [tuning.Candidate("a", ("x", None))])
    assert (tuned.plan, tuned.comparison) == ({}, None)


def test_tuning_may_be_told_to_rewrite() -> None:
    tuned = tune_with(
        lambda plan: 0.9 ** len(plan), [{"a": "x"}], [tuning.Candidate("a", ("x",))], may_keep_original=False
    )
    assert tuned.plan == {"a": "x"}


def test_tuning_measures_real_models() -> None:
    model = net_of(image=4, vector=64, outputs=16, extent=48)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TRIAL_PAIRS", 2), ("TRIAL_SECONDS", 0.02), ("FINAL_PAIRS", 2), ("FINAL_SECONDS", 0.02)):
            patch.setattr(tuning, name, value)
        result = optimize_model(model, Path(), tune=True, progress=said.append)
    assert result.changed
    assert any("whole model" in line for line in said)
    assert result.measured is not None
    assert result.measured.ratio > 1
    assert_equal(session(model).run(None, feeds(model, {})), session(result.model).run(None, feeds(model, {})), "tuned")


def test_what_tuning_measured_is_reported(tmp_path) -> None:
    onnx.save(net_of(image=4, vector=64, outputs=16, extent=48), tmp_path / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TRIAL_PAIRS", 2), ("TRIAL_SECONDS", 0.02), ("FINAL_PAIRS", 2), ("FINAL_SECONDS", 0.02)):
            patch.setattr(tuning, name, value)
        report = optimize_file(tmp_path / "m.onnx", tmp_path / "o.onnx", OptimizeOptions(tune=True))
    assert report.verdict == "passed"
    assert report.measured is not None
    assert report.measured.ratio > 1
    assert report.measured.seconds_before > report.measured.seconds_after > 0
    assert optimize_file(tmp_path / "m.onnx", tmp_path / "untuned.onnx").measured is None


def test_comparing_a_model_with_itself_gives_about_one() -> None:
    model = net_of(extent=32)
    found = compare(model, model, Path(), random_feeds(model, {}), pairs=3, seconds_per_pair=0.05)
    assert 0.5 < found.ratio < 2
    assert found.half_width > 0
