"""The snippets of the documentation are run, in order, and print what the pages say."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import Block, Output, blocks, not_executed, run_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

ONLY_SHOWN = {
    "tutorials/export-a-checkpoint.md": 0,
    "tutorials/speed-up-an-onnx-file.md": 0,
    "tutorials/serve-with-triton.md": 4,
    "tutorials/write-a-rule.md": 0,
    "how-it-works.md": 0,
    "limits.md": 0,
}
"""Page -> number of blocks that are only shown, because they need Docker or a GPU."""

NOT_RUN_HERE = {
    "README.md": "tests/test_readme.py runs them, and .ci/run the targets of make",
    "CONTRIBUTING.md": "targets of make: .ci/run runs export and test; the others take the network or a GPU",
    "docs/index.md": "targets of make: .ci/run runs export, test and docs",
    "docs/benchmarks.md": "targets of make for a machine with a GPU; tests/benchmarks runs the other scripts on small models",
    "docs/evidence.md": "long fuzzing and mutation runs; tests/fuzz and tests/surgery run shorter ones",
    "docs/spec.md": "formulas",
    "models/README.md": "training takes minutes; tests/models tests its parts",
    "models/raw_denoiser/DATASHEET.md": "training of the study; tests/models tests its parts",
    "examples/README.md": "tests/examples runs the client against a server of its own; the other block needs Docker",
    "plugins/README.md": "needs TensorRT or nvcc; tests/plugins compiles the library and loads it where they are there",
}
"""Page of the repository with snippets -> why they are not run here."""

NEEDS = {
    "tutorials/export-a-checkpoint.md": ("torch", "onnxscript"),
    "tutorials/speed-up-an-onnx-file.md": ("torch", "onnxscript"),
    "tutorials/serve-with-triton.md": ("torch", "onnxscript", "starlette", "uvicorn", "grpc", "tritonclient"),
}
"""Page -> packages without which it is skipped."""


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like the repository, with a package of its own: a page may edit it."""
    for name in ("msconv_deploy", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "docs" / "generate", tmp_path / "docs" / "generate", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("export", "models", "examples", "benchmarks", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("name", ONLY_SHOWN)
def test_snippets_run_and_print_what_the_page_says(name, checkout):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason=f"{name} needs {package}")
    run_page(DOCS / name, checkout)


@pytest.mark.parametrize(("name", "count"), ONLY_SHOWN.items())
def test_blocks_that_are_only_shown_are_counted(name, count):
    shown = not_executed(DOCS / name)
    assert len(shown) == count, [(block.line, block.reason) for block in shown]


def pages_of_the_site() -> set[str]:
    """The Markdown files behind the navigation, as paths in the repository; without those that are made from the code."""
    found: set[str] = set()

    def visit(part: Any) -> None:
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            visit(inner)
        if isinstance(part, str) and part.endswith(".md") and not part.startswith("reference/"):
            path = part.removeprefix("repository/") if part.startswith("repository/") else f"docs/{part}"
            found.update({path} if (ROOT / path).is_file() else ())

    visit(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    return found


def snippets(path: str) -> list[str]:
    """Fenced and indented blocks of a page."""
    return re.findall(r"^```\w*.*?^```|(?<=\n\n) {4}\S[^\n]*", (ROOT / path).read_text(encoding="utf-8"), re.M | re.S)


def test_every_page_with_snippets_is_tested():
    """Every page of the site; where its snippets are not run here, the reason is written down."""
    pages = pages_of_the_site()
    tested = {f"docs/{name}" for name in ONLY_SHOWN}
    assert tested | {f"docs/tutorials/{p.name}" for p in (DOCS / "tutorials").glob("*.md")} <= pages
    assert not tested & set(NOT_RUN_HERE)
    with_snippets = {path for path in pages if snippets(path)}
    assert with_snippets - tested == set(NOT_RUN_HERE)


@pytest.mark.parametrize("name", ONLY_SHOWN)
def test_links_lead_somewhere(name):
    """To a page, a figure or a part of the source, in the repository as on GitHub; the site maps them to its own pages."""
    page = DOCS / name
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", ["make_border", "make_idea", "make_segments"])
def test_figures_are_made_by_the_scripts_beside_them(name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'msconv-deploy[models]'")
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    importlib.import_module(name).main(tmp_path)
    (made,) = tmp_path.iterdir()
    assert made.read_bytes()[:4] == b"\x89PNG"
    assert (DOCS / "figures" / made.name).exists()


# -- the mechanism itself ------------------------------------------------------------------------------------------------


def page_of(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_of_a_page(tmp_path):
    page = page_of(
        tmp_path,
        'a\n```toml title="a/b.toml"\nx = 1\n```\n<!-- not executed: needs a GPU -->\n```bash\nmake\n```\n',
    )
    assert blocks(page) == [
        Block(2, "toml", "x = 1\n", title="a/b.toml"),
        Block(6, "bash", "make\n", reason="needs a GPU"),
    ]
    assert [block.line for block in not_executed(page)] == [6]


def test_variables_files_and_jobs_stay_for_the_next_block(tmp_path):
    text = """
```text title="words.txt"
hello 12
```
```bash
NAME=words.txt
sleep 60 &
false || echo "exit code $?"
```
```text
exit code 1
```
```bash
cat $NAME
kill $!
```
```text
hello 13
```
```python
value = 41
print("seen")
```
```python
print(value + 1, open("words.txt").read())
```
"""
    run_page(page_of(tmp_path, text), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash\nfalse\ntrue\n```\n", "line 1: exit code 1: false"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```bash\necho a\n```\n```text\nb\n```\n", "line 4: the page says"),
        ("```text\nb\n```\n", "nothing before it"),
        ("```yaml\na: 1\n```\n", "a block of yaml needs a title"),
        ("```\nb\n```\n", "a fence without a language"),
        ("```bash\nexit 3\n```\n", "the process ended"),
    ],
)
def test_what_is_wrong_is_found(text, said, tmp_path):
    with pytest.raises(AssertionError, match=re.escape(said)):
        run_page(page_of(tmp_path, text), tmp_path)


@pytest.mark.parametrize(
    ("expected", "matches"),
    [
        ("conv2d: 7 items, x9.5e+03   slower\nlast line\n", True),
        ("...\nlast line\n", True),
        ("conv2d: … slower\nlast line\n", True),
        ("conv2d: 1 items, x1 slower\n...\n", True),
        ("last line\n", True),
        ("conv2d: 1 items, x1 slower\n", False),
        ("conv3d: …\nlast line\n", False),
        ("conv2d: 123 …\nother line\n", False),
    ],
)
def test_what_matches_what_was_printed(expected, matches):
    output = Output("conv2d: 123 items, x1.07e-05 slower\nlast line\n")
    if matches:
        output.check(expected, "here")
    else:
        with pytest.raises(AssertionError, match="here: the page says"):
            output.check(expected, "here")
