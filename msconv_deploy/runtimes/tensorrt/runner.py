"""The runtime ``trt``: an ONNX file as a TensorRT engine, through Polygraphy's own runner.

Polygraphy drives the engine (shapes, buffers, CUDA through libcudart); what is decided here is which form TensorRT gets,
for which shapes, and that its precision is the graph's.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from polygraphy import cuda
from polygraphy.backend.trt import TrtRunner
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from msconv_deploy.errors import NotAvailableError, OutputsDifferError
from msconv_deploy.ops.forms import Form
from msconv_deploy.runtimes.prepared import PreparedRunner
from msconv_deploy.runtimes.settings import Settings
from msconv_deploy.runtimes.tensorrt.api import TensorRT
from msconv_deploy.runtimes.tensorrt.bindings import import_bindings, require
from msconv_deploy.runtimes.tensorrt.engine import ENGINE_CACHE, EngineRequest, EngineSource, make_plan, read_source
from msconv_deploy.runtimes.tensorrt.profiles import spanning

NAME = "trt"
SUBJECT: Literal["onnx"] = "onnx"


def check_available() -> None:
    """Raises:
    NotAvailableError: there is no GPU or no TensorRT; nothing has been built then.
    """
    load_cuda_runtime(require().gpu.cuda)


def version() -> str:
    return str(import_bindings().__version__)


def make_runner(subject: Path | str, settings: Settings, name: str) -> EngineRunner:
    """A runner over an engine of the file, which is built when the shapes are known.

    Raises:
        NotAvailableError: there is no GPU or no TensorRT.
        BadInputError: the file is no model.
    """
    tensorrt = require()
    load_cuda_runtime(tensorrt.gpu.cuda)
    request = EngineRequest(plugins=settings.plugins, cache=ENGINE_CACHE)
    return EngineRunner(read_source(Path(subject), request), tensorrt, name)


class EngineRunner(TrtRunner, PreparedRunner):
    """Polygraphy's runner over an engine that is built once and kept."""

    def __init__(self, source: EngineSource, tensorrt: TensorRT, name: str) -> None:
        super().__init__(self._engine, name=name)
        self.source, self.tensorrt = source, tensorrt
        self._built: Any = None

    def prepare(self, shapes: Sequence[Mapping[str, Sequence[int]]]) -> str:
        """An engine whose profile spans all of the shapes.

        Raises:
            NotAvailableError: a plugin is missing.
            BuildFailedError: TensorRT refused the model.
            OutputsDifferError: the engine does not compute in the graph's types.
        """
        if shapes:
            dynamic = self.source.profile
            profile = {name: three for name, three in spanning(shapes).items() if name in dynamic}
            self.source = replace(self.source, profile=profile)
        plan = make_plan(self.source, self.tensorrt)
        if plan.report.precision_check.verdict == "differ":
            raise OutputsDifferError(f"{self.source.path}: {plan.report.precision_check.reason}")
        self._built = self.tensorrt.deserialize(plan.content)
        if self._built is None:
            raise self.tensorrt.failed(f"cannot load the plan of {self.source.path}")
        form = Form(plan.report.form)
        how = f"{self.name}: {self.source.form.value} file as {form.value} form"
        if self.source.form == Form.FUSED and form == Form.PORTABLE:
            how += " with inlined bodies, because no plugin library was found"
        if form == Form.PLUGIN:
            how += " with " + ", ".join(library.path for library in plan.report.plugins)
        check = plan.report.precision_check
        return f"{how}; precision {check.verdict}" + (f": {check.reason}" if check.reason else "")

    def _engine(self) -> Any:
        if self._built is None:
            self.prepare([])
        return self._built


def load_cuda_runtime(driver: tuple[int, int]) -> None:
    """Let Polygraphy load libcudart. It knows LD_LIBRARY_PATH and some fixed folders, not where pip puts that of CUDA 13.

    Args:
        driver: newest CUDA version that the driver knows; a newer runtime would not work.

    Raises:
        NotAvailableError: there is none.
    """
    before = os.environ.get("LD_LIBRARY_PATH")
    folders = [str(folder) for folder in _cuda_runtime_folders(driver[0])]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            cuda.wrapper()
    except (OSError, PolygraphyException):
        raise NotAvailableError(
            "TensorRT engines cannot be run here: no CUDA runtime library (libcudart.so) was found. Add its folder to "
            f"LD_LIBRARY_PATH, or pip install nvidia-cuda-runtime-cu12 (the driver knows CUDA {driver[0]}.{driver[1]})"
        ) from None
    finally:
        if before is None:
            del os.environ["LD_LIBRARY_PATH"]
        else:
            os.environ["LD_LIBRARY_PATH"] = before


def _cuda_runtime_folders(newest: int) -> list[Path]:
    """Folders of CUDA runtimes up to this major version: where the user points, the system's, pip's; newest first."""
    places = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    places += [Path(os.environ[n]) / "lib64" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    places.append(Path("/usr/local/cuda/lib64"))
    for folder in (Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")):
        places += sorted(folder.glob("nvidia/*/lib"), reverse=True)
    usable = []
    for place in dict.fromkeys(places):
        versions = [re.fullmatch(r"libcudart\.so\.(\d+).*", file.name) for file in place.glob("libcudart.so.*")]
        majors = [int(match[1]) for match in versions if match]
        if majors and max(majors) <= newest:
            usable.append(place)
    return usable
