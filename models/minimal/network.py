"""The smallest network that shows everything: all four sources, both padding semantics, two configurations.

`make_checkpoint()` writes its weights, which are random but seeded; nothing is trained here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from msconv_deploy.nn import MSConv2d

CHECKPOINT = Path(__file__).with_name("minimal.safetensors")


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


def make_checkpoint(path: Path = CHECKPOINT, seed: int = 0) -> None:
    """Write seeded random weights as safetensors."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    save_file(Minimal().state_dict(), path)


if __name__ == "__main__":
    make_checkpoint()
