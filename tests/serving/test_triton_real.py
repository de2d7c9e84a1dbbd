"""Repositories of `msconv package` in a real Triton core. Needs ``build/triton-venv`` (`make test-triton`), else skipped.

With MSCONV_TRITON=1 the server is installed first, and not having it is a failure.
"""

import json
import os
import urllib.request

import numpy as np
import onnx
import pytest

pytest.importorskip("tritonclient", reason="serving needs its packages: pip install 'msconv-deploy[serve]'")

import tritonclient.http as client
from onnx import helper

from msconv_deploy.cli.main import main
from tests.examples.denoiser import check_results, export_denoiser, make_frames
from tests.serving import real_triton
from tests.serving.networks import four_sources, pointwise

WANTED = os.environ.get("MSCONV_TRITON") == "1"


@pytest.fixture(scope="module", autouse=True)
def triton():
    try:
        if WANTED:
            real_triton.install()
        elif not real_triton.installed():
            raise real_triton.NoTritonError("the server is not installed: make test-triton")
        else:
            real_triton.find_libpython()
    except real_triton.NoTritonError as error:
        if WANTED:
            raise
        pytest.skip(str(error))


def package(path, repository, *options):
    assert main(["package", str(path), "--triton", str(repository), "--quiet", *options]) == 0


def tensors(arrays):
    made = []
    for name, array in arrays.items():
        made.append(client.InferInput(name, list(array.shape), client.np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def infer(server, model, arrays, version=""):
    return server.infer(model, tensors(arrays), model_version=version)


def inputs(n=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"image": (n, 3, 8, 8), "rows": (n, 2, 8), "columns": (n, 2, 8), "scalars": (n, 4)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_client_suite(tmp_path):
    assert real_triton.run_suite(tmp_path, ["-q", "-x"]) == 0


def test_warm_up_batching_and_every_kind_of_model(tmp_path, capfd):
    """One repository: joined, not joined, integers, a plain file in its root; what the server says of each."""
    four_sources(tmp_path / "joined.onnx")
    pointwise(tmp_path / "mixing.onnx", [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
                                         helper.make_node("Sub", ["x", "m"], ["y"])])  # fmt: skip
    pointwise(tmp_path / "whole.onnx", [helper.make_node("Neg", ["x"], ["y"])], onnx.TensorProto.INT64, rank=1)
    repository = tmp_path / "repository"
    package(
        tmp_path / "joined.onnx", repository, "--max-batch", "4", "--preferred-batch", "4", "--queue-delay", "200000"
    )
    package(tmp_path / "mixing.onnx", repository)
    package(tmp_path / "whole.onnx", repository)
    workspace = tmp_path / "server"
    workspace.mkdir()
    with (
        real_triton.serving(repository, workspace) as endpoint,
        client.InferenceServerClient(endpoint.http, concurrency=8) as server,
    ):
        assert server.get_model_config("mixing")["max_batch_size"] == 0
        stats = server.get_inference_statistics("joined")["model_stats"][0]
        assert {entry["batch_size"] for entry in stats["batch_stats"]} == {1, 4}  # the two warm-up samples
        pending = [server.async_infer("joined", tensors(inputs(seed=seed)), request_id=str(seed)) for seed in range(4)]
        answers = [one.get_result().as_numpy("y") for one in pending]
        for seed, answer in enumerate(answers):
            alone = infer(server, "joined", inputs(seed=seed)).as_numpy("y")
            np.testing.assert_allclose(answer, alone, rtol=0, atol=2e-6 * np.abs(alone).max())
        stats = server.get_inference_statistics("joined")["model_stats"][0]
        joined = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]}
        assert joined[4] == 2, joined  # the warm-up and the four requests
        x = np.arange(6, dtype=np.float32).reshape(3, 2) ** 2
        np.testing.assert_allclose(infer(server, "mixing", {"x": x}).as_numpy("y"), x - x.mean(0), rtol=1e-6)
        whole = np.array([1, -5, 7], np.int64)
        np.testing.assert_array_equal(infer(server, "whole", {"x": whole}).as_numpy("y"), -whole)
        with urllib.request.urlopen(f"http://{endpoint.metrics}/metrics") as metrics:
            assert b"nv_inference_request_success" in metrics.read()


def test_a_new_version_is_taken_up_while_serving(tmp_path):
    """The folder is exchanged under a running server, which then loads the newer version."""
    four_sources(tmp_path / "a.onnx", width=8)
    four_sources(tmp_path / "b.onnx", width=5)
    repository = tmp_path / "repository"
    package(tmp_path / "a.onnx", repository, "--name", "m")
    workspace = tmp_path / "server"
    workspace.mkdir()
    explicit = ["--model-control-mode=explicit", "--load-model=m"]
    with (
        real_triton.serving(repository, workspace, explicit) as endpoint,
        client.InferenceServerClient(endpoint.http) as server,
    ):
        before = infer(server, "m", inputs()).as_numpy("y")
        package(tmp_path / "b.onnx", repository, "--name", "m", "--version", "2")
        np.testing.assert_array_equal(infer(server, "m", inputs()).as_numpy("y"), before)
        server.load_model("m")
        after = infer(server, "m", inputs(), "2").as_numpy("y")
        assert np.abs(after - before).max() > 0.01
        assert server.get_model_metadata("m")["versions"] == ["2"]
    assert json.loads((repository / "m" / "msconv.json").read_text())["versions"].keys() == {"1", "2"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_example_end_to_end(tmp_path, protocol):
    """The denoiser's client, as it is against `msconv serve`."""
    model = export_denoiser(tmp_path)
    frames = make_frames(tmp_path / "frames")
    from examples import denoise_folder

    package(model, tmp_path / "repository", "--name", "raw_denoiser")
    (tmp_path / "server").mkdir()
    with real_triton.serving(tmp_path / "repository", tmp_path / "server") as endpoint:
        url = getattr(endpoint, protocol)
        arguments = [str(tmp_path / "frames"), str(tmp_path / "out"), "--url", url, "--protocol", protocol]
        assert denoise_folder.main(arguments) == 0
    check_results(frames, tmp_path / "out", model)
