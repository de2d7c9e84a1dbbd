"""The HTML report: complete, safe, and without any external resource."""

import re
from html.parser import HTMLParser

import onnx
import pytest

from msconv_deploy.model_files import read_model
from msconv_deploy.optimizing.neighbourhood import site_views
from msconv_deploy.optimizing.sites import site_reports
from msconv_deploy.reporting import OptimizeReport, Verification
from msconv_deploy.reporting.html import optimize_page
from msconv_deploy.reporting.optimize import Measurement, ModelFacts, NearMissReport
from msconv_deploy.reporting.validation import Comparison, RefusedCase
from msconv_deploy.surgery.optimize import optimize_model
from tests.tile_models import tiled_conv

EVIL = "<img src=x onerror=alert(1)>"


class Checker(HTMLParser):
    """Collects tags, and fails where they do not close in order."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def comparison(verdict: str, reason: str = "") -> Comparison:
    return Comparison(
        runtime="ort",
        case="case0",
        size={"N": 1},
        output=EVIL,
        dtype="float32",
        shape=[1],
        difference=1e-7,
        tolerance=1e-5,
        policy_tolerance=1e-5,
        noise=None,
        verdict=verdict,
        reason=reason,
    )


@pytest.fixture
def parts(tmp_path):
    path = tiled_conv(tmp_path / "m.onnx")
    original = read_model(path)
    result = optimize_model(original, tmp_path, "always")
    sites = site_reports(result.sites)
    return original, result.model, sites, tmp_path


def page_of(parts, verdict="passed", **changes) -> str:
    original, rewritten, sites, folder = parts
    facts = ModelFacts(nodes=9, bytes=1000, macs=100, opset=17, ir_version=8)
    values = {
        "seed": 0,
        "model": EVIL,
        "model_sha256": "0" * 64,
        "form": "portable",
        "when": "always",
        "verdict": verdict,
        "unchanged": False,
        "before": facts,
        "after": facts.model_copy(update={"macs": 40}),
        "rules": ["tile-concat-conv"],
        "sites": sites,
        "near_misses": [NearMissReport(node=EVIL, op="Conv", reason="its weights are not constant", nodes=["a", "b"])],
        "verification": Verification(
            verdict=verdict,
            sites=[comparison("passed")],
            outputs=[comparison(verdict, "because")],
            refused=[RefusedCase(size={"N": 4}, reason=EVIL)],
            insensitive_sites=["t9"],
        ),
    }
    report = OptimizeReport(**{**values, **changes})
    return optimize_page(report, site_views(original, rewritten, report.rewritten, folder))


@pytest.mark.parametrize("verdict", ["passed", "differ", "unverified"])
def test_the_page_is_complete_and_opens_offline(parts, verdict):
    page = page_of(parts, verdict)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.tags.count("svg") == 3  # the chart, before and after
    assert not {"img", "script", "link", "iframe", "object"} & set(checker.tags)
    assert not re.search(
        r"(src|href)\s*=|url\(|@import", page.replace(EVIL.replace("<", "&lt;"), "").replace("src=x", "")
    )
    for text in ("-60.0%", "its weights are not constant", "because", "insensitive", "1 sizes that the original"):
        assert text in page


def test_measured_time_is_drawn(parts):
    measured = Measurement(seconds_before=0.02, seconds_after=0.015, ratio=1.33, half_width=0.02)
    page = page_of(parts, measured=measured)
    for text in ("Measured time", "20 ms", "15 ms  x1.33 ± 0.02"):
        assert text in page
    assert "Measured time" not in page_of(parts)


def test_views_show_the_site_the_copies_and_what_is_new(parts):
    original, rewritten, sites, folder = parts
    (view,) = site_views(original, rewritten, sites, folder)
    kinds = {(node.label, node.kind) for node in view.before.nodes}
    assert {("Conv", "site"), ("Expand", "copy"), ("x", "input"), ("Relu", "node")} <= kinds
    assert "Shape" not in {node.label for node in view.before.nodes}
    assert any(node.kind == "new" for node in view.after.nodes)
    assert not any(node.kind == "new" for node in view.before.nodes)
    for part in (view.before, view.after):
        keys = {node.key for node in part.nodes}
        assert all(start in keys and end in keys for start, end in part.edges)


def test_a_model_without_shapes_is_drawn_too(parts):
    original, rewritten, sites, folder = parts
    broken = onnx.ModelProto()
    broken.CopyFrom(rewritten)
    broken.graph.node[0].op_type = "Unheard"
    (view,) = site_views(original, broken, sites, folder)
    assert view.after.nodes


def test_an_unchanged_and_an_unverified_model(parts):
    assert "byte for byte" in page_of(parts, unchanged=True, verification=None)
    assert "Verification was not asked for" in page_of(parts, "unverified", verification=None)
