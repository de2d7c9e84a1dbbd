"""`convert`: many ways to write tile-concat-conv, near-misses with their reasons, and random networks.

Everything is compared in float64 with the user's own network, border and interior apart, at sizes other than the
example's, and no tile may be left.
"""

import copy
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the modules need torch: pip install 'msconv-deploy[torch]'")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.nn import ChannelSumConv2d, MSConv2d, convert, tile_and_concatenate  # noqa: E402

TILING = {"expand", "expand_as", "repeat", "tile", "broadcast_to", "interpolate", "upsample", "tile_and_concatenate"}
C, V = 3, 4  # channels of the image and of the vector
SIZES = ((2, 6, 7), (1, 5, 4), (3, 9, 8))


def names_of_calls(model):
    """What a traced network calls: function and method names, types of modules."""
    names = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            names.append(type(model.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            names.append(getattr(node.target, "__name__", node.target))
    return names


def builds_a_tile(model):
    """Is anything still copied over height and width? Copies of a core over batch or channels may stay."""
    for node in model.graph.nodes:
        name = getattr(node.target, "__name__", node.target)
        if name in TILING and not (name in ("expand", "repeat") and node.args[-2:] == (1, 1)):
            return True
    return False


def compare(actual, expected, bound=1e-12):
    """Border and interior apart, relative to the largest output."""
    assert actual.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0
    border = torch.ones_like(expected, dtype=torch.bool)
    border[..., 2:-2, 2:-2] = False
    for region in (border, ~border):
        if region.any():
            assert ((actual - expected).abs()[region].max() / scale).item() < bound


def randomized(model, seed=0):
    """Evaluation mode, float64, and BatchNorm statistics that are not trivial."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.double().eval()


def image(n, h, w, channels=C):
    return torch.randn(n, channels, h, w, dtype=torch.float64)


def vector(n, channels=V):
    return torch.randn(n, channels, dtype=torch.float64)


class Net(nn.Module):
    """One convolution over `cat(self.parts(x, z), 1)`; subclasses write the parts in their own way."""

    expected = [C, 0, 0, V]
    conv = {"kernel_size": 3, "padding": 1}
    sizes = SIZES

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(sum(self.expected), 5, **self.conv)

    def parts(self, x, z):
        raise NotImplementedError

    def forward(self, x, z):
        return self.layer(torch.cat(self.parts(x, z), 1))

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), vector(n)


# -- how the tile is written ---------------------------------------------------------------------------------------


class IndexExpand(Net):
    def parts(self, x, z):
        return [x, z[:, :, None, None].expand(-1, -1, x.shape[2], x.shape[3])]


class TileFirst(Net):
    def parts(self, x, z):
        return [z[:, :, None, None].expand(x.shape[0], V, x.size(2), x.size(3)), x]


class TileInTheMiddle(Net):
    expected = [2 * C, 0, 0, V]

    def parts(self, x, z):
        return [x, z[..., None, None].repeat(1, 1, x.size(-2), x.size(-1)), x.flip(3)]


class UnpackedShape(Net):
    def parts(self, x, z):
        n, _, h, w = x.shape
        return [x, z.view(n, -1, 1, 1).expand(n, -1, h, w)]


class StarShape(Net):
    def parts(self, x, z):
        return [x, z.unsqueeze(-1).unsqueeze(-1).repeat(1, 1, *x.shape[2:])]


class StarWholeShape(Net):
    expected = [C, 0, 0, C]

    def parts(self, x, z):
        return [x, z[:, :C].unsqueeze(2).unsqueeze(3).expand(*x.shape)]


class ShapeSum(Net):
    def parts(self, x, z):
        return [x, z[:, :, None, None].expand(z.shape[:2] + x.shape[2:])]


class TorchTile(Net):
    def parts(self, x, z):
        return [x, torch.tile(z[:, :, None, None], (1, 1, x.shape[2], x.shape[3]))]


class ExpandAs(Net):
    expected = [C, 0, 0, C]

    def parts(self, x, z):
        return [x, z[:, :C, None, None].expand_as(x)]


class ExpandOneChannel(Net):
    expected = [C, 0, 0, C]

    def parts(self, x, z):
        return [x, z[:, :1, None, None].expand_as(x)]


class BroadcastTo(Net):
    def parts(self, x, z):
        return [x, torch.broadcast_to(z[:, :, None, None], (x.size(0), V, x.size(2), x.size(3)))]


class OnesTimes(Net):
    def parts(self, x, z):
        return [x, torch.ones(x.shape[0], 1, x.shape[2], x.shape[3], dtype=x.dtype) * z[:, :, None, None]]


class FullLike(Net):
    expected = [C, 0, 0, C + V]

    def parts(self, x, z):
        constant = x.new_full((x.shape[0], V, x.shape[2], x.shape[3]), 0.25)
        return [x, torch.full_like(x, 0.5), constant + z[:, :, None, None]]


class ZeroTimes(Net):
    def parts(self, x, z):
        return [x, x[:, :1] * 0 + z[:, :, None, None]]


class Interpolated(Net):
    def parts(self, x, z):
        return [F.interpolate(z.view(-1, V, 1, 1), size=x.shape[-2:], mode="bilinear", align_corners=False), x]


class Upsampled(Net):
    sizes = ((2, 6, 6), (1, 6, 6))

    def __init__(self):
        super().__init__()
        self.up = nn.Upsample((6, 6), mode="bicubic")

    def parts(self, x, z):
        return [x, self.up(z[:, :, None, None])]


class Chunks(Net):
    """Shift and scale from one code, expanded one by one."""

    def parts(self, x, z):
        scale, shift = torch.cat([z, z + 1], 1)[:, :, None, None].chunk(2, 1)
        return [x, x.new_ones(x.shape[0], V, *x.shape[2:]) * scale + shift.expand(-1, -1, *x.shape[2:])]


class WholePool(Net):
    expected = [C, 0, 0, C]

    def parts(self, x, z):
        return [F.avg_pool2d(x, x.shape[-2:]).expand_as(x), x * z[:, :1, None, None]]


class DoubleExpand(Net):
    def parts(self, x, z):
        return [x, z[:, :, None, None].expand(-1, -1, 1, x.size(3)).expand(-1, -1, x.size(2), -1)]


class TileThenSlice(Net):
    def parts(self, x, z):
        return [x, z[:, :, None, None].expand(-1, -1, 50, 50)[:, :, : x.size(2), : x.size(3)]]


class ChannelsLast(Net):
    """NHWC concatenation, then a transposition."""

    def forward(self, x, z):
        tile = z[:, None, None, :].expand(-1, x.size(2), x.size(3), -1)
        return self.layer(torch.cat([x.permute(0, 2, 3, 1), tile], -1).permute(0, 3, 1, 2))


class OurOwnBaseline(Net):
    expected = [C, 2, 3, V]

    def forward(self, x, row, column, z):
        return self.layer(tile_and_concatenate(x, row, column, z).contiguous())

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), vector(1, 2 * h).view(1, 2, h), vector(n, 3 * w).view(n, 3, w), vector(1)


class NoiseInput(Net):
    """The noise level comes as [N,1,1,1]; `repeat` and the concatenation together prove that it is 1x1."""

    expected = [C, 0, 0, 1]

    def parts(self, x, z):
        return [x, z.repeat(1, 1, x.size(2), x.size(3))]

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), vector(n, 1).view(n, 1, 1, 1)


# -- what stands between -----------------------------------------------------------------------------------------


class Activations(Net):
    def parts(self, x, z):
        tile = z.clone()[:, :, None, None].expand(-1, -1, x.size(2), x.size(3)).contiguous()
        return [F.relu(x), torch.sigmoid(F.silu(F.leaky_relu(tile, 0.2)) * 2 + 1).tanh()]


class BatchNormOnTile(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(V)
        self.drop = nn.Dropout2d(0.5)

    def parts(self, x, z):
        return [x, self.drop(F.relu(self.norm(z[:, :, None, None].repeat(1, 1, x.size(2), x.size(3))), inplace=True))]


class ConvOnTile(Net):
    """A 1x1 convolution, in-place activation and per-channel arithmetic on the tile run on the core."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(V, V, 1), nn.ReLU(inplace=True))
        self.scale = nn.Parameter(torch.randn(1, V, 1, 1))

    def parts(self, x, z):
        return [x, self.embed(z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))) * self.scale]


