"""What a client of the Open Inference Protocol may expect, with `tritonclient`: for `msconv serve` and Triton alike.

A test module imports everything from here and, where the environment does not name a running server, overrides the fixture
``endpoint``. The environment: ``MSCONV_ENDPOINT_HTTP`` and ``MSCONV_ENDPOINT_GRPC`` (host:port), and
``MSCONV_ENDPOINT_MODELS``, such as ``denoiser=/models/denoiser.onnx,half=/models/half.onnx``: names on the server and the
files that they serve. Every answer is compared with a direct run of the file. ``MSCONV_ENDPOINT_SECONDS`` is the length of
the run under load.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

SECONDS = float(os.environ.get("MSCONV_ENDPOINT_SECONDS", "3"))
CLIENTS = 16
SIZES = [(1, 8, 8), (1, 5, 7), (2, 8, 8), (1, 16, 12), (3, 5, 7), (1, 1, 1), (4, 8, 8)]
"""(N, H, W): some alike but for N, so that they may be joined, some not."""

# max|a-b| / max|b|; a server may compute several requests at once, which rounds otherwise than one alone
TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float16): 4e-3}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Endpoint:
    """A served model and the file that it is made from."""

    http: str
    grpc: str
    model: str
    reference: Path

    @property
    def session(self) -> onnxruntime.InferenceSession:
        return _session(self.reference)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype({"tensor(float)": np.float32, "tensor(float16)": np.float16}[self.session.get_inputs()[0].type])

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.session.get_outputs()]

    def inputs(self, size: Sequence[int], seed: int = 0) -> Arrays:
        """Random inputs for (N, H, W)."""
        extents = dict(zip("NHW", size, strict=True))
        rng = np.random.default_rng(seed)
        shapes = {value.name: [extents.get(dim, dim) for dim in value.shape] for value in self.session.get_inputs()}
        return {name: rng.standard_normal(shape).astype(self.dtype) for name, shape in shapes.items()}

    def direct(self, arrays: Arrays) -> Arrays:
        return dict(zip(self.outputs, self.session.run(None, arrays), strict=True))


@lru_cache
def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def named_endpoints() -> list[Endpoint]:
    """Those of the environment."""
    models = [entry.partition("=") for entry in os.environ.get("MSCONV_ENDPOINT_MODELS", "").split(",") if entry]
    return [
        Endpoint(os.environ["MSCONV_ENDPOINT_HTTP"], os.environ["MSCONV_ENDPOINT_GRPC"], name, Path(path))
        for name, _, path in models
    ]


@pytest.fixture(params=named_endpoints() or [None], ids=lambda found: found.model if found else "none")
def endpoint(request) -> Endpoint:
    if request.param is None:
        pytest.skip("MSCONV_ENDPOINT_HTTP, MSCONV_ENDPOINT_GRPC and MSCONV_ENDPOINT_MODELS name no server")
    return request.param


def expect(endpoint: Endpoint, found: Arrays, arrays: Arrays, names: Sequence[str] | None = None) -> None:
    """Exactly these outputs, of the shape and type of a direct run, within rounding; NaN where that has NaN."""
    wanted = endpoint.direct(arrays)
    names = endpoint.outputs if names is None else names
    assert list(found) == list(names)
    for name in names:
        a, b = found[name], wanted[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        scale = np.nanmax(np.abs(b.astype(np.float64)), initial=0)
        worst = np.nanmax(np.abs(a.astype(np.float64) - b), initial=0)
        assert worst <= TOLERANCE[b.dtype] * scale, (name, worst, scale)


# -- one request, in every way ---------------------------------------------------------------------------------------


def tensors(client, arrays: Arrays, **binary) -> list:
    """The inputs of a request; ``binary_data`` is known to HTTP only."""
    made = []
    for name, array in arrays.items():
        entry = client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        entry.set_data_from_numpy(array, **binary)
        made.append(entry)
    return made


def wishes(client, names: Sequence[str] | None, **binary) -> list | None:
    return None if names is None else [client.InferRequestedOutput(name, **binary) for name in names]


def outputs_of(result, names: Sequence[str]) -> Arrays:
    response = result.get_response()
    listed = response["outputs"] if isinstance(response, dict) else response.outputs
    found = [entry["name"] if isinstance(entry, dict) else entry.name for entry in listed]
    assert sorted(found) == sorted(names)
    return {name: result.as_numpy(name) for name in names}


def id_of(result) -> str:
    response = result.get_response()
    return response.get("id", "") if isinstance(response, dict) else response.id


def _http(endpoint, arrays, names=None, **options):
    with http_client.InferenceServerClient(endpoint.http) as client:
        return client.infer(
            endpoint.model,
            tensors(http_client, arrays),
            outputs=wishes(http_client, names, binary_data=True),
            **options,
        )


def _json(endpoint, arrays, names=None, **options):
    names = endpoint.outputs if names is None else names
    with http_client.InferenceServerClient(endpoint.http) as client:
        return client.infer(
            endpoint.model,
            tensors(http_client, arrays, binary_data=False),
            outputs=wishes(http_client, names, binary_data=False),
            **options,
        )


def _grpc(endpoint, arrays, names=None, **options):
    with grpc_client.InferenceServerClient(endpoint.grpc) as client:
        return client.infer(endpoint.model, tensors(grpc_client, arrays), outputs=wishes(grpc_client, names), **options)


def _http_async(endpoint, arrays, names=None, **options):
    async def ask():
        async with http_aio.InferenceServerClient(endpoint.http) as client:
            return await client.infer(
                endpoint.model, tensors(http_aio, arrays), outputs=wishes(http_aio, names), **options
            )

    return asyncio.run(ask())


def _grpc_async(endpoint, arrays, names=None, **options):
    async def ask():
        async with grpc_aio.InferenceServerClient(endpoint.grpc) as client:
            return await client.infer(
                endpoint.model, tensors(grpc_aio, arrays), outputs=wishes(grpc_aio, names), **options
            )

    return asyncio.run(ask())


WAYS: dict[str, Callable] = {
    "http-binary": _http,
    "http-json": _json,
    "grpc": _grpc,
    "http-aio": _http_async,
    "grpc-aio": _grpc_async,
}


@pytest.fixture(params=WAYS)
def ask(request, endpoint):
    """A function (arrays, names=None, **options) -> result, over every protocol and client."""
    if request.param == "http-json" and endpoint.dtype == np.float16:
        pytest.skip("the protocol has no JSON form of FP16; test_half_precision_has_no_json_form is about that")
    return lambda arrays, names=None, **options: WAYS[request.param](endpoint, arrays, names, **options)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_all_four_sources(endpoint, ask, size):
    arrays = endpoint.inputs(size)
    expect(endpoint, outputs_of(ask(arrays), endpoint.outputs), arrays)


def test_every_source_counts(endpoint, ask):
    """Each source changed by itself: an endpoint that dropped or mixed up sources would not follow."""
    arrays = endpoint.inputs((1, 8, 8))
    before = endpoint.direct(arrays)
    for name in arrays:
        changed = arrays | {name: arrays[name] + np.ones((), endpoint.dtype)}
        after = endpoint.direct(changed)
        assert any(np.abs(after[key] - before[key]).max() > 0.01 for key in after), name
        expect(endpoint, outputs_of(ask(changed), endpoint.outputs), changed)


def test_named_outputs(endpoint, ask):
    arrays = endpoint.inputs((2, 8, 8), seed=1)
    for names in (endpoint.outputs[:1], endpoint.outputs[-1:], endpoint.outputs[::-1]):
        expect(endpoint, outputs_of(ask(arrays, names), names), arrays, names)


def test_request_id(endpoint, ask):
    arrays = endpoint.inputs((1, 5, 7), seed=2)
    for identity in ("a", str(uuid.uuid4())):
        assert id_of(ask(arrays, request_id=identity)) == identity


def test_nan_goes_through(endpoint):
    arrays = endpoint.inputs((1, 8, 8), seed=3)
    first = next(iter(arrays))
    arrays[first][0, 0, 0, 0] = np.nan
    assert np.isnan(endpoint.direct(arrays)[endpoint.outputs[0]]).any()
    for way in ("http-binary", "grpc"):
        expect(endpoint, outputs_of(WAYS[way](endpoint, arrays), endpoint.outputs), arrays)


def test_half_precision_has_no_json_form(endpoint):
    if endpoint.dtype != np.float16:
        pytest.skip("about FP16")
    arrays = endpoint.inputs((1, 5, 7))
    with pytest.raises(InferenceServerException):
        _json(endpoint, arrays)
    with (
        http_client.InferenceServerClient(endpoint.http) as client,
        pytest.raises(InferenceServerException, match="FP16|float16"),
    ):
        client.infer(
            endpoint.model,
            tensors(http_client, arrays),
            outputs=wishes(http_client, endpoint.outputs, binary_data=False),
        )


# -- information -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_health(endpoint, protocol):
    module = http_client if protocol == "http" else grpc_client
    with module.InferenceServerClient(getattr(endpoint, protocol)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(endpoint.model)
        assert client.is_model_ready(endpoint.model, "1")


def _plain(message):
    """A protobuf message as what HTTP answers."""
    from google.protobuf.json_format import MessageToDict

    return message if isinstance(message, dict) else MessageToDict(message, preserving_proto_field_name=True)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_metadata(endpoint, protocol):
    types = {"tensor(float)": "FP32", "tensor(float16)": "FP16"}
    module = http_client if protocol == "http" else grpc_client
    with module.InferenceServerClient(getattr(endpoint, protocol)) as client:
        assert "binary_tensor_data" in _plain(client.get_server_metadata())["extensions"]
        found = _plain(client.get_model_metadata(endpoint.model))
    assert found["name"] == endpoint.model
    assert found["versions"] == ["1"]
    for key, values in (("inputs", endpoint.session.get_inputs()), ("outputs", endpoint.session.get_outputs())):
        wanted = {v.name: (types[v.type], [d if isinstance(d, int) else -1 for d in v.shape]) for v in values}
        assert {e["name"]: (e["datatype"], [int(d) for d in e["shape"]]) for e in found[key]} == wanted


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_statistics_and_configuration(endpoint, protocol):
    module = http_client if protocol == "http" else grpc_client

    def counted(client) -> int:
        stats = _plain(client.get_inference_statistics(endpoint.model))["model_stats"][0]
        assert stats["name"] == endpoint.model
        return int(stats["inference_stats"].get("success", {}).get("count", 0))

    with module.InferenceServerClient(getattr(endpoint, protocol)) as client:
        before = counted(client)
        for _ in range(3):
            client.infer(endpoint.model, tensors(module, endpoint.inputs((1, 5, 7))))
        limit = time.monotonic() + 5
        while counted(client) < before + 3 and time.monotonic() < limit:
            time.sleep(0.01)
        assert counted(client) >= before + 3
        config = _plain(client.get_model_config(endpoint.model))
        config = config.get("config", config)
        assert {entry["name"] for entry in config["input"]} == {v.name for v in endpoint.session.get_inputs()}
        assert config["backend"] == "onnxruntime"
        assert "dynamic_batching" in config


# -- refusals --------------------------------------------------------------------------------------------------------


def wrong_requests(endpoint: Endpoint) -> dict[str, tuple[str, Arrays]]:
    """What is wrong -> (model, arrays)."""
    arrays = endpoint.inputs((1, 8, 8))
    first, last = next(iter(arrays)), list(arrays)[-1]
    other = np.float64 if endpoint.dtype == np.float32 else np.float32
    return {
        "wrong extent": (endpoint.model, arrays | {last: arrays[last][:, :-1]}),
        "wrong rank": (endpoint.model, arrays | {first: arrays[first][0]}),
        "wrong type": (endpoint.model, arrays | {first: arrays[first].astype(other)}),
        "missing input": (endpoint.model, {name: array for name, array in arrays.items() if name != last}),
        "unknown input": (endpoint.model, arrays | {"nobody": arrays[last]}),
        "unknown model": (f"{endpoint.model}_of_nobody", arrays),
    }


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    "what", ["wrong extent", "wrong rank", "wrong type", "missing input", "unknown input", "unknown model"]
)
def test_a_wrong_request_is_refused_and_the_next_is_answered(endpoint, protocol, what):
    module = http_client if protocol == "http" else grpc_client
    model, arrays = wrong_requests(endpoint)[what]
    with module.InferenceServerClient(getattr(endpoint, protocol)) as client:
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, tensors(module, arrays))
        assert len(str(refused.value)) > 20
        right = endpoint.inputs((1, 8, 8), seed=4)
        result = client.infer(endpoint.model, tensors(module, right))
    expect(endpoint, outputs_of(result, endpoint.outputs), right)


# -- load ------------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What concurrent clients counted; ``problems``: wrong or lost answers."""

    sent: int = 0
    right: int = 0
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, check: Callable[[], None]) -> None:
        """Count one request, whose answer ``check`` fetches and compares."""
        with self.lock:
            self.sent += 1
        try:
            check()
        except Exception as error:
            with self.lock:
                self.problems.append(f"{type(error).__name__}: {error}"[:300])
            return
        with self.lock:
            self.right += 1


