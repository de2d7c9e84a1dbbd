"""Reading and writing ONNX files: external data, files over 2 GB, and files from strangers.

A model is read without its large weights: those tensors stay references, into external data or into the model file
itself, so that a model of any size is cheap to hold and to rewrite. Writing copies the referenced bytes from file to
file. References that leave the model's own folder are refused before anything is read.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from msconv_deploy.errors import BadInputError, MsconvError, about
from msconv_deploy.files import atomic_write, check_writable
from msconv_deploy.model_checks import check_memory, check_structure, propagates, tensor_bytes
from msconv_deploy.wire_format import Spool, is_inline_reference, parse_with_references, refer, write_with_weights

MAX_INLINE_BYTES = 1_800_000_000
"""Above this, weights go to external data: protobuf ends at 2 GB."""

MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the model file, where shape inference can read them."""

MIN_REFERENCE_BYTES = 1 << 16
"""Weights of this size are not held in memory."""

_ALIGNMENT = 4096  # a page, so that a runtime can map the tensor
_CHUNK = 1 << 24


def read_model(path: Path | str) -> onnx.ModelProto:
    """Parse a model; external tensors and large weights stay references into the folder of ``path``, checked but not read.

    Raises:
        BadInputError: the file is missing, not an ONNX model or damaged (see :func:`check_structure`), or external data is
            missing, too short or elsewhere.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder; name an ONNX file")
    if not path.exists():
        raise BadInputError(f"{path}: no such file")
    if not path.is_file():
        raise BadInputError(f"{path}: is no plain file; name an ONNX file")
    try:
        model = parse_with_references(path, MIN_REFERENCE_BYTES)
    except (DecodeError, ValueError) as error:
        raise BadInputError(f"{path}: not an ONNX model, or truncated ({type(error).__name__})") from error
    if not model.HasField("graph") or not model.graph.output or not model.opset_import:
        raise BadInputError(f"{path}: not an ONNX model: it has no graph with outputs, or no opset")
    with about(path):
        check_structure(model)
        _clear_unknown_extents(model.graph)
        for tensor in all_tensors(model):
            if not uses_external_data(tensor):
                continue
            file = external_location(tensor, path.parent)[0]
            if file == path.resolve() and not is_inline_reference(tensor):
                raise BadInputError(
                    f"tensor {tensor.name!r}: its external data is the model file itself, which no exporter writes"
                )
    return model


_NO_NAMES = frozenset(("?", "*", "-1", "None", "none", "unknown"))
"""What some tools write for an extent that they do not know. Taken for names, all of them would be one extent."""


def is_unknown_extent(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Does a dimension say in its own way that its extent is not known? ONNX leaves it out."""
    return dim.dim_value == -1 or dim.dim_param in _NO_NAMES


