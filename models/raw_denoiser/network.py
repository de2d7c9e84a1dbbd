"""The raw-sensor denoiser: a small fully convolutional network that reads an image and three kinds of metadata.

Loadable as a stand-alone file (``models/raw_denoiser/network.py:RawDenoiser``): it imports torch and
``msconv_deploy.nn`` only.

Inputs, all float32, for a mosaic of 2H x 2W sensor pixels (RGGB; see ``sensor.py`` for units and layout):

====== ============== ==================================================================================
nchw   [N, 4, H, W]   packed Bayer image, channels R, G1, G2, B; 0 is black, 1 is saturation
nch    [N, 2, H]      readings of the row offsets: sensor rows 2h and 2h+1
ncw    [N, 2, W]      readings of the column offsets: sensor columns 2w and 2w+1
nc     [N, 4]         log gain, log read noise, log exposure, temperature, each mapped to about [-1, 1]
====== ============== ==================================================================================

Output: the denoised packed image [N, 4, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msconv_deploy.nn import MSConv2d, tile_and_concatenate

#: Channels of nchw, nch, ncw and nc.
SOURCE_CHANNELS = (4, 2, 2, 4)

#: What happens to the metadata. Everything else is the same in all three.
VARIANTS = ("image-only", "tile-concat", "msconv")


class ImageConv2d(nn.Module):
    """A convolution of the image that ignores the metadata: the baseline without information.

    Same arguments as ``MSConv2d``, of which only ``in_channels[0]`` is used.
    """

    def __init__(self, in_channels: list[int], out_channels: int, kernel_size: int, padding: int, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels[0], out_channels, kernel_size, padding=padding, dilation=dilation)

    def forward(
        self, nchw: Tensor, nch: Tensor | None = None, ncw: Tensor | None = None, nc: Tensor | None = None
    ) -> Tensor:
        return self.conv(nchw)


class TileConcatConv2d(nn.Module):
    """Expand every source to [N, Ci, H, W], concatenate, convolve: the baseline that copies."""

    def __init__(self, in_channels: list[int], out_channels: int, kernel_size: int, padding: int, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(sum(in_channels), out_channels, kernel_size, padding=padding, dilation=dilation)

    def forward(
        self, nchw: Tensor, nch: Tensor | None = None, ncw: Tensor | None = None, nc: Tensor | None = None
    ) -> Tensor:
        return self.conv(tile_and_concatenate(nchw, nch, ncw, nc))


class NoiseLevel(nn.Linear):
    """sigma = exp(w . nc + b) [N, 1]: how strong the noise of a frame is, in the units of nchw.

    Read noise over the white level is a power law in gain and read noise, and the scalars are their logarithms, so
    the exponential of a linear function has the right form. It starts near the noise of a mid-grey pixel: exp(-4) at
    the middle of the gains, growing with gain.
    """

    def __init__(self, scalars: int) -> None:
        super().__init__(scalars, 1)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, -4.0)
        with torch.no_grad():
            self.weight[0, 0] = 1.2

    def forward(self, nc: Tensor) -> Tensor:
        return torch.exp(super().forward(nc))


class ConstantNoiseLevel(nn.Module):
    """The same for the variant that sees no metadata: one learned sigma [1, 1] for all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((1, 1), -4.0))

    def forward(self, nc: Tensor) -> Tensor:
        return torch.exp(self.bias)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))): two 3x3 convolutions of equal width, the first dilated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class RawDenoiser(nn.Module):
    """Noisy packed Bayer image and metadata -> clean packed Bayer image.

    The image and the readings are divided by the frame's noise level; 3x3 convolutions, nine deep, in a residual
    arrangement predict the noise and, per pixel and channel, a gate in (0, 1) that says how much of it to believe;
    the result, times the noise level, is subtracted from the input.

    Two of the convolutions read metadata:

    * ``head`` reads all four sources;
    * ``middle`` (dilation 2) reads the features, the column readings and the scalars: how far a column reading can
      be trusted depends on temperature and exposure, and this is the layer that can weigh one against the other.

    The receptive field is 29 packed pixels (58 sensor pixels). Any H and W, down to 1, because every convolution is
    zero-padded to keep the size.

    Args:
        variant: one of ``VARIANTS``.
        width: number of feature channels.
    """

    def __init__(self, variant: str = "msconv", width: int = 24) -> None:
        super().__init__()
        layers = {"image-only": ImageConv2d, "tile-concat": TileConcatConv2d, "msconv": MSConv2d}
        if variant not in layers:
            raise ValueError(f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
        multi_source = layers[variant]
        image, _, columns, scalars = SOURCE_CHANNELS

        self.noise_level = ConstantNoiseLevel() if variant == "image-only" else NoiseLevel(scalars)
        self.head = multi_source(list(SOURCE_CHANNELS), width, kernel_size=3, padding=1)
        self.before = ResidualBlock(width, dilation=1)
        self.activation = nn.ReLU()
        self.middle = multi_source([width, 0, columns, scalars], width, kernel_size=3, padding=2, dilation=2)
        self.after = nn.Sequential(ResidualBlock(width, dilation=4), ResidualBlock(width, dilation=2))
        self.noise = nn.Conv2d(width, image, 3, padding=1)
        self.gate = nn.Conv2d(width, image, 3, padding=1)
        self.gate_activation = nn.Sigmoid()
        # Training starts close to "no noise found": a random residual would be far larger than the noise of a frame
        # at low gain, and the first steps would do nothing but switch the features off.
        nn.init.normal_(self.noise.weight, std=0.01)
        nn.init.zeros_(self.noise.bias)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, nchw: Tensor, nch: Tensor, ncw: Tensor, nc: Tensor) -> Tensor:
        """Shapes as in the module's docstring; returns [N, 4, H, W]."""
        sigma = self.noise_level(nc)[:, :, None]
        rows, columns = nch / sigma, ncw / sigma
        features = self.before(self.head(nchw / sigma[:, :, None], rows, columns, nc))
        features = features + self.middle(self.activation(features), None, columns, nc)
        features = self.after(features)
        noise = self.noise(features) * self.gate_activation(self.gate(features))
        return nchw - noise * sigma[:, :, None]


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters())


def seeded(variant: str, seed: int, width: int = 24) -> RawDenoiser:
    """A freshly initialised network that depends on the seed alone, whatever random numbers were drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RawDenoiser(variant=variant, width=width)
