"""The smallest network that shows everything: all four sources, both padding semantics, two configurations.

`Tiled` is what people write today: the same sources, tiled and concatenated. `make_checkpoints()` writes the weights, which
are random but seeded; nothing is trained here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from msconv_deploy.nn import MSConv2d, tile_and_concatenate

FOLDER = Path(__file__).parent


class Minimal(nn.Module):
    """image [N,3,H,W], rows [N,2,H], columns [N,2,W], scalars [N,4] -> [N,3,H,W]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = MSConv2d([3, 2, 2, 4], width, 3, padding=1)
        self.second = MSConv2d([width, 0, 0, 4], width, 5, padding="same", padding_semantics="tiled")
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.activation = nn.ReLU()

    def forward(self, image: Tensor, rows: Tensor, columns: Tensor, scalars: Tensor) -> Tensor:
        x = self.activation(self.first(image, rows, columns, scalars))
        x = self.activation(self.second(x, nc=scalars))
        return image + self.last(x)


class Tiled(nn.Module):
    """The same inputs, tiled over the image and concatenated in front of both convolutions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3 + 2 + 2 + 4, width, 3, padding=1)
        self.second = nn.Conv2d(width + 4, width, 5, padding="same")
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.activation = nn.ReLU()

    def forward(self, image: Tensor, rows: Tensor, columns: Tensor, scalars: Tensor) -> Tensor:
        x = self.activation(self.first(tile_and_concatenate(image, rows, columns, scalars)))
        x = self.activation(self.second(tile_and_concatenate(x, nc=scalars)))
        return image + self.last(x)


def make_checkpoints(folder: Path = FOLDER, seed: int = 0) -> None:
    """Write seeded random weights as safetensors."""
    from safetensors.torch import save_file

    for name, network in (("minimal", Minimal), ("tiled", Tiled)):
        torch.manual_seed(seed)
        save_file(network().state_dict(), folder / f"{name}.safetensors")


if __name__ == "__main__":
    make_checkpoints()