def checked(endpoint: Endpoint, case: tuple[Arrays, Arrays], result, identity: str) -> None:
    """The answer belongs to this request, and is right: compared with a direct run that was made beforehand."""
    assert id_of(result) == identity
    for name, b in case[1].items():
        a = result.as_numpy(name)
        assert a.shape == b.shape, name
        worst, scale = np.abs(a.astype(np.float64) - b).max(), np.abs(b.astype(np.float64)).max()
        assert worst <= TOLERANCE[b.dtype] * scale, (name, worst, scale)


def load_cases(endpoint: Endpoint, variants: int = 4) -> list[tuple[Arrays, Arrays]]:
    """Inputs of mixed sizes with their direct results; several of each size, so that a swapped answer is seen."""
    made = [endpoint.inputs(size, seed) for seed in range(variants) for size in SIZES]
    return [(arrays, endpoint.direct(arrays)) for arrays in made]


def run_load(endpoint: Endpoint, way: str, seconds: float, clients: int = CLIENTS) -> Tally:
    """Concurrent clients that send mixed sizes as fast as they are answered."""
    cases, tally, end = load_cases(endpoint), Tally(), time.monotonic() + seconds

    def requests(number: int):
        order = np.random.default_rng(number).permutation(len(cases))
        for count, index in enumerate(itertools.cycle(order)):
            if time.monotonic() >= end:
                return
            yield cases[index], f"{number}-{count}"

    def sync_client(number: int) -> None:
        module = http_client if way == "http" else grpc_client
        with module.InferenceServerClient(getattr(endpoint, way)) as client:
            for case, identity in requests(number):
                made = tensors(module, case[0])
                tally.add(
                    lambda made=made, case=case, identity=identity: checked(
                        endpoint, case, client.infer(endpoint.model, made, request_id=identity), identity
                    )
                )

    async def async_client(number: int, module, address: str) -> None:
        async with module.InferenceServerClient(address) as client:
            for case, identity in requests(number):
                try:
                    result = await client.infer(endpoint.model, tensors(module, case[0]), request_id=identity)
                except Exception as error:
                    result = error

                def check(case=case, identity=identity, result=result) -> None:
                    if isinstance(result, Exception):
                        raise result
                    checked(endpoint, case, result, identity)

                tally.add(check)

    async def all_async() -> None:
        module, address = (http_aio, endpoint.http) if way == "http-aio" else (grpc_aio, endpoint.grpc)
        await asyncio.gather(*(async_client(number, module, address) for number in range(clients)))

    if way.endswith("aio"):
        asyncio.run(all_async())
        return tally
    threads = [threading.Thread(target=sync_client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    assert not any(thread.is_alive() for thread in threads)
    return tally


@pytest.mark.parametrize("way", ["http", "grpc", "http-aio", "grpc-aio"])
def test_concurrent_clients_of_mixed_sizes(endpoint, way):
    """Every answer is right and belongs to its request; none is lost."""
    tally = run_load(endpoint, way, SECONDS / 4)
    assert tally.problems == []
    assert tally.right == tally.sent >= CLIENTS
