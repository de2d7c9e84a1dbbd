"""`DynamicConv2d`: a convolution whose filter is computed from the patch that it is applied to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn.geometry import (
    Mode,
    Numbers,
    Padding,
    check_image,
    checked_mode,
    describe,
    padded,
    pair,
    patches,
    window_axes,
)
from msconv_deploy.nn.recording import recording, recording_script
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.conv_matrix import check_extents

# Bytes of filter weights that exist at a time. A share of all of them keeps the number of chunks, and with it their
# overhead, independent of the image; the bounds keep small images in one chunk and large ones within memory.
_SHARE = 64
_LEAST_BYTES = 1 << 18
_MOST_BYTES = 1 << 26
# The chunk of an exported graph is fixed before the image is known.
_EXPORT_BYTES = 1 << 20

Block = tuple[slice, slice, slice]
"""Output positions: samples, rows, columns."""


class DynamicConv2d(nn.Module):
    """``y[n,:,l] = f(patch[n,l]) @ patch[n,l] + bias``: every window is convolved with a filter of its own.

    ``forward(x [N,C,H,W]) -> [N,O,H',W']``. A patch is the window's C*kh*kw values in the order of `F.unfold`, and
    ``filter_network`` is f. The filters of all positions together are O*kh*kw times as large as the image. They never
    exist at once: positions are taken in chunks, patches are cut out chunk by chunk, and with ``checkpoint`` the
    backward pass computes a chunk's filters anew instead of keeping them (which costs a second evaluation of f).

    Args:
        in_channels, out_channels: C and O.
        kernel_size, stride, dilation, padding_mode, device, dtype: as in `nn.Conv2d`.
        filter_network: maps patches ``[P, C*kh*kw]`` to filters ``[P, O, C*kh*kw]``, or ``[P, O*C*kh*kw]`` as a linear
            layer gives them. It must treat its P rows independently, which BatchNorm in training does not.
        padding: as in `nn.Conv2d`, or (top, left, bottom, right).
        bias: learn one number per output channel?
        chunk_size: positions whose filters exist at a time; None: as many as make 1/64 of all filters, but 256 KiB to
            64 MiB of them. More is faster on a GPU.
        checkpoint: recompute filters in the backward pass. Without it, training keeps all of them. On a CPU, training in
            glibc's heap fragments: the environment variable ``MALLOC_MMAP_THRESHOLD_=65536`` keeps the process as small
            as its tensors are.

    Export. The dynamo exporter writes a ``Scan`` over chunks of ``chunk_size`` positions (None: 1 MiB of filters): the
    graph holds the patches of the image (kh*kw times its size), and the filters of one chunk. The legacy exporter has no
    loop to write: its graph computes *all filters at once*, with the memory that this takes. Both have dynamic N, H, W.

    Raises:
        BadInputError: (a ValueError) an argument, the input or a result of the filter network is wrong.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        filter_network: nn.Module,
        stride: Numbers = 1,
        padding: Padding = 0,
        dilation: Numbers = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        chunk_size: int | None = None,
        checkpoint: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for word, value in (("in_channels", in_channels), ("out_channels", out_channels), ("chunk_size", chunk_size)):
            if not (isinstance(value, int) and value >= 1) and not (word == "chunk_size" and value is None):
                raise BadInputError(f"{name}: {word} must be an integer of at least 1, but is {value!r}")
        if not isinstance(filter_network, nn.Module):
            raise BadInputError(
                f"{name}: filter_network must be an nn.Module, but is a {type(filter_network).__name__}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair(name, "kernel_size", kernel_size)
        self.rows, self.columns = window_axes(name, self.kernel_size, stride, padding, dilation)
        self.padding_mode: Mode = padding_mode
        self._mode = checked_mode(name, padding_mode)
        self.chunk_size, self.checkpoint = chunk_size, checkpoint
        self.filter_network = filter_network
        own_bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", own_bias)
        self.reset_parameters()

    @property
    def patch_size(self) -> int:
        """C*kh*kw: the length of a patch, and of each of its filters."""
        return self.in_channels * math.prod(self.kernel_size)

    def reset_parameters(self) -> None:
        """The bias as `nn.Conv2d` has it; the filter network is the caller's."""
        if self.bias is not None:
            bound = 1 / math.sqrt(self.patch_size)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if not recording():
            self._check(x)
        x = padded(x, (self.rows, self.columns), self._mode)
        if torch.compiler.is_exporting() or recording_script():
            windows = patches(x, self.rows, self.columns)
            rows = windows.flatten(0, 2)
            y = self._scanned(rows) if torch.compiler.is_exporting() else self._filtered(rows)
            return self._image(y, *windows.shape[:3])
        extents = (len(x), _outputs(self.rows, x.shape[2]), _outputs(self.columns, x.shape[3]))
        blocks = self._blocks(extents, x.element_size())
        if torch.is_grad_enabled():
            return self._image(torch.cat([self._chunk(x[self._read(block)]) for block in blocks]), *extents)
        # One tensor that is written chunk by chunk: results that stay between the chunks would scatter the heap.
        image: Tensor | None = None
        for samples, height, width in blocks:
            part = self._convolved(x[self._read((samples, height, width))])
            if image is None:
                image = part.new_empty((extents[0], self.out_channels, *extents[1:]))
            place = image[samples, :, height, width]
            place.copy_(self._image(part, len(place), *place.shape[2:]))
        assert image is not None
        return image

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        check_image(name, x, self.in_channels)
        check_extents(name, x.shape[2:], (self.rows, self.columns), self._mode)
        for path, module in self.filter_network.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                raise BadInputError(
                    f"{name}: filter_network.{path} is a {type(module).__name__} in training: its statistics would be those "
                    "of a chunk of positions, so that the result depends on chunk_size. Use LayerNorm, or eval()"
                )

    def _chunk(self, x: Tensor) -> Tensor:
        """`_convolved` for a backward pass."""
        if self.checkpoint:
            y: Tensor = checkpoint(self._convolved, x, use_reentrant=False)
            return y
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        """A part of the padded input, all of its filters at once: [n, C, h, w] -> [n*h'*w', O]."""
        return self._filtered(patches(x, self.rows, self.columns).flatten(0, 2))

    def _image(self, y: Tensor, samples: int, height: int, width: int) -> Tensor:
        """[N*H'*W', O] -> [N, O, H', W']."""
        return y.reshape(samples, height, width, self.out_channels).permute(0, 3, 1, 2).contiguous()

    def _filtered(self, rows: Tensor) -> Tensor:
        """Patches [P, C*kh*kw] -> [P, O]."""
        filters = self.filter_network(rows)
        if not recording():
            self._check_filters(rows, filters)
        filters = filters.reshape(-1, self.out_channels, self.patch_size)
        y = torch.matmul(filters, rows[:, :, None]).squeeze(-1)
        return y if self.bias is None else y + self.bias

    def _check_filters(self, rows: Tensor, filters: Any) -> None:
        found = list(filters.shape) if isinstance(filters, Tensor) else type(filters).__name__
        flat = self.out_channels * self.patch_size
        if found not in ([len(rows), self.out_channels, self.patch_size], [len(rows), flat]):
            raise BadInputError(
                f"{type(self).__name__}: filter_network must map patches {list(rows.shape)} to filters "
                f"[{len(rows)}, {self.out_channels}, {self.patch_size}] or [{len(rows)}, {flat}], but returns {found}"
            )
        if filters.dtype != rows.dtype and not torch.is_autocast_enabled(rows.device.type):
            raise BadInputError(
                f"{type(self).__name__}: filter_network returns {filters.dtype} for patches of {rows.dtype}; they must agree"
            )

    def _positions(self, total: int, itemsize: int) -> int:
        """How many positions make a chunk."""
        if self.chunk_size is not None:
            return self.chunk_size
        one = self.out_channels * self.patch_size * itemsize
        share = min(max(-(-total * one // _SHARE), _LEAST_BYTES), _MOST_BYTES)
        return max(1, share // one)

    def _blocks(self, extents: tuple[int, int, int], itemsize: int) -> Iterator[Block]:
        """Output positions that make a chunk: runs of them, in the order sample, row, column."""
        samples, height, width = extents
        chunk = self._positions(math.prod(extents), itemsize)
        for n in _slices(max(1, samples), chunk // (height * width)):  # an empty batch is one block, of nothing
            for i in _slices(height, chunk // width):
                for j in _slices(width, chunk):
                    yield n, i, j

    def _read(self, block: Block) -> tuple[slice, slice, slice, slice]:
        """The part of the padded input that a block of outputs reads."""
        samples, height, width = block
        return samples, slice(None), _read(self.rows, height), _read(self.columns, width)

    def _scanned(self, rows: Tensor) -> Tensor:
        """Patches [P, C*kh*kw] -> [P, O] in a loop that the dynamo exporter writes: chunks of a fixed number of rows."""
        chunk = self.chunk_size or max(1, _EXPORT_BYTES // (self.out_channels * self.patch_size * rows.element_size()))
        count = (rows.shape[0] + chunk - 1) // chunk
        full = nn.functional.pad(rows, (0, 0, 0, count * chunk - rows.shape[0]))

        def step(carry: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            return carry.clone(), self._filtered(part)

        # `scan` wants something to carry along.
        _, y = scan(step, rows.new_zeros(1), full.reshape(-1, chunk, self.patch_size))
        kept: Tensor = y.reshape(-1, self.out_channels)[: rows.shape[0]]
        return kept

    def extra_repr(self) -> str:
        geometry = describe(self.rows, self.columns, self._mode)
        chunk = "" if self.chunk_size is None else f", chunk_size={self.chunk_size}"
        return f"{self.in_channels}, {self.out_channels}, {geometry}, bias={self.bias is not None}{chunk}"


def _outputs(axis: Axis, extent: int) -> int:
    """Output extent for an input that has its padding already."""
    return (extent - axis.reach) // axis.stride + 1


def _slices(extent: int, count: int) -> list[slice]:
    """0..extent in slices of ``count``, or of 1 where that is 0."""
    return [slice(begin, min(begin + max(1, count), extent)) for begin in range(0, extent, max(1, count))]


def _read(axis: Axis, outputs: slice) -> slice:
    """The padded input positions that these outputs read."""
    return slice(outputs.start * axis.stride, (outputs.stop - 1) * axis.stride + axis.reach)
