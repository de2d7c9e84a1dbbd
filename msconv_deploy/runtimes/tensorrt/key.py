"""What a plan depends on. Two plans with equal keys are interchangeable; where keys differ, the parts that do are named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from msconv_deploy.files import sha256_of
from msconv_deploy.model_files import all_tensors, external_location
from msconv_deploy.runtimes.tensorrt.api import TensorRT
from msconv_deploy.runtimes.tensorrt.build import BuildOptions
from msconv_deploy.runtimes.tensorrt.profiles import Profile, shapes_text
from msconv_deploy.wire_format import is_inline_reference

Key = dict[str, str]
"""Part -> value, both for people to read; a part of several values has them in a list."""

_SEPARATOR = ", "


def engine_key(
    tensorrt: TensorRT,
    model_sha256: str,
    form: str,
    plugin_libraries: Sequence[Path],
    profile: Profile,
    options: BuildOptions,
) -> Key:
    """All parts that decide what is built."""
    return {
        "model": model_sha256,
        "form": form,
        "plugin libraries": _SEPARATOR.join(sorted(sha256_of(path) for path in plugin_libraries)) or "none",
        "TensorRT version": tensorrt.name,
        "compute capability": tensorrt.gpu.capability_text,
        "shapes": _SEPARATOR.join(shapes_text(name, shapes) for name, shapes in sorted(profile.items())) or "static",
        "options": options.describe(),
    }


def digest(key: Mapping[str, str]) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts that differ, one sentence each; empty if the keys are equal."""
    found = []
    for part in dict.fromkeys([*now, *before]):
        then, today = (values.get(part, "unknown").split(_SEPARATOR) for values in (before, now))
        if then != today:
            old = _SEPARATOR.join(_short(value) for value in then if value not in today) or "nothing"
            new = _SEPARATOR.join(_short(value) for value in today if value not in then) or "nothing"
            found.append(f"{part}: {old} then, {new} now")
    return found


def _short(value: str) -> str:
    """Hashes are told apart by their first digits."""
    return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else value


def model_sha256(model: onnx.ModelProto, path: Path) -> str:
    """SHA-256 over a model's file and the files of its external data, in the order of their names.

    Args:
        model: read from ``path``.
    """
    others = sorted(
        {
            external_location(tensor, path.parent)[0]
            for tensor in all_tensors(model)
            if uses_external_data(tensor) and not is_inline_reference(tensor)
        }
    )
    if not others:
        return sha256_of(path)
    return hashlib.sha256("".join(map(sha256_of, (path, *others))).encode()).hexdigest()
