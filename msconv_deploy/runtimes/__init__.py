"""Thin adapters around the runtimes that evaluate a network, under one small interface.

A runtime is a module with ``NAME``, ``SUBJECT``, ``version()`` and ``make_runner(subject, settings, name)``; the
runner is a Polygraphy ``BaseRunner``. The module is imported when it is asked for, so that ONNX Runtime needs no torch.
"""

from msconv_deploy.runtimes.registry import RUNTIME_NAMES, Runtime, get_runtime
from msconv_deploy.runtimes.settings import Settings

__all__ = ["RUNTIME_NAMES", "Runtime", "Settings", "get_runtime"]
