"""Plugin libraries: where they are, loading them into TensorRT's registry, and whether a model's plugin nodes have creators.

All of it works without a GPU, and before the model is parsed: a parser that misses a plugin says so in other words.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.ops.configuration import DOMAIN, OP_TYPE, PLUGIN_ATTRIBUTES
from msconv_deploy.ops.forms import msconv_nodes
from msconv_deploy.runtimes.tensorrt.api import TensorRT

PLUGIN_FOLDER = Path("build/plugins")
PATH_VARIABLE = "MSCONV_PLUGIN_PATH"

Creator = tuple[str, str, str]
"""Name, version, namespace."""


@dataclass(frozen=True)
class LoadedLibrary:
    """A library and the creators that it registered."""

    path: Path
    creators: tuple[Creator, ...]


_loaded: dict[Path, LoadedLibrary] = {}
"""The registry belongs to the process, and a library registers its creators once."""


def search_places() -> list[Path]:
    """Files and folders in which plugin libraries are looked for, whether they exist or not."""
    listed = os.environ.get(PATH_VARIABLE, "").split(os.pathsep)
    return [PLUGIN_FOLDER, *(Path(entry) for entry in listed if entry)]


def major_in_name(path: Path) -> int | None:
    """The major version of TensorRT that a library was built for, by its name; None for a foreign name."""
    match = re.fullmatch(r"libmsconv_trt(\d+)\.so", path.name)
    return int(match[1]) if match else None


def find_libraries(major: int, given: Sequence[Path] = ()) -> list[Path]:
    """The libraries given, and those for this major version of TensorRT in the search places; each once.

    Raises:
        BadInputError: a given file does not exist, or is for another major version: a registry would load it, and its
            plugin would be called through the wrong interface.
    """
    for path in given:
        if not path.is_file():
            raise BadInputError(f"{path}: no such plugin library")
        if major_in_name(path) not in (None, major):
            raise BadInputError(
                f"{path}: was built for TensorRT {major_in_name(path)}, but here is TensorRT {major}; name another, or "
                f"build it: msconv plugin build --tensorrt {major}"
            )
    found = list(given)
    for place in search_places():
        if place.is_file():
            found += [place] if major_in_name(place) in (None, major) else []
        else:
            found += sorted(place.glob(f"libmsconv_trt{major}.so"))
    return list({path.resolve(): path for path in found}.values())


def load_libraries(tensorrt: TensorRT, paths: Sequence[Path]) -> list[LoadedLibrary]:
    """Load libraries into the registry.

    Raises:
        BadInputError: one is no library, or registers no creator.
    """
    if tensorrt.is_rtx and paths:
        raise BadInputError(f"{tensorrt.name} does not take plugins: leave out {', '.join(map(str, paths))}")
    return [_load(tensorrt, path) for path in paths]


def _load(tensorrt: TensorRT, path: Path) -> LoadedLibrary:
    place = path.resolve()
    if place in _loaded:
        return _loaded[place]
    registry = tensorrt.registry()
    before = set(tensorrt.creators(registry))  # a library may register its creators as soon as it is opened
    try:
        ctypes.CDLL(str(place))  # the linker's own words; the registry only says that it failed
    except OSError as error:
        raise BadInputError(f"{path}: the plugin library does not load: {error}") from None
    tensorrt.messages.clear()
    try:
        handle = registry.load_library(str(place))
    except RuntimeError as error:
        handle = None
        tensorrt.messages.errors.append(str(error))
    added = tuple(sorted(set(tensorrt.creators(registry)) - before))
    if handle is None or not added:
        said = "; ".join(tensorrt.messages.errors) or "it registers no creator that was not there already"
        raise BadInputError(
            f"{path}: {tensorrt.name} does not take this plugin library: {said}. Was it built for TensorRT "
            f"{tensorrt.major}? (msconv plugin build)"
        )
    _loaded[place] = LoadedLibrary(path, added)
    return _loaded[place]


def check_creators(tensorrt: TensorRT, model: onnx.ModelProto, path: Path, libraries: Sequence[LoadedLibrary]) -> None:
    """Every node of the plugin form has a creator.

    Args:
        path: of the model, for the message.

    Raises:
        NotAvailableError: one has none; the message says what was loaded, what that holds, and the nearest name.
    """
    wanted: dict[Creator, onnx.NodeProto] = {}
    for node in msconv_nodes(model):
        if node.op_type == OP_TYPE:
            wanted.setdefault(_creator_of(node), node)
    if not wanted:
        return
    if tensorrt.is_rtx:
        raise NotAvailableError(f"{path}: is in plugin form, and {tensorrt.name} takes no plugins; use --form portable")
    known = tensorrt.creators(tensorrt.registry())
    for creator, node in wanted.items():
        if creator not in known:
            where = f"{path}: node {node.name or node.output[0]!r}"
            raise NotAvailableError(f"{where}: {not_found(creator, known, libraries, tensorrt)}")


def _creator_of(node: onnx.NodeProto) -> Creator:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name in PLUGIN_ATTRIBUTES}
    version, namespace = (
        value.decode() if isinstance(value := attributes.get(name, PLUGIN_ATTRIBUTES[name]), bytes) else str(value)
        for name in ("plugin_version", "plugin_namespace")
    )
    return node.op_type, version, namespace


def not_found(wanted: Creator, known: Sequence[Creator], libraries: Sequence[LoadedLibrary], tensorrt: TensorRT) -> str:
    """ "Plugin not found", with what was loaded and what is most like it."""
    names = {creator_text(creator): creator for creator in known}
    nearest = difflib.get_close_matches(creator_text(wanted), names, n=1, cutoff=0.6)
    loaded = [f"{lib.path} holds {', '.join(map(creator_text, lib.creators))}" for lib in libraries]
    places = ", ".join(map(str, search_places()))
    lines = [
        f"plugin not found: {creator_text(wanted)} (ONNX domain {DOMAIN}) has no creator in {tensorrt.name}",
        "libraries loaded: "
        + ("; ".join(loaded) or f"none; libmsconv_trt{tensorrt.major}.so was looked for in {places}"),
        f"the nearest of all {len(known)} creators: {nearest[0] if nearest else 'none is like it'}",
        f"build it (msconv plugin build), name it (--plugin FILE, {PATH_VARIABLE}), or build the engine without it: "
        "--form portable",
    ]
    return "\n  ".join(lines)


def creator_text(creator: Creator) -> str:
    """Such as ``MSConv2d version 1``."""
    name, version, namespace = creator
    return f"{name} version {version}" + (f", namespace {namespace}" if namespace else "")
