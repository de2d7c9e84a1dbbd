"""The reference of the command line, from the functions behind the verbs: their signatures, options and docstrings."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from docs.generate import ROOT
from docs.generate.markdown import code, prose, section, table
from msconv_deploy.cli.main import app

_TYPES = {int: "integer", float: "number", str: "text", Path: "path"}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a verb.

    Attributes:
        names: as they are typed; of an argument the word that stands for it.
        kind: its type in words, with the choices or the range that it has.
        default: as it is typed, empty where there is none.
    """

    names: str
    kind: str
    default: str
    meaning: str
    is_argument: bool
    required: bool


@dataclass(frozen=True)
class Verb:
    """A verb with its function; ``name`` has the group's in front: ``engine build``."""

    name: str
    function: Callable[..., Any]

    @property
    def parameters(self) -> list[Parameter]:
        hints = typing.get_type_hints(self.function, include_extras=True)
        signature = inspect.signature(self.function).parameters
        return [_parameter(name, hints[name], signature[name].default) for name in signature]

    @property
    def usage(self) -> str:
        """How it is called."""
        words = [p.names if p.required or "[" in p.names else f"[{p.names}]" for p in self.parameters if p.is_argument]
        options = [
            f"{p.names.split(', ')[0]} {p.kind.replace(' or ', '|')}"
            for p in self.parameters
            if p.required and not p.is_argument
        ]
        return " ".join(["msconv", self.name, *words, *options, "[OPTIONS]"])


def verbs(group: typer.Typer = app, prefix: str = "") -> Iterator[Verb]:
    """Every verb of the program, in the order of its help."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield Verb(prefix + (command.name or command.callback.__name__.replace("_", "-")), command.callback)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from verbs(inner.typer_instance, f"{prefix}{inner.name} ")


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    kind, *extras = typing.get_args(hint)
    info = next(extra for extra in extras if isinstance(extra, (ArgumentInfo, OptionInfo)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    is_argument = isinstance(info, ArgumentInfo)
    required = default is inspect.Parameter.empty
    is_flag = kind is bool or bool(getattr(info, "count", False))
    if is_argument:
        names = info.metavar or name.upper()
    else:
        dashed = "--" + name.replace("_", "-")
        # Inside Annotated, typer takes the first name for what would be the default elsewhere.
        given = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
        names = ", ".join(given) or (f"{dashed}/--no-{dashed[2:]}" if kind is bool else dashed)
        names = names.replace("/", " / ")
    words = "flag" if is_flag else _kind(kind, info)
    return Parameter(names, words, _default(default, is_flag, names), info.help or "", is_argument, required)


def _kind(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(str(member.value) for member in kind)
    words = info.metavar if info.metavar and isinstance(info, OptionInfo) else _TYPES[kind]
    if info.min is not None and info.max is not None:
        return f"{words}, {info.min:g} to {info.max:g}"
    return words if info.min is None else f"{words}, at least {info.min:g}"


def _default(value: Any, is_flag: bool, names: str) -> str:
    if is_flag and " / " in names and value is not None:
        return names.split(" / ")[0 if value else 1]
    if value is inspect.Parameter.empty or value is None or is_flag:
        return ""
    return str(value.value if isinstance(value, Enum) else value)


def page() -> str:
    """The page."""
    everything = list(verbs())
    parts = [
        "# Command line",
        "Made from the verbs' own signatures and help. `msconv --version` prints the version, `msconv VERB --help` the help.",
        table(
            ["verb", ""],
            ((f"[`msconv {v.name}`](#msconv-{v.name.replace(' ', '-')})", _summary(v)) for v in everything),
        ),
        "## Exit codes",
        section(ROOT / "docs" / "spec.md", "Exit codes"),
    ]
    for verb in everything:
        parts += [f"## `msconv {verb.name}` {{ #msconv-{verb.name.replace(' ', '-')} }}"]
        parts += [f"```text\n{verb.usage}\n```", prose(inspect.getdoc(verb.function) or "")]
        for title, wanted in (("argument", True), ("option", False)):
            chosen = [p for p in verb.parameters if p.is_argument is wanted]
            if chosen:
                parts.append(table([title, "type", "default", "meaning"], map(_row, chosen)))
    return "\n\n".join(parts)


def _summary(verb: Verb) -> str:
    return (inspect.getdoc(verb.function) or "").split("\n\n")[0]


def _row(parameter: Parameter) -> tuple[str, str, str, str]:
    default = "**required**" if parameter.required else code(parameter.default)
    return code(parameter.names), code(parameter.kind), default, prose(parameter.meaning)
