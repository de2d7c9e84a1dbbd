"""Tables of the fields of pydantic models: the recipe, and the JSON reports."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.generate import ROOT
from docs.generate.markdown import code, prose, table
from msconv_deploy import reporting
from msconv_deploy.reporting.report import SCHEMA_VERSION, Report


def _recipe_module() -> types.ModuleType:
    """``exporting.recipe`` alone: its package imports torch, which a site can do without."""
    name = "msconv_deploy.exporting.recipe"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "msconv_deploy" / "exporting" / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipe"] = module  # pydantic looks up the names in its annotations there
    spec.loader.exec_module(module)
    return module


recipe = _recipe_module()


def type_text(kind: Any) -> str:
    """A type in the words of JSON and TOML."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f'"{value}"' if isinstance(value, str) else str(value).lower() for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_text(a) for a in arguments)
    if origin in (list, tuple, set, frozenset):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"table of {type_text(arguments[1])} by name"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.__name__
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(f'"{member.value}"' for member in kind)
    names = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "anything"}
    return names.get(kind, "text")


def default_text(field: FieldInfo) -> str:
    """A default as JSON and TOML write it; empty where it is made anew each time."""
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else None
    if field.default_factory in (list, dict):
        return "empty"
    if value is None or isinstance(value, BaseModel):
        return "" if field.default_factory or isinstance(value, BaseModel) else "null"
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(
        str(value).replace("'", '"') if isinstance(value, list) else f'"{value}"' if isinstance(value, str) else value
    )


def fields(model: type[BaseModel], without: frozenset[str] = frozenset()) -> str:
    """The table of a model's fields."""
    rows = [
        (code(name), type_text(field.annotation), default_text(field), prose(field.description or ""))
        for name, field in model.model_fields.items()
        if name not in without
    ]
    headings = ["field", "type", "default", "meaning"]
    if not any(row[-1] for row in rows):
        return table(headings[:-1], [row[:-1] for row in rows])
    return table(headings, rows)


def parts_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models that a model's fields consist of, each once, in order of appearance."""
    seen: list[type[BaseModel]] = []

    def visit(kind: Any) -> None:
        for argument in typing.get_args(kind):
            visit(argument)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
            seen.append(kind)
            for field in kind.model_fields.values():
                visit(field.annotation)

    for field in model.model_fields.values():
        visit(field.annotation)
    yield from seen


def recipe_page() -> str:
    """The page of recipes."""
    sections = {"model": recipe.ModelSection, "inputs": recipe.InputSection, "export": recipe.ExportSection}
    sections["validation"] = recipe.ValidationSection
    opsets = ", ".join(f"{low} to {high} by `{name}`" for name, (low, high) in recipe.OPSETS.items())
    example = (ROOT / "export" / "raw_denoiser.toml").read_text(encoding="utf-8")
    parts = [
        "# Recipes",
        _fenced(inspect.getdoc(recipe) or ""),
        "Unknown keys are errors. Whoever runs a recipe runs the Python code that it names: it must be trusted.",
    ]
    for name, model in sections.items():
        title = "inputs.NAME" if name == "inputs" else name
        parts += [f"## `[{title}]`", prose(inspect.getdoc(model) or ""), fields(model)]
        if name == "inputs":
            parts.append('`NAME = ["N", 4, "H", "W"]` is short for `[inputs.NAME]` with that `shape`.')
            parts += [
                "## `[example]`",
                "Extents of the dynamic dims while the model is traced, one for each name in `[inputs]`; at least 2, since an "
                "exporter takes an extent of 1 for a constant.",
            ]
        if name == "export":
            parts.append(f"Opsets: {opsets}.")
    parts += ["## A complete one", f"`export/raw_denoiser.toml`:\n\n```toml\n{example}```"]
    return "\n\n".join(parts)


def _fenced(docstring: str) -> str:
    """A docstring whose indented block is TOML."""
    before, *block = docstring.split("\n\n    ", 1)
    if not block:
        return prose(docstring)
    lines, rest = list[str](), list[str]()
    for line in ("    " + block[0]).splitlines():
        (rest if rest or (line and not line.startswith("    ")) else lines).append(line)
    toml = "\n".join(line[4:] for line in lines).strip()
    return f"{prose(before)}\n\n```toml\n{toml}\n```\n\n{prose(chr(10).join(rest))}"


def report_models() -> list[type[Report]]:
    """The report of every verb."""
    for module in pkgutil.iter_modules(reporting.__path__):
        if not module.ispkg:
            importlib.import_module(f"{reporting.__name__}.{module.name}")
    found: list[type[Report]] = []

    def visit(base: type[Report]) -> None:
        for kind in base.__subclasses__():
            if kind not in found and kind.__module__.startswith(reporting.__name__):
                found.append(kind)
                visit(kind)

    visit(Report)
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def report_page() -> str:
    """The page of JSON reports."""
    shared = frozenset(Report.model_fields)
    parts = [
        "# JSON reports",
        "What `--json FILE` writes, and the sidecars beside artefacts. All follow one schema, whose `schema_version` is "
        f"{SCHEMA_VERSION}; it is raised when a field is removed or changes its meaning. Unknown fields are errors, and "
        "numbers that JSON does not know are null.",
        "## Every report",
        prose(inspect.getdoc(Report) or ""),
        fields(Report),
    ]
    reports = report_models()
    described: set[type[BaseModel]] = set(reports)
    for model in reports:
        verb = model.model_fields["verb"]
        name = f" of `msconv {verb.default}`" if verb.default is not PydanticUndefined else ""
        parts += [
            f"## {model.__name__}",
            prose(inspect.getdoc(model) or "") + (f"\n\nThe report{name}." if name else ""),
        ]
        parts.append(fields(model, shared))
        for part in parts_of(model):
            if part not in described:
                described.add(part)
                parts += [f"### {part.__name__}", prose(_own_docstring(part)), fields(part)]
    return "\n\n".join(parts)


def _own_docstring(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")
