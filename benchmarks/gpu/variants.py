"""One layer in the ways that are compared: the kernels of plugins/msconv, and PyTorch with cuDNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.layers import Layer
from benchmarks.gpu.names import ADDS, BARE, SUFFIX_COMPILED, SUFFIX_LAST, TILE
from msconv_deploy.ops.configuration import SOURCE_NAMES
from plugins.msconv.tests.harness import CHOOSE, Kernels, Tensors, problem_of

DATA_TYPES = ("float32", "float16", "bfloat16")

Work = Callable[[int], Any]
"""Runs the layer on one of several sets of tensors; returns the output."""


class LayerTensors:
    """Random tensors of a layer on the GPU: ``sets`` times sources and outputs, one set of weights.

    Attributes:
        sources: per set, source name -> tensor.
        weights: source name -> tensor, in tiled semantics.
        bias: [O].
    """

    def __init__(self, layer: Layer, sets: int, seed: int = 0) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        dtype = getattr(torch, layer.dtype)
        height, width = layer.size
        shapes = {"nchw": (height, width), "nch": (height,), "ncw": (width,), "nc": ()}

        def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(shape, generator=generator, device="cuda") * scale).to(dtype)

        self.layer = layer
        present = [name for name, count in zip(SOURCE_NAMES, layer.channels, strict=True) if count]
        counts = dict(zip(SOURCE_NAMES, layer.channels, strict=True))
        fan_in = sum(layer.channels) * layer.kernel**2
        self.weights = {
            name: random(layer.out_channels, counts[name], layer.kernel, layer.kernel, scale=fan_in**-0.5)
            for name in present
        }
        self.bias = random(layer.out_channels)
        self.sources = [
            {name: random(layer.batch, counts[name], *shapes[name]) for name in present} for _ in range(sets)
        ]

    def tiled(self, index: int) -> list[torch.Tensor]:
        """The sources as images, expanded and not copied."""
        height, width = self.layer.size
        shape = (self.layer.batch, -1, height, width)
        views = {
            "nchw": lambda t: t,
            "nch": lambda t: t[:, :, :, None].expand(shape),
            "ncw": lambda t: t[:, :, None, :].expand(shape),
            "nc": lambda t: t[:, :, None, None].expand(shape),
        }
        return [views[name](tensor) for name, tensor in self.sources[index].items()]

    def expected(self, index: int) -> torch.Tensor:
        """The definition in float64, one sample and a few output channels at a time, without cuDNN: [N, O, H, W]."""
        weight = torch.cat([w.double() for w in self.weights.values()], 1)
        tiled = self.tiled(index)
        with torch.backends.cudnn.flags(enabled=False):
            samples = [
                functional.conv2d(
                    torch.cat([t[n : n + 1].double() for t in tiled], 1),
                    weight,
                    self.bias.double(),
                    padding=self.layer.kernel // 2,
                )
                for n in range(self.layer.batch)
            ]
        return torch.cat(samples).relu_()


def kernels_work(kernels: Kernels, tensors: LayerTensors, capability: int, path: int = CHOOSE) -> Work:
    """The layer on the kernels of plugins/msconv, one call of ``enqueue``."""
    layer = tensors.layer
    first = tensors.sources[0]
    problem = problem_of(
        layer.config,
        {name: tuple(t.shape) for name, t in first.items()},
        {name: t.shape[1] for name, t in first.items()},
        layer.out_channels,
        DATA_TYPES.index(layer.dtype),
    )
    wrong = kernels.check(problem)
    if wrong:
        raise ValueError(f"{layer.name}: {wrong}")
    outputs = [
        torch.empty(kernels.output_shape(problem), dtype=tensors.bias.dtype, device="cuda") for _ in tensors.sources
    ]
    workspace = torch.empty(max(256, kernels.workspace_bytes(problem)), dtype=torch.uint8, device="cuda")

    def work(index: int) -> torch.Tensor:
        pointers = Tensors()
        for position, name in enumerate(SOURCE_NAMES):
            if name in first:
                pointers.sources[position] = tensors.sources[index][name].data_ptr()
                pointers.weights[position] = tensors.weights[name].data_ptr()
        pointers.bias = tensors.bias.data_ptr()
        pointers.output, pointers.workspace = outputs[index].data_ptr(), workspace.data_ptr()
        kernels.enqueue(problem, pointers, path, capability, torch.cuda.current_stream().cuda_stream)
        return outputs[index]

    work.problem = problem  # type: ignore[attr-defined]
    return work


def baselines(tensors: LayerTensors, compiled: bool) -> dict[str, Work]:
    """What PyTorch makes of the layer with cuDNN.

    ``convolution and separate additions`` adds terms that are computed beforehand and ignore the border: it is faster than
    what would be exact, so that who beats it beats that too.
    """
    layer = tensors.layer
    pad = layer.kernel // 2
    joined = torch.cat(list(tensors.weights.values()), 1)
    image_weight = tensors.weights["nchw"]
    vectors = [name for name in tensors.weights if name != "nchw"]
    shapes = {"nch": (layer.size[0], 1), "ncw": (1, layer.size[1]), "nc": (1, 1)}
    terms = [
        torch.randn(layer.batch, layer.out_channels, *shapes[name], device="cuda").to(tensors.bias.dtype)
        for name in vectors
    ]

    def tile_concat_conv(*tiled: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(torch.cat(tiled, 1), joined, tensors.bias, padding=pad).relu_()

    def separate_adds(image: torch.Tensor, *terms: torch.Tensor) -> torch.Tensor:
        y = functional.conv2d(image, image_weight, tensors.bias, padding=pad)
        for term in terms:
            y = y + term
        return y.relu_()

    def bare(image: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(image, image_weight, tensors.bias, padding=pad)

    last = torch.channels_last
    images_last = [s["nchw"].contiguous(memory_format=last) for s in tensors.sources]
    image_weight_last = image_weight.contiguous(memory_format=last)

    def bare_last(image: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(image, image_weight_last, tensors.bias, padding=pad)

    def separate_adds_last(image: torch.Tensor, *terms: torch.Tensor) -> torch.Tensor:
        y = bare_last(image)
        for term in terms:
            y = y + term
        return y.relu_()

    images = [s["nchw"] for s in tensors.sources]
    found: dict[str, Work] = {
        BARE: lambda i: bare(images[i]),
        BARE + SUFFIX_LAST: lambda i: bare_last(images_last[i]),
        TILE: lambda i: tile_concat_conv(*tensors.tiled(i)),
        ADDS: lambda i: separate_adds(images[i], *terms),
        ADDS + SUFFIX_LAST: lambda i: separate_adds_last(images_last[i], *terms),
    }
    if compiled:
        tile_compiled, adds_compiled = torch.compile(tile_concat_conv), torch.compile(separate_adds)
        found[TILE + SUFFIX_COMPILED] = lambda i: tile_compiled(*tensors.tiled(i))
        found[ADDS + SUFFIX_COMPILED] = lambda i: adds_compiled(images[i], *terms)
    return found
