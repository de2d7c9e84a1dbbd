"""Drawings: boxes do not overlap, edges go down, and what is drawn is safe to put into a page."""

import random
from xml.dom import minidom

import pytest

from msconv_deploy.reporting.html.drawing import Bar, bars_svg, graph_svg
from msconv_deploy.reporting.html.layout import layered
from msconv_deploy.reporting.numbers import bytes_text, count_text, difference_text, ratio_text, saving_text
from msconv_deploy.reporting.optimize import View, ViewNode


def random_graph(seed: int) -> tuple[dict[str, float], list[tuple[str, str]]]:
    rng = random.Random(seed)
    nodes = [f"n{i}" for i in range(rng.randint(1, 25))]
    edges = {(nodes[rng.randrange(i)], nodes[i]) for i in range(1, len(nodes)) for _ in range(rng.randint(0, 3))}
    return {node: rng.uniform(30, 160) for node in nodes}, sorted(edges)


@pytest.mark.parametrize("seed", range(30))
def test_boxes_do_not_overlap_and_edges_go_down(seed):
    widths, edges = random_graph(seed)
    layout = layered(widths, edges)
    for start, end in edges:
        assert layout.row[start] < layout.row[end]
        assert [row for _, row in layout.bends[start, end]] == list(range(layout.row[start] + 1, layout.row[end]))
    for one in widths:
        assert layout.x[one] - widths[one] / 2 >= -1e-6
        assert layout.x[one] + widths[one] / 2 <= layout.width + 1e-6
        for two in widths:
            if one < two and layout.row[one] == layout.row[two]:
                assert abs(layout.x[one] - layout.x[two]) >= (widths[one] + widths[two]) / 2


def test_a_chain_is_straight():
    layout = layered({"a": 40.0, "b": 90.0, "c": 60.0}, [("a", "b"), ("b", "c")])
    assert len({round(x, 6) for x in layout.x.values()}) == 1


def test_names_from_models_cannot_break_the_page():
    evil = '<script>alert("1")</script>&'
    nodes = [ViewNode(key="a", label=evil, name=evil, detail=evil), ViewNode(key="b", label="Conv", kind="site")]
    for svg in (
        graph_svg(View(nodes=nodes, edges=[("a", "b")]), evil),
        bars_svg([Bar(evil, 2.0, 1.0, "2", "1")], evil),
    ):
        minidom.parseString(svg)
        assert "<script" not in svg


def test_an_empty_chart_is_nothing():
    assert bars_svg([], "nothing") == ""


def test_numbers():
    assert [count_text(v) for v in (None, 0, 999, 1234, 25_200_000, 3.1e12)] == [
        "–",
        "0",
        "999",
        "1.23 k",
        "25.2 M",
        "3.1 T",
    ]
    assert [bytes_text(v) for v in (None, 12, 716_000)] == ["–", "12 B", "716 kB"]
    assert [saving_text(*v) for v in ((None, 1), (0, 0), (100, 84))] == ["", "", "-16.0%"]
    assert [ratio_text(v) for v in (None, 1.444)] == ["–", "x1.44"]
    assert [difference_text(v) for v in (None, 0.0, 1.23e-7)] == ["–", "0", "1.2e-07"]
