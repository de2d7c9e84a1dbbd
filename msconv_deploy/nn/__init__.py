"""PyTorch modules for multi-source convolutions, conversions to and from `nn.Conv2d` on a tiled tensor, and lean operators
for other copies: unfolded patches, filters per patch, regions, windows of slices."""

from msconv_deploy.nn.channel_sum import ChannelSumConv2d
from msconv_deploy.nn.conv_matrix import conv_matrix
from msconv_deploy.nn.convert import Conversion, ConversionResult, Refusal, convert
from msconv_deploy.nn.dynamic_conv import DynamicConv2d
from msconv_deploy.nn.msconv2d import MSConv2d
from msconv_deploy.nn.roi_conv import roi_conv2d
from msconv_deploy.nn.tiling import tile_and_concatenate
from msconv_deploy.nn.windowed_mean import windowed_mean

__all__ = [
    "ChannelSumConv2d",
    "Conversion",
    "ConversionResult",
    "DynamicConv2d",
    "MSConv2d",
    "Refusal",
    "conv_matrix",
    "convert",
    "roi_conv2d",
    "tile_and_concatenate",
    "windowed_mean",
]
