"""The baseline that MSConv2d replaces: expand every source over the image and concatenate on channels."""

from __future__ import annotations

import torch
from torch import Tensor

from msconv_deploy.errors import BadInputError


def tile_and_concatenate(
    nchw: Tensor | None = None, nch: Tensor | None = None, ncw: Tensor | None = None, nc: Tensor | None = None
) -> Tensor:
    """Tile the sources to ``[N, Ci, H, W]`` and concatenate them: ``[N, C1+C2+C3+C4, H, W]``.

    Args:
        nchw: image ``[N, C1, H, W]``. May be None where nch and ncw define H and W.
        nch: per-row vector ``[N, C2, H]``.
        ncw: per-column vector ``[N, C3, W]``.
        nc: scalars ``[N, C4]``.

    All have one dtype; a batch of 1 is broadcast.

    Raises:
        BadInputError: no source defines the height or the width.
    """
    lifted = [
        source
        for source in (
            nchw,
            None if nch is None else nch[:, :, :, None],
            None if ncw is None else ncw[:, :, None, :],
            None if nc is None else nc[:, :, None, None],
        )
        if source is not None
    ]
    if nchw is None and (nch is None or ncw is None):
        raise BadInputError(
            "tile_and_concatenate: the height and width are defined by nchw, or by nch and ncw together"
        )
    batch, _, height, width = torch.broadcast_shapes(*((s.shape[0], 1, *s.shape[2:]) for s in lifted))
    return torch.cat([s.expand(batch, -1, height, width) for s in lifted], dim=1)
