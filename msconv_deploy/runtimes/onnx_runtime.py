"""ONNX Runtime: a Polygraphy runner over a session with chosen threads, optimization level and provider."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
from polygraphy.backend.onnxrt import OnnxrtRunner

from msconv_deploy.errors import BadInputError, NotAvailableError, UnverifiedError
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
_LIMIT_VARIABLE = "MSCONV_RUN_SECONDS"
_WATCH_SECONDS = 0.5  # between two looks at the clock
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

    A run of the session raises UnverifiedError after :func:`run_limit` seconds: a Loop in a file may have no end.
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
    check_name(path)
    run_limit()  # a wrong one is not the file's fault
    source: str | bytes = str(path)
    if model is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(Path(path).resolve().parent))
        source = serialized(model, Path(path).parent)
    try:
        return _BoundedSession(source, options, providers=[settings.provider])
    except Exception as error:  # its exception classes have no common base
        raise _explained(path, error) from None


def check_name(path: Path | str) -> None:
    """ONNX Runtime takes text, and the system takes any bytes for a name.

    Raises:
        BadInputError: the name, or that of a folder above, is no UTF-8.
    """
    try:
        str(Path(path).resolve()).encode()
    except UnicodeEncodeError:
        raise BadInputError(
            f"{path}: its name is no UTF-8, which ONNX Runtime needs: give the file another one"
        ) from None


def run_limit() -> float:
    """Seconds after which a run is stopped: the environment's ``MSCONV_RUN_SECONDS``, or ten minutes.

    Raises:
        BadInputError: the variable is not a positive number.
    """
    text = os.environ.get(_LIMIT_VARIABLE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise BadInputError(f"{_LIMIT_VARIABLE}={text}: expected a number of seconds above 0")
    return seconds


class _BoundedSession(onnxruntime.InferenceSession):
    """A session whose runs end."""

    def __init__(self, source: str | bytes, *arguments: Any, **options: Any) -> None:
        self._limit = run_limit()
        super().__init__(source, *arguments, **options)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: onnxruntime.RunOptions | None = None,
    ) -> Any:
        options = run_options or onnxruntime.RunOptions()
        with _WATCH.over(options, self._limit) as entry:
            try:
                return super().run(output_names, input_feed, options)
            except Exception as error:
                if not entry.stopped:
                    raise
                raise UnverifiedError(
                    f"a run took longer than {self._limit:g} s and was stopped: has the model a Loop without end? If it needs "
                    f"longer, set {_LIMIT_VARIABLE}"
                ) from error


class _Watched:
    """A run that is under way."""

    def __init__(self, options: onnxruntime.RunOptions, seconds: float) -> None:
        self.options, self.due, self.stopped = options, time.monotonic() + seconds, False


class _Watch:
    """Stops runs at their time. One thread looks after all of them: starting one takes as long as running a small model."""

    def __init__(self) -> None:
        self._under_way: dict[int, _Watched] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @contextmanager
    def over(self, options: onnxruntime.RunOptions, seconds: float) -> Iterator[_Watched]:
        entry = _Watched(options, seconds)
        self._under_way[id(entry)] = entry
        if not self._watches():
            with self._starting:
                if not self._watches():
                    self._thread = threading.Thread(target=self._watch, name="run-limit", daemon=True)
                    self._thread.start()
        try:
            yield entry
        finally:
            del self._under_way[id(entry)]

    def _watches(self) -> bool:
        """A forked process has the attribute and not the thread."""
        return self._thread is not None and self._thread.is_alive()

    def _watch(self) -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            for entry in list(self._under_way.values()):
                if entry.due <= time.monotonic():
                    entry.stopped = True
                    entry.options.terminate = True


_WATCH = _Watch()


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
