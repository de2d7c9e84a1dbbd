"""Time of GPU work in microseconds: replays of a CUDA graph, timed by events, over tensors that do not fit in the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

ROTATED_BYTES = 1 << 28
"""Tensors are rotated until they hold this much, several times any L2 cache: what is timed reads memory, not the cache."""


def rotation(bytes_moved: int) -> int:
    """How many sets of tensors to rotate among."""
    return max(2, min(16, -(-ROTATED_BYTES // bytes_moved)))


def microseconds(work: Callable[[int], Any], sets: int, replays: int = 15) -> float:
    """Median time of one call of ``work(index)``, where ``index`` runs over the sets of tensors.

    All calls are captured in one CUDA graph, so that what launching costs the CPU is not in the figure; each replay is timed
    by events.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(sets):
            work(index)
            work(index)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(sets):
            work(index)
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / sets)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy, read and written bytes counted."""
    size = 1 << 30
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / (microseconds(lambda _: target.copy_(source), 2) * 1e-6)
