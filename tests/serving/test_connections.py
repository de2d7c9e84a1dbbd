"""Connections that say nothing, too little, too much or too slowly, are too many, or do not read: raw sockets."""

import json
import select
import socket
import struct
import time
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import onnx
import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
import grpc
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from onnx import helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from msconv_deploy.serving.connections import MAX_HEADER_BYTES
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.service import Limits
from tests.serving.client_suite import Endpoint, tensors
from tests.serving.networks import four_sources, pointwise
from tests.serving.servers import running

TIMEOUT = 0.6
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
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


LARGE = 40_000_000
"""Bytes of an answer that does not fit into the sockets."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model whose answer is large, and a request for it."""
    path = pointwise(tmp_path_factory.mktemp("large") / "m.onnx", [helper.make_node("Expand", ["x", "shape"], ["y"])])
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([LARGE // 4, 1]), "shape"))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "M"
    onnx.save(model, path)
    body = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2]}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return path, b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def expect_ended(server):
    limit = time.monotonic() + 10
    while not server._http.server_state.connections:
        assert time.monotonic() < limit
    while server._http.server_state.connections:
        assert time.monotonic() < limit, "the connection is held"
        time.sleep(0.02)


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_a_client_that_does_not_read_its_answer(large, requests):
    """What does not fit into the sockets is held until the limit, and no longer, whatever else was asked behind it."""
    path, request = large
    with running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT)) as server:
        server._http.config.timeout_keep_alive = 1
        with connected(server) as connection:
            connection.sendall(request * requests)
            expect_ended(server)


def test_a_client_that_reads_its_answer_slowly(large):
    """It gets all of it, though that takes longer than the limit."""
    path, request = large
    with running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT)) as server, connected(server) as connection:
        connection.sendall(request)
        size, begun = 0, time.monotonic()
        while size < LARGE:
            block = connection.recv(1_000_000)
            assert block, f"cut after {size} bytes"
            size += len(block)
            time.sleep(0.03)
        assert time.monotonic() - begun > TIMEOUT


