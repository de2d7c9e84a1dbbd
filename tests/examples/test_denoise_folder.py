"""The client example: the reference denoiser end to end on `msconv serve`, and every way in which a frame or a server fails.

Against Triton: ``tests/serving/test_triton_real.py``.
"""

# ruff: noqa: E402

import asyncio
import json
import socket

import numpy as np
import pytest

for package in ("starlette", "uvicorn", "grpc", "tritonclient", "prometheus_client", "PIL"):
    pytest.importorskip(package, reason=f"needs {package}: pip install 'msconv-deploy[serve,models]'")

from rich.console import Console
from rich.progress import Progress
from tritonclient.utils import InferenceServerException

from examples import denoise_folder, frames
from models.raw_denoiser import sensor
from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.serving.model import Model
from msconv_deploy.serving.service import Limits
from tests.examples.denoiser import check_results, export_denoiser, make_frames
from tests.serving.networks import four_sources
from tests.serving.servers import running


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_denoiser(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    make_frames(folder)
    return folder


@pytest.fixture(scope="module")
def server(model):
    with running(Model(model, "raw_denoiser", threads=1)) as server:
        yield server


def port_of(server, protocol):
    return server.http_port if protocol == "http" else server.grpc_port


def run(folder, output, server, protocol="http", *options):
    url = f"127.0.0.1:{port_of(server, protocol)}"
    return denoise_folder.main([str(folder), str(output), "--url", url, "--protocol", protocol, *options])


# -- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_folder_end_to_end(folder, model, server, tmp_path, protocol, capfd):
    assert run(folder, tmp_path / "out", server, protocol) == 0
    found = sorted(folder.glob("*.png"))
    assert len(found) == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [p.name for p in found]
    check_results(found, tmp_path / "out", model)
    assert "6 frames denoised" in capfd.readouterr().err


def test_an_interrupted_run_goes_on(folder, server, tmp_path, capfd):
    first = sorted(folder.glob("*.png"))[0]
    (tmp_path / first.name).write_bytes(b"from before")
    assert run(folder, tmp_path, server) == 0
    assert "5 frames denoised" in capfd.readouterr().err
    assert (tmp_path / first.name).read_bytes() == b"from before"
    assert run(folder, tmp_path, server, "http", "--force") == 0
    assert (tmp_path / first.name).read_bytes() != b"from before"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_full_server_is_asked_again(folder, model, tmp_path, protocol, capfd):
    """A queue of one: the other requests really get 503 (RESOURCE_EXHAUSTED), and all frames are done in the end."""
    limits = Limits(queue=1, max_batch=1)
    with running(Model(model, "raw_denoiser", threads=1), limits) as server:
        assert run(folder, tmp_path, server, protocol, "--concurrency", "6", "--retries", "30") == 0
    check_results(sorted(folder.glob("*.png")), tmp_path, model)
    said = capfd.readouterr().err
    assert "6 frames denoised" in said
    assert " 0 requests were repeated" not in said


def test_floats_with_a_table_and_files_of_readings(folder, model, server, tmp_path):
    """The same frame as .npy, its metadata in metadata.csv, its readings in files: the same answer."""
    path = sorted(folder.glob("*.png"))[0]
    frame = frames.read_frame(path)
    metadata = json.loads(path.with_suffix(".json").read_text())
    scale = frame.white - frame.black
    given, out = tmp_path / "frames", tmp_path / "out"
    given.mkdir()
    np.save(given / "a.npy", ((frames._read_mosaic(path) - frame.black) / scale).astype(np.float32))
    for name in ("rows", "columns"):
        np.save(given / f"a.{name}.npy", np.array(metadata[name]) / scale)
    names = ["file", *frames.CONDITIONS, "rows", "columns"]
    values = ["a.npy", *(str(metadata[n]) for n in frames.CONDITIONS), "a.rows.npy", "a.columns.npy"]
    (given / "metadata.csv").write_text(f"{','.join(names)}\n{','.join(values)}\n")
    assert run(given, out, server) == 0
    assert [p.name for p in out.iterdir()] == ["a.npy"]
    assert run(folder, tmp_path / "png", server) == 0
    whole = (frames._read_mosaic(tmp_path / "png" / path.name) - frame.black) / scale
    found = np.load(out / "a.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, rtol=0, atol=0.52 / scale)


def test_a_frame_on_disk_is_the_capture(tmp_path):
    """Mosaic, readings and conditions come back as the sensor gave them, whichever axis they belong to."""
    rng = np.random.default_rng(0)
    conditions = sensor.Conditions(gain=64.0, read_noise=6.0, exposure=0.5, temperature=40.0)
    capture = sensor.capture(rng.random((4, 5, 8)), conditions, rng)
    frames.write_frame(tmp_path / "a.png", capture, conditions)
    frame = frames.read_frame(tmp_path / "a.png")
    for name, value in capture._asdict().items():
        np.testing.assert_allclose(frame.inputs[name], value[None], rtol=2e-6, atol=2e-7, err_msg=name)
    denoised = np.float32(capture.nchw)[None] / 2
    written = frames._read_mosaic(frames.write_result(frame, denoised, tmp_path))
    expected = sensor.unpack(capture.nchw.astype(np.float64) / 2) * (2**14 - 1) + frame.black
    assert np.abs(written - expected).max() <= 0.51
    with pytest.raises(BadInputError, match="black_level of 10 is too low"):
        frames.write_frame(tmp_path / "b.png", capture, conditions, black_level=10)


# -- what fails ------------------------------------------------------------------------------------------------------


def broken(metadata, path):
    """Name -> what is done to a frame, and what is said."""

    def rewrite(**changes):
        content = {k: v for k, v in (metadata | changes).items() if v is not None}
        path.with_suffix(".json").write_text(json.dumps(content))

    return {
        "no metadata": (lambda: path.with_suffix(".json").unlink(), "has no metadata"),
        "no JSON": (lambda: path.with_suffix(".json").write_text("{"), "is not JSON"),
        "no gain": (lambda: rewrite(gain=None), "metadata field gain is missing"),
        "gain of words": (lambda: rewrite(gain="high"), "gain is 'high', not a number"),
        "gain of zero": (lambda: rewrite(gain=0), "positive numbers"),
        "few rows": (lambda: rewrite(rows=[1.0, 2.0]), "metadata field rows has the shape [2]"),
        "rows elsewhere": (lambda: rewrite(rows="../a.npy"), "a file beside the frame is meant"),
        "levels": (lambda: rewrite(white_level=5), "is not above black_level"),
        "no picture": (lambda: path.write_bytes(b"\x89PNG"), "is not a frame"),
    }


@pytest.mark.parametrize("what", broken({}, None))
def test_a_broken_frame_does_not_stop_the_others(folder, server, tmp_path, capfd, what):
    for file in sorted(p for p in folder.iterdir() if p.is_file())[:6]:  # three frames
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = sorted(tmp_path.glob("*.png"))[1]
    change, message = broken(json.loads(path.with_suffix(".json").read_text()), path)[what]
    change()
    assert run(tmp_path, tmp_path / "out", server) == 1
    said = capfd.readouterr().err
    assert message in said
    assert "2 frames denoised" in said
    assert not (tmp_path / "out" / path.name).exists()


def test_another_model_is_said(folder, tmp_path, capfd):
    path = four_sources(tmp_path / "m.onnx")
    with running(Model(path, "raw_denoiser", threads=1)) as server:
        assert run(folder, tmp_path / "out", server) == 2
        assert "a denoiser has nchw, nch, ncw, nc" in capfd.readouterr().err
        assert run(folder, tmp_path / "out", server, "http", "--model", "nobody") == 2
        assert "refused" in capfd.readouterr().err


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_server(folder, tmp_path, capfd, protocol):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = [str(folder), str(tmp_path), "--url", url, "--protocol", protocol, "--retries", "1"]
        assert denoise_folder.main(arguments) == 3
    assert "given up after 2 tries" in capfd.readouterr().err


def test_the_port_of_the_other_protocol(folder, server, tmp_path, capfd):
    arguments = [str(folder), str(tmp_path), "--url", f"127.0.0.1:{server.grpc_port}"]
    assert denoise_folder.main(arguments) == 2
    assert "does not answer in HTTP: is it the port of gRPC" in capfd.readouterr().err


def test_the_address_as_the_server_prints_it(folder, server, tmp_path, capfd):
    url = f"http://127.0.0.1:{server.http_port}/"
    assert denoise_folder.main([str(folder), str(tmp_path / "out"), "--url", url]) == 0
    assert denoise_folder.main([str(folder), str(tmp_path / "out"), "--url", url, "--protocol", "grpc"]) == 2
    assert "with --protocol grpc, write host:port alone" in capfd.readouterr().err


def test_an_output_that_is_a_file(folder, tmp_path, capfd):
    (tmp_path / "out").write_text("")
    assert denoise_folder.main([str(folder), str(tmp_path / "out")]) == 2
    assert "cannot be made a folder: File exists" in capfd.readouterr().err


def test_no_frames_and_the_same_folder(folder, tmp_path, capfd):
    assert denoise_folder.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no frames" in capfd.readouterr().err
    assert denoise_folder.main([str(folder), str(folder)]) == 2
    assert "would replace the frames" in capfd.readouterr().err


# -- patience and concurrency, with a client that plays the server ---------------------------------------------------


class Client:
    """Answers as it is told: exceptions first, then the image."""

    def __init__(self, errors=(), wait=0.0):
        self.errors, self.wait = list(errors), wait
        self.asked = self.under_way = self.most = 0

    async def infer(self, model, inputs, outputs, request_id):
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.wait)
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.under_way -= 1
        return self

    def as_numpy(self, name):
        return self.image


def denoiser(client, retries=3, timeout=5.0):
    made = denoise_folder.Denoiser("nowhere", "http", "m", timeout, retries)
    made.client, made._output = client, "denoised"
    made._dtypes = dict.fromkeys(denoise_folder.SOURCES, np.float32)
    return made


ARRAYS = {"nchw": np.ones((1, 4, 3, 2)), "nch": np.ones((1, 2, 3)), "ncw": np.ones((1, 2, 2)), "nc": np.ones((1, 4))}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(denoise_folder, "_FIRST_WAIT", 0.02)


@pytest.mark.parametrize("status", ["503", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED"])
def test_what_may_pass_is_tried_again(status):
    client = Client([InferenceServerException("full", status), ConnectionResetError("gone")])
    client.image = ARRAYS["nchw"]
    made = denoiser(client)
    assert asyncio.run(made.denoise(ARRAYS, "a")) is client.image
    assert (client.asked, made.retried) == (3, 2)


def test_what_does_not_pass_is_not_tried_again():
    client = Client([InferenceServerException("wrong shape", "400")])
    with pytest.raises(BadInputError, match="wrong shape"):
        asyncio.run(denoiser(client).denoise(ARRAYS, "a"))
    assert client.asked == 1


def test_an_answer_that_does_not_come():
    client = Client(wait=60)
    with pytest.raises(NotAvailableError, match="no answer within 0.05 s; given up after 3 tries"):
        asyncio.run(denoiser(client, retries=2, timeout=0.05).denoise(ARRAYS, "a"))
    assert client.asked == 3


def test_an_answer_of_another_shape():
    client = Client()
    client.image = ARRAYS["nch"]
    with pytest.raises(BadInputError, match="the server answered"):
        asyncio.run(denoiser(client).denoise(ARRAYS, "a"))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_than_that_many_at_once(folder, tmp_path, concurrency):
    class Echo(Client):
        async def infer(self, model, inputs, outputs, request_id):
            self.image = np.zeros(inputs[0].shape(), np.float32)
            image = self.image
            await super().infer(model, inputs, outputs, request_id)
            return type("Answer", (), {"as_numpy": lambda self, name: image})()

    client, found = Echo(wait=0.02), sorted(folder.glob("*.png"))
    with Progress(console=Console(quiet=True)) as progress:
        outcome = asyncio.run(denoise_folder.denoise_folder(found, tmp_path, denoiser(client), concurrency, progress))
    assert (len(outcome.written), outcome.failed, client.most) == (6, {}, concurrency)
