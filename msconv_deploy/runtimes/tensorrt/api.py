"""The one place where TensorRT 8.6, 10, 11 and TensorRT-RTX differ.

| | 8.6 | 10 | 11 | TensorRT-RTX |
|---|---|---|---|---|
| network | explicit batch | strongly typed, by a flag | strongly typed | strongly typed |
| precision | FP16 flag, constraints obeyed | the graph's | the graph's | the graph's |
| TF32 | off unless asked for | the same | the same | the same |
| plugin creators | `plugin_creator_list` | `all_creators` | `all_creators` | `all_creators` |
| progress monitor | none | yes | yes | yes |
| timing cache | yes | yes | yes | does nothing |
| compute capability | of the GPU | of the GPU | of the GPU | set in the configuration |

TensorRT-RTX builds without a GPU, so what is written here for it is what runs in the tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Literal

from msconv_deploy.errors import BuildFailedError, NotAvailableError
from msconv_deploy.runtimes.gpu import Gpu

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "bf16"]

_LEVELS = {"WARNING": logging.INFO, "INFO": logging.DEBUG, "VERBOSE": logging.NOTSET}
_ERRORS = ("INTERNAL_ERROR", "ERROR")


@dataclass(frozen=True)
class BuildStep:
    """What the builder is doing.

    Attributes:
        phase: its name.
        parent: the phase that it is part of; None for the outermost.
        step: steps done, of ``steps``.
        finished: the phase has ended.
    """

    phase: str
    parent: str | None
    step: int
    steps: int
    finished: bool = False


ProgressCallback = Callable[[BuildStep], None]


@dataclass
class Messages:
    """What TensorRT logged: warnings and errors, in order."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        if severity in _ERRORS:
            self.errors.append(text)
        elif severity == "WARNING" and text not in self.warnings:
            self.warnings.append(text)
        level = _LEVELS.get(severity, logging.INFO)  # an error becomes an exception: it is not said twice
        if level:
            logger.log(level, "%s: %s", severity.lower(), text)

    def clear(self) -> None:
        self.warnings.clear()
        self.errors.clear()


