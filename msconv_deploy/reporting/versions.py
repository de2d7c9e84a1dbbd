"""Which versions of which libraries are installed, read from package metadata: nothing is imported for it."""

from __future__ import annotations

import platform
from importlib import metadata

# Word in reports -> distributions that provide it, the first one found counts.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "msconv-deploy": ("msconv-deploy",),
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnx-graphsurgeon": ("onnx-graphsurgeon",),
    "polygraphy": ("polygraphy",),
    "torch": ("torch",),
    "onnxscript": ("onnxscript",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-lean": (
        "tensorrt-lean",
        "tensorrt-lean-cu13-bindings",
        "tensorrt-lean-cu12-bindings",
    ),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}


def distribution_version(*names: str) -> str | None:
    """Version of the first of these distributions that is installed, else None."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_versions() -> dict[str, str]:
    """Python and the installed ones of :data:`DISTRIBUTIONS`: word -> version."""
    found = {"python": platform.python_version()}
    for word, names in DISTRIBUTIONS.items():
        version = distribution_version(*names)
        if version is not None:
            found[word] = version
    return found