class AfterTheConcatenation(Net):
    def forward(self, x, z):
        y = torch.cat([x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))], 1)
        return self.layer(F.elu(y.contiguous() * 0.5))


class InPlaceAfterTheConcatenation(Net):
    """The image itself must not change."""

    def forward(self, x, z):
        y = torch.cat([x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))], 1)
        return self.layer(F.relu(y, inplace=True)) + x.mean()


class BatchNormOfZeros(Net):
    """Zeros are uniform along the channels as well, until the parameters of a layer differ by channel."""

    expected = [C, V, 0, 0]
    sizes = ((2, V, V), (1, V, V))

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(V)

    def parts(self, x, z):
        return [x, self.norm(x.new_zeros(x.size(0), V, V, V)).transpose(1, 2) + z[:, :, None, None]]


class OneRow(Net):
    """A one-dimensional convolution over [N,C,1,W]: nothing is copied along the height."""

    expected = [C, V, 0, 0]
    conv = {"kernel_size": 3, "padding": 1}

    def parts(self, x, z):
        line = x.mean(2, keepdim=True)
        return [line, z[:, :, None, None].expand(-1, -1, 1, x.size(3))]


class Casts(Net):
    """An integer label map that `cat` promotes."""

    def parts(self, x, z):
        return [x, z.long()[:, :, None, None].expand(-1, -1, x.size(2), x.size(3)).to(torch.int32)]

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), vector(n) * 10


class NestedConcatenations(Net):
    expected = [C + 2, 0, 0, V + 3]

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 3, 1, 1))

    def parts(self, x, z):
        inner = torch.cat([self.token.expand(x.size(0), -1, x.size(2), x.size(3)), x], 1)
        outer = torch.cat([z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3)), inner], 1)
        return [x[:, :2].abs(), outer]


class BroadcastAxes(Net):
    """Per-row and per-column features."""

    expected = [C, 2, 4, V]

    def parts(self, x, z):
        h, w = x.size(2), x.size(3)
        row = x.mean(3, keepdim=True)[:, :2].expand(-1, -1, h, w)
        column = x.amax(2, keepdim=True).expand(-1, -1, h, w)
        tile = z[:, :, None, None].expand(-1, -1, h, w)
        return [column[:, :1], tile, x, row, column]


# -- geometry of the convolution -----------------------------------------------------------------------------------


class Stride2(IndexExpand):
    conv = {"kernel_size": 3, "padding": 1, "stride": 2}


class Dilated(IndexExpand):
    conv = {"kernel_size": 3, "padding": 2, "dilation": 2}


class EvenKernel(IndexExpand):
    conv = {"kernel_size": (4, 2), "padding": (2, 1)}


class SameEven(IndexExpand):
    conv = {"kernel_size": (4, 2), "padding": "same"}


class SameDilated(TileFirst):
    conv = {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 1), "bias": False}


class Reflect(TileFirst):
    conv = {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"}


class Unpadded(BroadcastAxes):
    conv = {"kernel_size": (3, 2), "stride": (2, 1)}


class LargeStride(BroadcastAxes):
    conv = {"kernel_size": 4, "stride": 5, "padding": 3}


class ReflectLayer(IndexExpand):
    conv = {"kernel_size": 3}

    def forward(self, x, z):
        return self.layer(nn.functional.pad(torch.cat(self.parts(x, z), 1), (1, 1, 1, 1), mode="reflect"))


class ReflectLayerOneAxis(BroadcastAxes):
    conv = {"kernel_size": 3}

    def __init__(self):
        super().__init__()
        self.pad = nn.ReflectionPad2d((2, 1, 0, 1))

    def forward(self, x, z):
        return self.layer(self.pad(torch.cat(self.parts(x, z), 1)))


class ZeroPadLayer(BroadcastAxes):
    conv = {"kernel_size": 3, "padding": (0, 1)}

    def __init__(self):
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 1, 2, 2))

    def forward(self, x, z):
        return self.layer(self.pad(torch.cat(self.parts(x, z), 1)))