class TensorRT:
    """The bindings module, a device and a logger that keeps what was said.

    Args:
        module: `tensorrt` 8.6, 10 or 11, or `tensorrt_rtx_bindings`.
        gpu: the device that engines are built for.
    """

    def __init__(self, module: ModuleType, gpu: Gpu) -> None:
        self.module: Any = module
        self.gpu = gpu
        self.logger, self.messages = _logger(module)

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def is_rtx(self) -> bool:
        return str(self.module.__name__).startswith("tensorrt_rtx")

    @property
    def name(self) -> str:
        """For messages and keys, with the version."""
        return f"TensorRT{'-RTX' if self.is_rtx else ''} {self.version}"

    @property
    def _weakly_typed(self) -> bool:
        return self.major == 8

    # -- plugins -----------------------------------------------------------------------------------------------------

    def registry(self) -> Any:
        """The process's plugin registry, with TensorRT's own plugins in it. Needs no GPU.

        TensorRT-RTX has a registry per builder and takes no plugins of this project.
        """
        if hasattr(self.module, "init_libnvinfer_plugins"):
            self.module.init_libnvinfer_plugins(self.logger, "")
        return self.module.get_plugin_registry()

    @staticmethod
    def creators(registry: Any) -> list[tuple[str, str, str]]:
        """(name, version, namespace) of all creators."""
        found = registry.plugin_creator_list if not hasattr(registry, "all_creators") else registry.all_creators
        return [(c.name, c.plugin_version, c.plugin_namespace) for c in found]

    # -- building ----------------------------------------------------------------------------------------------------

    def create_builder(self) -> Any:
        """A builder. Only after ``bindings.require``: without a GPU TensorRT 10.6 aborts the process here.

        Raises:
            BuildFailedError: TensorRT cannot use the device; the reason is its own.
        """
        try:
            builder = self.module.Builder(self.logger)
        except (TypeError, RuntimeError) as error:  # 11 returns null, which the bindings refuse
            raise self.failed("cannot make a builder", error) from None
        if not builder:
            raise self.failed("cannot make a builder")
        return builder

    def create_network(self, builder: Any) -> Any:
        """An empty network, strongly typed where the version knows that."""
        flags = self.module.NetworkDefinitionCreationFlag
        if self._weakly_typed:
            return builder.create_network(1 << int(flags.EXPLICIT_BATCH))
        if self.major == 10 and not self.is_rtx:
            return builder.create_network(1 << int(flags.STRONGLY_TYPED))
        return builder.create_network(0)

    def create_config(
        self, builder: Any, optimization_level: int | None, workspace_bytes: int | None, tf32: bool
    ) -> Any:
        """A builder configuration: detailed layer information is kept, so that precision can be read back."""
        trt = self.module
        config = builder.create_builder_config()
        if optimization_level is not None:
            config.builder_optimization_level = optimization_level
        if workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.is_rtx:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._rtx_capability(), 0)
        return config

    def _rtx_capability(self) -> Any:
        name = "SM" + "".join(map(str, self.gpu.compute_capability))
        found = getattr(self.module.ComputeCapability, name, None)
        if found is None:
            raise NotAvailableError(f"{self.name} does not build for compute capability {self.gpu.capability_text}")
        return found

    def apply_precision(self, network: Any, config: Any, precision: Precision) -> None:
        """Make a weakly typed network compute in the graph's type; elsewhere the graph is obeyed anyway.

        Raises:
            NotAvailableError: the version does not know the type.
        """
        if not self._weakly_typed or precision == "fp32":
            return
        if precision == "bf16":
            raise NotAvailableError(f"{self.name} does not know bfloat16: use TensorRT 10 or later, or export in fp16")
        trt = self.module
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        computing = {trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY}
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if layer.type in computing and layer.get_input(0).dtype == trt.DataType.HALF:
                layer.precision = trt.DataType.HALF
                layer.set_output_type(0, trt.DataType.HALF)

    def watch(self, config: Any, progress: ProgressCallback | None) -> ProgressMonitor | None:
        """Report the builder's progress; None where the version cannot."""
        if not hasattr(self.module, "IProgressMonitor"):
            return None
        monitor = _progress_monitor(self.module, progress or (lambda step: None))
        config.progress_monitor = monitor
        return monitor

    @property
    def has_timing_cache(self) -> bool:
        return not self.is_rtx

    def load_timing_cache(self, config: Any, content: bytes) -> bool:
        """Attach a timing cache; False if TensorRT refused its content (another version or device): it starts empty."""
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return False

    def timing_cache(self, config: Any) -> bytes:
        """The timing cache after a build; empty where there is none."""
        cache = config.get_timing_cache()
        return b"" if cache is None else bytes(cache.serialize())

    # -- running -----------------------------------------------------------------------------------------------------

    def deserialize(self, plan: bytes) -> Any:
        """The engine of a plan, or None; the reason is in ``messages``. Only where there is a GPU."""
        return self._runtime.deserialize_cuda_engine(plan)

    @cached_property
    def _runtime(self) -> Any:
        """Kept, because engines need the runtime that they come from."""
        return self.module.Runtime(self.logger)

    def tensors(self, engine: Any, inputs: bool) -> dict[str, str]:
        """Inputs or outputs of an engine: name -> type and shape, -1 where it is dynamic."""
        mode = self.module.TensorIOMode.INPUT if inputs else self.module.TensorIOMode.OUTPUT
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return {
            name: f"{engine.get_tensor_dtype(name).name.lower()} {list(engine.get_tensor_shape(name))}"
            for name in names
            if engine.get_tensor_mode(name) == mode
        }

    def layer_information(self, engine: Any) -> str:
        """The engine inspector's JSON."""
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.module.LayerInformationFormat.JSON))

    def failed(self, what: str, error: object = None) -> BuildFailedError:
        """An error that says what TensorRT said."""
        said = self.messages.errors or ([str(error)] if error else ["no message; run it again with -vv"])
        return BuildFailedError(f"{self.name} {what}:" + "".join(f"\n  {text}" for text in said))


class ProgressMonitor:
    """What :meth:`TensorRT.watch` returns; its class also derives from the bindings' IProgressMonitor.

    Attributes:
        interrupted: what stopped the build (Ctrl-C in a callback), to be raised after the builder has returned.
    """

    interrupted: BaseException | None = None


@cache
def _logger(trt: Any) -> tuple[Any, Messages]:
    """One logger in a process, and what it keeps: TensorRT holds on to the first one that it sees."""
    messages = Messages()

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.add(str(severity).rpartition(".")[2], text)

    return Logger(), messages


def _progress_monitor(trt: Any, progress: ProgressCallback) -> ProgressMonitor:
    class Monitor(trt.IProgressMonitor, ProgressMonitor):
        """No exception may leave a callback: the builder, which is C++, could not handle it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int]] = {}

        def _report(self, phase: str, step: int, finished: bool) -> None:
            parent, steps = self.phases.get(phase, (None, 0))
            try:
                progress(BuildStep(phase, parent, step, steps, finished))
            except BaseException as error:
                self.interrupted = error

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (parent_phase or None, num_steps)
            self._report(phase_name, 0, False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1, False)
            return self.interrupted is None  # False asks the builder to stop

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self.phases.get(phase_name, (None, 0))[1], True)
            self.phases.pop(phase_name, None)

    return Monitor()
