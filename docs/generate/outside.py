"""Pages from outside ``docs/``, and links that hold in the repository as well as in the site.

Links in Markdown are relative to the file, as GitHub reads them. In the site a page from outside ``docs/`` lies under
``repository/``, with the path that it has in the repository; so does every file that a page links to: a picture as it is, a
text file as a page that shows it. A link to a folder leads to the page about it, or to a list of its files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

from docs.generate import ROOT, python_api

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CITATION.cff",
    "LICENSE",
    "plugins/README.md",
    "models/README.md",
    "models/raw_denoiser/DATASHEET.md",
    "examples/README.md",
)
"""Shown whether a page links to them or not."""

DESCRIBED = {
    **{f"msconv_deploy/{page.package}": page.uri for page in python_api.PAGES if page.package != "errors"},
    "msconv_deploy/cli": "reference/command_line.md",
    "msconv_deploy/errors.py": "reference/exit_codes.md",
    "msconv_deploy/exporting/recipe.py": "reference/recipes.md",
    "msconv_deploy/reporting/report.py": "reference/reports.md",
    "msconv_deploy/surgery/rules": "reference/rules.md",
}
"""Parts of the source with a page that is made from them: a link to the source is one to that page."""

PLACE = "repository"
_DOCS = "docs"
_VERBATIM = {".png", ".svg", ".jpg", ".gif", ".html"}
_LANGUAGES = {
    ".py": "python", ".toml": "toml", ".json": "json", ".cu": "cuda", ".h": "cpp", ".cpp": "cpp", ".yaml": "yaml",
    ".yml": "yaml", ".cff": "yaml", ".sh": "bash",
}  # fmt: skip
_INLINE = re.compile(r"\]\(\s*<?([^)\s>#]+)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]: +<?([^\s>#]+)", re.MULTILINE)
_LONGEST = 200_000
"""Characters up to which a file is shown in whole."""


def targets(text: str) -> set[str]:
    """Everything that Markdown may link to inside the repository."""
    found = {*_INLINE.findall(text), *_REFERENCE.findall(text)}
    return {target for target in found if "://" not in target and not target.startswith(("mailto:", "/"))}


def source_of(uri: str) -> str:
    """Path in the repository of a page of the site."""
    return uri.removeprefix(f"{PLACE}/") if uri.startswith(f"{PLACE}/") else f"{_DOCS}/{uri}"


def is_page_or_picture(path: str) -> bool:
    """Is a path of the repository inside ``docs/`` and shown from there? Programs in it are shown like other files."""
    return path.startswith(f"{_DOCS}/") and (ROOT / path).is_file() and not path.endswith(".py")


def uri_of(path: str) -> str:
    """Place in the site of a file or a folder of the repository."""
    if is_page_or_picture(path):
        return path.removeprefix(f"{_DOCS}/")
    if path in DESCRIBED:
        return DESCRIBED[path]
    place = ROOT / path
    if path in (_DOCS, "."):
        return "index.md"
    if place.is_dir():
        about = [name for name in ("README.md", "DATASHEET.md") if (place / name).exists()]
        return f"{PLACE}/{path}/{about[0] if about else 'files.md'}"
    if place.suffix == ".md" or place.suffix in _VERBATIM:
        return f"{PLACE}/{path}"
    return f"{PLACE}/{path}.md"


def resolve(page: str, target: str) -> str | None:
    """Path in the repository of what a page (its path there) links to; None if there is nothing."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def closure(pages: Iterable[str]) -> list[str]:
    """The paths outside ``docs/`` that pages lead to, directly or through each other, in order.

    Args:
        pages: paths in the repository of the Markdown files to begin with.
    """
    waiting, seen = [*pages, *(p for p in PAGES if (ROOT / p).exists())], list[str]()
    while waiting:
        path = waiting.pop(0)
        if path in seen or path in DESCRIBED:
            continue
        seen.append(path)
        place = ROOT / path
        if place.is_dir():
            about = uri_of(path).removeprefix(f"{PLACE}/")
            waiting += [about] if (ROOT / about).exists() else []
        elif place.suffix == ".md":
            found = (resolve(path, target) for target in sorted(targets(place.read_text(encoding="utf-8"))))
            waiting += [target for target in found if target is not None]
    return [path for path in seen if uri_of(path).startswith(f"{PLACE}/")]


def content_of(path: str) -> str | None:
    """What the site shows of a path outside ``docs/``; None for a file that is copied as it is."""
    place = ROOT / path
    if place.is_dir():
        if not uri_of(path).endswith("files.md"):
            return None  # it has a page of its own
        names = sorted(p.name + "/" * p.is_dir() for p in place.iterdir() if not p.name.startswith(("__", ".")))
        return f"# {path}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    if place.suffix == ".md":
        return place.read_text(encoding="utf-8")
    if place.suffix in _VERBATIM:
        return None
    text = place.read_text(encoding="utf-8")[:_LONGEST]
    fence = "`" * (max((len(run) for run in re.findall("`{3,}", text)), default=2) + 1)
    return f"# {path}\n\n{fence}{_LANGUAGES.get(place.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


class _Links(Treeprocessor):
    """Rewrites the links of one page, before MkDocs checks them."""

    def __init__(self, md: Markdown, extension: Links) -> None:
        super().__init__(md)
        self.extension = extension

    def run(self, root: Element) -> None:
        for element in root.iter():
            for attribute in ("href", "src"):
                link = element.get(attribute)
                if link is not None:
                    element.set(attribute, self.extension.rewritten(link))


class Links(Extension):
    """The extension of Markdown. ``uri`` is that of the page at hand."""

    uri = ""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (the name that Markdown calls)
        md.treeprocessors.register(_Links(md, self), "outside_links", 5)  # MkDocs's own has priority 0

    def rewritten(self, link: str) -> str:
        """A link as the site needs it; one that leads nowhere is left for MkDocs to complain about."""
        target, mark, anchor = link.partition("#")
        if not target or "://" in target or target.startswith(("mailto:", "/")):
            return link
        here = source_of(self.uri)
        path = resolve(here, target)
        if path is None or (is_page_or_picture(here) and is_page_or_picture(path)):
            return link
        return posixpath.relpath(uri_of(path), posixpath.dirname(self.uri)) + mark + anchor
