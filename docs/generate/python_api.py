"""The pages of the Python API: which modules are public. What stands in them is read from the source by mkdocstrings."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from docs.generate import ROOT


@dataclass(frozen=True)
class Page:
    """A page about a package.

    Attributes:
        package: inside ``msconv_deploy``.
        title: of the page.
        modules: inside the package, where it has no ``__all__`` of its own; the package itself is shown first.
    """

    package: str
    title: str
    modules: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        return f"reference/python/{self.package}.md"

    @property
    def dotted(self) -> str:
        return f"msconv_deploy.{self.package}"


PAGES = (
    Page("nn", "Layers and conversion"),
    Page("exporting", "Exporting"),
    Page("optimizing", "Optimizing files"),
    Page("surgery", "Graph surgery", ("optimize", "sites", "choice.choose", "choice.timing", "choice.tune")),
    Page("validation", "Validation"),
    Page("runtimes", "Runtimes", ("tensorrt.engine", "tensorrt.build", "tensorrt.runner", "gpu", "environment")),
    Page("serving", "Serving", ("server", "service", "model", "batching", "errors", "triton.package")),
    Page("plugin", "TensorRT plugin", ("build", "check", "headers", "toolkit")),
    Page(
        "ops",
        "The operator",
        (
            "configuration",
            "border_classes",
            "reference",
            "shapes",
            "schema",
            "forms",
            "functions",
            "lowerings",
            "conv_matrix",
        ),
    ),
    Page("reporting", "Reports"),
    Page("errors", "Errors"),
)


def public_names(package: str) -> dict[str, str]:
    """The names in a package's ``__all__``, each with its full name where it is defined; read without importing anything."""
    path = ROOT / "msconv_deploy" / package
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    names, places = list[str](), dict[str, str]()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names = [str(name) for name in ast.literal_eval(node.value)]
        if isinstance(node, ast.ImportFrom):
            places |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: places.get(name, f"msconv_deploy.{package}.{name}") for name in names}


def text(page: Page) -> str:
    """The page's Markdown."""
    names = public_names(page.package)
    parts = [f"# {page.title}"]
    if not names and not page.modules:
        parts.append(_directive(page.dotted))
    else:
        parts.append(_directive(page.dotted, members=False))
    if names:
        imported = "".join(f"    {name},\n" for name in names)
        parts.append(f"```python\nfrom {page.dotted} import (\n{imported})\n```")
        parts += [_directive(place, heading=True) for place in names.values()]
    for module in page.modules:
        dotted = f"{page.dotted}.{module}"
        parts += [f"## `{dotted}`", _directive(dotted, level=3)]
    return "\n\n".join(parts)


def _directive(dotted: str, members: bool = True, heading: bool = False, level: int = 2) -> str:
    options = [f"heading_level: {level}", f"show_root_heading: {str(heading).lower()}"]
    options += [] if heading else ["show_root_toc_entry: false"]
    options += [] if members else ["members: false"]
    return f"::: {dotted}\n    options:\n" + "\n".join(f"      {option}" for option in options)
