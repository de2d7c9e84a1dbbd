"""The Open Inference Protocol's requests and answers, and their form over HTTP: JSON, with the binary tensor extension.

A body is JSON alone, or JSON followed by the bytes of the tensors that have ``binary_data_size``, in the order of the JSON;
``Inference-Header-Content-Length`` is then the length of the JSON. Binary tensors are little-endian and row-major.
Specification: https://github.com/kserve/open-inference-protocol and Triton's ``extension_binary_data.md``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msconv_deploy.serving.errors import InvalidRequestError, TooLargeError
from msconv_deploy.serving.model import VERSION, Model
from msconv_deploy.serving.runtime import Arrays, Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 16 << 20
"""Parsing JSON holds up all other requests, about 10 ms for each MB; larger tensors have the binary extension."""

_MAX_DIMS = 32
_MAX_EXTENT = 1 << 40
_MAX_ELEMENTS = 1 << 40  # of the extents that are not 0: NumPy counts bytes in 64 bits, also where others are 0
_NO_JSON_FORM = ("FP16",)  # the protocol has none for it, and Triton takes none
_UNSUPPORTED = {
    "shared_memory_region": "shared memory is not supported: send the tensor itself",
    "classification": "classification is not supported: ask for the output itself",
}


@dataclass(frozen=True)
class Wish:
    """An output that is asked for; ``binary``: as bytes behind the JSON."""

    name: str
    binary: bool = False


@dataclass
class InferRequest:
    """What is to be computed.

    Attributes:
        feeds: input -> array of the declared type and shape.
        wishes: the outputs, in the order of the answer.
        id: comes back with the answer.
        timeout: seconds that the client allows; None: the server's limit.
    """

    feeds: Arrays
    wishes: list[Wish]
    id: str = ""
    timeout: float | None = None


@dataclass(frozen=True)
class Encoded:
    """A body and, where bytes follow the JSON, the length of the JSON."""

    body: bytes
    json_length: int | None = None


# -- what both protocols check ---------------------------------------------------------------------------------------


def array_from_bytes(data: bytes | memoryview, tensor: Tensor, shape: Sequence[int]) -> np.ndarray:
    """A binary tensor of a shape that has been checked.

    Raises:
        InvalidRequestError: the number of bytes is not that of the shape.
    """
    needed = math.prod(shape) * tensor.dtype.itemsize
    if len(data) != needed:
        raise InvalidRequestError(
            f"input {tensor.name!r}: expected {needed} bytes for shape {list(shape)} of {tensor.datatype}, got {len(data)}"
        )
    array = np.frombuffer(data, tensor.dtype.newbyteorder("<")).reshape(shape)
    if sys.byteorder == "big" or not array.flags.aligned:
        array = array.astype(tensor.dtype)
    return array.view(np.uint8).astype(bool) if tensor.datatype == "BOOL" else array  # any byte but 0 is true


def check_shape(name: str, shape: Any) -> list[int]:
    """A shape from outside.

    Raises:
        InvalidRequestError: it is not a list of extents, or of more than a tensor can have.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > _MAX_DIMS:
        raise InvalidRequestError(f"input {name!r}: shape must be a list of at most {_MAX_DIMS} extents")
    if any(type(extent) is not int or not 0 <= extent < _MAX_EXTENT for extent in shape):
        raise InvalidRequestError(f"input {name!r}: expected extents from 0 on in shape, got {_short(list(shape))}")
    if math.prod(extent for extent in shape if extent) > _MAX_ELEMENTS:
        raise InvalidRequestError(f"input {name!r}: expected smaller extents in shape, got {_short(list(shape))}")
    return list(shape)


def find_input(model: Model, name: str, seen: Mapping[str, object]) -> Tensor:
    """The input of this name.

    Raises:
        InvalidRequestError: there is none, or it was given already.
    """
    tensor = next((tensor for tensor in model.inputs if tensor.name == name), None)
    if tensor is None:
        names = ", ".join(tensor.name for tensor in model.inputs)
        raise InvalidRequestError(f"input {_short(name)}: model {model.name!r} has no such input; expected {names}")
    if name in seen:
        raise InvalidRequestError(f"input {name!r}: is given twice")
    return tensor


