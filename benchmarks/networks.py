"""Small networks of the kinds in which copies are concatenated and convolved, or windows written out, from both exporters.

Built from torch.nn with seeded weights; `export_networks` writes them with a manifest.json as benchmarks/speed.py reads it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LabelTiledGenerator(nn.Module):
    """Image-to-image generator (StarGAN): the target label is tiled over the image before the 7x7 stem."""

    def __init__(self, labels: int = 8, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3 + labels, width, 7, padding=3, bias=False)
        self.stem_norm = nn.InstanceNorm2d(width, affine=True)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.head = nn.Conv2d(width, 3, 7, padding=3)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        tiled = label[:, :, None, None].repeat(1, 1, image.size(2), image.size(3))
        x = F.relu(self.stem_norm(self.stem(torch.cat([image, tiled], 1))))
        x = F.relu(self.down(x))
        x = x + self.middle(x)
        return torch.tanh(self.head(F.relu(self.up(x))))


class NoiseMapDenoiser(nn.Module):
    """Denoiser on unshuffled pixels (FFDNet): the noise level as a map of its own beside them."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(5, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        x = F.pixel_unshuffle(image, 2)
        noise_map = sigma.view(-1, 1, 1, 1).expand(x.size(0), 1, x.size(2), x.size(3))
        x = F.relu(self.first(torch.cat([x, noise_map], 1)))
        for convolution in self.body:
            x = F.relu(convolution(x))
        return image - F.pixel_shuffle(self.last(x), 2)


