"""Reading and writing ONNX files: external data, files over 2 GB, and files from strangers.

A model is read without its external data: those tensors stay references, so that a model of any size is cheap to hold
and to rewrite. Writing copies the referenced bytes from file to file. References that leave the model's own folder are
refused before anything is read.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from msconv_deploy.errors import BadInputError
from msconv_deploy.files import check_writable

MAX_INLINE_BYTES = 1_800_000_000
"""Above this, weights go to external data: protobuf ends at 2 GB."""

MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the model file, where shape inference can read them."""

_ALIGNMENT = 4096  # a page, so that a runtime can map the tensor
_CHUNK = 1 << 24


def read_model(path: Path | str) -> onnx.ModelProto:
    """Parse a model; external tensors stay references into the folder of ``path``, checked but not read.

    Raises:
        BadInputError: the file is missing or not an ONNX model, or external data is missing, too short or elsewhere.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder; name an ONNX file")
    if not path.exists():
        raise BadInputError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not an ONNX model, or truncated ({type(error).__name__})") from error
    if not model.HasField("graph") or not model.graph.output or not model.opset_import:
        raise BadInputError(f"{path}: not an ONNX model: it has no graph with outputs, or no opset")
    for tensor in all_tensors(model):
        if uses_external_data(tensor):
            external_location(tensor, path.parent)
    return model


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: initializers and constants, subgraphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def external_location(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's external data.

    Raises:
        BadInputError: the file is missing, too short, or not inside ``folder`` (``..``, absolute paths and links out).
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"tensor {tensor.name!r}: external data {location!r}"
    inside = folder.resolve()
    file = (inside / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(inside):
        raise BadInputError(
            f"{where} is not inside the model's folder; refused, because a model must not read other files"
        )
    if not file.is_file():
        raise BadInputError(f"{where} is missing in {folder}: copy it beside the model")
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
    except ValueError:
        raise BadInputError(f"{where} has an offset or length that is not a number") from None
    if offset < 0 or length < 0 or offset + length > size:
        raise BadInputError(f"{where} is too short: bytes {offset} to {offset + length} of {size} are needed")
    return file, offset, length


def parameter_count(model: onnx.ModelProto) -> int:
    """Elements of all floating-point initializers of the main graph."""
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    total = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in floating:
            count = 1
            for extent in tensor.dims:
                count *= extent
            total += count
    return total


def write_model(
    model: onnx.ModelProto,
    path: Path | str,
    source_folder: Path | str | None = None,
    force: bool = False,
    max_inline_bytes: int = MAX_INLINE_BYTES,
) -> list[Path]:
    """Write a model, check it, and only then put it in its place; all files appear or none.

    Weights stay inside the file unless the model has external data or is too large: then they go to ``<name>.data``.

    Args:
        model: is not changed; its external references point into ``source_folder``.
        path: the ONNX file.
        force: replace files that exist.

    Returns:
        The files written, the ONNX file first.

    Raises:
        BadInputError: the place cannot be written to, or the model is not valid ONNX.
    """
    path = check_writable(Path(path), force)
    data_name = f"{path.name}.data"
    inline_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    external = inline_bytes > max_inline_bytes or any(uses_external_data(t) for t in all_tensors(model))
    if external:
        check_writable(path.with_name(data_name), force)
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        if external:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            model = copy
            with (staging / data_name).open("wb") as sink:
                for tensor in all_tensors(model):
                    _move_out(tensor, sink, data_name, Path(source_folder or "."))
        onnx.save_model(model, staging / path.name)
        try:
            onnx.checker.check_model(str(staging / path.name), full_check=False)
        except onnx.checker.ValidationError as error:
            raise BadInputError(f"{path}: the model is not valid ONNX: {str(error).splitlines()[0]}") from error
        written = [path]
        if external:
            (staging / data_name).replace(path.with_name(data_name))
            written.append(path.with_name(data_name))
        (staging / path.name).replace(path)
        return written
    except OSError as error:
        raise BadInputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _move_out(tensor: onnx.TensorProto, sink: BinaryIO, data_name: str, source_folder: Path) -> None:
    """Append a tensor's bytes to the data file and make the tensor a reference to them."""
    if uses_external_data(tensor):
        file, offset, length = external_location(tensor, source_folder)
        start = _align(sink)
        with file.open("rb") as source:
            source.seek(offset)
            left = length
            while left:
                chunk = source.read(min(left, _CHUNK))
                if not chunk:
                    raise BadInputError(f"{file}: ended while tensor {tensor.name!r} was copied")
                sink.write(chunk)
                left -= len(chunk)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) >= MIN_EXTERNAL_BYTES:
        start, length = _align(sink), len(tensor.raw_data)
        sink.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    else:
        return
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", data_name), ("offset", str(start)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _align(sink: BinaryIO) -> int:
    """Pad the file to the next page; returns the position."""
    position: int = sink.tell()
    padding = -position % _ALIGNMENT
    sink.write(bytes(padding))
    return position + padding
