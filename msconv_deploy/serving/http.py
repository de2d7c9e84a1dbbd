"""The protocol over HTTP, as an ASGI application with Starlette's routes."""

from __future__ import annotations

import asyncio
import logging

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msconv_deploy.serving.access_log import Call, current_call
from msconv_deploy.serving.batching import Outcome
from msconv_deploy.serving.errors import (
    RequestError,
    TimedOutError,
    TooLargeError,
    UnsupportedEncodingError,
)
from msconv_deploy.serving.metrics import CONTENT_TYPE
from msconv_deploy.serving.protocol import HEADER_LENGTH, InferRequest, decode, encode
from msconv_deploy.serving.service import Service, remaining

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status in the log of a request whose client closed the connection; nobody receives it."""

_WATCH_AFTER = 0.02  # seconds


def make_app(service: Service) -> ASGIApp:
    """The application: all routes, errors as JSON, every request counted and logged."""
    endpoints = _Endpoints(service)
    model = "/v2/models/{model}"
    routes = [
        Route(f"{model}/infer", endpoints.infer, methods=["POST"]),  # the first one is found first
        Route("/v2", endpoints.server_metadata),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2/models/stats", endpoints.model_statistics),
        Route("/metrics", endpoints.metrics),
    ]
    version = f"{model}/versions/{{version}}"
    routes.append(Route(f"{version}/infer", endpoints.infer, methods=["POST"]))
    for prefix in (model, version):
        routes += [
            Route(f"{prefix}/ready", endpoints.model_ready),
            Route(f"{prefix}/stats", endpoints.model_statistics),
            Route(f"{prefix}/config", endpoints.model_config),
            Route(prefix, endpoints.model_metadata),
        ]
    return _Recorded(Router(routes=routes, redirect_slashes=False), service)


class _Recorded:
    """Gives every request its :class:`Call`, turns errors into answers, and hands the call in when it is answered."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        host, port = scope.get("client") or ("", 0)
        call = Call("http", f"{host}:{port}", f"{scope['method']} {scope['path']}", status=str(CLIENT_GONE))
        current_call.set(call)
        scope["app"] = self  # the router then raises where it has no route

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = str(message["status"])
            elif message["type"] == "http.response.body":
                call.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            try:
                await self.app(scope, receive, watched)
            except Exception as error:
                if call.status != str(CLIENT_GONE):  # the answer has begun
                    raise
                await _error_answer(call, error)(scope, receive, watched)
        finally:
            self.service.finished(call)


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self.service = service

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        return Response(status_code=200 if self.service.ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return JSONResponse(self.service.server_metadata())

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return await self.ready(request)

    async def model_metadata(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(self.service.model_metadata())

    async def model_statistics(self, request: Request) -> Response:
        if "model" in request.path_params:
            self._check_model(request)
        return JSONResponse(self.service.model_statistics())

    async def model_config(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(self.service.model_config())

    async def metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _check_model(self, request: Request) -> None:
        self.service.check_model(*_model_and_version(request))

    async def infer(self, request: Request) -> Response:
        call = current_call.get()
        call.infer = True
        self._check_model(request)
        with self.service.accept():
            body = await _read_body(request, self.service, call)
            call.bytes_in = len(body)
            decoded = decode(body, request.headers.get(HEADER_LENGTH), self.service.model)
            call.request_id = decoded.id
            call.outcome = await _computed(request, self.service, decoded, call)
            encoded = encode(self.service.model, decoded, call.outcome.arrays)
            if encoded.json_length is None:
                return Response(encoded.body, media_type="application/json")
            headers = {HEADER_LENGTH: str(encoded.json_length)}
            return Response(encoded.body, headers=headers, media_type="application/octet-stream")


def _model_and_version(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


async def _read_body(request: Request, service: Service, call: Call) -> bytes:
    """The body, of which never more than the limit is held.

    Raises:
        TooLargeError, TimedOutError, UnsupportedEncodingError, InvalidRequestError, ClientDisconnect
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedEncodingError(f"content-encoding {encoding[:40]!r} is not supported: send the body as it is")
    limit = service.limits.max_body
    too_large = TooLargeError(f"the body is larger than {limit} bytes, this server's limit (--max-body)")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdecimal() and int(announced[:19]) > limit:
        raise too_large

    parts: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(remaining(call, service.limits)):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise TimedOutError(f"the body did not arrive within {service.limits.timeout:g} s") from None
    return b"".join(parts)


async def _computed(request: Request, service: Service, decoded: InferRequest, call: Call) -> Outcome:
    """Computes the request; if the client closes the connection meanwhile, the work is cancelled.

    Raises:
        ClientDisconnect: the client has gone.
        TimedOutError, InvalidRequestError, RunFailedError
    """
    future = service.submit(decoded, call)
    watches: list[asyncio.Task[None]] = []

    async def watch() -> None:
        await request.receive()  # after the body, all that can come is the disconnect
        if not future.done():
            future.set_exception(ClientDisconnect())

    # a task takes its time from every request, so it is made for those only that take long
    timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, lambda: watches.append(asyncio.ensure_future(watch())))
    try:
        return await future
    finally:
        future.cancel()
        timer.cancel()
        for task in watches:
            task.cancel()


def _error_answer(call: Call, error: Exception) -> Response:
    """An error as JSON. Where the client has gone, the server drops it."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestError):
        status, call.error = error.http, str(error)
        if error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, ClientDisconnect):
        status, call.error = CLIENT_GONE, "the client closed the connection"
    elif isinstance(error, HTTPException):
        status, call.error = error.status_code, f"{call.method[:200]}: {error.detail}"
        headers |= error.headers or {}
    else:
        logger.error("%s failed", call.method, exc_info=error)
        status, call.error = 500, f"internal error: {type(error).__name__}"
    return JSONResponse({"error": call.error}, status, headers)
