"""``config.pbtxt``: made through Triton's protobuf, never as text, and compared with the model, which parsing does not do.

With ``max_batch_size`` above 0 Triton adds the batch dimension to every shape itself: ``dims`` are then those of one
sample, although clients send the batch dimension in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from msconv_deploy.errors import BadInputError
from msconv_deploy.reporting.package import Backend, PackagedTensor

WARMUP_FOLDER = "warmup"
"""Where Triton looks for warm-up data inside a model's folder; the name is Triton's."""

MODEL_FILES: Mapping[Backend, str] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
DEFAULT_QUEUE_DELAY_US = 100


@dataclass(frozen=True)
class Batching:
    """How requests are joined.

    Attributes:
        max_batch_size: 0: not at all.
        preferred: sizes that are sent off at once; empty: whatever waits when the delay is over.
        max_queue_delay_us: how long the first request may wait for others, in microseconds.
    """

    max_batch_size: int
    preferred: tuple[int, ...] = ()
    max_queue_delay_us: int = DEFAULT_QUEUE_DELAY_US

    def check(self) -> None:
        """Raises:
        BadInputError: a preferred size is larger than the largest.
        """
        wrong = [size for size in self.preferred if not 1 <= size <= self.max_batch_size]
        if wrong:
            raise BadInputError(
                f"preferred batch size {wrong[0]}: the largest batch is {self.max_batch_size}; choose one from 1 to that"
            )


@dataclass(frozen=True)
class WarmupInput:
    """One input of the warm-up sample.

    Attributes:
        file: its name in :data:`WARMUP_FOLDER`; raw values, little-endian, of a batch of 1 where requests are joined.
        shape: batch dimension included.
    """

    file: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSettings:
    """Everything that a configuration says."""

    name: str
    backend: Backend
    inputs: Sequence[PackagedTensor]
    outputs: Sequence[PackagedTensor]
    batching: Batching
    instances: int
    warmup: Mapping[str, WarmupInput]


def build_config(settings: ModelSettings) -> pb.ModelConfig:
    """The configuration of a model.

    Raises:
        BadInputError: a preferred batch size is out of range.
    """
    settings.batching.check()
    batched = settings.batching.max_batch_size > 0
    config = pb.ModelConfig(
        name=settings.name,
        backend=settings.backend,
        max_batch_size=settings.batching.max_batch_size,
        default_model_filename=MODEL_FILES[settings.backend],
    )
    for fields, tensors in ((config.input, settings.inputs), (config.output, settings.outputs)):
        for tensor in tensors:
            fields.add(name=tensor.name, data_type=_data_type(tensor.datatype), dims=tensor.shape[int(batched) :])
    config.version_policy.latest.num_versions = 1
    group = config.instance_group.add(count=settings.instances)
    if settings.backend == "tensorrt":
        group.kind = pb.ModelInstanceGroup.KIND_GPU
        group.profile.append("0")  # `msconv engine build` makes one optimization profile
    else:
        group.kind = pb.ModelInstanceGroup.KIND_AUTO  # the GPU where there is one
    if batched:
        config.dynamic_batching.preferred_batch_size.extend(settings.batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = settings.batching.max_queue_delay_us
    for batch in sorted({1, max(1, settings.batching.max_batch_size)}):
        _add_warmup(config, settings, batch)
    return config


def _add_warmup(config: pb.ModelConfig, settings: ModelSettings, batch: int) -> None:
    """The same sample, ``batch`` times. Triton reads the file once and repeats it."""
    batched = settings.batching.max_batch_size > 0
    warmup = config.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
    for tensor in settings.inputs:
        sample = settings.warmup[tensor.name]
        entry = warmup.inputs[tensor.name]
        entry.data_type = _data_type(tensor.datatype)
        entry.dims.extend(sample.shape[int(batched) :])
        entry.input_data_file = sample.file


def _data_type(datatype: str) -> int:
    return int(pb.DataType.Value(f"TYPE_{datatype}"))


def config_text(config: pb.ModelConfig) -> str:
    """The content of ``config.pbtxt``."""
    return str(text_format.MessageToString(config))


def read_config(path: Path) -> pb.ModelConfig:
    """Parse a ``config.pbtxt``.

    Raises:
        BadInputError: it is missing or not a model configuration.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: is not a Triton model configuration: {error}") from None


def check_config(
    config: pb.ModelConfig, inputs: Sequence[PackagedTensor], outputs: Sequence[PackagedTensor], where: Path
) -> None:
    """A configuration has the names, types and shapes of a model, each tensor once and nothing else.

    Raises:
        BadInputError: naming the tensor and both sides.
    """
    batched = config.max_batch_size > 0
    for kind, entries, tensors in (("input", config.input, inputs), ("output", config.output, outputs)):
        told = [entry.name for entry in entries]
        wanted = [tensor.name for tensor in tensors]
        if told != wanted:
            raise BadInputError(f"{where}: {kind}s are {', '.join(told)}, but the model's are {', '.join(wanted)}")
        for entry, tensor in zip(entries, tensors, strict=True):
            text = pb.DataType.Name(entry.data_type).removeprefix("TYPE_")
            shape = [*([-1] if batched else []), *entry.dims]
            if text != tensor.datatype or shape != tensor.shape:
                raise BadInputError(
                    f"{where}: {kind} {entry.name!r} is {text}{shape}, but the model has "
                    f"{tensor.datatype}{tensor.shape}"
                )
