"""Small networks of the kinds in which copies are concatenated and convolved, exported with both PyTorch exporters.

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


@dataclass(frozen=True)
class Network:
    """A network to export: how it is made, its inputs and the extents to measure at, and which axes are dynamic."""

    make: type[nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    dynamic: Mapping[str, Mapping[int, str]]


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
                manifest[file] = {"inputs": inputs}
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
