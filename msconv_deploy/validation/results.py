"""Inputs and results in Polygraphy's own format, and the lines that compare them again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msconv_deploy.errors import BadInputError
from msconv_deploy.files import atomic_write, check_writable
from msconv_deploy.validation.cases import UsableCase
from msconv_deploy.validation.commands import polygraphy_command
from msconv_deploy.validation.difference import is_float


def is_result(path: Path, folder: Path) -> bool:
    """Is a path one of those that :func:`save` writes into a folder?"""
    return path.resolve().parent == folder.resolve() and re.fullmatch(r"case\d+\.\w+\.json", path.name) is not None


def check_folder(folder: Path, force: bool) -> None:
    """Refuse a folder for results before anything runs.

    Raises:
        BadInputError: it is a file, or not empty without ``force``, or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder}: is a file; name a folder for the results")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise BadInputError(f"{folder}: is not empty; choose another folder, or write into it with --force")
    check_writable(folder / "case0.inputs.json", force)


def save(folder: Path, model: Path, cases: Sequence[UsableCase], force: bool) -> list[str]:
    """Write ``CASE.inputs.json``, ``CASE.reference.json`` and ``CASE.<runtime>.json``; returns the Polygraphy lines."""
    from msconv_deploy.validation.comparator import save_inputs, save_outputs

    lines = []
    for case in cases:
        stem = folder / case.inputs.name
        inputs, reference = Path(f"{stem}.inputs.json"), Path(f"{stem}.reference.json")
        with atomic_write(inputs, force) as path:
            save_inputs(case.inputs, str(path))
        for name, outputs in {"reference": case.expected, **case.results}.items():
            with atomic_write(f"{stem}.{name}.json", force) as path:
                save_outputs(outputs, str(path))
        limits = {name: case.tolerances[name].value * _largest(case.expected[name]) for name in case.expected}
        lines.append(polygraphy_command(model, inputs, reference, limits))
    return lines


def _largest(value: Any) -> float:
    """max|b|, the denominator of the difference; 0 for integers, which must be equal."""
    array = np.asarray(value)
    if not is_float(array.dtype) or array.size == 0:
        return 0.0
    finite = array[np.isfinite(array)]
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))
