"""TensorRT-RTX as a build check: do its ONNX parser and its builder take the file? It needs no GPU.

The engine is built for compute capability 8.6 and thrown away; no values are computed. The check runs in a process of
its own (``python -m msconv_deploy.runtimes.tensorrt_rtx MODEL --shapes NAME:MIN:OPT:MAX --json``), because the library
may abort the process, for instance on a plugin node. Only the portable and the fused form can pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msconv_deploy.errors import BadInputError, BuildFailedError
from msconv_deploy.reporting import BuildCheck
from msconv_deploy.reporting.versions import DISTRIBUTIONS, distribution_version
from msconv_deploy.runtimes.gpu import Gpu
from msconv_deploy.runtimes.tensorrt.profiles import Profile, parse_all_shapes, shapes_text

NAME = "rtx"
PACKAGE = "tensorrt_rtx_bindings"
INSTALL = "pip install 'msconv-deploy[rtx]'"

TARGET = Gpu(name="none: built for compute capability 8.6", compute_capability=(8, 6), cuda=(0, 0))
_MAX_MESSAGES = 20


def available() -> bool:
    """Is the package installed? Nothing is imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def check_build(model: Path | str, profile: Profile, timeout: float = 600.0) -> BuildCheck:
    """Parse and build in a subprocess. A crash, a time-out or a missing package is never reported as passed."""
    shapes = {name: [list(s) for s in three] for name, three in profile.items()}
    version = distribution_version(*DISTRIBUTIONS["tensorrt-rtx"])
    if not available():
        return BuildCheck(runtime=NAME, status="not available", shapes=shapes, reason=f"not installed: {INSTALL}")
    command = [sys.executable, "-m", "msconv_deploy.runtimes.tensorrt_rtx", str(model), "--json"]
    for name, three in profile.items():
        command += ["--shapes", shapes_text(name, three)]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return BuildCheck(
            runtime=NAME, status="failed", version=version, shapes=shapes, reason=f"no result within {timeout:.0f} s"
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"exited with {done.returncode}"
        return BuildCheck(
            runtime=NAME,
            status="failed",
            version=version,
            shapes=shapes,
            reason=f"the process {how}: {last[0]}",
            messages=done.stderr.strip().splitlines()[-_MAX_MESSAGES:],
        )
    passed = bool(found["parsed"] and found["built"] and done.returncode == 0)
    return BuildCheck(
        runtime=NAME,
        status="passed" if passed else "failed",
        version=version,
        seconds=round(time.perf_counter() - start, 3),
        shapes=shapes,
        reason="" if passed else "; ".join(found["messages"][:3]) or "no message",
        **found,
    )


def build_here(model: Path, profile: Profile) -> dict[str, Any]:
    """Parse and build in this process: ``parsed``, ``built``, ``engine_bytes``, ``messages`` (warnings and errors)."""
    import tensorrt_rtx_bindings as trt

    from msconv_deploy.runtimes.tensorrt.api import TensorRT
    from msconv_deploy.runtimes.tensorrt.build import BuildOptions, NetworkSource, build_plan

    tensorrt = TensorRT(trt, TARGET)
    source = NetworkSource(model, model.read_bytes(), "fp32")
    steps: list[str] = []
    try:
        built = build_plan(tensorrt, source, profile, BuildOptions(), parsed=lambda: steps.append("parsed"))
        problems, size = [], len(built.plan)
    except BuildFailedError as error:
        problems, size = [str(error)], None
    warnings = [f"warning: {text}" for text in tensorrt.messages.warnings]
    return {
        "parsed": bool(steps),
        "built": size is not None,
        "engine_bytes": size,
        "messages": [*problems, *warnings][:_MAX_MESSAGES],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The subprocess: prints the result, exit code 0 only if the engine was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shapes", action="append", default=[], metavar="NAME:MIN:OPT:MAX")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    try:
        profile = parse_all_shapes(options.shapes)
    except BadInputError as error:
        parser.error(str(error))
    if not available():
        print(f"TensorRT-RTX is not available: {INSTALL}", file=sys.stderr)
        return 3
    if not options.model.is_file():
        print(f"{options.model}: no such file", file=sys.stderr)
        return 2
    found = build_here(options.model, profile)
    if options.json:
        print(json.dumps(found))
    else:
        print(*(f"{key}: {value}" for key, value in found.items()), sep="\n")
    return 0 if found["built"] else 4


if __name__ == "__main__":
    sys.exit(main())
