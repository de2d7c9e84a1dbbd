"""What goes wrong: the server stays up, says why, and other clients are not affected."""

import asyncio
import http.client
import json
import logging
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
import grpc
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from msconv_deploy.errors import BadInputError
from msconv_deploy.serving.access_log import LOGGER
from msconv_deploy.serving.batching import SHORT
from msconv_deploy.serving.errors import RunFailedError
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.protocol import MAX_JSON_BYTES
from msconv_deploy.serving.server import Server
from msconv_deploy.serving.service import Limits
from tests.serving import fuzzing
from tests.serving.client_suite import Endpoint, expect, outputs_of, tensors, wishes
from tests.serving.networks import four_sources
from tests.serving.servers import running

FUZZ = int(os.environ.get("MSCONV_FUZZ_REQUESTS", "300"))
MAX_BODY = 1 << 20


class GatedModel(Model):
    """Its runs wait while the gate is closed, and are never so short that they stay on the event loop."""

    def __init__(self, path):
        super().__init__(path, "gated", threads=1)
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0

    def run(self, feeds, outputs, run=None):
        if not hasattr(self, "gate"):  # while it is loaded
            return super().run(feeds, outputs, run)
        self.runs += 1
        assert self.gate.wait(30)
        time.sleep(SHORT)
        if run is not None and run.stopped:
            raise RunFailedError("stopped")
        return super().run(feeds, outputs, run)


