"""ONNX Runtime: a Polygraphy runner over a session with chosen threads, optimization level and provider."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
from polygraphy.backend.onnxrt import OnnxrtRunner

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.model_files import serialized
from msconv_deploy.runtimes.settings import Settings

NAME = "ort"
SUBJECT: Literal["onnx"] = "onnx"

_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# With this entry a model that is given as bytes finds its external data in that folder.
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL_ONLY = 4  # errors arrive as exceptions; the log would say them a second time


def check_available() -> None:
    """That the package imports is all that is needed."""


def version() -> str:
    return str(onnxruntime.__version__)


def make_runner(subject: Path | str, settings: Settings, name: str) -> OnnxrtRunner:
    """A runner over a session of the file; loading it here makes a bad file an error here and not a failed comparison.

    Raises:
        BadInputError: ONNX Runtime does not accept the file.
        NotAvailableError: the provider or an operator's kernel is missing.
    """
    return OnnxrtRunner(make_session(subject, settings), name=name)


def make_session(
    path: Path | str, settings: Settings, model: onnx.ModelProto | None = None
) -> onnxruntime.InferenceSession:
    """A session of a file, or of an edited copy of it.

    Args:
        path: the file; external data lies beside it.
        settings: threads, optimization and provider.
        model: what to run instead of the file; its external data is still looked for beside ``path``.

    Raises:
        BadInputError: ONNX Runtime does not accept the file.
        NotAvailableError: the provider or an operator's kernel is missing.
    """
    if settings.provider not in onnxruntime.get_available_providers():
        raise NotAvailableError(
            f"ONNX Runtime has no {settings.provider}; it offers {', '.join(onnxruntime.get_available_providers())}. "
            "See `msconv doctor`"
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[settings.optimization]
    options.log_severity_level = _FATAL_ONLY
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
    source: str | bytes = str(path)
    if model is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(Path(path).resolve().parent))
        source = serialized(model, Path(path).parent)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[settings.provider])
    except Exception as error:  # its exception classes have no common base
        raise _explained(path, error) from None


def _explained(path: Path | str, error: Exception) -> BadInputError | NotAvailableError:
    text = str(error).strip()
    if "msconv:MSConv2d" in text and "not a registered function" in text:
        return NotAvailableError(
            f"{path}: has msconv::MSConv2d nodes without a function body, for the TensorRT plugin (plugin form). "
            "ONNX Runtime runs the fused and the portable form: msconv convert --form fused"
        )
    if type(error).__name__ == "NotImplemented":
        return NotAvailableError(f"{path}: ONNX Runtime has no kernel for an operator or type in it: {text}")
    return BadInputError(f"{path}: ONNX Runtime does not accept it: {text}")
