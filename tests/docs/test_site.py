"""The documentation site builds without a warning, and can be read without a server or a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.site import ROOT, built_site

pytest.importorskip("mkdocs", reason="the site needs MkDocs: pip install 'msconv-deploy[docs]'")

from docs.generate import outside

TAGS = set(
    re.findall(
        r"\w+",
        "a article code details div em h1 h2 h3 h4 img li ol p pre small span strong summary sup table tbody td th thead tr ul",
    )
)
"""What Markdown and the theme make. Anything else in a page was a word in angle brackets."""


class Page(HTMLParser):
    """Collects what a page loads, what it links to, its anchors, and the tags in its article."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: set[str] = set()
        self._in_article = False
        self.feed(text)

    def handle_endtag(self, tag):
        if tag == "article":
            self._in_article = False

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self._in_article = self._in_article or tag == "article"
        if self._in_article:
            self.tags.add(tag)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(found["href"])
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site():
    return built_site()


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_it_builds_strictly_and_quickly(site):
    assert site.seconds < 30, f"the build took {site.seconds:.0f} s"
    assert (site.folder / "index.html").exists()


def test_nothing_is_loaded_from_elsewhere(pages):
    assert pages
    for path, page in pages.items():
        for target in page.loads:
            assert not urlsplit(target).scheme, f"{path.name} loads {target}"
            assert not target.startswith("//"), f"{path.name} loads {target}"


def test_what_is_loaded_and_linked_is_there(site, pages):
    followed = 0
    for path, page in pages.items():
        for target in [*page.loads, *page.links]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert place.is_file(), f"{path.relative_to(site.folder)}: {target}"
            if parts.fragment and place in pages:
                anchors = pages[place].anchors
                assert unquote(parts.fragment) in anchors, f"{path.relative_to(site.folder)}: {target}"
            followed += 1
    assert followed > 1000


def test_no_word_of_a_page_is_taken_for_a_tag(pages):
    for path, page in pages.items():
        assert page.tags <= TAGS, f"{path.name}: {sorted(page.tags - TAGS)}"
        assert "article" in page.tags, path.name


def test_no_bar_of_a_table_keeps_its_backslash(pages):
    for path in pages:
        for cell in re.findall(r"<td.*?</td>", path.read_text(encoding="utf-8"), re.DOTALL):
            assert "\\|" not in cell, f"{path.name}: {cell}"


def test_there_is_no_page_for_a_server_alone(site):
    assert not (site.folder / "404.html").exists()


def test_style_sheets_load_nothing_from_elsewhere(site):
    sheets = list(site.rglob("*.css"))
    assert sheets
    for path in sheets:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"url\(['\"]?([^'\")]+)", text):
            assert target.startswith(("data:", "#")) or "//" not in target, f"{path.name}: {target}"


def test_the_search_needs_no_server(site):
    """The index as a script, and a stand-in for the worker that a page opened as a file may not start."""
    assert (site.folder / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    assert "assets/iframe-worker.js" in (site.folder / "index.html").read_text(encoding="utf-8")


def test_pages_from_outside_docs_are_there(site):
    for path in ("README.md", "plugins/README.md", "models/raw_denoiser/DATASHEET.md", "examples/README.md"):
        heading = re.search(r"^# (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        place = (
            site.folder / "repository" / Path(path).parent / ("index.html" if "README" in path else "DATASHEET.html")
        )
        assert heading is not None
        assert heading[1] in place.read_text(encoding="utf-8")


def test_no_generated_text_is_checked_in():
    assert not (ROOT / "docs" / "reference").exists(), "references are made when the site is built"


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("index.md", "../README.md", "repository/README.md"),
        ("index.md", "spec.md#words", "spec.md#words"),
        ("index.md", "https://example.org/x", "https://example.org/x"),
        ("index.md", "#here", "#here"),
        ("benchmarks.md", "../benchmarks/results/serving.png", "repository/benchmarks/results/serving.png"),
        ("tutorials/page.md", "../../export/minimal.toml", "../repository/export/minimal.toml.md"),
        ("tutorials/page.md", "../../models/raw_denoiser/", "../repository/models/raw_denoiser/DATASHEET.md"),
        ("repository/README.md", "docs/spec.md#words", "../spec.md#words"),
        ("repository/README.md", "docs/figures/idea.png", "../figures/idea.png"),
        ("repository/README.md", "docs/figures/make_idea.py", "docs/figures/make_idea.py.md"),
        ("repository/plugins/README.md", "../docs/spec.md", "../../spec.md"),
        ("repository/plugins/README.md", "../export", "../export/files.md"),
        ("index.md", "../msconv_deploy/surgery/rules/", "reference/rules.md"),
        ("tutorials/page.md", "../../msconv_deploy/nn", "../reference/python/nn.md"),
        (
            "tutorials/page.md",
            "../../msconv_deploy/surgery/passes.py",
            "../repository/msconv_deploy/surgery/passes.py.md",
        ),
        ("repository/README.md", "no/such/file.md", "no/such/file.md"),
        ("repository/README.md", "../outside.md", "../outside.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page, link, wanted):
    links = outside.Links()
    links.uri = page
    assert links.rewritten(link) == wanted


def test_what_a_page_links_to_comes_with_it():
    found = outside.closure(["docs/benchmarks.md"])
    assert {"benchmarks/results/serving.png", "README.md", "export/minimal.toml", "plugins/how_it_works.png"} <= set(
        found
    )
    assert not any(path.startswith("docs/") and not path.endswith(".py") for path in found)
    assert "```toml" in (outside.content_of("export/minimal.toml") or "")
    assert outside.content_of("plugins/how_it_works.png") is None


def test_parts_of_the_source_with_a_page_are_there(site):
    for path, uri in outside.DESCRIBED.items():
        assert (ROOT / path).exists(), path
        assert (site.folder / uri.replace(".md", ".html")).exists(), uri
