"""Where NVIDIA's compiler and headers lie on this machine. Only looks; nothing beyond Python's own library is imported."""

from __future__ import annotations

import os
import re
import shutil
import site
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

CACHE = Path("~/.cache/msconv-deploy")


def header_folders() -> Iterator[Path]:
    """Folders that hold TensorRT's C++ headers, in the order in which they count: named, system's, fetched (newest first)."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    candidates: list[Path] = []
    if root := os.environ.get("TENSORRT_ROOT"):
        candidates += [Path(root) / "include", Path(root) / "include" / multiarch]
    if include := os.environ.get("TENSORRT_INCLUDE_DIR"):
        candidates.append(Path(include))
    candidates += [Path("/usr/include") / multiarch, Path("/usr/include"), Path("/usr/local/include")]
    fetched = (CACHE / "tensorrt-headers").expanduser().glob("*/include")
    candidates += sorted(fetched, key=lambda folder: _numbers(header_version(folder)), reverse=True)
    yield from (folder for folder in dict.fromkeys(candidates) if (folder / "NvInferRuntime.h").is_file())


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (version or "0").split("."))


def header_version(folder: Path) -> str | None:
    """Version from the macros of NvInferVersion.h, whose names changed over time."""
    path = folder / "NvInferVersion.h"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = []
    for word in ("MAJOR", "MINOR", "PATCH"):
        match = re.search(rf"^#define\s+(?:NV_TENSORRT_{word}|TRT_{word}_ENTERPRISE)\s+(\d+)", text, re.MULTILINE)
        if match is None:
            return None
        parts.append(match[1])
    return ".".join(parts)


def nvcc_candidates() -> Iterator[Path]:
    """Executable files called nvcc, in the order in which they count."""
    candidates = [Path(os.environ["CUDACXX"])] if os.environ.get("CUDACXX") else []
    candidates += [Path(os.environ[n]) / "bin" / "nvcc" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    candidates += [p for folder in site_packages() for p in sorted(folder.glob("nvidia/cu*/bin/nvcc"), reverse=True)]
    yield from (path for path in dict.fromkeys(candidates) if path.is_file() and os.access(path, os.X_OK))


def site_packages() -> Iterable[Path]:
    """Folders that packages are installed in, of this environment."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return dict.fromkeys(Path(f) for f in folders)
