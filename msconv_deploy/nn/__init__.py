"""PyTorch modules for multi-source convolutions, and conversions to and from `nn.Conv2d` on a tiled tensor."""

from msconv_deploy.nn.convert import Conversion, ConversionResult, Refusal, convert
from msconv_deploy.nn.msconv2d import MSConv2d
from msconv_deploy.nn.tiling import tile_and_concatenate

__all__ = ["Conversion", "ConversionResult", "MSConv2d", "Refusal", "convert", "tile_and_concatenate"]