class FunctionalConv(Net):
    def __init__(self):
        super().__init__()
        del self.layer
        self.kernel = nn.Parameter(torch.randn(5, C + V, 3, 3))
        self.offset = nn.Parameter(torch.randn(5))

    def forward(self, x, z):
        y = torch.cat([x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))], 1)
        return F.conv2d(y, self.kernel, self.offset, padding=1)


class OwnConv(Net):
    """A subclass is traced into: its convolution is an `F.conv2d`."""

    def __init__(self):
        super().__init__()

        class Scaled(nn.Conv2d):
            def forward(self, x):
                return super().forward(x * 0.5) * 2

        self.layer = Scaled(C + V, 5, 3, padding=1)

    def parts(self, x, z):
        return [x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))]


# -- networks that people train -------------------------------------------------------------------------------------


class NoiseMapDenoiser(nn.Module):
    """FFDNet: pixel-unshuffled image and a noise level map."""

    expected = [4, 0, 0, 1]
    sizes = ((2, 8, 6), (1, 4, 10))

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.body = nn.Sequential(
            nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1),
        )  # fmt: skip

    def forward(self, x, sigma):
        y = self.down(x)
        noise = sigma.view(-1, 1, 1, 1).repeat(1, 1, y.shape[-2], y.shape[-1])
        return self.up(self.body(torch.cat((y, noise), 1)))

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w, 1), vector(n, 1)


class StarGan(nn.Module):
    """Label tiling as in StarGAN's generator."""

    expected = [3, 0, 0, 5]
    sizes = SIZES

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(8, 6, 7, 1, 3, bias=False), nn.InstanceNorm2d(6, affine=True), nn.ReLU(inplace=True),
            nn.Conv2d(6, 3, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x, c):
        c = c.view(c.size(0), c.size(1), 1, 1)
        c = c.repeat(1, 1, x.size(2), x.size(3))
        return self.main(torch.cat([x, c], dim=1))

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), (vector(n, 5) > 0).double()


class Aspp(nn.Module):
    """DeepLab: image pooling among dilated branches."""

    expected = [8, 0, 0, 4]
    sizes = SIZES

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 4, 3, padding=d, dilation=d, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            for d in (1, 2)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(12, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        x = self.stem(x)
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))

    @staticmethod
    def inputs(n, h, w):
        return (image(n, h, w),)


class CoordinateBuffer(nn.Module):
    """CoordConv with a buffer [1,3,H,W]: row, column and a constant; each channel is uniform along other axes."""

    expected = [3, 1, 1, 1]
    sizes = ((2, 5, 6), (1, 5, 6))

    def __init__(self):
        super().__init__()
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 6), indexing="ij")
        self.register_buffer("grid", torch.stack([rows, columns, torch.full((5, 6), 0.5)])[None], persistent=False)
        self.layer = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        return self.layer(torch.cat([x, self.grid.expand(x.size(0), -1, -1, -1)], 1))

    @staticmethod
    def inputs(n, h, w):
        return (image(n, h, w),)


class CoordinatesAtRunTime(nn.Module):
    """SOLO: coordinates computed from the input's size."""

    expected = [3, 1, 1, 0]
    sizes = SIZES

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(5, 4, 3, padding=1, stride=2)

    def forward(self, x):
        row = torch.linspace(-1, 1, x.shape[-2], dtype=x.dtype, device=x.device)
        column = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)
        row, column = torch.meshgrid(row, column, indexing="ij")
        row = row.expand([x.shape[0], 1, -1, -1])
        column = column.expand([x.shape[0], 1, -1, -1])
        return self.layer(torch.cat([x, torch.cat([column, row], 1)], 1))

    @staticmethod
    def inputs(n, h, w):
        return (image(n, h, w),)


class BroadcastDecoder(nn.Module):
    """Spatial broadcast decoder: no image at all, the code and the coordinates define the picture."""

    expected = [0, 1, 1, V]
    sizes = ((2, 7, 7), (3, 7, 7))

    def __init__(self):
        super().__init__()
        line = torch.linspace(-1, 1, 7)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="xy"))[None])
        self.net = nn.Sequential(nn.Conv2d(V + 2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))

    def forward(self, z):
        grid = self.grid.expand(z.size(0), -1, -1, -1)
        return self.net(torch.cat([z[:, :, None, None].expand(-1, -1, 7, 7), grid], 1))

    @staticmethod
    def inputs(n, h, w):
        return (vector(n),)


class CoordinatesAlone(nn.Module):
    """Every source is the same for the whole batch: the output still needs its batch."""

    expected = [0, 1, 1, 0]
    sizes = ((2, 5, 5), (3, 5, 5))

    def __init__(self):
        super().__init__()
        line = torch.linspace(-1, 1, 5)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="xy")))
        self.layer = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x):
        return self.layer(self.grid.repeat(x.size(0), 1, 1, 1))

    @staticmethod
    def inputs(n, h, w):
        return (vector(n),)


class TwoConvsAndASkip(nn.Module):
    """Two convolutions and an addition read the concatenation, which therefore stays."""

    expected = [3, 0, 0, 4]
    sizes = SIZES
    keeps_tile = True

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(7, 7, 3, padding=1), nn.Conv2d(7, 7, 1)

    def forward(self, x, z):
        y = torch.cat([x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))], 1)
        return self.a(y) + self.b(y) + y

    inputs = Net.inputs