class Log(logging.Handler):
    """The access log, in memory."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def emit(self, record):
        self.entries.append(json.loads(record.getMessage()))

    def wait(self, **wanted):
        """The first entry with these values; it is written just after the answer is sent."""
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            for entry in self.entries:
                if all(entry.get(key) == value for key, value in wanted.items()):
                    return entry
            time.sleep(0.005)
        raise AssertionError((wanted, self.entries))


@pytest.fixture
def log():
    handler = Log()
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return four_sources(tmp_path_factory.mktemp("model") / "gated.onnx")


class Site:
    """A server, its model, and a client's view of it."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server, self.service, self.model = server, server.service, server.service.model
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in (server.http_port, server.grpc_port))
        self.endpoint = Endpoint(self.http, self.grpc, "gated", path)

    def body(self, size=(1, 5, 7)):
        return http_client.InferenceServerClient.generate_request_body(
            tensors(http_client, self.endpoint.inputs(size)),
            outputs=wishes(http_client, self.endpoint.outputs, binary_data=True),
        )

    def post(self, body, headers, path="/v2/models/gated/infer", method="POST"):
        connection = http.client.HTTPConnection(self.http, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def ask(self, protocol="http", size=(1, 5, 7)):
        module = http_client if protocol == "http" else grpc_client
        arrays = self.endpoint.inputs(size, seed=9)
        with module.InferenceServerClient(getattr(self, protocol)) as client:
            return arrays, client.infer("gated", tensors(module, arrays))

    def expect_alive(self):
        """Other clients get right answers, and nothing is left over."""
        for protocol in ("http", "grpc"):
            arrays, result = self.ask(protocol)
            expect(self.endpoint, outputs_of(result, self.endpoint.outputs), arrays)
        self.wait(lambda: self.service.unanswered == 0 and self.service.batcher.length == 0)

    @staticmethod
    def wait(condition):
        limit = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < limit
            time.sleep(0.005)


def site_with(path, **limits):
    return running(GatedModel(path), Limits(**{"max_body": MAX_BODY} | limits))


@pytest.fixture(scope="module")
def shared(path):
    with site_with(path) as server:
        yield Site(server, path)


@pytest.fixture
def site(shared):
    yield shared
    shared.model.gate.set()
    shared.expect_alive()


def in_background(function):
    """Runs it on a thread; returns (thread, list with its result or error)."""
    found = []

    def main():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    return thread, found


# -- clients that go away ----------------------------------------------------------------------------------------------


def raw_request(site, body, length, announced=None):
    connection = socket.create_connection(("127.0.0.1", site.server.http_port))
    head = f"POST /v2/models/gated/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {announced or len(body)}\r\n"
    connection.sendall(head.encode() + f"Inference-Header-Content-Length: {length}\r\n\r\n".encode() + body)
    return connection


def test_a_client_that_disconnects_while_it_sends(site, log):
    body, length = site.body()
    raw_request(site, body[:-50], length, announced=len(body)).close()
    assert log.wait(status="499")["error"] == "the client closed the connection"


def test_a_client_that_disconnects_while_it_waits(site, log):
    site.model.gate.clear()
    runs = site.model.runs
    connections = [raw_request(site, *site.body()) for _ in range(3)]
    site.wait(lambda: site.service.unanswered == 3 and site.model.runs == runs + 1)
    for connection in connections:
        connection.close()
    site.wait(lambda: site.service.unanswered == 0 and site.service.batcher.length == 0)
    assert [entry["status"] for entry in log.entries].count("499") == 3
    site.model.gate.set()
    site.expect_alive()
    assert site.model.runs == runs + 3  # two of the three were never computed


def test_a_grpc_client_that_cancels(site, log):
    site.model.gate.clear()
    with grpc_client.InferenceServerClient(site.grpc) as client:
        answers = []
        call = client.async_infer(
            "gated", tensors(grpc_client, site.endpoint.inputs((1, 5, 7))), lambda result, error: answers.append(error)
        )
        site.wait(lambda: site.service.unanswered == 1)
        call.cancel()
        site.wait(lambda: site.service.unanswered == 0)
    assert log.wait(protocol="grpc", status="CANCELLED")["method"] == "ModelInfer"
    site.model.gate.set()


def test_bytes_that_are_not_http(site):
    for noise in (b"\x00" * 100, b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", os.urandom(5000)):
        with socket.create_connection(("127.0.0.1", site.server.http_port)) as connection:
            connection.sendall(noise + b"\r\n\r\n")
            connection.settimeout(10)
            assert connection.recv(100).startswith((b"HTTP/1.1 400", b""))
    with socket.create_connection(("127.0.0.1", site.server.grpc_port)) as connection:
        connection.sendall(os.urandom(5000))


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["announced", "chunked"])
def test_a_body_larger_than_the_limit_over_http(site, log, how):
    too_much = b"x" * (MAX_BODY + 1)
    body = too_much if how == "announced" else iter([too_much[: MAX_BODY // 2]] * 3)
    answer, text = site.post(body, {})
    assert answer.status == 413
    assert json.loads(text)["error"] == f"the body is larger than {MAX_BODY} bytes, this server's limit (--max-body)"
    assert "larger than" in log.wait(status="413")["error"]


def test_a_body_larger_than_the_limit_over_grpc(site):
    arrays = site.endpoint.inputs((1, 400, 400))
    with (
        grpc_client.InferenceServerClient(site.grpc) as client,
        pytest.raises(InferenceServerException, match=f"larger than max.*{MAX_BODY}") as refused,
    ):
        client.infer("gated", tensors(grpc_client, arrays))
    assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_json_has_a_limit_of_its_own(path):
    with site_with(path, max_body=MAX_JSON_BYTES + 1000) as server:
        site = Site(server, path)
        answer, text = site.post(b" " * (MAX_JSON_BYTES + 1), {})
        assert answer.status == 413
        assert "binary tensor extension" in json.loads(text)["error"]


def test_compressed_bodies_are_refused(site):
    answer, text = site.post(b"x", {"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert "gzip" in json.loads(text)["error"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_that_takes_too_long(path, protocol):
    with site_with(path, timeout=0.3) as server:
        site = Site(server, path)
        site.model.gate.clear()
        start = time.monotonic()
        with pytest.raises(InferenceServerException, match="not answered within") as refused:
            site.ask(protocol)
        assert 0.25 < time.monotonic() - start < 5
        assert refused.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")
        site.model.gate.set()
        site.expect_alive()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_may_allow_less_time(site, protocol):
    site.model.gate.clear()
    module = http_client if protocol == "http" else grpc_client
    with (
        module.InferenceServerClient(getattr(site, protocol)) as client,
        pytest.raises(InferenceServerException, match="not answered within 0.2 s"),
    ):
        client.infer("gated", tensors(module, site.endpoint.inputs((1, 5, 7))), timeout=200_000)


def test_a_body_that_does_not_arrive(path):
    with site_with(path, timeout=0.3) as server:
        site = Site(server, path)
        body, length = site.body()
        with raw_request(site, body[:-50], length, announced=len(body)) as connection:
            connection.settimeout(10)
            answer = b""
            while b"}" not in answer:
                answer += connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"did not arrive within 0.3 s" in answer
        site.expect_alive()


def test_a_full_queue(path):
    """Both protocols share it; those that are in it get their answers."""
    with site_with(path, queue=3) as server:
        site = Site(server, path)
        site.model.gate.clear()
        waiting = [in_background(lambda way=way: site.ask(way)) for way in ("http", "grpc", "http")]
        site.wait(lambda: site.service.unanswered == 3)
        body, length = site.body()
        answer, text = site.post(body, {"Inference-Header-Content-Length": str(length)})
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert "the queue is full: 3 requests" in json.loads(text)["error"]
        with grpc.insecure_channel(site.grpc) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                call(pb.ModelInferRequest(model_name="gated").SerializeToString())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ("retry-after", "1") in [tuple(entry) for entry in refused.value.trailing_metadata()]
        with http_client.InferenceServerClient(site.http) as client:  # it still says how it is
            assert client.is_server_ready()
        site.model.gate.set()
        for thread, found in waiting:
            thread.join(30)
            arrays, result = found[0]
            expect(site.endpoint, outputs_of(result, site.endpoint.outputs), arrays)
        site.expect_alive()


# -- wrong requests ----------------------------------------------------------------------------------------------------

WRONG = {
    "extent": (
        lambda a: a | {"scalars": a["scalars"][:, :3]},
        r"input 'scalars': expected shape \[N, 4\], got \[1, 3\]",
    ),
    "rank": (lambda a: a | {"image": a["image"][0]}, r"input 'image': expected shape \[N, 3, H, W\], got \[3, 5, 7\]"),
    "dtype": (
        lambda a: a | {"rows": a["rows"].astype(np.float16)},
        "input 'rows': expected datatype FP32, got FP16",
    ),
    "contradiction": (
        lambda a: a | {"rows": np.zeros((1, 2, 6), np.float32)},
        r"input 'rows': expected shape \[N, 2, H\], got \[1, 2, 6\]; H is 5 in input 'image'",
    ),
    "extent that would be broadcast": (
        lambda a: a | {"rows": a["rows"][:, :, :1]},
        r"input 'rows': expected shape \[N, 2, H\], got \[1, 2, 1\]; H is 5 in input 'image'",
    ),
    "two batches": (
        lambda a: a | {"rows": np.zeros((2, 2, 5), np.float32), "scalars": np.zeros((3, 4), np.float32)},
        r"input 'scalars': expected shape \[N, 4\], got \[3, 4\]; N is 2 in input 'rows'",
    ),
    "empty image": (
        lambda a: a | {"image": a["image"][:, :, :0], "rows": a["rows"][:, :, :0]},
        r"input 'image': expected at least one element, got shape \[1, 3, 0, 7\]",
    ),
    "missing": (lambda a: {k: v for k, v in a.items() if k != "rows"}, "expected also input rows, which is not given"),
    "unknown": (
        lambda a: a | {"depth": a["image"]},
        "input 'depth': model 'gated' has no such input; expected image, rows",
    ),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(site, log, protocol, what):
    change, message = WRONG[what]
    module = http_client if protocol == "http" else grpc_client
    arrays = change(site.endpoint.inputs((1, 5, 7)))
    with (
        module.InferenceServerClient(getattr(site, protocol)) as client,
        pytest.raises(InferenceServerException) as refused,
    ):
        client.infer("gated", tensors(module, arrays))
    assert re.search(message, refused.value.message())
    assert refused.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert re.search(message, log.wait(protocol=protocol)["error"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_sample_of_a_source_may_be_for_all(site, protocol):
    module = http_client if protocol == "http" else grpc_client
    arrays = site.endpoint.inputs((3, 5, 7))
    shared = arrays | {"scalars": arrays["scalars"][:1]}
    repeated = arrays | {"scalars": np.repeat(shared["scalars"], 3, axis=0)}
    with module.InferenceServerClient(getattr(site, protocol)) as client:
        result = client.infer("gated", tensors(module, shared))
    expect(site.endpoint, outputs_of(result, site.endpoint.outputs), repeated)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_unknown_model_version_and_output(site, protocol):
    module = http_client if protocol == "http" else grpc_client
    made = tensors(module, site.endpoint.inputs((1, 5, 7)))
    with module.InferenceServerClient(getattr(site, protocol)) as client:
        for arguments in ({"model_name": "nobody"}, {"model_name": "gated", "model_version": "7"}):
            with pytest.raises(
                InferenceServerException, match=r"is not served here|has no version '7', only 1"
            ) as refused:
                client.infer(inputs=made, **arguments)
            assert refused.value.status() in ("404", "StatusCode.NOT_FOUND")
        with pytest.raises(InferenceServerException, match="output 'z': .* expected y, pooled"):
            client.infer("gated", made, outputs=[module.InferRequestedOutput("z")])
        assert client.infer("gated", made, model_version="1").as_numpy("y").shape == (1, 3, 5, 7)


def test_unknown_places_answer_in_json(site):
    for method, place, status in (
        ("GET", "/", 404),
        ("GET", "/v2/models/gated/infer", 405),
        ("POST", "/v2/models/gated", 405),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/gated/versions/2/ready", 404),
    ):
        answer, text = site.post(None, {}, place, method)
        assert answer.status == status, place
        assert json.loads(text)["error"]


def test_methods_of_grpc_that_do_not_exist(site):
    with grpc_client.InferenceServerClient(site.grpc) as client, pytest.raises(InferenceServerException) as refused:
        client.load_model("gated")
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_shared_memory_is_refused_and_not_ignored(site):
    for module, address in ((http_client, site.http), (grpc_client, site.grpc)):
        made = tensors(module, site.endpoint.inputs((1, 5, 7)))
        made[0].set_shared_memory("region", 420)
        with (
            module.InferenceServerClient(address) as client,
            pytest.raises(InferenceServerException, match="shared memory is not supported"),
        ):
            client.infer("gated", made)


def json_request(**changes):
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [0.5] * 12}
    request = {
        "inputs": [
            image | changes.pop("image", {}),
            {"name": "rows", "datatype": "FP32", "shape": [1, 2, 2], "data": [[[1, 2], [3, 4]]]},
            {"name": "columns", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 2, 3, 4]},
            {"name": "scalars", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]},
        ]
    }
    return json.dumps(request | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"data": ["1"] * 12}}, "other things than numbers"),
        ({"image": {"data": [None] * 12}}, "other things than numbers"),
        ({"image": {"data": [[1, 2], [3]]}}, "not a regular list"),
        ({"image": {"data": [1.0] * 11}}, "expected 12 numbers for shape [1, 3, 2, 2], got 11"),
        ({"image": {"data": [1e39] * 12}}, "beyond the range of FP32"),
        ({"image": {"data": 5}}, "expected a list in data"),
        ({"image": {"shape": [1, 3, 2, -2]}}, "expected extents from 0 on"),
        ({"image": {"shape": "1,3,2,2"}}, "must be a list"),
        ({"image": {"shape": [0, 3, 2**39, 2**39], "data": []}}, "input 'image': expected smaller extents in shape"),
        ({"image": {"datatype": "\ud800"}}, "input 'image': expected datatype FP32, got '\\ud800'"),
        ({"image": {"name": "\ud800"}}, "input '\\ud800': model 'gated' has no such input"),
        ({"outputs": [{"name": "\ud800"}]}, "output '\\ud800': model 'gated' has no such output"),
        ({"image": {"shape": [1, 3, 2, 2.0]}}, "expected extents from 0 on"),
        ({"image": {"parameters": {"binary_data_size": 48}}}, "binary_data_size is 48, but 0 bytes are left"),
        ({"image": {"name": 7}}, "an input: has no name"),
        ({"image": {"name": "rows", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}}, "is given twice"),
        ({"inputs": {}}, "inputs: expected a list"),
        ({"inputs": None}, "inputs: expected a list"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "is asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification is not supported"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "expected true or false"),
        ({"id": 5}, "id: expected a string"),
        ({"parameters": {"timeout": "soon"}}, "expected microseconds"),
        ({"parameters": []}, "parameters: expected a JSON object"),
    ],
)
def test_malformed_fields(site, changes, message):
    answer, text = site.post(json_request(**changes), {})
    assert answer.status == 400
    assert message in json.loads(text)["error"]


def test_nan_and_infinity_go_through_json(site):
    answer, text = site.post(json_request(image={"data": [float("nan"), float("inf")] + [0.0] * 10}), {})
    assert answer.status == 200
    assert np.isnan(json.loads(text)["outputs"][0]["data"]).any()


@pytest.mark.parametrize("seed", [0])
def test_fuzzed_requests(site, caplog, seed):
    """Every one is answered, none with an internal error."""
    statuses = {}
    connection = http.client.HTTPConnection(site.http, timeout=30)
    for body, headers in fuzzing.http_requests(site.endpoint, FUZZ // 2, seed):
        connection.request("POST", "/v2/models/gated/infer", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        if answer.status == 200:
            continue
        assert answer.status in (400, 413), (answer.status, text, body[:300])
        assert json.loads(text)["error"]
    with grpc.insecure_channel(site.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for message in fuzzing.grpc_messages(site.endpoint, FUZZ // 2, seed):
            try:
                call(message, timeout=30)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
                assert status in ("INVALID_ARGUMENT", "NOT_FOUND"), (error, message[:300])
                assert error.details()
            statuses[status] = statuses.get(status, 0) + 1
    assert sum(statuses.values()) == FUZZ // 2 * 2
    assert statuses[400] > FUZZ // 4
    assert statuses["INVALID_ARGUMENT"] > FUZZ // 4
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_next_request_of_a_connection_is_not_spoiled(site):
    """What is left of a refused body does not become the next request."""
    connection = http.client.HTTPConnection(site.http, timeout=30)
    for _ in range(3):
        connection.request("POST", "/v2/models/gated/infer", b"POST / HTTP/1.1\r\n\r\n" * (MAX_BODY // 10), {})
        answer = connection.getresponse()
        assert answer.status == 413
        answer.read()
        body, length = site.body()
        connection.request("POST", "/v2/models/gated/infer", body, {"Inference-Header-Content-Length": str(length)})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_stopping_finishes_what_is_accepted_and_refuses_the_rest(path):
    with site_with(path) as server:
        site = Site(server, path)
        site.model.gate.clear()
        idle = grpc_client.InferenceServerClient(site.grpc)
        assert idle.is_server_ready()
        waiting = [in_background(lambda way=way: site.ask(way)) for way in ("http", "grpc", "http", "grpc")]
        site.wait(lambda: site.service.unanswered == 4)
        threading.Timer(0.5, site.model.gate.set).start()
    for thread, found in waiting:
        thread.join(30)
        arrays, result = found[0]
        expect(site.endpoint, outputs_of(result, site.endpoint.outputs), arrays)
    with pytest.raises(InferenceServerException):
        idle.infer("gated", tensors(grpc_client, site.endpoint.inputs((1, 5, 7))))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.http_port))


def test_ports_in_use_are_said(path, shared):
    model = shared.model
    for ports, option in (((shared.server.http_port, 0), "--port"), ((0, shared.server.grpc_port), "--grpc-port")):
        with pytest.raises(BadInputError, match=f"cannot listen on 127.0.0.1 port .*choose another {option}"):
            asyncio.run(Server(model, Limits(), "127.0.0.1", *ports).start())
    with pytest.raises(BadInputError, match=r"HTTP: cannot listen on 192\.0\.2\.1"):
        asyncio.run(Server(model, Limits(), "192.0.2.1", 0, 0).start())


# -- counting ----------------------------------------------------------------------------------------------------------


def test_statistics_do_not_grow_with_what_clients_choose(path):
    """Sizes that the server joins are counted one by one, larger ones together."""
    with site_with(path, max_batch=4) as server:
        site = Site(server, path)
        for rows in (1, 4, 5, 6, 7, 30):
            site.ask(size=(rows, 5, 7))
        stats = json.loads(site.post(None, {}, "/v2/models/gated/stats", "GET")[1])["model_stats"][0]
        counts = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in stats["batch_stats"]}
        assert counts == {1: 1, 4: 1, 5: 4}
        assert stats["inference_count"] == 53


def test_metrics_statistics_and_log_agree(path, log):
    with site_with(path) as server:
        site = Site(server, path)
        for size in ((1, 5, 7), (2, 5, 7), (1, 8, 8)):
            site.ask("http", size)
        site.ask("grpc")
        site.post(b"{", {})
        site.wait(lambda: len([e for e in log.entries if "infer" in e["method"].lower()]) == 5)
        text = site.post(None, {}, "/metrics", "GET")[1].decode()
        for line in (
            'msconv_requests_total{model="gated",protocol="http",status="200"} 3.0',
            'msconv_requests_total{model="gated",protocol="http",status="400"} 1.0',
            'msconv_requests_total{model="gated",protocol="grpc",status="OK"} 1.0',
            'msconv_run_rows_sum{model="gated"} 5.0',
            'msconv_run_seconds_count{model="gated"} 4.0',
            'msconv_requests_unanswered{model="gated"} 0.0',
        ):
            assert line in text
        stats = json.loads(site.post(None, {}, "/v2/models/gated/stats", "GET")[1])["model_stats"][0]
        assert (stats["inference_count"], stats["execution_count"]) == (5, 4)
        assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in stats["batch_stats"]] == [
            (1, 3),
            (2, 1),
        ]
        found = stats["inference_stats"]
        assert {name: duration["count"] for name, duration in found.items()} == {
            "success": 4, "fail": 1, "queue": 4, "compute_input": 4, "compute_infer": 4, "compute_output": 4,
        }  # fmt: skip
        assert found["success"]["ns"] > found["compute_infer"]["ns"] > 0
        entry = log.wait(protocol="grpc", method="ModelInfer")
        assert {"time", "peer", "ms", "id", "bytes_in", "bytes_out", "run_ms", "run_rows", "run_requests"} <= set(entry)
