"""What MkDocs calls while it builds the site (``hooks`` in mkdocs.yml)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `mkdocs` is started from anywhere

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.generate import ROOT, command_line, exit_codes, outside, python_api, rule_catalogue, schemas

_links = outside.Links()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Links of all pages go through ``outside``; no page for addresses that are not there."""
    config.markdown_extensions.append(_links)
    # A server shows it under any address, so that its links begin at the root: none leads anywhere in files on a disk.
    config.theme.static_templates.discard("404.html")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated and what lies outside ``docs/``."""
    for uri, text in generated_pages().items():
        files.append(File.generated(config, uri, content=text))
    own = [f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None]
    for path in outside.closure(own):
        shown = outside.content_of(path)
        if shown is not None:
            files.append(File.generated(config, outside.uri_of(path), content=shown))
        elif (ROOT / path).is_file():
            files.append(File.generated(config, outside.uri_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tell the links which page they are on."""
    _links.uri = page.file.src_uri
    return markdown


def generated_pages() -> dict[str, str]:
    """URI -> Markdown of every page that is made from the code."""
    pages = {
        "reference/command_line.md": command_line.page(),
        "reference/rules.md": rule_catalogue.page(),
        "reference/recipes.md": schemas.recipe_page(),
        "reference/reports.md": schemas.report_page(),
        "reference/exit_codes.md": exit_codes.page(),
    }
    return pages | {page.uri: python_api.text(page) for page in python_api.PAGES}
