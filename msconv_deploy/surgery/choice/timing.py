"""Comparing the time of two models fairly, in ONNX Runtime on one thread.

Two sessions of one and the same file differ by tens of percent, depending on how their memory happens to lie, and a busy
machine moves every number. So: several pairs of fresh sessions, the order of their creation alternating; within a pair
the runs alternate; of each session's times the 20th percentile counts; the ratio is the geometric mean over pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from msconv_deploy.model_files import serialized
from msconv_deploy.surgery.choice.extents import InputShapes, input_tensors

Feeds = Mapping[str, NDArray[Any]]


def random_feeds(model: onnx.ModelProto, shapes: InputShapes) -> dict[str, NDArray[Any]]:
    """Inputs to measure at: random floats, integers and booleans of 0 and 1; dynamic extents that are not given by default."""
    random = np.random.default_rng(0)
    weights = {t.name for t in model.graph.initializer}
    feeds: dict[str, NDArray[Any]] = {}
    for name, tensor in input_tensors(model, shapes).items():
        if name in weights:
            continue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind in "iub":
            feeds[name] = random.integers(0, 2, tensor.shape).astype(dtype)
        else:
            feeds[name] = random.standard_normal(tensor.shape).astype(dtype)
    return feeds


@dataclass(frozen=True)
class Comparison:
    """Time of the first model over time of the second: above 1 the second one is faster.

    Attributes:
        ratio: geometric mean over the pairs.
        half_width: of its 95% interval, as a factor minus 1, from the spread over the pairs.
        seconds: of the first and the second model, median over the pairs.
    """

    ratio: float
    half_width: float
    seconds: tuple[float, float]


def session(model: onnx.ModelProto, folder: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session of a model in memory whose external data lies in ``folder``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(serialized(model, folder), options, providers=["CPUExecutionProvider"])


def compare(
    first: onnx.ModelProto,
    second: onnx.ModelProto,
    folder: Path,
    feeds: Feeds,
    *,
    pairs: int = 8,
    seconds_per_pair: float = 0.6,
    threads: int = 1,
) -> Comparison:
    """Measure two models on the same feeds.

    Args:
        pairs: of fresh sessions.
        seconds_per_pair: time to spend in runs of one pair; at least 5 runs of each are made.
    """
    logs: list[float] = []
    times: tuple[list[float], list[float]] = ([], [])
    models = (first, second)
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        made = {which: session(models[which], folder, threads) for which in order}
        medians = _one_pair(made, feeds, order, seconds_per_pair)
        logs.append(math.log(medians[0] / medians[1]))
        times[0].append(medians[0])
        times[1].append(medians[1])
    spread = 1.96 * float(np.std(logs, ddof=1)) / math.sqrt(pairs) if pairs > 1 else math.inf
    middle = (float(np.median(times[0])), float(np.median(times[1])))
    return Comparison(math.exp(float(np.mean(logs))), math.expm1(spread) if spread < 700 else math.inf, middle)


def _one_pair(made: dict[int, Any], feeds: Feeds, order: tuple[int, int], budget: float) -> tuple[float, float]:
    """The 20th percentile of the times of both sessions, their runs alternating."""
    for which in order:
        made[which].run(None, feeds)
    samples: dict[int, list[float]] = {0: [], 1: []}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(samples[0]) < 5:
        for which in order:
            start = time.perf_counter()
            made[which].run(None, feeds)
            samples[which].append(time.perf_counter() - start)
    return float(np.percentile(samples[0], 20)), float(np.percentile(samples[1], 20))
