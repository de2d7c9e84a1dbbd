"""Numbers and lists of the pages are those of the results and of the project's files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import include_results
from benchmarks.conditions import in_words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
INCLUDED = sorted({m[1] for page in include_results.pages() for m in include_results.BLOCK.finditer(page.read_text())})


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", INCLUDED)
def test_a_table_says_by_which_command_and_under_which_conditions_it_was_made(name):
    """The day, the machine, versions: benchmarks/conditions.py."""
    table = ROOT / name
    content = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    assert "conditions" in content, f"{name} is older than this: make bench"
    text = table.read_text(encoding="utf-8")
    assert f"`{content['command']}`" in text
    assert in_words(content["conditions"]) in text


@pytest.mark.parametrize("page", ["README.md", "docs/how-it-works.md"])
def test_how_wrong_the_shortcut_is(page):
    worst = result("exactness")["worst"]
    (shortcut,) = (row for name, row in worst.items() if "(wrong)" in name)
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert re.findall(r"by up to ([\d.]+) times the largest output", text) == [f"{shortcut['border']:.1f}"]


def test_how_much_faster_files_from_elsewhere_are():
    zoo = result("speed_zoo")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    mean, most = re.search(r"([\d.]+) times as fast in the geometric mean, up to ([\d.]+) times", text).groups()
    assert mean == f"{zoo['summary']['geometric_mean']:.2f}"
    assert most == f"{max(row['optimized']['ratio'] for row in zoo['rows']):.1f}"
    assert not zoo["summary"]["slower"]
    assert "No file became slower" in text


def test_how_far_estimates_are_off():
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    error = result("cost_model")["summary"]["default"]["mean_error"]
    assert re.findall(r"Estimated gains are off by (\d+)%", text) == [f"{100 * error:.0f}"]


def test_every_extra_is_in_the_table_of_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    table = page[page.index("| extra |") :].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first))) == sorted(extras)


def test_files_from_elsewhere_are_counted_as_their_manifest_says():
    """Where the files are there: the counts on both pages."""
    manifest = ROOT.parent / "shared" / "zoo" / "manifest.json"
    if not manifest.is_file():
        pytest.skip(f"no {manifest}")
    sources = [str(entry["source"]) for entry in json.loads(manifest.read_text(encoding="utf-8")).values()]
    made, again = (sum(source.startswith(word) for source in sources) for word in ("synthetic", "reimplemented"))
    counts = [len(sources), len(sources) - made - again, again, made]
    for page in ("README.md", "docs/benchmarks.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        found = re.search(
            r"(\d+) files with random weights.*?(\d+) of networks from .*?(\d+) of re-impl.*?(\d+) of synthetic", text
        )
        assert found is not None, page
        assert [int(number) for number in found.groups()] == counts, page