def _clear_unknown_extents(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if is_unknown_extent(dim):
                dim.Clear()


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
    try:
        file = (inside / location).resolve()
        present = file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a zero byte
        raise BadInputError(f"{where} cannot be looked for: {error}") from None
    own = file in Spool.files and is_inline_reference(tensor)
    if not own and (not location or Path(location).is_absolute() or not file.is_relative_to(inside)):
        raise BadInputError(
            f"{where} is not inside the model's folder; refused, because a model must not read other files"
        )
    if not present:
        what = "is no plain file" if file.exists() else "is missing"
        raise BadInputError(f"{where} {what} in {folder}: copy it beside the model")
    size = file.stat().st_size
    needed = tensor_bytes(tensor)
    offset, length = (
        _number(entries.get(key, str(default)), where) for key, default in (("offset", 0), ("length", needed))
    )
    if length != needed:
        raise BadInputError(
            f"{where} has {length} bytes, but extents {list(tensor.dims)} take {needed}: one of them is wrong"
        )
    if offset + length > size:
        raise BadInputError(f"{where} is too short: bytes {offset} to {offset + length} of {size} are needed")
    return file, offset, length


def _number(text: str, where: str) -> int:
    """An offset or length, as every reader of ONNX files takes it: plain digits, in 64 bits."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise BadInputError(f"{where} has an offset or length that is not a number of bytes: {text[:40]!r}")
    return int(text)


def input_files(path: Path | str) -> list[Path]:
    """The files of a model: its own, and its external data. Of a file that cannot be read, that file alone."""
    path = Path(path)
    try:
        model = read_model(path)
        external = {
            external_location(tensor, path.parent)[0]
            for tensor in all_tensors(model)
            if uses_external_data(tensor) and not is_inline_reference(tensor)
        }
    except (MsconvError, OSError):
        return [path]
    return [path, *sorted(external)]


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


def check_graph(model: onnx.ModelProto, path: Path | str) -> None:
    """Check that a model is valid ONNX, without reading its weights.

    Raises:
        BadInputError: it is not; the message is the checker's first line.
    """
    light, _ = _weights_as_inputs(model)
    for output in light.graph.output:  # their shapes need not be said, whatever the checker wants
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInputError(f"{path}: the model is not valid ONNX: {reason}") from error


def check_size(model: onnx.ModelProto, path: Path | str) -> None:
    """Refuse a valid model whose tensors cannot be held: see :func:`msconv_deploy.model_checks.check_memory`.

    Raises:
        BadInputError: a tensor would take more than this machine has.
    """
    with about(path):
        check_memory(*_weights_as_inputs(model))


@contextmanager
def explaining(model: onnx.ModelProto, path: Path | str) -> Iterator[None]:
    """Where work on a valid model fails in a way that nobody expected, say what contradicts itself in the model.

    The checker does not compare shapes. Inference does, but refuses models that run, too: so it is asked only afterwards.

    Raises:
        BadInputError: instead of the error, where the operators' shapes or types contradict each other.
    """
    try:
        with about(path):
            yield
    except (MsconvError, MemoryError):
        raise
    except Exception as error:
        reason = _contradiction(model)
        if not reason:
            raise
        raise BadInputError(f"{path}: shapes or types in the model contradict each other: {reason}") from error


def _contradiction(model: onnx.ModelProto) -> str:
    """What shape inference finds wrong; empty: nothing."""
    light, _ = _weights_as_inputs(model)
    try:
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=propagates(light))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return "; ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return ""


def _weights_as_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy of the model whose larger weights come from outside, which for ONNX's tools is as good; and those weights."""
    light, weights = without_weights(model, MIN_EXTERNAL_BYTES)
    known = {value.name for value in light.graph.input}
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights if t.name not in known
    )
    return light, weights


def without_weights(model: onnx.ModelProto, smallest: int) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy of the model without its initializers of at least ``smallest`` bytes or elsewhere, and those, not copied."""
    weights = [t for t in model.graph.initializer if uses_external_data(t) or len(t.raw_data) >= smallest]
    names = {t.name for t in weights}
    light = onnx.ModelProto()
    for source, target in ((model, light), (model.graph, light.graph)):
        for field, value in source.ListFields():
            if field.name == "initializer":
                target.initializer.extend(t for t in value if t.name not in names)
            elif field.name != "graph":
                copy_field(target, field.name, value)
    return light, weights


def copy_field(message: Any, name: str, value: Any) -> None:
    """Copy one field, as ``ListFields`` gives it, into another message of the same type."""
    if isinstance(value, (str, int, float, bytes)):
        setattr(message, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        getattr(message, name).extend(value)


def model_bytes(model: onnx.ModelProto, path: Path) -> int:
    """Size of a model's file and of the external data that it refers to."""
    external = sum(
        external_location(tensor, path.parent)[2]
        for tensor in all_tensors(model)
        if uses_external_data(tensor) and not is_inline_reference(tensor)
    )
    return path.stat().st_size + external


@contextmanager
def staged_copy(model: onnx.ModelProto, path: Path, output: Path, force: bool = False) -> Iterator[list[Path]]:
    """Copy a model's file and its external data as they are, byte for byte; all files appear or none.

    Yields the files that appear when the block ends, the ONNX file first; one that is there already (external data in
    the same folder, or the output names the input) is not among them. Nothing appears if the block raises.

    Args:
        model: read from ``path``.
        output: the ONNX file; external data keeps its place relative to it.

    Raises:
        BadInputError: a place cannot be written to, or holds another file and ``force`` is not given.
    """
    files = {output: path}
    for tensor in all_tensors(model):
        if uses_external_data(tensor) and not is_inline_reference(tensor):
            location = next(entry.value for entry in tensor.external_data if entry.key == "location")
            files[output.parent / location] = external_location(tensor, path.parent)[0]
    wanted = {to: source for to, source in files.items() if not (to.exists() and to.samefile(source))}
    with ExitStack() as stack:
        for to, source in wanted.items():
            shutil.copyfile(source, stack.enter_context(atomic_write(to, force)))
        yield list(wanted)


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
    path = Path(path)
    with staged_model(model, path, source_folder, force, max_inline_bytes) as staged:
        return [path.with_name(file.name) for file in staged]


