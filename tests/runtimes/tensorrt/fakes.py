"""A stand-in for the `tensorrt` module where a GPU would be needed: it records what it is asked and computes nothing.

Only branches are tested with it (which flags a version gets, what happens to an engine of the wrong precision). What a
parser, a builder or an engine really does is never concluded from it.
"""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

from msconv_deploy.runtimes.gpu import Gpu
from msconv_deploy.runtimes.tensorrt.api import TensorRT

H200 = Gpu("Fake H200", (9, 0), (12, 6))


class FakeConfig:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.cleared: set[str] = set()
        self.limits: dict[str, int] = {}
        self.profiles: list[dict[str, tuple]] = []
        self.refuses_cache = False
        self.cache: bytes | None = None

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.cleared.add(flag.name)

    def set_memory_pool_limit(self, pool, limit):
        self.limits[pool.name] = limit

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, content):
        return SimpleNamespace(serialize=lambda: content + b"+", content=bytes(content))

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.content.startswith(b"other"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple] = {}

    def set_shape(self, name, low, best, high):
        self.shapes[name] = (low, best, high)


class FakeLayer:
    def __init__(self, kind, dtype) -> None:
        self.type, self.dtype = kind, dtype
        self.precision = self.output_type = None

    def get_input(self, index):
        return SimpleNamespace(dtype=self.dtype)

    def set_output_type(self, index, dtype):
        self.output_type = dtype


def fake_module(version: str, layers: Any = (), registered: Any = ()) -> ModuleType:
    """Attributes:
    state: what was created and asked.
    layers: what the inspector says of the engine (its ``Layers``).
    registered: (name, version, namespace) in the registry.
    """
    trt: Any = ModuleType("fake_tensorrt")
    trt.__version__ = version
    major = int(version.split(".")[0])
    state = trt.state = SimpleNamespace(network_flags=None, configs=[], network_layers=[], parsed=[], plan=b"plan")

    class ILogger:
        pass

    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    trt.ILogger = ILogger
    trt.Severity = Severity
    trt.LayerType = IntEnum("LayerType", ["CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "SHUFFLE"])
    trt.DataType = IntEnum("DataType", ["FLOAT", "HALF"])
    trt.MemoryPoolType = IntEnum("MemoryPoolType", ["WORKSPACE"])
    trt.ProfilingVerbosity = IntEnum("ProfilingVerbosity", ["DETAILED"])
    trt.TensorIOMode = IntEnum("TensorIOMode", ["INPUT", "OUTPUT"])
    trt.LayerInformationFormat = IntEnum("LayerInformationFormat", ["JSON"])
    trt.BuilderFlag = IntEnum("BuilderFlag", ["TF32", "FP16", "OBEY_PRECISION_CONSTRAINTS"])
    names = {8: ["EXPLICIT_BATCH"], 10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"], 11: ["STRONGLY_TYPED"]}[major]
    trt.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", names, start=0 if major < 11 else 1)
    if major > 8:
        trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            state.network_flags = flags
            found = state.network_layers
            return SimpleNamespace(num_inputs=0, num_layers=len(found), get_layer=found.__getitem__)

        def create_builder_config(self):
            state.configs.append(FakeConfig())
            return state.configs[-1]

        def create_optimization_profile(self):
            return FakeProfile()

        def build_serialized_network(self, network, config):
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Building engine", None, 2)
                if not monitor.step_complete("Building engine", 0):
                    return None
                monitor.phase_finish("Building engine")
            if state.plan is None:
                self.logger.log(Severity.ERROR, "no implementation for node conv")
            return state.plan

    class OnnxParser:
        num_errors = 0

        def __init__(self, network, logger):
            pass

        def parse(self, content, path):
            state.parsed.append(content)
            return True

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if plan != state.plan:
                self.logger.log(Severity.ERROR, "Serialization assertion stdVersionRead == serializationVersion failed")
                return None
            told = json.dumps({"Layers": list(layers), "Bindings": []})
            return SimpleNamespace(
                create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda kind: told),
                num_io_tensors=1,
                get_tensor_name=lambda i: "x",
                get_tensor_mode=lambda name: trt.TensorIOMode.INPUT,
                get_tensor_dtype=lambda name: trt.DataType.HALF,
                get_tensor_shape=lambda name: (-1, 3, -1, -1),
            )

    creators = [SimpleNamespace(name=n, plugin_version=v, plugin_namespace=s) for n, v, s in registered]

    class Registry:
        def load_library(self, path):
            creators.append(SimpleNamespace(name="MSConv2d", plugin_version="1", plugin_namespace=""))
            return object()

    registry = Registry()
    setattr(registry, "all_creators" if major > 8 else "plugin_creator_list", creators)
    trt.get_plugin_registry = lambda: registry
    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt


def fake_tensorrt(version: str = "10.6.0", gpu: Gpu = H200, **what: Any) -> TensorRT:
    return TensorRT(fake_module(version, **what), gpu)
