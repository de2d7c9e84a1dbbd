"""Small networks that use one operator each, as a recipe names them."""

import torch
from torch import nn

from msconv_deploy.nn import ChannelSumConv2d, DynamicConv2d, conv_matrix, roi_conv2d, windowed_mean


def filters(patch, outputs, hidden=6):
    """A filter network: patch [P, K] -> filters [P, O*K]."""
    return nn.Sequential(nn.Linear(patch, hidden), nn.Tanh(), nn.Linear(hidden, outputs * patch))


class Dynamic(nn.Module):
    def __init__(self, chunk_size=None, padding_mode="zeros"):
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3, padding=1)
        self.dynamic = DynamicConv2d(
            4, 5, (3, 2), filters(24, 5), (2, 1), (1, 0, 1, 1), (1, 1), True, padding_mode, chunk_size
        )
        self.after = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.after(self.dynamic(self.before(x)).relu())


class ChannelSum(nn.Module):
    def __init__(self, layout="taps", padding=1, padding_mode="zeros"):
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3, padding=1)
        self.sum = ChannelSumConv2d(4, (3, 2), (1, 2), padding, (2, 1), True, padding_mode, layout)
        self.after = nn.Conv2d(6, 2, 1) if layout == "taps" else nn.Tanh()

    def forward(self, x):
        return self.after(self.sum(self.before(x)).sigmoid())


class Region(nn.Module):
    def __init__(self, stride=1, padding=1, padding_mode="zeros", groups=2):
        super().__init__()
        self.before = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 6, 3, stride, padding, 1, groups, padding_mode=padding_mode)

    def region(self, x, **region):
        conv, x = self.conv, self.before(x).relu()
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return roi_conv2d(x, conv.weight, conv.bias, *geometry, **region, padding_mode=conv.padding_mode)


class InBox(Region):
    """A box that the graph computes, of an extent that is known only at run time."""

    def forward(self, x, corner, extent):
        return self.region(x, box=torch.cat([corner, corner + extent + 2])).tanh()


class InBoxes(Region):
    def forward(self, x, corner):
        first, second = self.region(x, boxes=[torch.cat([corner, corner + 1]), (0, 1, 2, 3)])
        return first.tanh() + second.mean((2, 3), keepdim=True)


class InFixedBox(Region):
    def forward(self, x):
        return self.region(x, box=(0, 1, 3, 3)).tanh()


class InEqualBoxes(Region):
    def forward(self, x, corners):
        return self.region(x, corners=corners, size=(2, 3)).tanh()


class InMask(Region):
    def forward(self, x, mask):
        return self.region(x, mask=mask).tanh()


class InMaskFilled(Region):
    def forward(self, x, mask):
        return self.region(x, mask=mask, fill=0.5).tanh()


class Slices(nn.Module):
    def __init__(self, window=3, ends="cut"):
        super().__init__()
        self.window, self.ends = window, ends
        self.scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x, index):
        return windowed_mean(x * self.scale, index, self.window, 1, self.ends).tanh()


class Linear(nn.Module):
    """The convolution as a matrix, applied to the flattened image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x):
        matrix = conv_matrix(self.conv.weight, (3, 9, 8), self.conv.stride, self.conv.padding)
        return torch.tanh(x.flatten(1) @ matrix.t())