class AsppHead(nn.Module):
    """Segmentation head with atrous spatial pyramid pooling (DeepLabv3); image pooling is the tiled branch."""

    def __init__(self, channels: int = 128, width: int = 64) -> None:
        super().__init__()
        self.point = nn.Conv2d(channels, width, 1)
        self.atrous = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=d, dilation=d) for d in (2, 4))
        self.pooled = nn.Conv2d(channels, width, 1)
        self.project = nn.Conv2d(4 * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classes = nn.Conv2d(width, 21, 1)

    def forward(self, features: Tensor) -> Tensor:
        pooled = F.relu(self.pooled(F.adaptive_avg_pool2d(features, 1)))
        size = (features.size(2), features.size(3))
        branches = [F.relu(self.point(features)), *(F.relu(branch(features)) for branch in self.atrous)]
        branches.append(F.interpolate(pooled, size=size, mode="bilinear", align_corners=False))
        return self.classes(F.relu(self.norm(self.project(torch.cat(branches, 1)))))


class CoordinateEncoder(nn.Module):
    """Encoder whose convolutions also see the coordinates of the pixel (CoordConv)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3 + 2, width, 5, padding=2)
        self.second = nn.Conv2d(width + 2, width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(width + 2, 2 * width, 3, stride=2, padding=1)

    @staticmethod
    def with_coordinates(x: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, x.size(2))[None, None, :, None].expand(x.size(0), 1, x.size(2), x.size(3))
        columns = torch.linspace(-1, 1, x.size(3))[None, None, None, :].expand(x.size(0), 1, x.size(2), x.size(3))
        return torch.cat([x, rows, columns], 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.first(self.with_coordinates(image)))
        x = F.relu(self.second(self.with_coordinates(x)))
        return self.third(self.with_coordinates(x))


class GlobalPointFeature(nn.Module):
    """Labels of points from their own and a global feature (PointNet), which is repeated for every point."""

    def __init__(self, width: int = 64, pooled: int = 512, labels: int = 13) -> None:
        super().__init__()
        self.local = nn.Conv1d(3, width, 1)
        self.deep = nn.Conv1d(width, pooled, 1)
        self.first = nn.Conv1d(width + pooled, 256, 1)
        self.norm = nn.BatchNorm1d(256)
        self.second = nn.Conv1d(256, 128, 1)
        self.labels = nn.Conv1d(128, labels, 1)

    def forward(self, points: Tensor) -> Tensor:
        local = F.relu(self.local(points))
        pooled = self.deep(local).max(2, keepdim=True).values
        x = torch.cat([local, pooled.repeat(1, 1, points.size(2))], 1)
        x = F.relu(self.norm(self.first(x)))
        return self.labels(F.relu(self.second(x)))


class SpatialBroadcastDecoder(nn.Module):
    """Decoder of a latent vector (MONet): the vector at every pixel, its coordinates, then convolutions."""

    def __init__(self, latent: int = 32, width: int = 32, size: int = 48) -> None:
        super().__init__()
        axis = torch.linspace(-1, 1, size)
        self.register_buffer("grid", torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None])
        self.size = size
        self.first = nn.Conv2d(latent + 2, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, latent: Tensor) -> Tensor:
        x = latent[:, :, None, None].expand(-1, -1, self.size, self.size)
        x = torch.cat([x, self.grid.expand(latent.size(0), -1, -1, -1)], 1)
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


class LatentDistanceField(nn.Module):
    """Signed distance of points to a shape given by a latent vector (DeepSDF), which enters twice."""

    def __init__(self, latent: int = 128, width: int = 256) -> None:
        super().__init__()
        self.first = nn.Linear(latent + 3, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width + latent + 3, width)
        self.last = nn.Linear(width, 1)

    def forward(self, latent: Tensor, points: Tensor) -> Tensor:
        inputs = torch.cat([latent[:, None, :].expand(-1, points.size(1), -1), points], -1)
        x = F.relu(self.second(F.relu(self.first(inputs))))
        return torch.tanh(self.last(F.relu(self.third(torch.cat([x, inputs], -1)))))


class ConditionalDecoder(nn.Module):
    """Decoder of transposed convolutions; the condition is tiled and concatenated at every level."""

    def __init__(self, channels: int = 64, condition: int = 32) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(channels + condition, 48, 4, stride=2, padding=1)
        self.second = nn.ConvTranspose2d(48 + condition, 32, 4, stride=2, padding=1)
        self.last = nn.Conv2d(32 + condition, 3, 3, padding=1)

    @staticmethod
    def conditioned(x: Tensor, condition: Tensor) -> Tensor:
        tiled = condition[:, :, None, None].expand(-1, -1, x.size(2), x.size(3))
        return torch.cat([x, tiled], 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        x = F.relu(self.first(self.conditioned(features, condition)))
        x = F.relu(self.second(self.conditioned(x, condition)))
        return torch.sigmoid(self.last(self.conditioned(x, condition)))


class UnfoldedPatches(nn.Module):
    """Image tokens (ViT) whose patches are cut out by Tensor.unfold, with a token mixer behind them."""

    def __init__(self, patch: int = 8, width: int = 96) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, image: Tensor) -> Tensor:
        p = self.patch
        patches = image.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = self.embed(patches)
        return x + self.mix(self.norm(x))


class UnfoldedConvolution(nn.Module):
    """Texture features: a convolution spelled as weights times F.unfold, between ordinary ones."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(width, width * 9) / 17)
        self.bias = nn.Parameter(torch.randn(width, 1) / 8)
        self.last = nn.Conv2d(width, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.first(image))
        x = self.weight @ F.unfold(x, 3, padding=1) + self.bias
        x = x.view(image.size(0), -1, image.size(2), image.size(3))
        return self.last(F.relu(x))


class WindowStatistics(nn.Module):
    """Local contrast: maximum and mean over windows that are written out, then convolutions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Conv2d(3 * width, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.first(image))
        windows = F.unfold(x, 5, padding=2).view(x.size(0), x.size(1), 25, -1)
        shape = (x.size(0), x.size(1), x.size(2), x.size(3))
        return self.last(torch.cat([x, windows.amax(2).view(shape), windows.mean(2).view(shape)], 1))


class ChannelSumFilter(nn.Module):
    """Position-wise filter responses: windows times one filter, summed over channels; the taps become channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.filter = nn.Parameter(torch.randn(1, width, 9, 1) / 6)
        self.last = nn.Conv2d(9, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.first(image))
        windows = F.unfold(x, 3, padding=1).view(x.size(0), x.size(1), 9, -1)
        taps = (windows * self.filter).sum(1)
        return self.last(F.relu(taps.view(x.size(0), 9, x.size(2), x.size(3))))


class CollapsibleBlocks(nn.Module):
    """Super-resolution from linear blocks (SESR): k x k to many channels, 1x1 to few, nothing between, exported as trained."""

    def __init__(self, width: int = 16, expanded: int = 128, depth: int = 3) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, expanded, kernel, padding=kernel // 2, bias=False), nn.Conv2d(expanded, outputs, 1)
            )

        self.head = block(1, width, 5)
        self.body = nn.ModuleList(block(width, width, 3) for _ in range(depth))
        self.tail = block(width, 4, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = first = F.relu(self.head(image))
        for convolutions in self.body:
            x = F.relu(convolutions(x) + x)
        return F.pixel_shuffle(self.tail(x + first), 2)


class RadialBasisFunctions(nn.Module):
    """Interpolation of values at points by Gaussians around centers, whose distances are tiled."""

    def __init__(self, centers: int = 256, dimensions: int = 16, values: int = 8) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(centers, dimensions))
        self.values = nn.Linear(centers, values)

    def forward(self, points: Tensor) -> Tensor:
        squared = (points.unsqueeze(2) - self.centers).pow(2).sum(-1)
        return self.values(torch.exp(squared / -32.0))


