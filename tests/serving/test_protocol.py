"""Reading tensors of both protocols without a server."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")
from tritonclient.grpc import service_pb2 as pb

from msconv_deploy.serving import grpc, protocol
from msconv_deploy.serving.errors import InvalidRequestError
from msconv_deploy.serving.runtime import DATATYPES, Tensor

INTEGERS = [name for name, kind in DATATYPES.items() if np.dtype(kind).kind in "iu"]
BEYOND_DOUBLES = [1, 2**53 + 1, 2**63 - 1, 2**63 + 1, 2**64 - 1]


def model(datatype):
    return SimpleNamespace(name="m", inputs=[Tensor("x", datatype, ("N",))], outputs=[Tensor("y", datatype, ("N",))])


def over_http(datatype, values):
    entry = {"name": "x", "datatype": datatype, "shape": [len(values)], "data": values}
    return protocol.decode(json.dumps({"inputs": [entry]}).encode(), None, model(datatype)).feeds["x"]


def over_grpc(datatype, values):
    request = pb.ModelInferRequest()
    entry = request.inputs.add(name="x", datatype=datatype, shape=[len(values)])
    field = {"UINT64": "uint64", "INT64": "int64"}.get(datatype, "uint" if datatype[0] == "U" else "int")
    getattr(entry.contents, f"{field}_contents").extend(values)
    return grpc.decode(request, model(datatype)).feeds["x"]


@pytest.mark.parametrize("read", [over_http, over_grpc])
@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_read_exactly(read, datatype):
    limits = np.iinfo(DATATYPES[datatype])
    for values in ([limits.min, limits.max], [limits.max - 1], [0, 1, limits.max], []):
        found = read(datatype, [int(value) for value in values])
        assert found.dtype == DATATYPES[datatype]
        assert found.tolist() == values


@pytest.mark.parametrize("read", [over_http, over_grpc])
def test_integers_on_both_sides_of_2_63(read):
    assert read("UINT64", BEYOND_DOUBLES).tolist() == BEYOND_DOUBLES


@pytest.mark.parametrize("read", [over_http, over_grpc])
@pytest.mark.parametrize("datatype", ["UINT8", "UINT16", "INT8", "INT16"])
def test_integers_beyond_the_range_are_refused(read, datatype):
    with pytest.raises(InvalidRequestError, match=f"numbers beyond the range of {datatype}"):
        read(datatype, [0, int(np.iinfo(DATATYPES[datatype]).max) + 1])


@pytest.mark.parametrize("data", [[-1, 2**63], [1, 2**64], [1.0, 2**63], [2**63, 0.5], ["1", 2**63], [[1], [2**63, 2]]])
def test_what_is_no_uint64_is_refused(data):
    with pytest.raises(InvalidRequestError, match="input 'x': "):
        over_http("UINT64", data)
