"""Starting and stopping both protocols on one event loop."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import uvicorn

from msconv_deploy.errors import BadInputError
from msconv_deploy.serving.connections import bounded_protocol
from msconv_deploy.serving.grpc import make_server
from msconv_deploy.serving.http import make_app
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.service import Limits, Service

_BACKLOG = 2048
_ANSWERING = 2.0  # seconds beyond the limit of a request, for sending what is computed


class _Uvicorn(uvicorn.Server):
    """Signals are this project's affair."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Both protocols for one model, on the running event loop.

    Attributes:
        http_port, grpc_port: where it listens once it is started.
    """

    def __init__(
        self, model: Model, limits: Limits, host: str = "127.0.0.1", http_port: int = 8000, grpc_port: int = 8001
    ) -> None:
        """
        Args:
            host: a name stands for the first of its addresses.
            http_port, grpc_port: 0 takes a free one.
        """
        self.service = Service(model, limits)
        self.host, self.http_port, self.grpc_port = host, http_port, grpc_port

    async def start(self) -> None:
        """Listen; returns when requests are answered.

        Raises:
            BadInputError: a port is in use, or the host is not this machine's.
        """
        address = _resolve(self.host)
        listener = _listen(address, self.http_port)
        self.http_port = listener.getsockname()[1]
        try:
            self._grpc = make_server(self.service)
            self.grpc_port = _add_port(self._grpc, address, self.grpc_port)
            self.service.start()
            await self._grpc.start()
        except BaseException:
            listener.close()
            raise
        grace = math.ceil(self.service.limits.timeout + _ANSWERING)
        limits = self.service.limits
        config = uvicorn.Config(
            make_app(self.service),
            http=bounded_protocol(limits.timeout, limits.connections),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=grace,
        )
        self._grace = grace
        self._http = _Uvicorn(config)
        self._serving = asyncio.get_running_loop().create_task(self._http.serve([listener]))
        while not self._http.started and not self._serving.done():
            await asyncio.sleep(0.005)
        if self._serving.done():
            self._serving.result()

    async def stop(self) -> None:
        """Take no new requests, finish those that are accepted, then close."""
        self.service.refuse_new()
        self._http.should_exit = True
        await asyncio.gather(self._serving, self._grpc.stop(self._grace))
        await self.service.stop()


def serve(server: Server, started: Callable[[Server], None]) -> None:
    """Run a server until SIGTERM or SIGINT, which finish what is accepted; a second one ends the process at once.

    Args:
        started: is called when requests are answered.

    Raises:
        BadInputError: see :meth:`Server.start`.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def first_signal() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            stop.set()

        await server.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, first_signal)
        started(server)
        await stop.wait()
        await server.stop()

    asyncio.run(run())


def _resolve(host: str) -> str:
    """A numeric address, the same for both protocols: a name may have several."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.getnameinfo(found[0][4], socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a machine"
        raise BadInputError(
            f"cannot listen on {host or 'an empty host'}: {reason}; give --host an address of this machine, such as "
            "127.0.0.1"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    """Listen on a numeric address; on all of IPv6 (``::``) for IPv4 as well, as gRPC does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        raise BadInputError(
            f"HTTP: cannot listen on {host} port {port}: {_reason(error)}; choose another --port"
        ) from None
    # The header and the body of an answer are written apart: without this, the body waits 40 ms for the client's
    # acknowledgement. Connections inherit it; asyncio sets it only where the socket's protocol number is given.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _reason(error: OSError | OverflowError) -> str:
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else str(error)


def _add_port(server: grpc.aio.Server, host: str, port: int) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return int(server.add_insecure_port(address))
    except RuntimeError:
        raise BadInputError(
            f"gRPC: cannot listen on {host} port {port}: it is in use, or the host is not this machine's; "
            "choose another --grpc-port"
        ) from None