def test_grpc_answers_that_nobody_reads_are_bounded_in_number(large):
    """They keep their places in the queue, and the end of the connection ends them."""
    path, _ = large
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[np.array([2], np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    with running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT, queue=2)) as server:
        options = [("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0)]
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
            ask = channel.stream_stream(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            limit = time.monotonic() + 60
            unread = []
            for count in (1, 2):
                unread.append(ask(iter([request]), timeout=60))
                while server.service.unanswered < count:
                    assert time.monotonic() < limit
                    time.sleep(0.01)
            time.sleep(2 * TIMEOUT)
            assert server.service.unanswered == 2
            with pytest.raises(grpc.RpcError, match="the queue is full"):
                next(ask(iter([request]), timeout=60))
            while server.service.unanswered:
                assert time.monotonic() < limit, "the answers are held"
                time.sleep(0.05)
            for call in unread:
                with pytest.raises(grpc.RpcError, match="max connection age"):
                    next(call)
            assert len(next(ask(iter([request]), timeout=60)).raw_output_contents[0]) == LARGE  # on the next connection


def test_what_is_not_http_is_told_as_json(server):
    with connected(server) as connection:
        connection.sendall(b"\0\1\2\r\n\r\n")
        status, error, _ = status_and_error(until_closed(connection)[0])
        assert (status, error) == (400, "this is not an HTTP request")


POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
TOO_LARGE = {
    "one field": (b"GET /v2/health/ready HTTP/1.1\r\nx: ", b"a" * 4096),
    "many fields": (b"GET /v2/health/ready HTTP/1.1\r\n", b"x: a\r\n" * 600),
    "url": (b"GET /", b"a" * 4096),
    "trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: ", b"a" * 4096),
    "field after a request": (READY + b"GET /v2/health/ready HTTP/1.1\r\nx: ", b"a" * 4096),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_header_that_does_not_end_is_refused(path, what):
    """However long the limit of the time is, no more than the limit of a header is held."""
    begin, more = TOO_LARGE[what]
    with running(Model(path, "m", threads=1), Limits(timeout=30)) as server, connected(server) as connection:
        connection.sendall(begin)
        if begin.startswith(READY):
            assert answered(connection) == 200
        sent = 0
        while sent < 16 << 20 and not select.select([connection], [], [], 0)[0]:
            connection.sendall(more)
            sent += len(more)
        status, error, head = status_and_error(until_closed(connection)[0])
        assert (status, error) == (431, "the header is larger than 65536 bytes: send what is long in the body")
        assert b"Connection: close" in head
        assert MAX_HEADER_BYTES - 4096 <= sent < 16 << 20


def test_a_whole_header_of_a_mebibyte_is_refused(server):
    with connected(server) as connection:
        connection.sendall(READY[:-2] + b"x: " + b"a" * (1 << 20) + b"\r\n\r\n")
        assert status_and_error(until_closed(connection)[0])[0] == 431


@pytest.mark.parametrize("size", [60_000, 70_000])
def test_a_header_is_measured_and_not_what_comes_with_it(server, size):
    """It arrives in one piece, with the end of a body before it: 70 kB are too many, 60 kB are not."""
    body = b"x" * 50_000
    request = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    with connected(server) as connection:
        connection.sendall(request + READY[:-2] + b"x: " + b"a" * size + b"\r\n\r\n")
        found, _ = until_closed(connection)
    statuses = [int(part.split()[0]) for part in found.split(b"HTTP/1.1 ")[1:]]
    assert statuses == ([400, 200] if size == 60_000 else [*statuses[:-1], 431])


# -- addresses ---------------------------------------------------------------------------------------------------------


def answers_on(host, server):
    """Do both protocols answer there?"""
    with socket.create_connection((host, server.http_port), timeout=10) as connection:
        connection.sendall(READY)
        assert answered(connection) == 200
    with grpc_client.InferenceServerClient(f"{host}:{server.grpc_port}") as client:
        return client.is_server_ready()


def test_a_name_is_resolved_once_for_both_protocols(path, monkeypatch):
    """It may have several addresses, and each protocol would choose by itself."""
    real, asked = socket.getaddrinfo, []

    def resolve(host, *arguments, **options):
        asked.append(host)
        return real("127.0.0.1" if host == "here.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with running(Model(path, "m", threads=1), host="here.test") as server:
        assert asked.count("here.test") == 1
        assert answers_on("127.0.0.1", server)


def test_all_of_ipv6_is_all_of_ipv4_too_for_both_protocols(path):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with running(Model(path, "m", threads=1), host="::") as server:
        assert answers_on("127.0.0.1", server)


# -- gRPC --------------------------------------------------------------------------------------------------------------


def test_a_grpc_connection_that_sends_nothing(server):
    with connected(server, server.grpc_port) as connection:
        _, seconds = until_closed(connection)
    assert seconds < TIMEOUT + 5


def test_an_idle_grpc_connection_is_ended(server):
    """HTTP/2's preface and empty settings, and then nothing: the server says GOAWAY and closes."""
    with connected(server, server.grpc_port) as connection:
        connection.sendall(PREFACE)
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
        connection.sendall(PREFACE)
        found = b""
        while len(found) < 9 or len(found) < 9 + int.from_bytes(found[:3], "big"):
            found += connection.recv(4096)
    assert found[3] == 4
    settings = found[9 : 9 + int.from_bytes(found[:3], "big")]
    values = dict(struct.unpack(">HI", settings[at : at + 6]) for at in range(0, len(settings), 6))
    assert values[3] == 2 * Limits().queue


DATA, HEADERS, RST_STREAM, END_STREAM = 0, 1, 3, 1


def frame(kind, stream, payload, flags=0):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def half_sent(stream, method="ModelInfer"):
    """A request whose message is announced with 4 kB, of which 100 bytes come."""

    def field(name, value):
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    path = b"/inference.GRPCInferenceService/" + method.encode()
    head = b"\x83\x86" + field(b":path", path) + field(b":authority", b"x") + field(b"te", b"trailers")
    head += field(b"content-type", b"application/grpc")
    return frame(HEADERS, stream, head, 4) + frame(DATA, stream, b"\0\0\0\x10\0" + b"x" * 100)


def ended_streams(connection, count):
    """The numbers of the first streams that the server ends."""
    found, ended, at = b"", set(), 0
    while len(ended) < count:
        block = connection.recv(65536)
        assert block, (ended, found)
        found += block
        while len(found) >= at + 9 and len(found) >= at + 9 + int.from_bytes(found[at : at + 3], "big"):
            kind, flags, stream = found[at + 3], found[at + 4], int.from_bytes(found[at + 5 : at + 9], "big")
            if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                ended.add(stream)
            at += 9 + int.from_bytes(found[at : at + 3], "big")
    return ended


def counted(server, status):
    """Inference requests over gRPC that ended so."""
    line = f'msconv_requests_total{{model="m",protocol="grpc",status="{status}"}} '
    return [float(t.split()[-1]) for t in server.service.metrics.text().decode().splitlines() if t.startswith(line)]


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
def test_a_message_that_does_not_arrive(path, method):
    with (
        running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT)) as server,
        connected(server, server.grpc_port) as connection,
    ):
        begun = time.monotonic()
        connection.sendall(PREFACE + half_sent(1, method))
        assert ended_streams(connection, 1) == {1}
        assert TIMEOUT * 0.8 < time.monotonic() - begun < TIMEOUT + 3
        assert counted(server, "DEADLINE_EXCEEDED") == ([1] if method == "ModelInfer" else [])
        assert server.service.unanswered == 0


def test_messages_that_do_not_arrive_are_bounded_in_number(path):
    """As many as the queue holds, on all connections together; further ones are refused before they are read."""
    limits = Limits(timeout=30, queue=3)
    with running(Model(path, "m", threads=1), limits) as server, ExitStack() as stack:
        one, two = (stack.enter_context(connected(server, server.grpc_port)) for _ in range(2))
        one.sendall(PREFACE + half_sent(1) + half_sent(3))
        limit = time.monotonic() + 10
        while server.service.unanswered < 2:
            assert time.monotonic() < limit
            time.sleep(0.01)
        two.sendall(PREFACE + half_sent(1) + half_sent(3) + half_sent(5))
        assert ended_streams(two, 2) == {3, 5}
        assert counted(server, "RESOURCE_EXHAUSTED") == [2]
        two.sendall(b"".join(half_sent(stream, "ServerLive") for stream in range(7, 15, 2)))
        assert ended_streams(two, 1) == {13}
        with grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
            with pytest.raises(InferenceServerException, match="3 requests have begun and not arrived"):
                client.is_server_live()
            two.close()
            while True:
                with suppress(InferenceServerException):
                    if client.is_server_live():
                        break
                assert time.monotonic() < limit
        one.close()


def test_the_end_does_not_wait_for_a_message_longer_than_for_any(path):
    with running(Model(path, "m", threads=1), Limits(timeout=TIMEOUT)) as server:
        connection = socket.create_connection(("127.0.0.1", server.grpc_port))
        connection.sendall(PREFACE + half_sent(1) + half_sent(3, "ServerLive"))
        limit = time.monotonic() + 10
        while server.service.unanswered < 1:
            assert time.monotonic() < limit
            time.sleep(0.01)
        begun = time.monotonic()
    assert counted(server, "DEADLINE_EXCEEDED") == [1]  # told so, and not cut off when the time for sending was over
    assert time.monotonic() - begun < server._grace
    connection.close()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_request_has_one_message(server, path, count):
    message = grpc_message(path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        if count == 1:
            assert call(iter([message]), timeout=10)
            return
        with pytest.raises(grpc.RpcError) as refused:
            call(iter([message] * count), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    got = "more" if count else f"none of at most {Limits().max_body} bytes (--max-body)"
    assert refused.value.details() == f"ModelInfer: expected one message, got {got}"


def grpc_message(path):
    request = pb.ModelInferRequest(model_name="m")
    for name, array in Endpoint("", "", "m", path).inputs((1, 5, 7)).items():
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()
