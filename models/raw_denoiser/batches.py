"""Training batches: random crops of the training photographs, seen through the sensor model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.raw_denoiser import photographs, sensor


@dataclass(frozen=True)
class Batch:
    """``clean`` [N, 4, P, P] and what the camera saw of it; float32."""

    clean: Tensor
    nchw: Tensor
    nch: Tensor
    ncw: Tensor
    nc: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.nchw, self.nch, self.ncw, self.nc


def to_tensors(captures: list[sensor.Capture]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Captures of one size -> the four inputs of the network with a batch axis."""
    nchw, nch, ncw, nc = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*captures, strict=True))
    return nchw, nch, ncw, nc


class BatchSource:
    """Draws batches from the training photographs. The sequence depends on the seed alone.

    Every scene is equally likely, whatever the number and size of its photographs.
    """

    def __init__(self, seed: int, batch_size: int, patch: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._batch_size = batch_size
        self._patch = patch
        self._scenes: dict[str, list[NDArray[np.float32]]] = {}
        for photograph in photographs.of_split("train"):
            self._scenes.setdefault(photograph.scene, []).append(photographs.load(photograph))
        self._names = list(self._scenes)

    def next(self) -> Batch:
        """The next batch."""
        clean = [self._clean_patch() for _ in range(self._batch_size)]
        captures = [sensor.capture(image, sensor.draw_conditions(self._rng), self._rng) for image in clean]
        return Batch(torch.from_numpy(np.stack(clean)).float(), *to_tensors(captures))

    def _clean_patch(self) -> NDArray:
        """A packed patch [4, P, P], randomly placed, flipped, transposed, dimmed and tinted.

        Flips come before the mosaic, so that the colour filters keep their places. Tints imitate other illuminants
        and the sensor's channel sensitivities before white balance; dimming imitates dark scenes.
        """
        rng = self._rng
        views = self._scenes[self._names[rng.integers(len(self._names))]]
        rgb = views[rng.integers(len(views))]
        size = 2 * self._patch
        top = rng.integers(rgb.shape[0] - size + 1)
        left = rng.integers(rgb.shape[1] - size + 1)
        patch = rgb[top : top + size, left : left + size].astype(np.float64)
        if rng.random() < 0.5:
            patch = patch[::-1]
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        if rng.random() < 0.5:
            patch = patch.transpose(1, 0, 2)
        brightness = 2.0 ** rng.uniform(-2.0, 0.0) * rng.uniform(0.6, 1.0, 3)
        return sensor.pack(sensor.mosaic(patch * brightness))
