"""Large ONNX files without holding them in memory: the few lines of protobuf's wire format that this takes.

Parsing a file holds its bytes and the parsed copy; serializing holds another. So a large weight is read as a reference to
where its bytes lie in the file, and written by copying them. The format: a message is a sequence of fields; a field is a
tag ``(number << 3) | wire type`` and a value; strings, bytes and messages (wire type 2) are a length and their content
(https://protobuf.dev/programming-guides/encoding). A model's graph is field 7, a graph's initializers are field 5, a
tensor's raw data is field 9 (onnx.proto).
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

import onnx

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2

INLINE_KEY = "msconv.inline"
"""Key of an external-data entry that marks bytes inside the model file itself."""


class WireFormatError(ValueError):
    """The bytes are not a protobuf message."""


def _varint(file: BinaryIO, end: int) -> int:
    value = shift = 0
    while shift < 70 and file.tell() < end:
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise WireFormatError("a number is cut off")


def _fields(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of the field, start of its content, end) of every field between two positions.

    The file is read, not mapped: mapped pages count as memory of the process.
    """
    while at < end:
        start = at
        file.seek(at)
        tag = _varint(file, end)
        kind = tag & 7
        content = file.tell()
        if kind == _LENGTH_DELIMITED:
            length = _varint(file, end)
            content = file.tell()
            at = content + length
        elif kind == 0:
            _varint(file, end)
            at = file.tell()
        elif kind in (1, 5):
            at = content + (8 if kind == 1 else 4)
        else:
            raise WireFormatError(f"wire type {kind}")
        if at > end:
            raise WireFormatError("a field is cut off")
        yield tag >> 3, start, content, at


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _header(number: int, length: int) -> bytes:
    return _encoded((number << 3) | _LENGTH_DELIMITED) + _encoded(length)


def parse_with_references(path: Path, smallest: int) -> onnx.ModelProto:
    """Parse a model; initializers of at least ``smallest`` bytes of raw data become references into the file.

    Raises:
        WireFormatError, google.protobuf.message.DecodeError: it is not an ONNX model.
    """
    model = onnx.ModelProto()
    with path.open("rb") as file:
        rest = bytearray()
        for number, start, content, end in _fields(file, 0, path.stat().st_size):
            if number == _GRAPH:
                graph = _graph_with_references(file, content, end, path.name, smallest)
                rest += _header(_GRAPH, len(graph)) + graph
            else:
                rest += _bytes(file, start, end)
    model.ParseFromString(bytes(rest))
    return model


def _graph_with_references(file: BinaryIO, start: int, end: int, file_name: str, smallest: int) -> bytes:
    graph = bytearray()
    for number, begin, content, stop in _fields(file, start, end):
        if number == _INITIALIZER and stop - content >= smallest:
            tensor = _tensor_with_reference(file, content, stop, file_name, smallest)
            graph += _header(_INITIALIZER, len(tensor)) + tensor
        else:
            graph += _bytes(file, begin, stop)
    return bytes(graph)


def _tensor_with_reference(file: BinaryIO, start: int, end: int, file_name: str, smallest: int) -> bytes:
    small, raw = bytearray(), None
    for number, begin, content, stop in _fields(file, start, end):
        if number == _RAW_DATA and stop - content >= smallest:
            raw = (content, stop - content)
        else:
            small += _bytes(file, begin, stop)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(bytes(small))
    if raw is not None:
        refer_inline(tensor, file_name, *raw)
    data: bytes = tensor.SerializeToString()
    return data


def refer_inline(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor a reference to bytes that belong inside the model file."""
    refer(tensor, location, offset, length)
    tensor.external_data.add(key=INLINE_KEY, value="1")


class Spool:
    """A temporary file for weights that were made and are not to be held in memory; it is removed when the process ends.

    Its tensors refer to it by its full path, which is allowed for no other file (``model_files.external_location``).
    """

    files: ClassVar[set[Path]] = set()

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="msconv-", suffix=".weights")
        self._file = os.fdopen(handle, "wb")
        self.path = Path(name).resolve()
        Spool.files.add(self.path)
        atexit.register(self._remove)

    def add(self, tensor: onnx.TensorProto) -> None:
        """Move a tensor's data to the file."""
        start = self._file.tell()
        self._file.write(tensor.raw_data)
        self._file.flush()
        refer_inline(tensor, str(self.path), start, self._file.tell() - start)

    def _remove(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor a reference to bytes of a file."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def is_inline_reference(tensor: onnx.TensorProto) -> bool:
    """Does a tensor refer to bytes of its own model file?"""
    return any(entry.key == INLINE_KEY for entry in tensor.external_data)


def write_with_weights(
    light: onnx.ModelProto, weights: list[tuple[onnx.TensorProto, int, Iterator[bytes]]], sink: BinaryIO
) -> None:
    """Write a model whose large initializers come as streams.

    Args:
        light: the model without them.
        weights: (tensor without its data, number of bytes, the bytes in pieces).
    """
    graph = light.graph.SerializeToString()
    heads = []
    for tensor, length, _ in weights:
        body = tensor.SerializeToString() + _header(_RAW_DATA, length)
        heads.append(_header(_INITIALIZER, len(body) + length) + body)
    total = len(graph) + sum(len(head) + length for head, (_, length, _) in zip(heads, weights, strict=True))
    around = onnx.ModelProto()
    around.CopyFrom(light)
    around.ClearField("graph")
    sink.write(around.SerializeToString())
    sink.write(_header(_GRAPH, total))
    sink.write(graph)
    for head, (_, _, pieces) in zip(heads, weights, strict=True):
        sink.write(head)
        for piece in pieces:
            sink.write(piece)
