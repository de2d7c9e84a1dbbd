"""Connections that say nothing, too little or too slowly, are too many, or do not read: raw sockets."""

import json
import select
import socket
import struct
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import onnx
import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from onnx import helper

from msconv_deploy.serving.model import Model
from msconv_deploy.serving.service import Limits
from tests.serving.client_suite import Endpoint, tensors
from tests.serving.networks import four_sources, pointwise
from tests.serving.servers import running

TIMEOUT = 0.6
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return four_sources(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def server(path):
    with running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT, connections=4)) as server:
        yield server


@contextmanager
def connected(server, port=None):
    with socket.create_connection(("127.0.0.1", port or server.http_port), timeout=10) as connection:
        yield connection


def until_closed(connection):
    """All bytes until the server closes, and the seconds that it took."""
    begun, found = time.monotonic(), b""
    while True:
        try:
            block = connection.recv(65536)
        except ConnectionResetError:
            block = b""
        if not block:
            return found, time.monotonic() - begun
        found += block


def status_and_error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"], head


def expect_late(answer, seconds):
    status, error, head = status_and_error(answer)
    assert (status, error) == (408, f"no request arrived within {TIMEOUT:g} s")
    assert b"Connection: close" in head
    assert TIMEOUT * 0.8 < seconds < TIMEOUT + 3


def test_a_connection_that_sends_nothing(server):
    with connected(server) as connection:
        expect_late(*until_closed(connection))


def trickle(connection, data, pause):
    """Byte after byte until the server answers or closes; the seconds that it took."""
    begun = time.monotonic()
    for byte in data:
        if select.select([connection], [], [], pause)[0]:
            return time.monotonic() - begun
        connection.sendall(bytes([byte]))
    raise AssertionError("it was read to the end")


def test_a_header_that_arrives_byte_after_byte(server):
    with connected(server) as connection:
        seconds = trickle(connection, READY * 3, 0.02)
        answer, _ = until_closed(connection)
        expect_late(answer, seconds)


