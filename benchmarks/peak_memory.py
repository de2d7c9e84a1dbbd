"""Memory that a run of a model takes at its peak, beside the model and its weights.

    python benchmarks/peak_memory.py MODEL FEEDS.npz

A process of its own, so that nothing of another run is in the figure: the session is made and run once on one thread without
an arena; the peak of resident memory during that run, less what was resident before it, is printed in bytes. Linux only.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def run_bytes(model: bytes, feeds: Mapping[str, np.ndarray]) -> int | None:
    """Peak of a run in bytes; None where the system does not tell.

    Args:
        model: a file's content, weights included.
        feeds: inputs.
    """
    if not _RESET.exists():
        return None
    with tempfile.TemporaryDirectory() as place:
        file, arrays = Path(place) / "model.onnx", Path(place) / "feeds.npz"
        file.write_bytes(model)
        np.savez(arrays, **feeds)
        command = [sys.executable, __file__, str(file), str(arrays)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the run that measures memory failed: {last}")
    return int(done.stdout)


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+)", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def main() -> int:
    import onnxruntime

    file, arrays = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    with np.load(arrays) as loaded:
        feeds = dict(loaded)
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")  # the peak begins anew at what is resident now
    before = _kilobytes("VmRSS")
    session.run(None, feeds)
    print(max(0, _kilobytes("VmHWM") - before) * 1024)
    return 0


if __name__ == "__main__":
    sys.exit(main())
