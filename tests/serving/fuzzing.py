"""Malformed requests: right ones with bytes, fields and lengths changed at random, and plain noise. Seeded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import tritonclient.http as http_client
from tritonclient.grpc import service_pb2 as pb

from tests.serving.client_suite import Endpoint, tensors, wishes

_VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 1e308, float("nan"), 2**63, 10**40, "", "FP16", "FP32", "BYTES", "\x00", "image", "x" * 5000,
    [], {}, [[]], [1, 2], ["1"], [None], [[1], [2, 3]], [-1, 3, 8, 8], [2**40, 2**40, 2**40, 2**40], [1] * 40, {"a": 1},
    {"binary_data_size": -1}, {"binary_data_size": 10**12}, {"binary_data_size": "4"}, {"shared_memory_region": "r"},
    "\ud800", [0, 3, 2**39, 2**39],
]  # fmt: skip


def http_requests(endpoint: Endpoint, count: int, seed: int = 0) -> Iterator[tuple[bytes, dict[str, str]]]:
    """(body, headers) for ``/infer``."""
    rng = np.random.default_rng([seed, 1])
    arrays = endpoint.inputs((1, 5, 7))
    for _ in range(count):
        body, length = http_client.InferenceServerClient.generate_request_body(
            tensors(http_client, arrays), outputs=wishes(http_client, endpoint.outputs, binary_data=True)
        )
        head, rest = body[:length], body[length:]
        kind = int(rng.integers(6))
        header = str(length)
        if kind == 0:
            body = _scrambled(body, rng)
        elif kind == 1:
            body = body[: rng.integers(len(body))]
        elif kind == 2:
            head = json.dumps(_changed(json.loads(head), rng)).encode()
            body, header = head + rest, str(len(head))
        elif kind == 3:
            header = str(
                rng.choice(["", "-1", "0", "1e3", "²", "9" * 30, str(len(body) + 1), str(rng.integers(length))])
            )
        elif kind == 4:
            body = rng.bytes(int(rng.integers(200)))
        else:
            depth = int(rng.integers(1, 20000))
            body = (b"[" * depth) if rng.integers(2) else b'{"inputs":' * depth
            header = str(len(body))
        yield body, {} if rng.integers(8) == 0 else {"Inference-Header-Content-Length": header}


def grpc_messages(endpoint: Endpoint, count: int, seed: int = 0) -> Iterator[bytes]:
    """Bytes for ``ModelInfer``."""
    rng = np.random.default_rng([seed, 2])
    arrays = endpoint.inputs((1, 5, 7))
    for _ in range(count):
        request = pb.ModelInferRequest(model_name=endpoint.model)
        for name, array in arrays.items():
            request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        kind = int(rng.integers(6))
        which = request.inputs[int(rng.integers(len(request.inputs)))]
        if kind == 0:
            yield _scrambled(request.SerializeToString(), rng)
            continue
        if kind == 1:
            whole = request.SerializeToString()
            yield whole[: rng.integers(len(whole))]
            continue
        if kind == 2:
            yield rng.bytes(int(rng.integers(200)))
            continue
        if kind == 3:
            which.shape[int(rng.integers(len(which.shape)))] = int(rng.choice([-1, 0, 9, 2**62]))
        elif kind == 4:
            which.datatype = str(rng.choice(["", "FP16", "INT64", "BYTES", "x" * 3000]))
            which.parameters["shared_memory_region"].string_param = "r"
        else:
            del request.raw_input_contents[int(rng.integers(4)) :]
            which.contents.fp32_contents.extend([1.0] * int(rng.integers(40)))
        yield request.SerializeToString()


def _scrambled(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for at in rng.integers(min(len(changed), 600), size=int(rng.integers(1, 6))):
        changed[at] = int(rng.integers(256))
    return bytes(changed)


def _changed(value: Any, rng: np.random.Generator) -> Any:
    """The same JSON with one value somewhere replaced or removed."""
    if isinstance(value, (dict, list)) and value and rng.integers(5):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[int(rng.integers(len(keys)))]
        if rng.integers(6) == 0:
            del value[key]
        else:
            value[key] = _changed(value[key], rng)
        return value
    return _VALUES[int(rng.integers(len(_VALUES)))]
