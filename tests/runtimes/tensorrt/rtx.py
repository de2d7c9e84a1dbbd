"""TensorRT-RTX in a process of its own: a real parser and builder that work without a GPU, and may abort."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msconv_deploy.runtimes import tensorrt_rtx

ROOT = Path(__file__).parents[3]

needs_rtx = pytest.mark.skipif(
    not tensorrt_rtx.available(), reason="TensorRT-RTX is not installed: pip install 'msconv-deploy[rtx]'"
)

_PRELUDE = """
import json, sys
from pathlib import Path
import tensorrt_rtx_bindings
from msconv_deploy.errors import MsconvError
from msconv_deploy.runtimes.tensorrt.api import TensorRT
from msconv_deploy.runtimes.tensorrt_rtx import TARGET
from msconv_deploy.runtimes.tensorrt.build import BuildOptions, NetworkSource, build_plan
from msconv_deploy.runtimes.tensorrt.engine import EngineRequest, build_engine, load_plan, make_plan, read_source
from msconv_deploy.runtimes.tensorrt.profiles import parse_all_shapes
rtx = TensorRT(tensorrt_rtx_bindings, TARGET)
folder = Path(sys.argv[1])
def attempt(work):
    try:
        return {"ok": work()}
    except MsconvError as error:
        return {"exit": int(error.exit_code), "error": str(error)}
result = None
"""


def in_rtx(folder: Path, code: str) -> Any:
    """Run code that knows ``rtx``, ``folder`` and ``attempt`` and sets ``result``; what it set."""
    script = f"{_PRELUDE}\n{code}\nprint('RESULT ' + json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert lines, done.stdout
    return json.loads(lines[-1].removeprefix("RESULT "))
