"""The same check in other people's tools: ``polygraphy run`` and ``trtexec`` lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from msconv_deploy.validation.graph import OnnxGraph
from msconv_deploy.validation.inputs import Inputs

Profile = dict[str, tuple[list[int], list[int], list[int]]]


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
    profile: Profile = {}
    for spec in graph.inputs:
        if any(isinstance(dim, str) for dim in spec.dims) and cases:
            shapes = [list(case.arrays[spec.name].shape) for case in cases]
            extents = list(zip(*shapes, strict=True))
            profile[spec.name] = ([min(e) for e in extents], shapes[0], [max(e) for e in extents])
    return profile


def trtexec_command(model: Path, profile: Profile) -> str:
    """Builds and times an engine. ``--stronglyTyped``: precision is that of the graph (always so in TensorRT 11)."""
    arguments = ["trtexec", f"--onnx={model}", "--stronglyTyped"]
    for position, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
        if profile:
            shapes = (f"{name}:{'x'.join(map(str, three[position]))}" for name, three in profile.items())
            arguments.append(f"{option}={','.join(shapes)}")
    return shlex.join(arguments)
