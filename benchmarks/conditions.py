"""Under which conditions something was measured: when, on what, with which versions, beside how much other work."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

from msconv_deploy.reporting.versions import installed_versions

_PROCESSOR = Path("/proc/cpuinfo")


def conditions() -> dict[str, Any]:
    """What a result file records; taken at the start of a measurement, so that the load is that of others."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": installed_versions(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    found = re.search(r"^model name\s*:\s*(.+)$", _PROCESSOR.read_text(), re.MULTILINE) if _PROCESSOR.exists() else None
    return found[1].strip() if found else platform.processor() or "unknown processor"


def in_words(given: dict[str, Any]) -> str:
    """One sentence for the head of a table."""
    versions = given["versions"]
    text = f"{given['date']}, {given['processor']}, {given['cores']} cores, {given['system']}, "
    text += f"Python {versions['python']}, ONNX Runtime {versions.get('onnxruntime', 'not installed')}"
    load = given["load_before"]
    return text + (f"; load {load} before." if load is not None else ".")