class TwoConvs(TwoConvsAndASkip):
    keeps_tile = False

    def forward(self, x, z):
        y = torch.cat([x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))], 1)
        return self.a(y) * self.b(y)


class Residual(nn.Module):
    """Harmless operations in place around the site."""

    expected = [6, 0, 0, 4]
    sizes = SIZES

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.relu, self.norm = nn.ReLU(inplace=True), nn.BatchNorm2d(6)

    def forward(self, x, z):
        y = self.relu(self.norm(self.a(x)))
        out = self.b(torch.cat([z[:, :, None, None].expand(-1, -1, *y.shape[-2:]), y], 1))
        out += y
        return self.relu(out)

    inputs = Net.inputs


class OptionalArgument(Net):
    def forward(self, x, z=None, scale=None):
        if z is None:
            raise ValueError("z is needed")
        if scale is not None:
            x = x * scale
        return self.layer(torch.cat([x, z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))], 1))


POSITIVES = [
    IndexExpand, TileFirst, TileInTheMiddle, UnpackedShape, StarShape, StarWholeShape, ShapeSum, TorchTile, ExpandAs,
    ExpandOneChannel, BroadcastTo, OnesTimes, FullLike, ZeroTimes, Interpolated, Upsampled, Chunks, WholePool,
    DoubleExpand, TileThenSlice, ChannelsLast, OurOwnBaseline, NoiseInput, Activations, BatchNormOnTile,
    BatchNormOfZeros, InPlaceAfterTheConcatenation, OneRow, ConvOnTile, AfterTheConcatenation, Casts,
    NestedConcatenations, BroadcastAxes, Stride2, Dilated, EvenKernel, SameEven, SameDilated, Reflect, Unpadded,
    LargeStride, ReflectLayer, ReflectLayerOneAxis, ZeroPadLayer, FunctionalConv, OwnConv, NoiseMapDenoiser, StarGan,
    Aspp, CoordinateBuffer, CoordinatesAtRunTime, BroadcastDecoder, CoordinatesAlone, TwoConvsAndASkip, TwoConvs,
    Residual, OptionalArgument,
]  # fmt: skip


@pytest.mark.parametrize("network", POSITIVES, ids=lambda c: c.__name__)
def test_every_spelling_is_converted_exactly_at_all_sizes(network):
    model = randomized(network())
    before = copy.deepcopy(model.state_dict())
    result = convert(model, network.inputs(*network.sizes[0]))
    assert result.converted, str(result)
    assert not result.refused, str(result)
    assert all(list(done.in_channels) == network.expected for done in result.converted), str(result)
    kept = getattr(network, "keeps_tile", False)
    assert builds_a_tile(result.model) == kept, result.model.code
    assert kept == any("still built" in note for done in result.converted for note in done.notes)
    assert "tiled_source" not in names_of_calls(result.model)
    for n, h, w in network.sizes:
        inputs = network.inputs(n, h, w)
        compare(result.model(*copy.deepcopy(inputs)).detach(), model(*inputs).detach())
    assert type(model) is network
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Embedded(nn.Module):
    """A network whose inputs come from layers, so that the structure tells their channels."""

    def __init__(self, network):
        super().__init__()
        self.image, self.vector, self.net = nn.Conv2d(C, C, 3, padding=1), nn.Linear(V, V), network()

    def forward(self, x, z):
        return self.net(self.image(x), self.vector(z).relu())


WITHOUT_EXAMPLES = [
    IndexExpand, TileFirst, UnpackedShape, StarShape, ConvOnTile, Interpolated, DoubleExpand, Activations, Stride2,
    Reflect, SameEven, BatchNormOnTile, FunctionalConv, TwoConvs, StarGan, ReflectLayer, AfterTheConcatenation,
]  # fmt: skip


@pytest.mark.parametrize("network", WITHOUT_EXAMPLES, ids=lambda c: c.__name__)
def test_without_example_inputs_ranks_and_channels_come_from_the_structure(network):
    model = randomized(Embedded(network) if network is not StarGan else network())
    result = convert(model)
    unknown = "not known without example_inputs"
    if network is StarGan:
        assert unknown in result.refused[0].reason
    else:
        assert result.converted, str(result)
        assert not builds_a_tile(result.model)
    for n, h, w in network.sizes:
        inputs = network.inputs(n, h, w)
        compare(result.model(*inputs).detach(), model(*inputs).detach())


@pytest.mark.parametrize("network", POSITIVES, ids=lambda c: c.__name__)
def test_without_example_inputs_the_result_is_never_wrong(network):
    """Exact where it converts, and where it does not the reason says what is missing."""
    model = randomized(network())
    if network is OptionalArgument:
        return  # arguments with defaults are traced as given, so they must be given
    result = convert(model)
    assert all("not known without example_inputs" in refusal.reason for refusal in result.refused), str(result)
    inputs = network.inputs(*network.sizes[1])
    compare(result.model(*inputs).detach(), model(*inputs).detach())


# -- what is not converted --------------------------------------------------------------------------------------------


class Expanded(Net):
    """The positive that the negatives vary."""

    def tile(self, x, z):
        return z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))

    def parts(self, x, z):
        return [x, self.tile(x, z)]


class AccidentalExtent(Net):
    """[N,4,1,1] at the example only: the network would accept a map of the image's size as well."""

    def parts(self, x, z):
        return [x, z.expand(-1, -1, x.size(2), x.size(3))]

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), image(n, 1, 1, V)


class AccidentalRepeat(Net):
    def parts(self, x, z):
        return [x, z.repeat(1, 1, 2, 2)]

    @staticmethod
    def inputs(n, h, w):
        return image(n, 2, 2), image(n, 1, 1, V)


class AccidentalSize(Net):
    """The image has height 1 in the example."""

    def parts(self, x, z):
        return [x, z]

    @staticmethod
    def inputs(n, h, w):
        return image(n, 1, w), image(n, 1, w, V)


