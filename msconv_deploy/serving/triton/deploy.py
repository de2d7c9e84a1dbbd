"""What starts a repository: the server's command line, a compose file, a KServe manifest and a README.

The files lie in the repository's root, where Triton looks at folders only. They describe all models in it that were
packaged by this program.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msconv_deploy.errors import BadInputError
from msconv_deploy.reporting.package import ModelSidecar, PackagedTensor
from msconv_deploy.serving.triton.repository import SIDECAR
from msconv_deploy.serving.triton.yaml import to_yaml

IMAGE = "nvcr.io/nvidia/tritonserver"
DEFAULT_TAG = "25.12-py3"
TENSORRT_TAGS = {"10.6.0": "24.11-py3", "10.7.0": "24.12-py3", "10.8.0": "25.01-py3"}
"""Release of TensorRT -> image that holds it, from Triton's release compatibility matrix. A plan needs the very release."""
MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix"

COMPOSE_FILE, KSERVE_FILE, README_FILE = "compose.yaml", "inferenceservice.yaml", "README.md"
_MADE_BY = "written by msconv package; without this line it is not written again"
_HTTP, _GRPC, _METRICS = 8000, 8001, 8002


def image_tag(tag: str | None, tensorrt_version: str | None, others: Sequence[ModelSidecar]) -> str | None:
    """The tag that a model needs; None: any recent image.

    Args:
        tag: the user's.
        tensorrt_version: of its plan.
        others: models in the same repository; one server serves them all.

    Raises:
        BadInputError: it is no tag, none is known, or another model needs another one.
    """
    if tag is not None and not re.fullmatch(r"[\w][\w.-]{0,127}", tag, re.ASCII):
        raise BadInputError(f"image tag {tag!r}: write the tag alone, such as {DEFAULT_TAG}; the image is {IMAGE}")
    if tag is None and tensorrt_version is not None:
        release = ".".join(tensorrt_version.split(".")[:3])
        tag = TENSORRT_TAGS.get(release)
        if tag is None:
            raise BadInputError(
                f"the plan needs a Triton image with TensorRT {release}, and its tag is not known here: look it up in "
                f"{MATRIX} and give it with --image TAG"
            )
    for other in others:
        if tag is not None and other.image not in (None, tag):
            raise BadInputError(
                f"the model needs the Triton image {tag}, but {other.name} in the same repository needs {other.image}: "
                "choose another repository for it"
            )
    return tag


@dataclass(frozen=True)
class Deployment:
    """A repository with all its models.

    Attributes:
        models: sidecars, by name.
        storage_uri: where KServe finds the repository.
    """

    repository: Path
    models: Sequence[ModelSidecar]
    storage_uri: str

    @property
    def tag(self) -> str:
        """Of the Triton image."""
        return next((model.image for model in self.models if model.image), DEFAULT_TAG)

    @property
    def needs_gpu(self) -> bool:
        return any(model.backend == "tensorrt" for model in self.models)

    def plugin_setting(self, root: str) -> list[str]:
        """The option that loads plugin libraries before any plan; each library once, though several versions carry it."""
        files = {
            plugin.sha256: f"{root}/{plugin.file}"
            for model in self.models
            for version in model.versions.values()
            for plugin in version.plugins
        }
        return [f"--backend-config=tensorrt,plugins={';'.join(files.values())}"] if files else []

    def launch(self, root: str) -> list[str]:
        """Arguments of the server's command line, the repository being at ``root``."""
        return ["tritonserver", f"--model-repository={root}", *self.plugin_setting(root)]

    def files(self) -> dict[str, str]:
        """Name -> content."""
        return {
            COMPOSE_FILE: f"# {_MADE_BY}\n" + to_yaml(self._compose()),
            KSERVE_FILE: f"# {_MADE_BY}\n" + to_yaml(self._inference_service()),
            README_FILE: f"<!-- {_MADE_BY} -->\n" + self._readme(),
        }

    def _compose(self) -> Mapping[str, object]:
        service: dict[str, object] = {
            "image": f"{IMAGE}:{self.tag}",
            "command": self.launch("/models"),
            "ports": [f"127.0.0.1:{port}:{port}" for port in (_HTTP, _GRPC, _METRICS)],
            "volumes": [".:/models:ro"],
            "shm_size": "1gb",
            "stop_grace_period": "40s",
            "healthcheck": {
                "test": ["CMD", "curl", "-fsS", f"http://localhost:{_HTTP}/v2/health/ready"],
                "interval": "10s",
                "start_period": "60s",
            },
        }
        if self.needs_gpu:
            devices = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
            service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
        return {"services": {"triton": service}}

    def _inference_service(self) -> Mapping[str, object]:
        """KServe mounts ``storageUri`` at /mnt/models and appends ``args`` to those of its Triton runtime."""
        model: dict[str, object] = {
            "modelFormat": {"name": "triton"},
            "runtime": "kserve-tritonserver",
            "runtimeVersion": self.tag,
            "protocolVersion": "v2",
            "storageUri": self.storage_uri,
        }
        if arguments := self.plugin_setting("/mnt/models"):
            model["args"] = arguments
        if self.needs_gpu:
            model["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        return {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": kubernetes_name(self.repository.absolute().name)},
            "spec": {"predictor": {"model": model}},
        }

    def _readme(self) -> str:
        rows = "".join(
            f"| `{m.name}` | {m.backend} | {', '.join(m.versions)} | {_tensors(m.inputs)} | {_tensors(m.outputs)} |\n"
            for m in self.models
        )
        gpu = "--gpus all " if self.needs_gpu else ""
        docker = (
            f"docker run --rm {gpu}--shm-size 1g -p 127.0.0.1:{_HTTP}:{_HTTP} -p 127.0.0.1:{_GRPC}:{_GRPC} "
            f'-v "$PWD":/models:ro {IMAGE}:{self.tag} {shlex.join(self.launch("/models"))}'
        )
        plan = (
            "\nA plan runs on the TensorRT release and the kind of GPU that built it (`msconv.json` names both), with its\n"
            "plugin libraries loaded before it: that is what `--backend-config` does.\n"
            if self.needs_gpu
            else ""
        )
        return f"""# Triton model repository

| model | backend | versions | inputs | outputs |
|---|---|---|---|---|
{rows}
Served by [Triton Inference Server](https://github.com/triton-inference-server/server), with the Open Inference Protocol, on
ports {_HTTP} (HTTP), {_GRPC} (gRPC) and {_METRICS} (metrics). Run from this folder, any one of:

    {shlex.join(self.launch("$PWD")).replace("'", '"')}

    {docker}

    docker compose up

    kubectl apply -f {KSERVE_FILE}    # after this folder was copied to its storageUri

`curl -f localhost:{_HTTP}/v2/health/ready` answers when all models are loaded and warmed up.
{plan}
Each model's folder holds `config.pbtxt`, a folder for each version, the sample of its warm-up, and `{SIDECAR}`: which model it
is. Triton serves the newest version. `msconv package` with the same model updates its folder in one step, `--version` adds
a newer one, and another model is refused. A server that polls (`--model-control-mode=poll`) or is told to load the model
again takes the change up.
"""


def _tensors(tensors: Sequence[PackagedTensor]) -> str:
    return "<br>".join(f"`{tensor.name}` {tensor.datatype} {tensor.shape}" for tensor in tensors)


def kubernetes_name(text: str) -> str:
    """A label of RFC 1123: lower case letters, digits and '-', at most 63."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "models"


def is_ours(path: Path) -> bool:
    """May this file be written? Not if somebody has made it theirs."""
    if not path.exists():
        return True
    return path.is_file() and _MADE_BY in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
