"""An extension of griffe, which reads the source for mkdocstrings: docstrings as they are written here.

Roles of reStructuredText become Markdown; an entry of a section that stands for several names is given to each of them; an
error of a ``Raises`` section needs no words.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

from docs.generate.markdown import prose

_SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:(?: {4}.*)?(?:\n|\Z))+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\S[^:\n]*)(:?.*(?:\n {5,}.*)*)", re.MULTILINE)

_ENUMERATIONS = ("Enum", "IntEnum", "StrEnum")
_SHORT = 60
"""Characters of a text that is repeated; of a longer one the names behind the first refer to the first."""


def written_out(docstring: str) -> str:
    """A docstring with one entry for each name.

    >>> written_out("Args:\\n    a, b: numbers")
    'Args:\\n    a: numbers\\n    b: numbers'
    """
    return _SECTION.sub(lambda found: f"{found[1]}:\n{_ENTRY.sub(_each, found[2])}", docstring)


def _each(entry: re.Match[str]) -> str:
    first, *others = entry[1].split(", ")
    if not all(re.fullmatch(r"[\w.*]+", name) for name in (first, *others)):
        return entry[0]
    text = entry[2] or ": as its name says."
    again = text if len(text) < _SHORT else f": see `{first}`."
    return "\n".join([f"    {first}{text}", *(f"    {name}{again}" for name in others)])


class Docstrings(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe with each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = written_out(prose(obj.docstring.value))

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe when a class has its members: those of an enumeration are named, since most need no docstring."""
        if cls.docstring is None or not any(str(base).rpartition(".")[2] in _ENUMERATIONS for base in cls.bases):
            return
        values = [f"`{m.name} = {m.value}`" for m in cls.members.values() if isinstance(m, griffe.Attribute)]
        cls.docstring.value += f"\n\nIts members are {', '.join(values)}."