def check_complete(model: Model, feeds: Mapping[str, object], wishes: Sequence[Wish]) -> None:
    """Every input is there, and every output exists, once.

    Raises:
        InvalidRequestError: names what is missing, unknown or doubled.
    """
    missing = [tensor.name for tensor in model.inputs if tensor.name not in feeds]
    if missing:
        raise InvalidRequestError(f"model {model.name!r}: expected also input {', '.join(missing)}, which is not given")
    known = [tensor.name for tensor in model.outputs]
    for index, wish in enumerate(wishes):
        if wish.name not in known:
            raise InvalidRequestError(
                f"output {_short(wish.name)}: model {model.name!r} has no such output; expected {', '.join(known)}"
            )
        if any(other.name == wish.name for other in wishes[:index]):
            raise InvalidRequestError(f"output {wish.name!r}: is asked for twice")


def check_parameters(where: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what would change the meaning of a request if it were ignored.

    Raises:
        InvalidRequestError: says what to do instead.
    """
    for name, advice in _UNSUPPORTED.items():
        if name in parameters:
            raise InvalidRequestError(f"{where}: {advice}")


def check_timeout(microseconds: Any) -> float | None:
    """The parameter ``timeout`` in seconds; None or 0: there is none.

    Raises:
        InvalidRequestError: it is not a number of microseconds.
    """
    if microseconds is None:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidRequestError(f"parameter 'timeout': expected microseconds, got {_short(microseconds)}")
    return microseconds / 1e6 or None


# -- HTTP ------------------------------------------------------------------------------------------------------------


def decode(body: bytes, json_length: str | None, model: Model) -> InferRequest:
    """Read an inference request.

    Args:
        json_length: value of the header ``Inference-Header-Content-Length``, if it is there.

    Raises:
        InvalidRequestError: it is not the protocol, or does not fit the model.
        TooLargeError: the JSON is larger than :data:`MAX_JSON_BYTES`.
    """
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and 0 < int(json_length[:19]) <= len(body)):
            raise InvalidRequestError(
                f"header {HEADER_LENGTH}: expected 1 to {len(body)}, the length of the body, got {_short(json_length)}"
            )
        length = int(json_length[:19])
    if length > MAX_JSON_BYTES:
        raise TooLargeError(
            f"the JSON has {length} bytes, more than {MAX_JSON_BYTES}: send tensors as bytes (binary tensor extension)"
        )
    try:
        request = json.loads(body[:length])
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    request = _object("the request", request)
    parameters = _object("parameters", request.get("parameters", {}))
    identity = request.get("id", "")
    if not isinstance(identity, str):
        raise InvalidRequestError("id: expected a string")
    feeds = _inputs(_list("inputs", request.get("inputs")), memoryview(body)[length:], model)
    wishes = _wishes(request.get("outputs"), parameters, model)
    check_complete(model, feeds, wishes)
    _check_json_forms(model, wishes)
    return InferRequest(feeds, wishes, identity, check_timeout(parameters.get("timeout")))


def _inputs(entries: list[Any], rest: memoryview, model: Model) -> Arrays:
    feeds: Arrays = {}
    for entry in entries:
        entry = _object("an input", entry)
        name = entry.get("name")
        if not isinstance(name, str):
            raise _nameless("an input")
        tensor = find_input(model, name, feeds)
        shape = check_shape(tensor.name, entry.get("shape"))
        tensor.check(_short_text(entry.get("datatype")), shape)
        parameters = _object(f"input {name!r}: parameters", entry.get("parameters", {}))
        check_parameters(f"input {name!r}", parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            feeds[tensor.name] = _array_from_json(entry.get("data"), tensor, shape)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidRequestError(
                f"input {name!r}: binary_data_size is {_short(size)}, but {len(rest)} bytes are left in the body"
            )
        feeds[tensor.name] = array_from_bytes(rest[:size], tensor, shape)
        rest = rest[size:]
    if len(rest):
        raise InvalidRequestError(f"{len(rest)} bytes are left in the body that belong to no input")
    return feeds


def _wishes(entries: Any, parameters: Mapping[str, Any], model: Model) -> list[Wish]:
    every = _flag("binary_data_output", parameters.get("binary_data_output", False))
    if entries is None or entries == []:
        return [Wish(tensor.name, every) for tensor in model.outputs]
    wishes = []
    for entry in _list("outputs", entries):
        entry = _object("an output", entry)
        name = entry.get("name")
        if not isinstance(name, str):
            raise _nameless("an output")
        own = _object(f"output {name!r}: parameters", entry.get("parameters", {}))
        check_parameters(f"output {name!r}", own)
        wishes.append(Wish(name, _flag("binary_data", own.get("binary_data", every))))
    return wishes


def _array_from_json(data: Any, tensor: Tensor, shape: list[int]) -> np.ndarray:
    """Numbers, nested or flat, of the tensor's own kind: text is no number, and 1.5 no integer."""
    where = f"input {tensor.name!r}"
    if tensor.datatype in _NO_JSON_FORM:
        raise InvalidRequestError(
            f"{where}: {tensor.datatype} has no JSON form in the protocol: send it as bytes (binary_data_size)"
        )
    if not isinstance(data, list):
        raise InvalidRequestError(f"{where}: expected a list in data, or parameters.binary_data_size")
    try:
        found = np.asarray(data)
        if tensor.datatype == "UINT64" and found.dtype.kind in "fO":  # NumPy's type for integers on both sides of 2^63
            found = _wide_integers(data, found)
    except (ValueError, OverflowError, RecursionError):
        raise InvalidRequestError(f"{where}: data is not a regular list of numbers") from None
    if found.size != math.prod(shape):
        raise InvalidRequestError(f"{where}: expected {math.prod(shape)} numbers for shape {shape}, got {found.size}")
    if not found.size:
        return np.zeros(shape, tensor.dtype)
    kinds = {"b": "b", "u": "ui", "i": "ui", "f": "fui"}[tensor.dtype.kind]
    if found.dtype.kind not in kinds:
        raise InvalidRequestError(f"{where}: data holds other things than numbers of {tensor.datatype}")
    with np.errstate(over="ignore"):
        array = found.astype(tensor.dtype)
    same = np.isfinite(array) == np.isfinite(found) if tensor.dtype.kind == "f" else array == found
    if not same.all():
        raise InvalidRequestError(f"{where}: data holds numbers beyond the range of {tensor.datatype}")
    return array.reshape(shape)


def _wide_integers(data: list[Any], found: np.ndarray) -> np.ndarray:
    """The data as uint64 where all of it is integers of that range, else as it was found."""
    numbers = np.asarray(data, object)
    return numbers.astype(np.uint64) if all(type(n) is int and 0 <= n < 1 << 64 for n in numbers.flat) else found


def encode(model: Model, request: InferRequest, results: Mapping[str, np.ndarray]) -> Encoded:
    """The body of an answer."""
    outputs, parts = [], []
    for wish in request.wishes:
        tensor = next(tensor for tensor in model.outputs if tensor.name == wish.name)
        array = results[wish.name]
        entry: dict[str, Any] = {"name": wish.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if wish.binary:
            data = to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            entry["data"] = array.reshape(-1).tolist()
        outputs.append(entry)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "outputs": outputs}
    if request.id:
        answer["id"] = request.id
    head = json.dumps(answer, separators=(",", ":")).encode()
    if not parts:
        return Encoded(head)
    return Encoded(b"".join((head, *parts)), len(head))


def _check_json_forms(model: Model, wishes: Sequence[Wish]) -> None:
    """Refuse an output as JSON that has no JSON form, before anything is computed.

    Raises:
        InvalidRequestError: it has none.
    """
    for wish in wishes:
        tensor = next(tensor for tensor in model.outputs if tensor.name == wish.name)
        if not wish.binary and tensor.datatype in _NO_JSON_FORM:
            raise InvalidRequestError(
                f"output {wish.name!r}: {tensor.datatype} has no JSON form in the protocol: ask for bytes (binary_data)"
            )


def to_bytes(array: np.ndarray) -> bytes:
    """Little-endian and row-major."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


# -- fields from outside ---------------------------------------------------------------------------------------------


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where}: expected a JSON object, got {_short(value)}")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where}: expected a list, got {_short(value)}")
    return value


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {where!r}: expected true or false, got {_short(value)}")
    return value


def _nameless(where: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where}: has no name")


def _short_text(value: Any) -> str:
    """Text for a message: ASCII, because JSON may hold half of a character, which has no bytes."""
    return value if isinstance(value, str) and len(value) < 20 and value.isascii() else _short(value)


def _short(value: Any) -> str:
    """A value from outside for a message: never long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