class OtherBins(Net):
    """PSPNet's other bins: resized from 2x2."""

    expected = [C, 0, 0, C]

    def parts(self, x, z):
        return [x, F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[-2:], mode="bilinear")]


class Grouped(Expanded):
    expected = [C, 0, 0, 5]
    conv = {"kernel_size": 3, "groups": 1}

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 4, 3, groups=2)

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), vector(n, 5)


class Between(Expanded):
    def __init__(self, between):
        super().__init__()
        self.between = between

    def parts(self, x, z):
        return [x, self.between(self.tile(x, z))]


class Softmax(Expanded):
    def parts(self, x, z):
        return [x, self.tile(x, z).softmax(1)]


class TimesImage(Expanded):
    def parts(self, x, z):
        return [x, self.tile(x, z) * x.mean(1, keepdim=True)]


class NotATile(Expanded):
    """Shifted copies of a row are no tile."""

    def parts(self, x, z):
        return [x, torch.cat([x, x.flip(2)[:, :1]], 1)]


class OneRowRoll(Expanded):
    expected = [C, 0, 0, C]

    def parts(self, x, z):
        return [x, x.mean(3, keepdim=True).expand_as(x).cumsum(3)]


class Shared(Expanded):
    def forward(self, x, z):
        a, b = torch.cat(self.parts(x, z), 1), torch.cat(self.parts(x * 2, z), 1)
        return self.layer(a) + self.layer(b)


class Tied(Expanded):
    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(C + V, 5, 3, padding=1)
        self.other.weight = self.layer.weight

    def forward(self, x, z):
        return super().forward(x, z) + self.other(torch.cat([x, x, x[:, :1]], 1))


class ReadsTheWeight(Expanded):
    def forward(self, x, z):
        return super().forward(x, z) + self.layer.weight.sum()


class Hooked(Expanded):
    def __init__(self):
        super().__init__()
        self.layer.register_forward_hook(lambda module, args, output: output * 2)


class HookOnTile(Between):
    def __init__(self):
        super().__init__(nn.ReLU())
        self.between.register_forward_pre_hook(lambda module, args: None)


class WeightNorm(Expanded):
    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(self.layer)


class Transposed(Expanded):
    def __init__(self):
        super().__init__()
        self.layer = nn.ConvTranspose2d(C + V, 5, 3)


class OnlyTiles(Expanded):
    expected = [0, 0, 0, 2 * V]

    def parts(self, x, z):
        return [self.tile(x, z), self.tile(x, z * 2)]


class OneAxisOnly(Expanded):
    expected = [0, C, 0, V]

    def parts(self, x, z):
        return [x.mean(3, keepdim=True).expand_as(x), self.tile(x, z)]


class AsymmetricZeroPad(Expanded):
    conv = {"kernel_size": 3}

    def forward(self, x, z):
        return self.layer(F.pad(torch.cat(self.parts(x, z), 1), (0, 1, 0, 1)))


class NormBehindConcatenation(Expanded):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, C + V)

    def forward(self, x, z):
        return self.layer(self.norm(torch.cat(self.parts(x, z), 1)))


class BatchNormBehindConcatenation(NormBehindConcatenation):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(C + V)


class PaddedPointwise(Expanded):
    """A 1x1 convolution with padding surrounds the tile with its bias."""

    def __init__(self):
        super().__init__()
        self.between = nn.Conv2d(V, V, 1, padding=1)

    def parts(self, x, z):
        return [F.pad(x, (1, 1, 1, 1)), self.between(self.tile(x, z))]


class RepeatedByAnotherSize(Net):
    """The concatenation does not prove anything: the counts are not its own extents."""

    def parts(self, x, z):
        return [F.interpolate(x, scale_factor=2), z.repeat(1, 1, x.size(2), x.size(3))]

    @staticmethod
    def inputs(n, h, w):
        return image(n, h, w), image(n, 2, 2, V)


class RepeatedByAnAccidentalSize(Net):
    """x is 6x7 at the example, but could be 1x1: then z would have to be 6x7."""

    def parts(self, x, z):
        return [x.expand(-1, -1, 6, 7), z.repeat(1, 1, x.size(2), x.size(3))]

    @staticmethod
    def inputs(n, h, w):
        return image(n, 6, 7), image(n, 1, 1, V)


class ChangedInBetween(Expanded):
    def forward(self, x, z):
        x = x.clone()
        y = torch.cat(self.parts(x, z), 1)
        x.mul_(2)
        return self.layer(y) + x.mean()


class ChangedTile(Expanded):
    """The result of the operation in place is not used: the tile itself is read afterwards."""

    def forward(self, x, z):
        tile = z[:, :, None, None].repeat(1, 1, x.size(2), x.size(3))
        tile.mul_(2)
        return self.layer(torch.cat([x, tile], 1))


class ChangedVector(Expanded):
    def forward(self, x, z):
        z = z.clone()
        tile = z[:, :, None, None].repeat(1, 1, x.size(2), x.size(3))
        z.add_(1)
        return self.layer(torch.cat([x, tile], 1)) + z.sum()


