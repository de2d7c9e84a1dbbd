"""A model in memory -> a serialized engine (*plan*). What is particular to a version is in ``api``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from msconv_deploy.errors import BuildFailedError, MsconvError
from msconv_deploy.files import write_bytes
from msconv_deploy.model_files import all_tensors
from msconv_deploy.runtimes.tensorrt.api import Precision, ProgressCallback, TensorRT
from msconv_deploy.runtimes.tensorrt.bindings import preload_builder_resource
from msconv_deploy.runtimes.tensorrt.profiles import Profile, shapes_text

logger = logging.getLogger(__name__)

_MAX_ERRORS = 20


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        optimization_level: 0 (fast to build) to 5; None: TensorRT's own default.
        workspace_bytes: limit of scratch memory; None: all of the device.
        tf32: fp32 convolutions may round their operands to TF32 (10 bits of mantissa), which TensorRT does by default.
    """

    optimization_level: int | None = None
    workspace_bytes: int | None = None
    tf32: bool = False

    def describe(self) -> str:
        """For the key of a plan."""
        level = "default" if self.optimization_level is None else self.optimization_level
        workspace = "default" if self.workspace_bytes is None else self.workspace_bytes
        return f"optimization level {level}, workspace {workspace}, TF32 {'on' if self.tf32 else 'off'}"


@dataclass(frozen=True)
class NetworkSource:
    """A model as TensorRT's parser takes it.

    Attributes:
        path: the file that it comes from: for messages, and external data lies beside it.
        content: the bytes of the ONNX file.
        precision: the graph's floating type.
    """

    path: Path
    content: bytes
    precision: Precision


@dataclass
class Built:
    """A plan, what TensorRT warned of, and how long it took.

    Attributes:
        timings: seconds, for ``parse`` and ``build``.
        timing_cache: what became of the timing cache.
    """

    plan: bytes
    warnings: list[str]
    timings: dict[str, float] = field(default_factory=dict)
    timing_cache: str = "not used"


def graph_precision(model: onnx.ModelProto) -> Precision:
    """The narrowest floating type of a model's weights and inputs."""
    types = {tensor.data_type for tensor in all_tensors(model)}
    types |= {value.type.tensor_type.elem_type for value in model.graph.input}
    if onnx.TensorProto.FLOAT16 in types:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in types else "fp32"


def build_plan(
    tensorrt: TensorRT,
    source: NetworkSource,
    profile: Profile,
    options: BuildOptions,
    timing_cache: Path | None = None,
    progress: ProgressCallback | None = None,
    parsed: Callable[[], None] = lambda: None,
) -> Built:
    """Parse and build.

    Args:
        profile: (min, opt, max) shape of every dynamic input.
        timing_cache: read if it is there, and replaced by what it is after the build.
        parsed: called when the parser has accepted the model.

    Raises:
        BuildFailedError: the parser or the builder refused; every message of theirs is in it.
    """
    tensorrt.messages.clear()
    start = time.perf_counter()
    if not tensorrt.is_rtx:
        preload_builder_resource()
    builder = tensorrt.create_builder()
    network, parser = parse_network(tensorrt, builder, source)
    parsed()
    middle = time.perf_counter()
    config = tensorrt.create_config(builder, options.optimization_level, options.workspace_bytes, options.tf32)
    tensorrt.apply_precision(network, config, source.precision)
    if profile:
        config.add_optimization_profile(_optimization_profile(tensorrt, builder, source.path, profile))
    if not tensorrt.has_timing_cache:
        timing_cache = None
    status = "not used" if timing_cache is None else _read_timing_cache(tensorrt, config, timing_cache)
    monitor = tensorrt.watch(config, progress)
    plan = builder.build_serialized_network(network, config)
    del parser  # only now: the network's weights are the parser's memory
    if monitor is not None and monitor.interrupted is not None:
        raise monitor.interrupted
    if plan is None:
        raise tensorrt.failed(f"cannot build {source.path}")
    if timing_cache is not None and (content := tensorrt.timing_cache(config)):
        _write_timing_cache(timing_cache, content)
    return Built(
        plan=bytes(plan),
        warnings=list(tensorrt.messages.warnings),
        timings={"parse": round(middle - start, 3), "build": round(time.perf_counter() - middle, 3)},
        timing_cache=status,
    )


def parse_network(tensorrt: TensorRT, builder: Any, source: NetworkSource) -> tuple[Any, Any]:
    """(network, its parser, which has to outlive the build).

    Raises:
        BuildFailedError: the parser refused the model; the message names the nodes.
    """
    network = tensorrt.create_network(builder)
    parser = tensorrt.module.OnnxParser(network, tensorrt.logger)
    if not parser.parse(source.content, str(source.path.resolve())):
        found = [_describe(parser.get_error(i)) for i in range(min(parser.num_errors, _MAX_ERRORS))]
        listed = "".join(f"\n  {text}" for text in found or tensorrt.messages.errors or ["no message"])
        raise BuildFailedError(f"{source.path}: {tensorrt.name} cannot parse it:{listed}")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise BuildFailedError(
                f"{source.path}: input {tensor.name} determines shapes: engines whose inputs do are not supported; make it "
                "a constant of the model"
            )
    return network, parser


def _describe(error: Any) -> str:
    """One parser error. Before TensorRT 10 only the node's index is known."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") and error.node_operator() else ""
    node = f"node {name!r}" if name else f"node number {error.node()}" if error.node() >= 0 else "the model"
    return f"{node}{operator}: {error.desc().strip()}"


def _optimization_profile(tensorrt: TensorRT, builder: Any, path: Path, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for name, shapes in profile.items():
        try:
            made.set_shape(name, *shapes)
        except (ValueError, RuntimeError, TypeError) as error:
            raise tensorrt.failed(f"refuses the shapes {shapes_text(name, shapes)} of {path}", error) from None
    return made


def _read_timing_cache(tensorrt: TensorRT, config: Any, path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    if tensorrt.load_timing_cache(config, content):
        return "read and extended" if content else "new"
    logger.warning(
        "%s: %s does not take this timing cache (of another version or GPU); it starts anew", path, tensorrt.name
    )
    return "replaced: it was of another version or GPU"


def _write_timing_cache(path: Path, content: bytes) -> None:
    """A timing cache only saves time: that it cannot be written is said, but fails nothing."""
    try:
        write_bytes(path, content, force=True)
    except MsconvError as error:
        logger.warning("the timing cache was not saved: %s", error)
