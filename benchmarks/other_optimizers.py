"""The other ONNX optimizers, each with its defaults, in a process of its own: some crash, and none is required."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong  # not the built-in one before Python 3.11
from concurrent.futures.process import BrokenProcessPool

import onnx


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    return importlib.import_module("onnxsim").simplify(model)[0]


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    return importlib.import_module("onnxslim").slim(model)


def _onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    return importlib.import_module("onnxoptimizer").optimize(model)


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    return importlib.import_module("onnxscript.optimizer").optimize(model)


OPTIMIZERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
}


def _optimized(name: str, content: bytes) -> bytes | str:
    """The result of an optimizer, or why there is none."""
    try:
        importlib.import_module(name)
    except ImportError:
        return "not installed"
    try:
        return OPTIMIZERS[name](onnx.load_model_from_string(content)).SerializeToString()
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        return f"failed: {type(error).__name__} {reason[0][:160]}".rstrip()


class OtherOptimizers:
    """Runs the optimizers by name; start one with `with`."""

    def __init__(self, timeout: float = 300) -> None:
        self.timeout = timeout
        self.pool = self._start()

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> OtherOptimizers:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, name: str, content: bytes) -> bytes | str:
        """The optimized model, or "not installed", or "failed: reason"."""
        try:
            return self.pool.submit(_optimized, name, content).result(self.timeout)
        except BrokenProcessPool:
            reason = "failed: its process ended"
        except TookTooLong:
            for process in list(self.pool._processes.values()):
                process.kill()
            reason = f"failed: not done after {self.timeout:g} s"
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self._start()
        return reason
