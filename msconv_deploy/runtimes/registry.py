"""Runtimes by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.runtimes.settings import Settings

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner


class Runtime(Protocol):
    """What an adapter module offers."""

    NAME: str
    SUBJECT: Literal["module", "onnx"]
    """What it evaluates: a PyTorch module, or an ONNX file."""

    @staticmethod
    def check_available() -> None:
        """Raises:
        NotAvailableError: something beyond the package is missing, such as a GPU.
        """

    @staticmethod
    def version() -> str:
        """Version of the library."""

    @staticmethod
    def make_runner(subject: Any, settings: Settings, name: str) -> BaseRunner:
        """A Polygraphy runner for the subject."""


# name -> (adapter, the package that it imports, how to get it)
_ADAPTERS = {
    "torch": ("msconv_deploy.runtimes.pytorch", "torch", "pip install 'msconv-deploy[torch]'"),
    "ort": ("msconv_deploy.runtimes.onnx_runtime", "onnxruntime", "pip install onnxruntime"),
    "trt": ("msconv_deploy.runtimes.tensorrt.runner", "polygraphy", "pip install polygraphy"),
}
RUNTIME_NAMES = tuple(_ADAPTERS)


def get_runtime(name: str) -> Runtime:
    """Import and return the adapter of a runtime.

    Raises:
        NotAvailableError: its library or its device is not there.
        BadInputError: there is no such runtime.
    """
    if name not in _ADAPTERS:
        raise BadInputError(f"runtime {name!r} is unknown; available are {', '.join(RUNTIME_NAMES)}")
    adapter, package, install = _ADAPTERS[name]
    try:
        runtime = cast(Runtime, importlib.import_module(adapter))
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise NotAvailableError(f"runtime {name}: {package} is not installed: {install}") from None
    runtime.check_available()
    return runtime