class VectorQuantizer(nn.Module):
    """Autoencoder with a codebook (VQ-VAE): every pixel's features become the nearest code."""

    def __init__(self, codes: int = 128, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 4, stride=4)
        self.codes = nn.Parameter(torch.randn(codes, width) / 2)
        self.decoder = nn.ConvTranspose2d(width, 3, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.encoder(image).permute(0, 2, 3, 1)
        nearest = (x.unsqueeze(3) - self.codes).pow(2).sum(-1).argmin(-1)
        return self.decoder(F.embedding(nearest, self.codes).permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Network:
    """A network to export.

    Attributes:
        make: how it is made.
        inputs: the extents to measure at.
        dynamic: which axes are dynamic.
        allow: rules to measure with that have to be allowed by name.
    """

    make: type[nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    dynamic: Mapping[str, Mapping[int, str]]
    allow: tuple[str, ...] = ()


IMAGE_AXES = {0: "N", 2: "H", 3: "W"}
NETWORKS = {
    "label_tiled_generator": Network(
        LabelTiledGenerator,
        {"image": (1, 3, 96, 96), "label": (1, 8)},
        {"image": IMAGE_AXES, "label": {0: "N"}},
    ),
    "noise_map_denoiser": Network(
        NoiseMapDenoiser, {"image": (1, 1, 160, 160), "sigma": (1,)}, {"image": {0: "N"}, "sigma": {0: "N"}}
    ),
    "aspp_head": Network(AsppHead, {"features": (1, 128, 33, 33)}, {"features": IMAGE_AXES}),
    "coordinate_encoder": Network(CoordinateEncoder, {"image": (1, 3, 96, 96)}, {"image": {0: "N"}}),
    "global_point_feature": Network(GlobalPointFeature, {"points": (2, 3, 1024)}, {"points": {0: "N", 2: "P"}}),
    "spatial_broadcast_decoder": Network(SpatialBroadcastDecoder, {"latent": (4, 32)}, {"latent": {0: "N"}}),
    "latent_distance_field": Network(
        LatentDistanceField,
        {"latent": (1, 128), "points": (1, 4096, 3)},
        {"latent": {0: "N"}, "points": {0: "N", 1: "P"}},
    ),
    "conditional_decoder": Network(
        ConditionalDecoder,
        {"features": (1, 64, 24, 24), "condition": (1, 32)},
        {"features": IMAGE_AXES, "condition": {0: "N"}},
    ),
    "unfolded_patches": Network(UnfoldedPatches, {"image": (1, 3, 128, 128)}, {"image": {0: "N"}}),
    "unfolded_convolution": Network(UnfoldedConvolution, {"image": (1, 3, 64, 64)}, {"image": IMAGE_AXES}),
    "window_statistics": Network(WindowStatistics, {"image": (1, 3, 64, 64)}, {"image": IMAGE_AXES}),
    "channel_sum_filter": Network(ChannelSumFilter, {"image": (1, 3, 64, 64)}, {"image": IMAGE_AXES}),
    "collapsible_blocks": Network(CollapsibleBlocks, {"image": (1, 1, 96, 96)}, {"image": IMAGE_AXES}),
    "radial_basis_functions": Network(
        RadialBasisFunctions, {"points": (1, 1024, 16)}, {"points": {0: "N", 1: "P"}}, ("tiled-distance",)
    ),
    "vector_quantizer": Network(VectorQuantizer, {"image": (1, 3, 128, 128)}, {"image": {0: "N"}}, ("tiled-distance",)),
}
EXPORTERS = {"dynamo": True, "torchscript": False}


def export_networks(folder: Path, only: str = "") -> None:
    """Export every network with both exporters to ``folder`` and write manifest.json beside them.

    Args:
        only: export only the files with this text in their name.
    """
    manifest = {}
    for name, network in NETWORKS.items():
        for exporter, dynamo in EXPORTERS.items():
            file = f"{name}.{exporter}.onnx"
            if only in file:
                export(network, folder / file, dynamo)
                inputs = {key: ["float32", list(shape)] for key, shape in network.inputs.items()}
                manifest[file] = {"inputs": inputs} | ({"allow": list(network.allow)} if network.allow else {})
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def export(network: Network, path: Path, dynamo: bool) -> None:
    """Export one network; a batch of 2 as the example, since torch.export takes an extent of 1 for a fixed one."""
    torch.manual_seed(0)
    module = network.make().eval()
    for child in module.modules():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(child.running_mean, -0.5, 0.5)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    examples = tuple(torch.randn(2, *shape[1:]) for shape in network.inputs.values())
    if dynamo:
        shapes = {n: dict.fromkeys(axes, torch.export.Dim.AUTO) for n, axes in network.dynamic.items()}
        arguments = {"opset_version": 18, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
    else:
        arguments = {"opset_version": 17, "dynamic_axes": {n: dict(axes) for n, axes in network.dynamic.items()}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, examples, str(path), input_names=list(network.inputs), dynamo=dynamo, **arguments)
