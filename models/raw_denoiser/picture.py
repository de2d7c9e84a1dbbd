"""The picture: noisy, denoised and truth of crops of the held-out photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.raw_denoiser import metrics, photographs, sensor
from msconv_deploy.errors import NotAvailableError
from msconv_deploy.files import atomic_write


@dataclass(frozen=True)
class Crop:
    """A window of a held-out photograph, in sensor pixels (even), and how the frame was taken."""

    photograph: str
    top: int
    left: int
    height: int
    width: int
    conditions: sensor.Conditions


#: High gain, and a warm sensor with a long exposure: row banding and column pattern are plain to see.
_BRIGHTER = sensor.Conditions(gain=32.0, read_noise=4.0, exposure=0.5, temperature=45.0)
_DARKER = sensor.Conditions(gain=64.0, read_noise=4.0, exposure=0.5, temperature=45.0)
CROPS = (
    Crop("chelsea", 30, 100, 200, 280, _BRIGHTER),
    Crop("coffee", 60, 200, 200, 280, _DARKER),
)
_MARGIN, _TITLE, _DPI = 6, 22, 100  # pixels, pixels, pixels per inch


def demosaic(mosaic: NDArray) -> NDArray[np.float64]:
    """Bilinear demosaicing of an RGGB mosaic [2H, 2W] -> [2H, 2W, 3]: mean of a colour's samples, weighted by a tent.

    Simple on purpose: what the picture shows is the denoiser, not a demosaicing method.
    """
    height, width = mosaic.shape
    rows, columns = np.indices((height, width)) % 2
    masks = (rows + columns == 0, rows + columns == 1, rows + columns == 2)
    return np.stack([_tent(mosaic * mask) / _tent(mask.astype(np.float64)) for mask in masks], axis=-1)


def _tent(image: NDArray) -> NDArray[np.float64]:
    """Convolution with the outer product of [1, 2, 1] with itself, zeros outside."""
    padded = np.pad(image.astype(np.float64), 1)
    vertical = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return vertical[:, :-2] + 2 * vertical[:, 1:-1] + vertical[:, 2:]


def _panels(model: metrics.Denoiser, crop: Crop) -> list[tuple[str, NDArray]]:
    """(caption, sRGB image [height, width, 3]) for noisy, denoised and truth. The model sees the whole frame."""
    (photograph,) = (p for p in photographs.of_split("held-out") if p.label == crop.photograph)
    clean = sensor.pack(sensor.mosaic(photographs.load(photograph)))
    frame = sensor.capture(clean, crop.conditions, np.random.default_rng(0))
    rows = slice(crop.top // 2, (crop.top + crop.height) // 2)
    columns = slice(crop.left // 2, (crop.left + crop.width) // 2)
    truth = clean[:, rows, columns]
    panels = []
    for name, packed in (("noisy", frame.nchw), ("denoised", metrics.denoise(model, frame)), ("truth", clean)):
        image = packed[:, rows, columns]
        caption = name if name == "truth" else f"{name}: {metrics.psnr(image, truth):.1f} dB"
        if name == "noisy":
            caption = f"gain {crop.conditions.gain:g}, {caption}"
        panels.append((caption, sensor.linear_to_srgb(demosaic(sensor.unpack(image)))))
    return panels


def draw(model: metrics.Denoiser, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        NotAvailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotAvailableError(
            f"the picture is drawn by matplotlib, which cannot be imported ({error}): pip install matplotlib"
        ) from error
    # One pixel of the mosaic is one pixel of the picture: no resampling blurs the noise.
    width = _MARGIN + 3 * (max(crop.width for crop in CROPS) + _MARGIN)
    height = _MARGIN + sum(_TITLE + crop.height + _MARGIN for crop in CROPS)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    top = height
    for crop in CROPS:
        top -= _TITLE + crop.height
        left = _MARGIN
        for caption, image in _panels(model, crop):
            axis = figure.add_axes((left / width, top / height, crop.width / width, crop.height / height))
            axis.imshow(image, interpolation="nearest")
            axis.set_title(caption, fontsize=10, pad=5)
            axis.set_axis_off()
            left += crop.width + _MARGIN
        top -= _MARGIN
    with atomic_write(path, force=True) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format="png", pil_kwargs={"optimize": True})
