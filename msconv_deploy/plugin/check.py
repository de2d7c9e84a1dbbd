"""Load plugin libraries into a TensorRT registry and list what they hold. Needs no GPU.

The registry is that of an installed `tensorrt` or of its lean runtime (`tensorrt_lean_bindings`), of the library's major
version. It is used in a process of its own (``python -m msconv_deploy.plugin.check LIBRARY --registry PACKAGE``), because a
foreign library may take the process down. Neither a builder nor a runtime is made: without a GPU these crash.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from msconv_deploy.errors import BadInputError, MsconvError, NotAvailableError
from msconv_deploy.reporting.plugin import PluginLibrary
from msconv_deploy.reporting.versions import DISTRIBUTIONS, distribution_version
from msconv_deploy.runtimes.gpu import Gpu
from msconv_deploy.runtimes.tensorrt.api import TensorRT
from msconv_deploy.runtimes.tensorrt.bindings import describe, import_bindings
from msconv_deploy.runtimes.tensorrt.plugins import PATH_VARIABLE, PLUGIN_FOLDER, load_libraries, search_places

FULL, LEAN = "tensorrt", "tensorrt_lean_bindings"
INSTALL = "pip install 'msconv-deploy[lean]'"
_PATTERN = "libmsconv_trt*.so"


def installed_registries() -> dict[str, str]:
    """Package -> version of every registry that could be used. Nothing is imported."""
    found = {FULL: describe()[0], LEAN: distribution_version(*DISTRIBUTIONS["tensorrt-lean"])}
    return {package: version for package, version in found.items() if version}


def find_libraries() -> list[Path]:
    """The plugin libraries of all versions in build/plugins and ``MSCONV_PLUGIN_PATH``.

    Raises:
        NotAvailableError: there is none.
    """
    found = []
    for place in search_places():
        found += [place] if place.is_file() else sorted(place.glob(_PATTERN))
    if not found:
        raise NotAvailableError(
            f"no plugin library {_PATTERN} in {PLUGIN_FOLDER} or {PATH_VARIABLE}: build it (msconv plugin build), or name "
            "it: msconv plugin check LIBRARY"
        )
    return found


def check_library(library: Path, timeout: float = 120.0) -> PluginLibrary:
    """Load a library into the registry of its TensorRT version.

    Raises:
        BadInputError: it is no library, TensorRT refuses it, or it takes the process down.
        NotAvailableError: no TensorRT of its major version is installed.
    """
    if not library.is_file():
        raise BadInputError(f"{library}: no such plugin library")
    package = _registry_for(library)
    command = [sys.executable, "-m", "msconv_deploy.plugin.check", str(library), "--registry", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise BadInputError(f"{library}: loading it took more than {timeout:.0f} s") from None
    if done.returncode < 0:
        raise BadInputError(f"{library}: loading it into {package} ended the process with signal {-done.returncode}")
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadInputError(f"{library}: loading it into {package} failed: {last}") from None
    if "error" in answer:
        kind = NotAvailableError if answer["exit_code"] == NotAvailableError.exit_code else BadInputError
        raise kind(answer["error"])
    return PluginLibrary(**answer)


def _registry_for(library: Path) -> str:
    registries = installed_registries()
    match = re.search(r"_trt(\d+)\.so", library.name)
    for package, version in registries.items():
        if match is None or version.split(".")[0] == match[1]:
            return package
    have = ", ".join(f"{package} {version}" for package, version in registries.items()) or "none"
    wanted = f"TensorRT {match[1]}" if match else "TensorRT"
    raise NotAvailableError(
        f"{library}: no registry of {wanted} to load it into; installed: {have}. {INSTALL} brings that of TensorRT 11; set "
        "TENSORRT_ROOT for an unpacked TensorRT"
    )


def load_here(library: Path, package: str) -> dict[str, Any]:
    """Load a library in this process; the content of a :class:`PluginLibrary`.

    Raises:
        MsconvError: see :func:`check_library`.
    """
    if package == LEAN:
        import tensorrt_lean_bindings as module
    else:
        module = import_bindings()
    tensorrt = TensorRT(module, cast(Gpu, None))  # a registry needs no device
    (loaded,) = load_libraries(tensorrt, [library])
    registry = tensorrt.registry()
    known = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    own = [c for c in known if (c.name, c.plugin_version, c.plugin_namespace) in loaded.creators]
    return {
        "library": str(library),
        "registry": f"{package} {tensorrt.version}",
        "creators": [
            {
                "name": creator.name,
                "version": creator.plugin_version,
                "namespace": creator.plugin_namespace,
                "interface": type(creator).__name__,
                "fields": [_describe(field) for field in creator.field_names],
            }
            for creator in own
        ],
    }


def _describe(field: Any) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": str(field.type).rpartition(".")[2].lower(),
        "length": getattr(field, "size", None),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The subprocess: prints one line of JSON, the library's content or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--registry", choices=(FULL, LEAN), required=True, help="the package whose registry is used")
    options = parser.parse_args(arguments)
    try:
        answer = load_here(options.library, options.registry)
    except MsconvError as error:
        answer = {"error": str(error), "exit_code": int(error.exit_code)}
    print(json.dumps(answer))
    return int(answer.get("exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
