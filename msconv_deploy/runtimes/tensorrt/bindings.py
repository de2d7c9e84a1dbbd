"""TensorRT's Python bindings and a GPU, looked for before anything of TensorRT is created.

The bindings come from this Python environment, or from ``TENSORRT_ROOT``: its ``python`` folder if that holds unpacked
packages, its ``lib`` folder for the libraries.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from msconv_deploy.errors import NotAvailableError
from msconv_deploy.runtimes.gpu import probe
from msconv_deploy.runtimes.tensorrt.api import TensorRT

logger = logging.getLogger(__name__)

INSTALL = (
    "pip install 'msconv-deploy[gpu]' (from NVIDIA's package index), or unpack TensorRT's tar package and set "
    "TENSORRT_ROOT to its folder"
)
# The package, and the name under which its compiled part is published on its own.
_MODULES = ("tensorrt", "tensorrt_bindings")
# In this order: the later ones need the first.
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
_SUPPORTED = "TensorRT 8.6, 10 and 11"


def require() -> TensorRT:
    """The bindings and the first GPU.

    Raises:
        NotAvailableError: there is no GPU or driver, no package, no libnvinfer, or another version: all of what is
            missing, and how to get it. Nothing of TensorRT has been created then.
    """
    missing = []
    gpus, problem = probe()
    if problem:
        missing.append(f"no NVIDIA GPU: {problem}")
    try:
        module = import_bindings()
    except NotAvailableError as error:
        missing.append(str(error))
    if missing:
        listed = "".join(f"\n  - {what}" for what in missing)
        raise NotAvailableError(
            f"TensorRT engines can be neither built nor run here:{listed}\n"
            "See `msconv doctor`. Without them: `msconv validate --runtimes ort`, and --rtx for a build check on a CPU"
        )
    return TensorRT(module, gpus[0])


def import_bindings() -> ModuleType:
    """Import `tensorrt`; it needs no GPU.

    The libraries of ``TENSORRT_ROOT`` are loaded into this process and its ``python`` folder is put on ``sys.path``.

    Raises:
        NotAvailableError: the package or libnvinfer is missing or does not load, or the version is not supported.
    """
    if root := os.environ.get("TENSORRT_ROOT"):
        _use_root(Path(root))
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in _MODULES:
                raise NotAvailableError(f"the package {name} is there, but it needs {error.name}: {INSTALL}") from None
            continue
        except (ImportError, OSError) as error:  # its libraries: not found, or not loadable
            raise NotAvailableError(
                f"the package {name} is there, but does not load: {error}. It must be built for this Python "
                f"({sys.version_info.major}.{sys.version_info.minor}); if libraries are missing, add TensorRT's lib folder to "
                "LD_LIBRARY_PATH, or set TENSORRT_ROOT to the folder above it"
            ) from None
        sys.modules.setdefault(_MODULES[0], module)  # the name that other tools import
        _check_version(module)
        return module
    raise NotAvailableError(f"no package tensorrt: {INSTALL}")


def _check_version(module: ModuleType) -> None:
    version = str(getattr(module, "__version__", "0.0"))
    major, minor = (int(part) for part in version.split(".")[:2])
    if not (major in (10, 11) or (major, minor) == (8, 6)):
        raise NotAvailableError(f"TensorRT {version} is installed; this program works with {_SUPPORTED}: {INSTALL}")


def _use_root(root: Path) -> None:
    folders = [folder for folder in (root / "lib", root / "lib64") if folder.is_dir()]
    libraries = [file for name in _LIBRARIES for folder in folders for file in _versioned(folder, name)]
    if not any(file.name.startswith("libnvinfer.so") for file in libraries):
        raise NotAvailableError(f"TENSORRT_ROOT={root}: there is no lib/libnvinfer.so.<version>; correct or unset it")
    python = root / "python"
    if any((python / name).is_dir() for name in _MODULES) and str(python) not in sys.path:
        sys.path.insert(0, str(python))
    wheels = sorted(python.glob(f"tensorrt-*cp{sys.version_info[0]}{sys.version_info[1]}-*.whl"))
    if wheels and importlib.util.find_spec(_MODULES[0]) is None:
        raise NotAvailableError(f"TENSORRT_ROOT={root}: its Python package is not installed: pip install {wheels[0]}")
    for file in libraries:
        try:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise NotAvailableError(f"TENSORRT_ROOT={root}: {file.name} does not load: {error}") from None


def _versioned(folder: Path, name: str) -> list[Path]:
    """The library's file, once: several links may lead to it."""
    return sorted({file.resolve() for file in folder.glob(f"{name}.so.*")})[:1]


def preload_builder_resource() -> None:
    """Load the builder's kernels from ``TENSORRT_ROOT``: libnvinfer looks for them on the linker's path only.

    What does not load is logged with the linker's reason; the builder will then say what it lacks.
    """
    if not (root := os.environ.get("TENSORRT_ROOT")):
        return
    for file in sorted(Path(root).glob("lib*/libnvinfer_builder_resource*.so.*")):
        try:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            advice = " (patchelf --clear-execstack FILE removes that mark)" if "executable stack" in str(error) else ""
            logger.warning("%s does not load: %s%s", file, error, advice)


def describe() -> tuple[str | None, Path | None]:
    """(version, folder) of the bindings that would be imported, read from their files: nothing is loaded."""
    folders = [Path(entry) for entry in sys.path if entry]
    if root := os.environ.get("TENSORRT_ROOT"):
        folders.insert(0, Path(root) / "python")
    for folder in folders:
        for name in reversed(_MODULES):  # the compiled part is where the version is written
            if (init := folder / name / "__init__.py").is_file():
                found = [
                    line for line in init.read_text(errors="replace").splitlines() if line.startswith("__version__")
                ]
                return (found[0].split("=")[1].strip(" \"'") if found else None), folder / name
    return None, None
