"""Write the tables of plugins/README.md from msconv/msconv2d.yaml: python plugins/tables.py

Each table stands between `<!-- name -->` and `<!-- end -->`; what stands there is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
DECLARATION = FOLDER / "msconv" / "msconv2d.yaml"
README = FOLDER / "README.md"


def tables(declaration: dict[str, Any]) -> dict[str, str]:
    """Name -> Markdown of every table."""
    return {
        "attributes": _attributes(declaration),
        "inputs": _inputs(declaration),
        "types": _types(declaration),
        "limits": "\n".join(f"- {limit}" for limit in declaration["limits"]),
    }


def replace_tables(text: str, declaration: dict[str, Any]) -> str:
    """The text with its tables made anew.

    Raises:
        ValueError: a table has no place in the text.
    """
    for name, table in tables(declaration).items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"no place for the table {name}: <!-- {name} --> ... <!-- end -->")
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _attributes(declaration: dict[str, Any]) -> str:
    rows = []
    for attribute in declaration["attributes"]:
        default = ", ".join(f"{value:g}" for value in attribute["default"]) if "default" in attribute else "required"
        low, high = attribute["range"]
        if "values" in attribute:
            allowed = ", ".join(f"{number} {name}" for number, name in enumerate(attribute["values"]))
        elif low is not None and high is not None:
            allowed = f"{low} to {high}"
        else:
            allowed = "any" if low is None else f"at least {low}"
        kind = f"{attribute['type']}[{attribute['length']}]" if attribute["length"] > 1 else attribute["type"]
        rows.append([f"`{attribute['name']}`", kind, default, allowed, attribute["meaning"]])
    return _table(["attribute", "type", "default", "values", "meaning"], rows)


def _inputs(declaration: dict[str, Any]) -> str:
    rows = []
    for tensor in [*declaration["inputs"], *declaration["outputs"]]:
        source, tiled = tensor["shape"]["source"], tensor["shape"]["tiled"]
        present = f"`{tensor['present']}` is 1" if "present" in tensor else "always (the output)"
        rows.append([f"`{tensor['name']}`", present, f"`{source}`", "the same" if source == tiled else f"`{tiled}`"])
    return _table(["tensor", "present where", "semantics `source`", "semantics `tiled`"], rows)


def _types(declaration: dict[str, Any]) -> str:
    interfaces = {major: entry["class"] for entry in declaration["interfaces"] for major in entry["tensorrt"]}
    majors = sorted(interfaces)
    names = {8: "8.6"}
    rows = [["interface", *(f"`{interfaces[major]}`" for major in majors)]]
    for entry in declaration["types"]:
        rows.append([entry["type"], *("yes" if major in entry["tensorrt"] else "no" for major in majors)])
    rows.append(["format", *(", ".join(declaration["formats"]) for _ in majors)])
    return _table(["TensorRT", *(str(names.get(major, major)) for major in majors)], rows)


def main() -> None:
    declaration = yaml.safe_load(DECLARATION.read_text(encoding="utf-8"))
    README.write_text(replace_tables(README.read_text(encoding="utf-8"), declaration), encoding="utf-8")


if __name__ == "__main__":
    main()
