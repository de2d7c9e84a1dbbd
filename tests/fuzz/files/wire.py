"""ONNX files as trees of protobuf fields that can be written back wrong: lengths, types and numbers that do not fit.

The descriptors of onnx.proto say which fields are messages. What cannot be read as one stays bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


@dataclass
class Field:
    """One field of a message.

    Attributes:
        number, wire_type: its tag.
        content: a number (varint), bytes, or the fields of a message.
        length: what to write as its length instead of the true one.
        text: is it a string by the descriptors?
    """

    number: int
    wire_type: int
    content: int | bytes | list[Field]
    length: int | None = None
    text: bool = False


@dataclass
class Place:
    """Where a field is: the list that holds it, its position there, and how deep that is."""

    siblings: list[Field]
    index: int
    depth: int
    descriptor: Descriptor | None = field(default=None)

    @property
    def here(self) -> Field:
        return self.siblings[self.index]


def encoded(value: int) -> bytes:
    """A varint; negative numbers take ten bytes, numbers beyond 64 bits as many as they need."""
    value = value % (1 << 64) if value < 0 else value
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint is too long")


_DEEPEST = 200


def parse(data: bytes, descriptor: Descriptor | None = onnx.ModelProto.DESCRIPTOR, depth: int = 0) -> list[Field]:
    """The fields of a message.

    Raises:
        ValueError, IndexError: the bytes are no message.
    """
    found: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        known: FieldDescriptor | None = descriptor.fields_by_number.get(number) if descriptor else None
        if wire_type == VARINT:
            value, at = _varint(data, at)
            found.append(Field(number, wire_type, value))
        elif wire_type == LENGTH_DELIMITED:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is cut off")
            content = data[at : at + length]
            at += length
            if known is not None and known.message_type is not None and depth < _DEEPEST:
                found.append(Field(number, wire_type, parse(content, known.message_type, depth + 1)))
            else:
                text = known is not None and known.type == FieldDescriptor.TYPE_STRING
                found.append(Field(number, wire_type, content, text=text))
        elif wire_type in (FIXED32, FIXED64):
            size = 4 if wire_type == FIXED32 else 8
            found.append(Field(number, wire_type, data[at : at + size]))
            at += size
        else:
            raise ValueError(f"wire type {wire_type}")
    return found


def serialized(fields: list[Field]) -> bytes:
    """The bytes of a message, with the lies that its fields tell."""
    out = bytearray()
    for item in fields:
        out += encoded(item.number << 3 | item.wire_type)
        if isinstance(item.content, int):
            out += encoded(item.content)
            continue
        content = serialized(item.content) if isinstance(item.content, list) else item.content
        if item.wire_type == LENGTH_DELIMITED or item.length is not None:
            out += encoded(len(content) if item.length is None else item.length)
        out += content
    return bytes(out)


def places(fields: list[Field], depth: int = 0) -> Iterator[Place]:
    """Every field, each before the fields in it."""
    for index, item in enumerate(fields):
        yield Place(fields, index, depth)
        if isinstance(item.content, list):
            yield from places(item.content, depth + 1)
