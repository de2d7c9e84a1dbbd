"""Runtimes by name, and that nothing heavy is imported before it is asked for."""

import subprocess
import sys

import pytest

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.runtimes import RUNTIME_NAMES, get_runtime, registry
from msconv_deploy.runtimes.tensorrt import bindings


def test_names():
    assert RUNTIME_NAMES == ("torch", "ort", "trt")
    assert get_runtime("ort").NAME == "ort"
    assert get_runtime("ort").SUBJECT == "onnx"
    assert get_runtime("ort").version().count(".") == 2


def test_torch():
    pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")
    assert get_runtime("torch").SUBJECT == "module"


def test_unknown_and_unavailable():
    with pytest.raises(BadInputError, match="'tflite' is unknown; available are torch, ort, trt"):
        get_runtime("tflite")


def test_trt_says_all_that_is_missing_before_anything_is_made(monkeypatch):
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    monkeypatch.setattr(bindings, "probe", lambda: ([], "no driver library libcuda.so.1"))
    monkeypatch.setattr(bindings, "_MODULES", ("no_such_tensorrt",))
    with pytest.raises(NotAvailableError) as failure:
        get_runtime("trt")
    for text in ("neither built nor run", "no NVIDIA GPU: no driver library", "no package tensorrt: pip install"):
        assert text in str(failure.value)


def test_a_library_that_is_not_installed(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(registry.importlib, "import_module", missing)
    with pytest.raises(NotAvailableError, match=r"pip install 'msconv-deploy\[torch\]'"):
        get_runtime("torch")
    with pytest.raises(ModuleNotFoundError):  # ONNX Runtime is there, something else is not: no wrong advice
        get_runtime("ort")


@pytest.mark.parametrize(
    ("imports", "absent"),
    [
        ("msconv_deploy.cli.validate, msconv_deploy.cli.doctor", "torch onnx onnxruntime polygraphy numpy pydantic"),
        ("msconv_deploy.runtimes, msconv_deploy.reporting", "torch onnx onnxruntime polygraphy tensorrt_rtx_bindings"),
        ("msconv_deploy.validation", "torch onnxruntime polygraphy"),
        ("msconv_deploy.runtimes.onnx_runtime, msconv_deploy.validation.comparator", "torch"),
        ("msconv_deploy.runtimes.environment, msconv_deploy.runtimes.tensorrt_rtx", "torch tensorrt_rtx_bindings"),
        ("msconv_deploy.cli.engine", "torch onnx onnxruntime polygraphy numpy pydantic tensorrt"),
        ("msconv_deploy.runtimes.tensorrt.engine", "torch onnxruntime polygraphy tensorrt tensorrt_bindings"),
        ("msconv_deploy.runtimes.tensorrt.runner", "torch onnxruntime tensorrt tensorrt_bindings"),
    ],
)
def test_imports_stay_light(imports, absent):
    code = f"import sys; import {imports}; print(*(m for m in {absent.split()!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
