"""What PyTorch allocates while something runs."""

import json
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function):
    """The most bytes of CPU tensors that were alive at one time, of those allocated while the function ran.

    Every allocation and release of PyTorch's CPU allocator is recorded by the profiler; scratch space inside of
    libraries is not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    del result
    live = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    assert peak > 0, "the profiler recorded no allocation"
    return peak


def expanded(filter_network, x, kernel, multiply, **geometry):
    """DynamicConv2d as it is usually written: all patches, all filters, then their product.

    Args:
        multiply: True: elementwise product and sum, which holds a second tensor [N, L, O, K]; False: `torch.einsum`.
    """
    patches = torch.nn.functional.unfold(x, kernel, **geometry).transpose(1, 2)  # [N, L, K]
    filters = filter_network(patches.flatten(0, 1)).unflatten(-1, (-1, patches.shape[2]))
    filters = filters.unflatten(0, patches.shape[:2])  # [N, L, O, K]
    if multiply:
        return (filters * patches[:, :, None]).sum(-1).transpose(1, 2)
    return torch.einsum("nlok,nlk->nol", filters, patches)
