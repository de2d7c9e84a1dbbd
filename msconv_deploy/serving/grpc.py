"""The protocol over gRPC, on the generated stubs of ``tritonclient``.

All its methods take one message and give one. Here they are registered as if they took a stream, which is the same on the
wire, because gRPC reads the message of a unary method by itself: before it can be refused, and for as long as it takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from msconv_deploy.serving.access_log import Call, current_call
from msconv_deploy.serving.errors import InvalidRequestError, QueueFullError, RequestError, TimedOutError
from msconv_deploy.serving.model import VERSION, Model
from msconv_deploy.serving.protocol import (
    InferRequest,
    Wish,
    array_from_bytes,
    check_complete,
    check_parameters,
    check_shape,
    check_timeout,
    find_input,
    to_bytes,
)
from msconv_deploy.serving.runtime import Arrays, Tensor
from msconv_deploy.serving.service import Service, remaining

logger = logging.getLogger(__name__)

_MAX_DETAILS = 2000  # they travel as a header
_KEEPALIVE_MS = 30_000  # a peer that has gone without a word is asked, and given up
_LEAST_PING_MS = 10_000  # clients that ask more often are ended
_LEAST_STREAMS = 100  # on one connection at a time, as HTTP/2 advises
_LIMITS_PER_CONNECTION = 10  # it lives so many times as long as a request may
_PREFIX = "/inference.GRPCInferenceService/"


def make_server(service: Service) -> grpc.aio.Server:
    """A server without ports, not started; the limit of the size is kept before a message is parsed.

    A connection on which nothing is asked is ended after the limit of a request, and any after some such limits: gRPC has no
    other end for an answer that is not read. Requests that are under way have their limit to end, and clients connect again by
    themselves.
    """
    timeout = max(1, round(service.limits.timeout * 1000))  # milliseconds
    options = [
        ("grpc.server_handshake_timeout_ms", timeout),
        ("grpc.max_connection_idle_ms", timeout),
        ("grpc.max_connection_age_ms", _LIMITS_PER_CONNECTION * timeout),
        ("grpc.max_connection_age_grace_ms", timeout),
        ("grpc.max_concurrent_streams", max(_LEAST_STREAMS, 2 * service.limits.queue)),  # some more, to be refused
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
        ("grpc.max_receive_message_length", service.limits.max_body),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port in use is an error, not shared
    ]
    server = grpc.aio.server(interceptors=[_Recorded(service)], options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(service), server)
    return server


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """What is not defined here is UNIMPLEMENTED."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def ServerLive(self, request: Any, context: Any) -> Message:  # noqa: N802  (the protocol's names)
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Message:  # noqa: N802
        return pb.ServerReadyResponse(ready=self.service.ready)

    async def ModelReady(self, request: Any, context: Any) -> Message:  # noqa: N802
        self.service.check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self.service.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Message:  # noqa: N802
        return ParseDict(self.service.server_metadata(), pb.ServerMetadataResponse())

    async def ModelMetadata(self, request: Any, context: Any) -> Message:  # noqa: N802
        self.service.check_model(request.name, request.version)
        return ParseDict(self.service.model_metadata(), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Any) -> Message:  # noqa: N802
        self.service.check_model(request.name, request.version)
        return ParseDict({"config": self.service.model_config()}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Message:  # noqa: N802
        if request.name:
            self.service.check_model(request.name, request.version)
        return ParseDict(self.service.model_statistics(), pb.ModelStatisticsResponse())

    async def ModelInfer(self, request: Any, context: Any) -> Message:  # noqa: N802
        call = current_call.get()
        call.bytes_in, call.request_id = request.ByteSize(), request.id
        self.service.check_model(request.model_name, request.model_version)
        decoded = decode(request, self.service.model)
        # a client that has gone cancels this task, and so the computation
        call.outcome = await self.service.submit(decoded, call)
        answer = encode(self.service.model, decoded, call.outcome.arrays)
        call.bytes_out = answer.ByteSize()
        return answer


_IMPLEMENTED = {_PREFIX + name for name in vars(_Servicer) if not name.startswith("_")}


class _Recorded(grpc.aio.ServerInterceptor):
    """Gives every request its :class:`Call`, reads its message, turns errors into status codes."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._asked = 0  # requests other than inference whose message is being read
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        if details.method not in _IMPLEMENTED:
            return None
        if details.method not in self._handlers:
            self._handlers[details.method] = self._wrapped(details.method, await continuation(details))
        return self._handlers[details.method]

    def _wrapped(self, method: str, handler: Any) -> Any:
        service, name = self.service, method.removeprefix(_PREFIX)

        def parse(data: bytes) -> Any:  # what it raised, gRPC would take for a failure of the server
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                return error

        async def behave(_: Any, context: Any) -> None:
            call = Call("grpc", context.peer(), name, status="CANCELLED", infer=name == "ModelInfer")
            current_call.set(call)
            try:
                with service.accept() if call.infer else self._asking():
                    answer = await handler.unary_unary(await _only_message(context, call, service), context)
                    # What the client does not read is kept, and its place in the queue with it, until the connection ends.
                    await context.write(answer)
                call.status = "OK"
            except RequestError as error:
                _refuse(context, call, error.grpc, str(error), error.retry_after)
            except asyncio.CancelledError:
                call.error = "the client cancelled, or closed the connection"
                raise
            except Exception as error:
                logger.error("%s failed", name, exc_info=error)
                _refuse(context, call, "INTERNAL", f"internal error: {type(error).__name__}")
            finally:
                service.finished(call)

        # one message each way, as the client sees it; but here each is waited for
        return grpc.stream_stream_rpc_method_handler(behave, parse, handler.response_serializer)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """A request that is answered at once, even when the queue is full; but its message may be as large as any.

        Raises:
            QueueFullError: too many of them have not arrived.
        """
        if self._asked >= self.service.limits.queue:
            raise QueueFullError(f"{self._asked} requests have begun and not arrived; try again later")
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1


async def _only_message(context: Any, call: Call, service: Service) -> Any:
    """The message of a request.

    Raises:
        InvalidRequestError: there is none, or more than one, or it is another one.
        TimedOutError: it did not arrive within the limit.
    """
    try:
        with anyio.fail_after(remaining(call, service.limits)):
            message = await context.read()
            more = message is not grpc.aio.EOF and await context.read() is not grpc.aio.EOF
    except TimeoutError:
        raise TimedOutError(f"the message did not arrive within {service.limits.timeout:g} s") from None
    if message is grpc.aio.EOF:  # also where it is too large: gRPC itself then tells the client
        most = service.limits.max_body
        raise InvalidRequestError(f"{call.method}: expected one message, got none of at most {most} bytes (--max-body)")
    if more:
        raise InvalidRequestError(f"{call.method}: expected one message, got more")
    if isinstance(message, DecodeError):
        raise InvalidRequestError(f"the message is not a {call.method} request: {message}")
    return message


def _refuse(context: Any, call: Call, code: str, message: str, retry_after: int | None = None) -> None:
    """Answer with a status. Not with ``abort``: its exception keeps the request alive, in a cycle, until it is collected."""
    call.status, call.error = code, message
    context.set_code(grpc.StatusCode[code])
    context.set_details(message[:_MAX_DETAILS])
    if retry_after is not None:
        context.set_trailing_metadata((("retry-after", str(retry_after)),))


# -- messages --------------------------------------------------------------------------------------------------------

# datatype -> field of InferTensorContents, and the type of its numbers; FP16 has none
_CONTENTS = {
    "BOOL": ("bool_contents", np.bool_),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
}


def decode(request: Any, model: Model) -> InferRequest:
    """Read a ``ModelInferRequest``.

    Raises:
        InvalidRequestError: it does not fit the model.
    """
    for entry in request.inputs:
        check_parameters(f"input {_name(entry)}", entry.parameters)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"expected {len(request.inputs)} entries in raw_input_contents, one for each input, got {len(raw)}"
        )
    feeds: Arrays = {}
    for index, entry in enumerate(request.inputs):
        tensor = find_input(model, entry.name, feeds)
        shape = check_shape(entry.name, list(entry.shape))
        tensor.check(entry.datatype[:20], shape)
        if raw:
            feeds[tensor.name] = array_from_bytes(raw[index], tensor, shape)
        else:
            feeds[tensor.name] = _array_from_contents(entry.contents, tensor, shape)
    wishes = [Wish(entry.name, True) for entry in request.outputs] or [Wish(t.name, True) for t in model.outputs]
    for entry in request.outputs:
        check_parameters(f"output {_name(entry)}", entry.parameters)
    check_complete(model, feeds, wishes)
    timeout = request.parameters["timeout"].int64_param if "timeout" in request.parameters else None
    return InferRequest(feeds, wishes, request.id, check_timeout(timeout))


def _name(entry: Any) -> str:
    return repr(entry.name[:80])


def _array_from_contents(contents: Any, tensor: Tensor, shape: list[int]) -> np.ndarray:
    where = f"input {tensor.name!r}"
    if tensor.datatype not in _CONTENTS:
        raise InvalidRequestError(f"{where}: {tensor.datatype} has no typed contents: send raw_input_contents")
    field, kind = _CONTENTS[tensor.datatype]
    found: np.ndarray = np.array(getattr(contents, field), kind)
    if found.size != math.prod(shape):
        raise InvalidRequestError(
            f"{where}: expected {math.prod(shape)} numbers in contents.{field} for shape {shape}, got {found.size}"
        )
    array = found.astype(tensor.dtype)
    if tensor.dtype.kind in "iu" and not np.array_equal(array, found):
        raise InvalidRequestError(f"{where}: contents hold numbers beyond the range of {tensor.datatype}")
    return array.reshape(shape)


def encode(model: Model, request: InferRequest, results: Arrays) -> Any:
    """The ``ModelInferResponse``, with raw contents."""
    answer = pb.ModelInferResponse(model_name=model.name, model_version=VERSION, id=request.id)
    datatypes = {tensor.name: tensor.datatype for tensor in model.outputs}
    for wish in request.wishes:
        array = results[wish.name]
        answer.outputs.add(name=wish.name, datatype=datatypes[wish.name], shape=array.shape)
        answer.raw_output_contents.append(to_bytes(array))
    return answer
