"""Random models: scenes in one net, then dressings. The same seed and index give the same model."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx

from msconv_deploy.runtimes.opsets import newest_onnxruntime_opset
from msconv_deploy.surgery.rules import tiled_distance
from tests.fuzz.graphs.case import Case
from tests.fuzz.graphs.dressings import DRESSINGS
from tests.fuzz.graphs.scenes import ANY_TYPE, SCENES, Complete, SharingNet
from tests.surgery.graphs import symbols_of

OLDEST_OPSET = 11
_NAMED_AXES = ("N", "H", "W", "D", "T", "S", "R", "L", "P", "Q")
_VERIFIED, _DEPLOYED = 0.04, 0.25


def random_model(seed: int) -> onnx.ModelProto:
    """A valid model, the one of ``random_case(seed)``."""
    return random_case(seed).model


def random_case(seed: int, index: int = 0) -> Case:
    """A model with the sizes and options that it is checked with; sizes are values of all its symbolic dims."""
    rng = Random(f"{seed}/{index}")
    double = rng.random() < 0.06
    dtype = np.float64 if double else rng.choice([np.float32] * 5 + [np.float16])
    net = SharingNet(rng, rng.randint(OLDEST_OPSET, newest_onnxruntime_opset()), dtype)
    scenes = ANY_TYPE if double else tuple(SCENES)
    parts, completes = [], list[Complete]()
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        left = [s for s in scenes if s != "merged-axes" or s not in parts]  # its name of the merged extent is one
        scene = rng.choices(left, [SCENES[s][0] for s in left])[0]
        complete = SCENES[scene][1](net, rng)
        completes += [complete] if complete is not None else []
        parts.append(scene)
    model = net.model(producer_name="fuzz")
    for name, (share, dress) in DRESSINGS.items():
        if rng.random() < share:
            dress(model, rng)
            parts.append(name)
    return Case(
        model,
        _sizes(rng, model, completes),
        when="faster" if rng.random() < 0.25 else "always",
        allow=(tiled_distance.ID,) if rng.random() < 0.5 else (),
        form="fused" if rng.random() < 0.1 and dtype != np.float64 and model.ir_version >= 8 else "portable",
        verified=rng.random() < _VERIFIED,
        deployed=rng.random() < _DEPLOYED and not double,  # it folds a factor into FusedMatMul's float32 alpha
        parts=tuple(parts),
    )


_NEVER_EMPTY = (b"Einsum", b"InstanceNormalization", b"ConvTranspose")
"""Operators with which ONNX Runtime 1.31 ends the process where an operand is empty (SIGFPE, SIGSEGV)."""


def _needs_elements(model: onnx.ModelProto) -> bool:
    written = model.SerializeToString()
    return any(name in written for name in _NEVER_EMPTY)


def _sizes(rng: Random, model: onnx.ModelProto, completes: list[Complete]) -> list[dict[str, int]]:
    """Small ones, ones, a larger one, and now and then an empty one; only those that the model tells apart."""
    symbols = symbols_of(model)
    drawn = [dict.fromkeys(_NAMED_AXES, 1)]
    drawn += [{axis: rng.choice([1, 2, 3, 4, 5, 7]) for axis in _NAMED_AXES} for _ in range(2)]
    drawn.append({axis: 7 + i for i, axis in enumerate(_NAMED_AXES)})
    if rng.random() < 0.3 and not _needs_elements(model):
        empty = {axis: rng.choice([1, 3, 4]) for axis in _NAMED_AXES}
        present = [axis for axis in _NAMED_AXES if axis in symbols]
        if present:
            empty[rng.choice(present)] = 0
        drawn.append(empty)
    sizes: list[dict[str, int]] = []
    for assignment in drawn:
        for complete in completes:
            complete(assignment)
        known = {symbol: assignment.get(symbol, 1) for symbol in symbols}
        if known not in sizes:
            sizes.append(known)
    return sizes
