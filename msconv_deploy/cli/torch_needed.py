"""Import of what needs torch, with an error that says how to get it."""

from __future__ import annotations

import importlib
from types import ModuleType

from msconv_deploy.errors import NotAvailableError


def import_exporting() -> ModuleType:
    """`msconv_deploy.exporting`, or NotAvailableError where torch is not installed."""
    try:
        return importlib.import_module("msconv_deploy.exporting")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("torch", "onnxscript"):
            raise
        raise NotAvailableError(f"this verb needs {error.name}: pip install 'msconv-deploy[torch]'") from error
