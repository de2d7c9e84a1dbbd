"""PSNR of a denoiser on whole photographs, by gain."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.raw_denoiser import photographs, sensor
from models.raw_denoiser.batches import to_tensors

#: Gains that results are reported at.
GAINS = (1.0, 4.0, 16.0, 64.0)

#: Frames per photograph and gain; read noise, exposure and temperature are drawn anew for each.
FRAMES = 4

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

#: {photograph: {gain: {"linear": dB, "srgb": dB}}}
PsnrTable = dict[str, dict[str, dict[str, float]]]


def psnr(estimate: NDArray, truth: NDArray) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; no clipping of either."""
    error = np.mean((np.asarray(estimate, np.float64) - np.asarray(truth, np.float64)) ** 2)
    return float(-10.0 * np.log10(error))


def evaluation_frame(
    photograph: photographs.Photograph, gain: float, frame: int
) -> tuple[NDArray[np.float32], sensor.Capture]:
    """Clean packed photograph [4, H, W] and one capture of it.

    The noise depends only on the photograph, the gain and the frame number, so every model sees the same frames.
    """
    clean = sensor.pack(sensor.mosaic(photographs.load(photograph)))
    rng = np.random.default_rng([zlib.crc32(photograph.label.encode()), round(gain), frame])
    return clean, sensor.capture(clean, sensor.draw_conditions(rng, gain), rng)


def no_denoising(nchw: Tensor, nch: Tensor, ncw: Tensor, nc: Tensor) -> Tensor:
    """The noisy image itself: the row ``noisy`` of the tables."""
    return nchw


def denoise(model: Denoiser, frame: sensor.Capture) -> NDArray[np.float32]:
    """Run the model on one capture: [4, H, W] float32."""
    with torch.inference_mode():
        return model(*to_tensors([frame]))[0].numpy()


def psnr_by_gain(
    model: Denoiser,
    split: str,
    gains: Sequence[float] = GAINS,
    frames: int = FRAMES,
    progress: Callable[[str], None] = lambda message: None,
) -> PsnrTable:
    """Mean PSNR over frames for each photograph of the split and each gain.

    ``linear`` is measured in the linear raw domain, on the packed image; ``srgb`` after clipping to [0, 1] and the
    sRGB curve, pixel by pixel of the mosaic.
    """
    table: PsnrTable = {}
    for photograph in photographs.of_split(split):
        table[photograph.label] = {}
        for gain in gains:
            progress(f"{photograph.label}, gain {gain:g}")
            linear, srgb = [], []
            for index in range(frames):
                clean, frame = evaluation_frame(photograph, gain, index)
                estimate = denoise(model, frame)
                linear.append(psnr(estimate, clean))
                srgb.append(psnr(sensor.linear_to_srgb(estimate), sensor.linear_to_srgb(clean)))
            table[photograph.label][f"{gain:g}"] = {"linear": float(np.mean(linear)), "srgb": float(np.mean(srgb))}
    return table


def mean_psnr(table: PsnrTable, gain: str, domain: str = "linear") -> float:
    """Mean over the photographs of a table at one gain."""
    return float(np.mean([by_gain[gain][domain] for by_gain in table.values()]))
