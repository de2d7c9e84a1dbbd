"""Which photographs are used, what their licences are, and how they are split by scene.

All of them are files inside the scikit-image wheel: nothing is fetched over the network. The statements on origin and
licence are those of scikit-image's documentation of ``skimage.data``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.raw_denoiser.sensor import srgb_to_linear
from msconv_deploy.errors import NotAvailableError

SPLITS = ("train", "development", "held-out")


@dataclass(frozen=True)
class Photograph:
    """One photograph. ``name`` is a function of ``skimage.data``; ``index`` picks one of the images that it returns."""

    name: str
    scene: str
    split: str
    content: str
    licence: str
    index: int | None = None
    #: Large or noisy files are averaged over blocks of this many pixels, in linear light.
    downscale: int = 1

    @property
    def label(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


_MIDDLEBURY = (
    "Middlebury 2014 stereo benchmark (D. Scharstein et al., GCPR 2014), redistributed by scikit-image, "
    "which states the origin and no licence of its own"
)

#: The split is by scene: both views of the stereo pair are on the same side. ``development`` chose the network's
#: size and the length of training; ``held-out`` was used for nothing but the published numbers.
PHOTOGRAPHS = (
    Photograph("astronaut", "astronaut", "train", "portrait of Eileen Collins",
               "NASA Great Images database; no known copyright restrictions, released into the public domain"),
    Photograph("stereo_motorcycle", "motorcycle", "train", "motorcycle, left view", _MIDDLEBURY, index=0),
    Photograph("stereo_motorcycle", "motorcycle", "train", "motorcycle, right view", _MIDDLEBURY, index=1),
    Photograph("retina", "retina", "train", "human retina",
               "Mikael Häggström, Wikimedia Commons; CC0 1.0", downscale=2),
    Photograph("immunohistochemistry", "immunohistochemistry", "train", "stained tissue under a microscope",
               "Center for Microscopy and Molecular Imaging; no known copyright restrictions"),
    Photograph("hubble_deep_field", "hubble_deep_field", "train", "Hubble eXtreme Deep Field",
               "NASA, HubbleSite; may be freely used in the public domain", downscale=2),
    Photograph("rocket", "rocket", "development", "Falcon 9 before the launch of DSCOVR",
               "SpaceX; released into the public domain"),
    Photograph("chelsea", "chelsea", "held-out", "Chelsea the cat",
               "Stefan van der Walt; CC0, no copyright restrictions"),
    Photograph("coffee", "coffee", "held-out", "coffee cup",
               "Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0, no copyright restrictions"),
)  # fmt: skip


def of_split(split: str) -> tuple[Photograph, ...]:
    """The photographs of one split."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    return tuple(p for p in PHOTOGRAPHS if p.split == split)


def load(photograph: Photograph) -> NDArray[np.float32]:
    """Linear RGB [H, W, 3] in [0, 1], float32, H and W even.

    Raises:
        NotAvailableError: scikit-image, or its file, is not there.
    """
    try:
        import skimage.data

        image = getattr(skimage.data, photograph.name)()
    except ImportError as error:
        raise NotAvailableError(
            f"the photographs come from scikit-image, which cannot be imported ({error}): pip install scikit-image"
        ) from error
    except (AttributeError, OSError, ValueError) as error:
        raise NotAvailableError(
            f"the installed scikit-image does not hold the photograph {photograph.name!r} ({error}); "
            "the wheel of version 0.26 does"
        ) from error
    if photograph.index is not None:
        image = image[photograph.index]
    linear = srgb_to_linear(image[..., :3].astype(np.float64) / 255.0)
    linear = _block_mean(linear, photograph.downscale)
    height, width = (extent - extent % 2 for extent in linear.shape[:2])
    return linear[:height, :width].astype(np.float32)


def _block_mean(image: NDArray, size: int) -> NDArray:
    """Mean over ``size`` x ``size`` blocks; an incomplete block at the end is dropped."""
    height, width = (extent // size for extent in image.shape[:2])
    return image[: height * size, : width * size].reshape(height, size, width, size, 3).mean(axis=(1, 3))
