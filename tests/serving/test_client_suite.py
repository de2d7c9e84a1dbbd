"""The client suite against `msconv serve` in this process; the same suite runs against Triton (``client_suite``)."""

import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
from onnx import TensorProto

from msconv_deploy.serving.model import Model
from tests.serving import client_suite
from tests.serving.client_suite import *  # noqa: F403
from tests.serving.networks import four_sources
from tests.serving.servers import running

KINDS = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16}


@pytest.fixture(scope="module", params=client_suite.named_endpoints() or KINDS, ids=str)
def endpoint(request, tmp_path_factory):
    if isinstance(request.param, client_suite.Endpoint):
        yield request.param
        return
    path = four_sources(tmp_path_factory.mktemp("model") / f"sources_{request.param}.onnx", KINDS[request.param])
    model = Model(path, path.stem, threads=1)
    assert model.batching == ""
    with running(model) as server:
        address = [f"127.0.0.1:{port}" for port in (server.http_port, server.grpc_port)]
        yield client_suite.Endpoint(*address, path.stem, path)
