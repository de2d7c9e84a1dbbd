"""The same check in other people's tools: ``polygraphy run`` and ``trtexec`` lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from msconv_deploy.runtimes.tensorrt.profiles import Profile, spanning
from msconv_deploy.validation.graph import OnnxGraph
from msconv_deploy.validation.inputs import Inputs


def polygraphy_command(model: Path, inputs: Path, outputs: Path, absolute_tolerances: Mapping[str, float]) -> str:
    """Runs the file in ONNX Runtime on saved inputs and compares with saved outputs; exit code 1 if they differ.

    Polygraphy's ``max`` statistic against an absolute tolerance of ``tolerance * max|reference|`` is this project's
    difference against ``tolerance``; hence one line for each set of inputs.
    """
    arguments = ["polygraphy", "run", str(model), "--onnxrt"]
    arguments += ["--load-inputs", str(inputs), "--load-outputs", str(outputs)]
    arguments += ["--check-error-stat", "max", "--rtol", "0"]
    arguments += ["--atol", *(f"{name}:{value:.9g}" for name, value in absolute_tolerances.items())]
    return shlex.join(arguments)


def shape_profile(graph: OnnxGraph, cases: Sequence[Inputs]) -> Profile:
    """(min, opt, max) shape of every input with a dynamic dimension: over the cases, opt the first one."""
    if not cases:
        return {}
    spans = spanning([{name: array.shape for name, array in case.arrays.items()} for case in cases])
    return {spec.name: spans[spec.name] for spec in graph.inputs if any(isinstance(dim, str) for dim in spec.dims)}


def trtexec_command(model: Path, profile: Profile) -> str:
    """Builds and times an engine. ``--stronglyTyped``: precision is that of the graph (always so in TensorRT 11)."""
    arguments = ["trtexec", f"--onnx={model}", "--stronglyTyped"]
    for position, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
        if profile:
            shapes = (f"{name}:{'x'.join(map(str, three[position]))}" for name, three in profile.items())
            arguments.append(f"{option}={','.join(shapes)}")
    return shlex.join(arguments)