def answered(connection):
    """One answer without a body."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(65536)
    return int(found.split()[1])


@pytest.mark.parametrize("data", [READY[:-4] + b"x" * 400, b"\r\n" * 200], ids=["header", "empty lines"])
def test_the_second_request_may_not_trickle_either(server, data):
    with connected(server) as connection:
        connection.sendall(READY)
        assert answered(connection) == 200
        seconds = trickle(connection, data, 0.02)
        answer, _ = until_closed(connection)
        expect_late(answer, seconds)


def test_bytes_after_an_early_answer_are_not_read_for_ever(server):
    """The body of a request that was refused: read, so that the client reads the answer, but no longer than the limit."""
    with connected(server) as connection:
        connection.sendall(b"POST /v2/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
        time.sleep(0.2)
        found = connection.recv(65536)
        assert found.startswith(b"HTTP/1.1 404")
        assert trickle(connection, b"{" * 1000, 0.02) < TIMEOUT + 3


def test_a_connection_in_use_is_not_ended(server):
    """Requests one after the other, for longer than the limit."""
    with connected(server) as connection:
        end = time.monotonic() + 3 * TIMEOUT
        while time.monotonic() < end:
            connection.sendall(READY[:10])
            time.sleep(TIMEOUT / 4)
            connection.sendall(READY[10:])
            assert answered(connection) == 200
            time.sleep(TIMEOUT / 4)


def test_more_connections_than_may_be_are_refused_and_told(server):
    with ExitStack() as stack:
        held = [stack.enter_context(connected(server)) for _ in range(4)]
        for connection in held:
            connection.sendall(READY)
            assert answered(connection) == 200
        begun = time.monotonic()
        extra = stack.enter_context(connected(server))
        extra.sendall(READY)
        status, error, head = status_and_error(until_closed(extra)[0])
        assert (status, error) == (
            503,
            "4 connections are open, as many as may be (--connections); try again later",
        )
        assert b"Retry-After: 1" in head
        assert time.monotonic() - begun < 2
        for connection in held:
            connection.sendall(READY)
            assert answered(connection) == 200
    limit = time.monotonic() + 10
    while True:
        with connected(server) as connection:
            connection.sendall(READY)
            if answered(connection) == 200:
                break
        assert time.monotonic() < limit


def test_a_client_that_does_not_read_its_answer(tmp_path):
    """40 MB of answer: what does not fit into the sockets is held until the limit, and no longer."""
    path = pointwise(tmp_path / "m.onnx", [helper.make_node("Expand", ["x", "shape"], ["y"])])
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([10_000_000, 1]), "shape"))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "M"
    onnx.save(model, path)
    with running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT)) as server:
        server._http.config.timeout_keep_alive = 1
        body = json.dumps(
            {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}],
                "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
            }
        ).encode()
        request = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with connected(server) as connection:
            connection.sendall(request)
            limit = time.monotonic() + 10
            while not server._http.server_state.connections:
                assert time.monotonic() < limit
            while server._http.server_state.connections:
                assert time.monotonic() < limit, "the connection is held"
                time.sleep(0.02)
        with connected(server) as connection:  # a slow reader that reads gets all of it
            connection.sendall(request)
            size = 0
            while size < 40_000_000:
                block = connection.recv(4_000_000)
                assert block, f"cut after {size} bytes"
                size += len(block)
                time.sleep(0.02)


def test_what_is_not_http_is_told_as_json(server):
    with connected(server) as connection:
        connection.sendall(b"\0\1\2\r\n\r\n")
        status, error, _ = status_and_error(until_closed(connection)[0])
        assert (status, error) == (400, "this is not an HTTP request")


# -- gRPC --------------------------------------------------------------------------------------------------------------


def test_a_grpc_connection_that_sends_nothing(server):
    with connected(server, server.grpc_port) as connection:
        _, seconds = until_closed(connection)
    assert seconds < TIMEOUT + 5


def test_an_idle_grpc_connection_is_ended(server):
    """HTTP/2's preface and empty settings, and then nothing: the server says GOAWAY and closes."""
    with connected(server, server.grpc_port) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        found, seconds = until_closed(connection)
    kinds = []
    while len(found) >= 9:
        length = struct.unpack(">I", b"\0" + found[:3])[0]
        kinds.append(found[3])
        found = found[9 + length :]
    assert 7 in kinds  # GOAWAY
    assert seconds < TIMEOUT + 5


def test_a_grpc_client_is_not_disturbed_by_the_end_of_its_idle_connection(server, path):
    endpoint = Endpoint("", f"127.0.0.1:{server.grpc_port}", "m", path)
    with grpc_client.InferenceServerClient(endpoint.grpc) as client:
        for _ in range(2):
            client.infer("m", tensors(grpc_client, endpoint.inputs((1, 5, 7))))
            time.sleep(2.5 * TIMEOUT)
        client.infer("m", tensors(grpc_client, endpoint.inputs((1, 5, 7))))


def test_an_http_client_is_not_disturbed_by_the_end_of_its_idle_connection(server, path):
    endpoint = Endpoint(f"127.0.0.1:{server.http_port}", "", "m", path)
    with http_client.InferenceServerClient(endpoint.http) as client:
        client.infer("m", tensors(http_client, endpoint.inputs((1, 5, 7))))
        time.sleep(2.5 * TIMEOUT)
        client.infer("m", tensors(http_client, endpoint.inputs((1, 5, 7))))


def test_the_number_of_streams_of_a_connection_is_told(server):
    """In the server's SETTINGS: MAX_CONCURRENT_STREAMS is twice the queue, so that some more are refused and told."""
    with connected(server, server.grpc_port) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        found = b""
        while len(found) < 9 or len(found) < 9 + int.from_bytes(found[:3], "big"):
            found += connection.recv(4096)
    assert found[3] == 4
    settings = found[9 : 9 + int.from_bytes(found[:3], "big")]
    values = dict(struct.unpack(">HI", settings[at : at + 6]) for at in range(0, len(settings), 6))
    assert values[3] == 2 * Limits().queue
