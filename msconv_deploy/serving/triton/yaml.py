"""YAML for manifests: mappings and lists in block style, strings quoted as JSON, which every YAML reader understands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def to_yaml(value: object, indent: int = 0) -> str:
    """Mappings with plain string keys, lists, strings, numbers and booleans -> YAML text."""
    space = "  " * indent
    if isinstance(value, Mapping):
        return "".join(f"{space}{key}:{_child(entry, indent)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(f"{space}-{_child(entry, indent)}" for entry in value)
    return f"{space}{json.dumps(value)}\n"


def _child(value: object, indent: int) -> str:
    nested = isinstance(value, (Mapping, Sequence)) and not isinstance(value, str)
    if nested and value:
        return "\n" + to_yaml(value, indent + 1)
    return f" {json.dumps(value)}\n"
