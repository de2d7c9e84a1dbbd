"""The pass of the unfold rules within optimizing: what is chosen, reported and verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from msconv_deploy.optimizing import OptimizeOptions, optimize_file
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from tests.surgery.graphs import Net
from tests.surgery.rules.unfolding import columns, operators

GEOMETRY = ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


def local_product(channels: int = 8, dims=("N", "H", "W"), reader: str = "") -> Net:
    net = Net()
    shape = (dims[0], channels, *dims[1:])
    u = columns(net, net.input(*shape, name="x"), shape, *GEOMETRY)
    y = net.node("MatMul", net.random(4, 9 * channels), u, name="product")
    net.output(net.node("Relu", y), rank=3)
    if reader:
        net.output(net.node(reader, u), rank=3)
    return net


def test_the_default_rewrites_what_is_faster() -> None:
    model = local_product().model()
    result = optimize_model(model, Path())
    (site,) = result.sites
    assert (site.rule, site.op, site.node, site.decision) == ("unfold-matmul", "MatMul", "product", "rewritten")
    assert (site.geometry, site.lowering) == ("kernel 3x3, pad 1,1 1,1", "convolution")
    assert site.estimated_gain is not None
    assert site.estimated_gain > 1.05
    assert site.macs_before == site.macs_after
    assert operators(result) == ["Conv", "Reshape", "Relu"]
    assert optimize_model(result.model, Path()).model is result.model


def test_windows_that_stay_count_as_what_they_cost() -> None:
    """With the windows read elsewhere, the convolution saves less."""
    alone = optimize_model(local_product().model(), Path(), "always").sites[0]
    shared = optimize_model(local_product(reader="Sigmoid").model(), Path(), "always").sites[0]
    assert alone.estimated_gain is not None
    assert shared.estimated_gain is not None
    assert shared.estimated_gain < alone.estimated_gain


def test_sites_are_stamped_with_what_they_replace() -> None:
    net = local_product()
    result = optimize_model(net.model(), Path())
    stamps = [{p.key: p.value for p in node.metadata_props} for node in result.model.graph.node]
    assert {s.get("msconv.rule") for s in stamps} == {"unfold-matmul", None}
    assert {s.get("msconv.replaces") for s in stamps} == {"product", None}


def test_inspect_lists_sites_and_near_misses() -> None:
    net = local_product()
    other = net.node("MatMul", net.input(4, 72), net.nodes[-3].output[0], name="computed")
    net.output(other, rank=3)
    model = net.model()
    before = model.SerializeToString()
    result = inspect_model(model, Path())
    assert [(s.rule, s.node, s.decision) for s in result.sites] == [("unfold-matmul", "product", "left")]
    assert [(m.node, m.reason) for m in result.near_misses] == [("computed", "its weights are not constant")]
    (segment,) = result.sites[0].segments
    assert (segment.size, segment.uniform) == (8, [])
    assert [text.split()[0] for text in segment.found] == ["Reshape", "Transpose", "Gather", "Gather", "Pad"]
    assert model.SerializeToString() == before


def test_a_tiled_image_is_unfolded() -> None:
    """Copies below windows: the windows become a convolution, which is left as it is in later passes."""
    net = Net()
    tiled = net.node("Expand", net.input(1, 5, 1, 1), net.ints(1, 5, 8, 8))
    x = net.node("Concat", net.input(1, 3, 8, 8), tiled, axis=1)
    u = columns(net, x, (1, 8, 8, 8), *GEOMETRY)
    net.output(net.node("MatMul", net.random(4, 72), u), rank=3)
    result = optimize_model(net.model(), Path(), "always")
    assert "unfold-matmul" in [s.rule for s in result.sites if s.decision == "rewritten"]
    onnx.checker.check_model(result.model, full_check=True)


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfolds")
    net = Net()
    shape = ("N", 3, "H", "W")
    u = columns(net, net.input(*shape, name="x"), shape, (5, 5), (2, 2), (1, 1), ((0, 0), (0, 0)))
    y = net.node("MatMul", net.random(4, 75), u)
    net.output(net.node("Relu", net.node("Add", y, net.random(4, 1))), rank=3)
    onnx.save(net.model(), folder / "model.onnx")
    return optimize_file(folder / "model.onnx", folder / "out.onnx", OptimizeOptions(html=folder / "page.html")), folder


def test_the_result_is_verified_at_the_site_and_written(verified) -> None:
    report, folder = verified
    assert (report.verdict, report.rules) == ("passed", ["unfold-matmul"]), report.reason
    (site,) = report.rewritten
    check = report.verification
    assert {row.output for row in check.sites} == {site.output}
    assert all(row.verdict == "passed" for row in check.sites)
    assert report.before.macs == report.after.macs
    written = onnx.load(folder / "out.onnx")
    assert "Conv" in {node.op_type for node in written.graph.node}
    assert '"unfold-matmul"' in (folder / "out.json").read_text()
    assert site.node in (folder / "page.html").read_text()


def test_sizes_without_a_window_are_refused(verified) -> None:
    """At an image smaller than a window the original computes an empty tensor: nothing to compare, and it is said."""
    check = verified[0].verification
    assert len(check.cases) >= 3
    small = [case for case in check.refused if min(case.size["H"], case.size["W"]) < 5]
    assert small
    assert all("is empty" in case.reason for case in small)
    assert all(min(case.size["H"], case.size["W"]) >= 5 for case in check.cases)


def test_tuning_measures_the_sites() -> None:
    net = local_product(4, (1, 12, 12))
    result = optimize_model(net.model(), Path(), tune=True)
    assert [s.rule for s in result.sites] == ["unfold-matmul"]
    assert result.sites[0].decision == "rewritten"
    assert result.measured is not None
    assert np.isfinite(result.measured.ratio)