@contextmanager
def staged_model(
    model: onnx.ModelProto,
    path: Path,
    source_folder: Path | str | None = None,
    force: bool = False,
    max_inline_bytes: int = MAX_INLINE_BYTES,
) -> Iterator[list[Path]]:
    """As :func:`write_model`, in two steps: yields the checked files while they lie beside their place.

    They are put in their place when the block ends, and removed if it raises.
    """
    path = check_writable(path, force)
    data_name = f"{path.name}.data"
    folder = Path(source_folder or ".")
    tensors = list(all_tensors(model))
    external = any(uses_external_data(t) and not is_inline_reference(t) for t in tensors)
    external = external or sum(_data_bytes(t, folder) for t in tensors) > max_inline_bytes
    if external:
        check_writable(path.with_name(data_name), force)
    staging: Path | None = None
    try:
        try:
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            if external:
                copy = onnx.ModelProto()
                copy.CopyFrom(model)
                model = copy
                with (staging / data_name).open("wb") as sink:
                    for tensor in all_tensors(model):
                        _move_out(tensor, sink, data_name, folder)
            check_graph(model, path)
            with (staging / path.name).open("wb") as sink:
                _write_inline(model, folder, sink)
        except OSError as error:
            raise _cannot_write(path, error) from error
        files = [staging / path.name, *([staging / data_name] if external else [])]
        yield files
        try:
            for file in reversed(files):  # external data first: the ONNX file is what others look for
                file.replace(path.with_name(file.name))
        except OSError as error:
            raise _cannot_write(path, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> BadInputError:
    return BadInputError(f"{path}: cannot be written: {error.strerror or error}")


def _data_bytes(tensor: onnx.TensorProto, folder: Path) -> int:
    return external_location(tensor, folder)[2] if uses_external_data(tensor) else len(tensor.raw_data)


def _write_inline(model: onnx.ModelProto, folder: Path, sink: BinaryIO) -> None:
    """Write the ONNX file; large weights and those that were inside another model file are streamed."""
    inside = [t for t in model.graph.initializer if is_inline_reference(t) or len(t.raw_data) >= MIN_REFERENCE_BYTES]
    if not inside:
        sink.write(model.SerializeToString())
        return
    light, weights = without_weights(model, MIN_REFERENCE_BYTES)
    streams = []
    for tensor in weights:
        bare = onnx.TensorProto()
        for field, value in tensor.ListFields():
            if field.name not in ("raw_data", "external_data", "data_location"):
                copy_field(bare, field.name, value)
        if uses_external_data(tensor) and not is_inline_reference(tensor):
            light.graph.initializer.append(tensor)  # it was moved to the data file, or lies there already
        else:
            streams.append((bare, _data_bytes(tensor, folder), _pieces(tensor, folder)))
    write_with_weights(light, streams, sink)


def serialized(model: onnx.ModelProto, folder: Path) -> bytes:
    """The bytes of the ONNX file of a model, for a runtime that takes it from memory.

    Weights that belong inside the file are read into it; external data stays a reference into ``folder``.
    """
    sink = io.BytesIO()
    _write_inline(model, folder, sink)
    return sink.getvalue()


def _pieces(tensor: onnx.TensorProto, folder: Path) -> Iterator[bytes]:
    """The bytes of a tensor, a chunk at a time."""
    if not uses_external_data(tensor):
        yield tensor.raw_data
        return
    file, offset, left = external_location(tensor, folder)
    with file.open("rb") as source:
        source.seek(offset)
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise BadInputError(f"{file}: ended while tensor {tensor.name!r} was copied")
            yield chunk
            left -= len(chunk)


def _move_out(tensor: onnx.TensorProto, sink: BinaryIO, data_name: str, source_folder: Path) -> None:
    """Append a tensor's bytes to the data file and make the tensor a reference to them."""
    if not uses_external_data(tensor) and len(tensor.raw_data) < MIN_EXTERNAL_BYTES:
        return
    start = _align(sink)
    for piece in _pieces(tensor, source_folder):
        sink.write(piece)
    refer(tensor, data_name, start, sink.tell() - start)


def _align(sink: BinaryIO) -> int:
    """Pad the file to the next page; returns the position."""
    position: int = sink.tell()
    padding = -position % _ALIGNMENT
    sink.write(bytes(padding))
    return position + padding
