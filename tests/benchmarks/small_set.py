"""A folder as the benchmarks read it, with two tiny models; a wrong rewrite of one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from msconv_deploy.surgery.optimize import Result
from tests.tile_models import plain_conv, tiled_conv


def small_set(folder: Path) -> Path:
    """Two models, one of them with a site, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    tiled_conv(folder / "tiled.onnx")
    plain_conv(folder / "plain.onnx")
    image = {"x": ["float32", [1, 3, 14, 11]]}
    manifest: dict[str, Any] = {
        "tiled.onnx": {"inputs": {**image, "s": ["float32", [1, 16]]}},
        "plain.onnx": {"inputs": image},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def spoilt(result: Result) -> Result:
    """The result with every weight of a rewritten model a little off; others stay."""
    if not result.changed:
        return result
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype.kind == "f":
            weight.CopyFrom(numpy_helper.from_array((array * 1.01).astype(array.dtype), weight.name))
    return Result(model, result.sites, result.near_misses)


def numbers_of(cell: str) -> list[float]:
    """The numbers of a table's cell: "3e-07, 9e-07", "1 of 2", "1.17"."""
    return [float(word) for word in cell.replace(",", " ").replace("of", " ").split()]


def rows_of(markdown: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose first heading is given."""
    tables = [block.splitlines() for block in markdown.split("\n\n")]
    (lines,) = [table for table in tables if table[0].startswith(f"| {first} |")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert len({line.count("|") for line in lines}) == 1, "every row has as many cells as the heading"
    return rows[2:]


def finite(values: list[float]) -> bool:
    return bool(np.isfinite(values).all())