class FunctionOfAFunction(Expanded):
    """The weight is computed: a modulated convolution."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, C + V, 3, 3))

    def forward(self, x, z):
        return F.conv2d(torch.cat(self.parts(x, z), 1), self.kernel * 2)


class Unbatched(Expanded):
    def forward(self, x, z):
        return self.layer(torch.cat([x[0], z[0][:, None, None].expand(-1, x.size(2), x.size(3))], 0))


NEGATIVES = [
    (AccidentalExtent, r"expands along height and width, where the extent of z is not 1 by structure"),
    (AccidentalRepeat, r"repeats along height and width, where the extent of z is not 1 by structure"),
    (AccidentalSize, "no concatenated tensor is known to be a tile"),
    (OtherBins, "resizes from 2x2"),
    (Grouped, "the 2 groups of the convolution cut across the concatenation"),
    (
        lambda: Between(nn.GroupNorm(2, V)),
        r"is a tile, but between \(module 'between'\) is not known to keep it uniform",
    ),
    (lambda: Between(nn.InstanceNorm2d(V)), r"is a tile, but between \(module 'between'\)"),
    (lambda: Between(nn.Conv2d(V, V, 3, padding=1)), r"is a tile, but between \(module 'between'\)"),
    (lambda: Between(nn.ZeroPad2d((1, -1, -1, 1))), "with a constant: give the convolution itself zero padding"),
    (lambda: Between(nn.BatchNorm2d(V, track_running_stats=False)), "uses batch statistics"),
    (Softmax, r"is a tile, but softmax \(softmax\) is not known to keep it uniform"),
    (TimesImage, r"is a tile, but mul \(mul\) combines it with mean, which is not"),
    (NotATile, "no concatenated tensor is known to be a tile"),
    (OneRowRoll, r"is a tile, but cumsum \(cumsum\)"),
    (Shared, "shared by 2 calls with different inputs"),
    (Tied, "tied: layer.weight, other.weight are one parameter"),
    (ReadsTheWeight, "also read directly"),
    (Hooked, "has hooks"),
    (HookOnTile, "has hooks, which would see the core"),
    (WeightNorm, "ParametrizedConv2d is not rewritten"),
    (Transposed, "ConvTranspose2d is not rewritten"),
    (OnlyTiles, "every concatenated tensor is a tile along the height"),
    (OneAxisOnly, "every concatenated tensor is a tile along the width"),
    (AsymmetricZeroPad, "with a constant: give the convolution itself zero padding"),
    (
        NormBehindConcatenation,
        r"norm \(module 'norm'\) stands between the concatenation with a tile and the convolution",
    ),
    (BatchNormBehindConcatenation, r"norm \(module 'norm'\) stands between the concatenation with a tile and the conv"),
    (PaddedPointwise, r"is a tile, but between \(module 'between'\) is not known to keep it uniform"),
    (RepeatedByAnotherSize, "repeats along height and width, where the extent of z is not 1 by structure"),
    (RepeatedByAnAccidentalSize, "repeats along height and width, where the extent of z is not 1 by structure"),
    (ChangedInBetween, "operation in place changes clone"),
    (ChangedTile, "operation in place changes repeat"),
    (ChangedVector, "operation in place changes clone"),
    (Unbatched, "reads an input without a batch"),
    (FunctionOfAFunction, "F.conv2d whose weight is not a parameter"),
]


@pytest.mark.parametrize(("build", "reason"), NEGATIVES, ids=lambda v: getattr(v, "__name__", ""))
def test_near_misses_stay_and_say_why(build, reason):
    model = randomized(build())
    inputs = model.inputs(2, 5, 6)
    with torch.no_grad():
        expected = model(*copy.deepcopy(inputs))
    result = convert(model, inputs)
    assert not result.converted
    assert result.refused
    assert any(re.search(reason, refusal.reason) for refusal in result.refused), result.refused
    assert "MSConv2d" not in names_of_calls(result.model)
    assert torch.equal(result.model(*copy.deepcopy(inputs)).detach(), expected)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(V), nn.Dropout(0.5), nn.Dropout2d(0.5)], ids=lambda m: type(m).__name__
)
def test_training_mode_is_refused_where_it_matters(layer):
    model = Between(layer).double().train()
    assert "in training mode" in convert(model, model.inputs(2, 5, 6)).refused[0].reason
    assert convert(model.eval(), model.inputs(2, 5, 6)).converted


def test_training_mode_does_not_matter_elsewhere():
    model = Between(nn.Sequential(nn.ReLU(), nn.Identity())).double().train()
    inputs = model.inputs(2, 5, 6)
    result = convert(model, inputs)
    assert result.converted
    assert not builds_a_tile(result.model)
    compare(result.model(*inputs).detach(), model(*inputs).detach())


def test_plain_networks_have_nothing_to_report():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    result = convert(model, (torch.randn(1, 3, 8, 8),))
    assert result.converted == result.refused == ()
    assert str(result) == "0 converted, 0 refused"


# -- what the result is good for --------------------------------------------------------------------------------------


def test_names_parameters_and_report():
    model = randomized(Aspp())
    model.unused = nn.Linear(2, 2)
    result = convert(model, Aspp.inputs(2, 6, 7))
    (done,) = result.converted
    assert (done.convolution, done.replacement) == ("project.0", "project.0")
    assert done.sources == {"nchw": ("branches_0_2", "branches_1_2"), "nc": ("interpolate",)}
    assert isinstance(result.model.get_submodule("project.0"), MSConv2d)
    expected = set(model.state_dict()) - {"project.0.weight", "unused.weight", "unused.bias"}
    assert set(result.model.state_dict()) == expected | {"project.0.nchw_block.weight", "project.0.nc_block.weight"}
    assert "project.0: MSConv2d([8, 0, 0, 4])" in str(result)


def test_functional_convolutions_leave_no_parameter_behind():
    result = convert(randomized(FunctionalConv()), FunctionalConv.inputs(1, 5, 5))
    assert result.converted[0].convolution == "kernel"
    prefix = result.converted[0].replacement
    assert set(result.model.state_dict()) == {
        f"{prefix}.nchw_block.weight",
        f"{prefix}.nchw_block.bias",
        f"{prefix}.nc_block.weight",
    }


def test_parameters_are_copies_and_frozen_ones_stay_frozen():
    model = randomized(Expanded())
    model.layer.weight.requires_grad_(False)
    layer = convert(model, model.inputs(1, 5, 5)).model.layer
    assert not any(w.requires_grad for w in layer.weights.values())
    assert layer.bias.requires_grad
    with torch.no_grad():
        layer.bias.add_(1)
    assert not torch.equal(layer.bias, model.layer.bias)


def test_weights_are_those_of_the_original_in_the_order_of_the_sources():
    """column, tile, x, row, column as [nchw, nch, ncw, nc]."""
    model = randomized(BroadcastAxes())
    layer = convert(model, BroadcastAxes.inputs(2, 6, 7)).model.layer
    channels = {"nchw": [5, 6, 7], "nch": [8, 9], "ncw": [0, 10, 11, 12], "nc": [1, 2, 3, 4]}
    for name, weight in layer.weights.items():
        assert torch.equal(weight, model.layer.weight[:, channels[name]])
    assert torch.equal(layer.bias, model.layer.bias)


@pytest.mark.parametrize("network", [Aspp, ConvOnTile, NestedConcatenations], ids=lambda c: c.__name__)
def test_gradients_are_those_of_the_original(network):
    model = randomized(network())
    inputs = [x.requires_grad_() for x in network.inputs(2, 6, 7)]
    result = convert(model, inputs)
    weight = torch.randn_like(model(*inputs))
    grads = torch.autograd.grad((model(*inputs) * weight).sum(), [*inputs, *model.parameters()])
    own = torch.autograd.grad((result.model(*inputs) * weight).sum(), [*inputs, *result.model.parameters()])
    for a, b in zip(own[: len(inputs)], grads[: len(inputs)], strict=True):
        compare(a[None], b[None])
    expected = dict(zip((name for name, _ in model.named_parameters()), grads[len(inputs) :], strict=True))
    actual = dict(zip((name for name, _ in result.model.named_parameters()), own[len(inputs) :], strict=True))
    assert expected.keys() & actual.keys()
    for name in expected.keys() & actual.keys():
        assert (expected[name] - actual[name]).abs().max() < 1e-12 * expected[name].abs().max()


def test_one_training_step_moves_the_outputs_alike():
    model = randomized(StarGan())
    inputs = StarGan.inputs(2, 6, 7)
    converted = convert(model, inputs).model
    for net in (model.train(), converted.train()):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net(*inputs).square().sum().backward()
        optimizer.step()
    compare(converted(*inputs).detach(), model(*inputs).detach(), 1e-10)


def test_layers_that_must_stay_in_eval_mode_are_noted():
    done = convert(randomized(BatchNormOnTile()), Net.inputs(2, 5, 6)).converted[0]
    assert [note.split(" now runs on the core")[0] for note in done.notes] == ["Dropout2d 'drop'", "BatchNorm2d 'norm'"]


def test_the_result_is_exported_with_dynamic_sizes():
    model = randomized(BroadcastAxes()).float()
    inputs = [x.float() for x in BroadcastAxes.inputs(2, 6, 7)]
    converted = convert(model, inputs).model
    n, h, w = (torch.export.Dim(name, min=2, max=64) for name in ("n", "h", "w"))
    exported = torch.export.export(converted, tuple(inputs), dynamic_shapes=({0: n, 2: h, 3: w}, {0: n}))
    other = [x.float() for x in BroadcastAxes.inputs(3, 9, 4)]
    compare(exported.module()(*other).detach(), model(*other).detach(), 1e-5)


def test_the_result_is_exported_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = randomized(NoiseMapDenoiser()).float()
    inputs = [x.float() for x in NoiseMapDenoiser.inputs(2, 8, 6)]
    path = tmp_path / "denoiser.onnx"
    torch.onnx.export(convert(model, inputs).model, tuple(inputs), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    (actual,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    compare(torch.from_numpy(actual), model(*inputs).detach(), 1e-5)


def test_converting_twice_changes_nothing_more():
    model, inputs = randomized(Aspp()), Aspp.inputs(2, 6, 7)
    once = convert(model, inputs)
    twice = convert(once.model, inputs)
    assert not twice.converted
    compare(twice.model(*inputs).detach(), model(*inputs).detach())


def test_the_result_can_be_halved_and_copied():
    converted = copy.deepcopy(convert(randomized(Expanded()), Net.inputs(2, 6, 7)).model)
    x, z = Net.inputs(2, 6, 7)
    compare(converted.bfloat16()(x.bfloat16(), z.bfloat16()).double(), converted.double()(x, z), 0.05)


# -- tracing ------------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class BranchInside(Expanded):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Branching())

    def parts(self, x, z):
        return super().parts(self.stem(x), z)


def test_data_dependent_control_flow_is_a_clear_error_and_leaf_modules_are_the_way_out():
    model = randomized(BranchInside())
    inputs = model.inputs(2, 6, 7)
    with pytest.raises(
        BadInputError,
        match=r"cannot trace module 'stem.0' \(Branching\) in forward .*x.sum\(\) > 0.*leaf_modules=\['stem.0'\]",
    ):
        convert(model, inputs)
    for leaf in ("stem.0", Branching, model.stem[0]):
        result = convert(model, inputs, leaf_modules=[leaf])
        assert len(result.converted) == 1
        compare(result.model(*inputs).detach(), model(*inputs).detach())


class OwnOperatorBefore(BranchInside):
    def __init__(self):
        super().__init__()
        self.stem = ChannelSumConv2d(C, 3, padding=1, layout="taps")

    def parts(self, x, z):
        return Expanded.parts(self, self.stem(x)[:, :C], z)


def test_own_operators_are_kept_whole():
    model = randomized(OwnOperatorBefore())
    inputs = model.inputs(2, 6, 7)
    result = convert(model, inputs)
    assert len(result.converted) == 1
    compare(result.model(*inputs).detach(), model(*inputs).detach())


def test_shapes_of_another_rank_can_be_unpacked():
    class Five(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Expanded()

        def forward(self, clip, z):
            flat = clip.reshape(-1, *clip.shape[2:])
            return self.net(flat, z.repeat_interleave(clip.shape[1], 0))

    model = randomized(Five())
    clip, z = image(6, 5, 6).view(2, 3, C, 5, 6), vector(2)
    result = convert(model, (clip, z))
    assert result.converted
    compare(result.model(clip, z).detach(), model(clip, z).detach())
    with pytest.raises(BadInputError, match="5 dimensions arrived where the network was traced for 4"):
        convert(model).model(clip, z)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: convert(F.relu), "expected an nn.Module"),
        (lambda m: convert(m, torch.zeros(1)), "must be a tuple of positional arguments or a dict"),
        (lambda m: convert(m, (1, 2, 3)), "do not fit forward of Expanded: too many positional"),
        (lambda m: convert(m, (image(1, 5, 5), vector(1, 2))), "cannot be run on example_inputs: RuntimeError at"),
        (lambda m: convert(m, leaf_modules=["nothing"]), r"names \['nothing'\], but the model has no such module"),
        (lambda m: convert(m, leaf_modules=[nn.ReLU()]), "has a ReLU that is not part of the model"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(BadInputError, match=message):
        call(randomized(Expanded()))


def test_example_inputs_by_name_and_training_statistics_stay_untouched():
    model = randomized(Aspp()).train()
    before = copy.deepcopy(model.state_dict())
    converted = convert(model, {"x": image(2, 5, 6)}).model
    assert converted.training
    for name, value in converted.state_dict().items():
        assert name not in before or torch.equal(value, before[name])


# -- random networks ----------------------------------------------------------------------------------------------------

TILINGS = [
    lambda z, x: z[:, :, None, None].expand(-1, -1, x.size(2), x.size(3)),
    lambda z, x: z[..., None, None].repeat(1, 1, *x.shape[2:]),
    lambda z, x: z.unsqueeze(2).unsqueeze(3).expand(x.size(0), -1, x.size(2), -1).repeat(1, 1, 1, x.size(3)),
    lambda z, x: F.interpolate(z.view(z.size(0), -1, 1, 1), size=x.shape[2:], mode="nearest"),
    lambda z, x: torch.zeros_like(x[:, :1]) + z[:, :, None, None],
    lambda z, x: x.mean((2, 3), keepdim=True).expand_as(x),
    lambda z, x: F.adaptive_avg_pool2d(x, (1, None)).expand(-1, -1, x.size(2), -1),
    lambda z, x: x.amax(-1, keepdim=True).repeat(1, 1, 1, x.size(3)),
    lambda z, x: x.new_full((1, 2, 1, 1), 0.5).expand(x.size(0), -1, x.size(2), x.size(3)),
    lambda z, x: x.flip(2),
    lambda z, x: x,
]
CHAIN = [
    torch.relu, lambda t: F.leaky_relu(t, 0.1), lambda t: t * 2 + 1, lambda t: 1 - t.sigmoid(), lambda t: t.contiguous(),
    lambda t: t.softmax(1), lambda t: F.pad(t, (1, 0, 1, 1), mode="replicate")[:, :, :-2, 1:], lambda t: t[:, ::2],
    lambda t: F.pad(t, (1, 0, 0, 0))[:, :, :, 1:], lambda t: t.clamp(-0.5, 0.5),
    lambda t: t.permute(0, 1, 3, 2).transpose(2, 3), lambda t: F.silu(t.clone(), inplace=True),
    lambda t: t - t.mean(1, keepdim=True),
]  # fmt: skip


class RandomNetwork(nn.Module):
    """Two layers of concatenation and convolution; the plan says what is tiled, what stands between, and how."""

    def __init__(self, plan, inputs):
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList()
        x, z = inputs
        for segments, outer, options in plan:
            channels = self.joined(x, z, segments, outer).shape[1]
            self.layers.append(nn.Conv2d(channels, 3, dtype=torch.float64, **options))
            x = self.layers[-1](self.joined(x, z, segments, outer))

    @staticmethod
    def joined(x, z, segments, outer):
        tensors = []
        for tiling, chain in segments:
            tensor = TILINGS[tiling](z, x)
            for step in chain:
                tensor = CHAIN[step](tensor)
            tensors.append(tensor)
        y = torch.cat(tensors[:2], 1)
        y = torch.cat([y, *tensors[2:]], 1) if len(tensors) > 2 else y
        for step in outer:
            y = CHAIN[step](y)
        return y

    def forward(self, x, z):
        for layer, (segments, outer, _) in zip(self.layers, self.plan, strict=True):
            x = layer(self.joined(x, z, segments, outer))
        return x


@st.composite
def plans(draw):
    def layer():
        tilings = st.one_of(st.integers(0, len(TILINGS) - 1), st.just(len(TILINGS) - 1))  # often the image
        segment = st.tuples(tilings, st.lists(st.integers(0, len(CHAIN) - 1), max_size=2))
        kernel = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        options = {
            "kernel_size": kernel,
            "stride": draw(st.integers(1, 3)),
            "padding": tuple(draw(st.integers(0, k)) for k in kernel),
            "padding_mode": draw(st.sampled_from(("zeros", "zeros", "replicate"))),
        }
        return draw(st.lists(segment, min_size=2, max_size=4)), draw(st.lists(st.integers(0, 4), max_size=1)), options

    return [layer() for _ in range(draw(st.integers(1, 2)))]


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(0, 2**31))
def test_random_networks_are_converted_exactly_or_not_at_all(plan, seed):
    torch.manual_seed(seed)
    sizes = ((2, 9, 8), (1, 8, 10))
    try:
        model = RandomNetwork(plan, (image(2, 9, 8), vector(2))).eval()
        inputs = [(image(n, h, w), vector(n)) for n, h, w in sizes]
        expected = [model(*i).detach() for i in inputs]
    except RuntimeError:
        return  # the map became smaller than a kernel
    result = convert(model, inputs[0])
    reported = {r.convolution for r in result.refused} | {c.convolution for c in result.converted}
    # A 1x1 convolution of tiles alone is itself a tile and needs no report.
    assert reported >= {f"layers.{i}" for i, (_, _, options) in enumerate(plan) if options["kernel_size"] != (1, 1)}
    for converted in (result.model, convert(model).model):
        for i, y in zip(inputs, expected, strict=True):
            if y.abs().max() > 0:
                compare(converted(*i).detach(), y)
