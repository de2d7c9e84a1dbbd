"""`MSConv2d`: a convolution whose input is an image plus vectors that are never tiled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from msconv_deploy.errors import BadInputError
from msconv_deploy.nn import operator
from msconv_deploy.nn.functional import class_membership, msconv2d
from msconv_deploy.nn.geometry import Mode, Numbers, pair, window_pads
from msconv_deploy.nn.recording import recording
from msconv_deploy.ops.border_classes import Axis
from msconv_deploy.ops.configuration import SOURCE_NAMES, MSConv2dConfig, PaddingMode, PaddingSemantics
from msconv_deploy.ops.shapes import (
    HEIGHT_AXIS,
    WIDTH_AXIS,
    check_channels,
    check_sources,
    output_shape,
    weight_shape,
)

Semantics = Literal["source", "tiled"]
_MODES = get_args(Mode)


class TiledWeight(nn.Module):
    """Parameters of one source in tiled semantics: ``weight`` [O, C, kh, kw] and, on the first block, ``bias`` [O].

    It stands where the source semantics has a Conv2d, Conv1d or Linear, so that parameter names stay the same.
    """

    bias: Tensor | None

    def __init__(self, shape: tuple[int, ...], bias: bool, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialization of `nn.Conv2d`: uniform with bound 1/sqrt(fan in)."""
        bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, bias={self.bias is not None}"


class MSConv2d(nn.Module):
    """Two-dimensional convolution of up to four sources, computed without tiling them.

    ``forward(nchw [N,C1,H,W], nch [N,C2,H], ncw [N,C3,W], nc [N,C4]) -> [N, O, H', W']``

    Args:
        in_channels: ``[C1, C2, C3, C4]``; 0 where a source is absent.
        out_channels: O.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as in `nn.Conv2d`, ``padding``
            may be ``"same"`` or ``"valid"``. ``groups`` applies to nchw, nch and ncw in source semantics, to nchw
            alone in tiled semantics; nc is always dense.
        padding_semantics: ``"source"``: each source is padded only along the axes that it owns (the original module).
            ``"tiled"``: equal to tiling, concatenating and convolving, borders included.

    Submodules ``nchw_block``, ``nch_block``, ``ncw_block`` and ``nc_block`` hold the parameters; each is None if its
    channel count is 0, and the bias sits on the first that exists. The operator is defined in ``docs/spec.md``.

    Raises:
        BadInputError: (a ValueError) an argument or a tensor is wrong; the message says which and what it should be.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        device: Any = None,
        dtype: Any = None,
        padding_semantics: Semantics = "source",
    ) -> None:
        super().__init__()
        if len(in_channels) != 4 or any(not isinstance(c, int) or c < 0 for c in in_channels):
            raise BadInputError(
                f"MSConv2d: in_channels must be four counts [nchw, nch, ncw, nc], 0 or more, but is {in_channels!r}"
            )
        if padding_mode not in _MODES:
            raise BadInputError(f"MSConv2d: padding_mode is {padding_mode!r}; known are {', '.join(_MODES)}")
        if padding_semantics not in ("source", "tiled"):
            raise BadInputError(f'MSConv2d: padding_semantics is {padding_semantics!r}; known are "source" and "tiled"')
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.kernel_size = pair("MSConv2d", "kernel_size", kernel_size)
        self.stride = pair("MSConv2d", "stride", stride)
        self.dilation = pair("MSConv2d", "dilation", dilation)
        self.padding: tuple[int, int] | str
        self.padding = padding if isinstance(padding, str) else pair("MSConv2d", "padding", padding, 0)
        pads = window_pads("MSConv2d", self.padding, self.kernel_size, self.stride, self.dilation)
        self.groups = groups
        self.padding_mode: Mode = padding_mode
        self.padding_semantics: Semantics = padding_semantics
        self.config = MSConv2dConfig(
            sources=tuple(int(c > 0) for c in in_channels),  # type: ignore[arg-type]
            kernel_shape=self.kernel_size,
            has_bias=int(bias),
            strides=self.stride,
            dilations=self.dilation,
            pads=pads,  # type: ignore[arg-type]
            group=groups,
            padding_semantics=PaddingSemantics[padding_semantics.upper()],
            padding_mode=PaddingMode[padding_mode.upper()],
        )
        self._channels = {name: c for name, c in zip(SOURCE_NAMES, in_channels, strict=True) if c}
        check_channels(self.config, self._channels, out_channels)
        self._make_blocks(bias, {"device": device, "dtype": dtype})
        self._single_node = False

    def _make_blocks(self, bias: bool, factory: dict[str, Any]) -> None:
        config = self.config
        self.nchw_block: nn.Module | None = None
        self.nch_block: nn.Module | None = None
        self.ncw_block: nn.Module | None = None
        self.nc_block: nn.Module | None = None
        for name, channels in self._channels.items():
            own_bias = bias and name == config.source_names[0]
            if config.tiled:
                shape = weight_shape(config, name, channels, self.out_channels)
                block: nn.Module = TiledWeight(shape, own_bias, **factory)
            elif name == "nc":
                block = nn.Linear(channels, self.out_channels, own_bias, **factory)
            else:
                axes = {"nchw": (0, 1), "nch": (0,), "ncw": (1,)}[name]
                block = self._make_convolution(channels, axes, own_bias, factory)
            setattr(self, f"{name}_block", block)
        dtype = self.weights[config.source_names[0]].dtype
        for axis_name, axis in (("row", config.rows), ("column", config.columns)):
            table = class_membership(config, axis).to(device=factory["device"], dtype=dtype) if config.tiled else None
            self.register_buffer(f"_{axis_name}_membership", table, persistent=False)

    def _make_convolution(
        self, channels: int, axes: tuple[int, ...], bias: bool, factory: dict[str, Any]
    ) -> nn.Conv2d | nn.Conv1d:
        """The original's block of a source that has these axes (0 height, 1 width)."""
        kind: Any = nn.Conv2d if len(axes) == 2 else nn.Conv1d
        padding = self.padding if isinstance(self.padding, str) else tuple(self.padding[i] for i in axes)
        block: nn.Conv2d | nn.Conv1d = kind(
            channels,
            self.out_channels,
            tuple(self.kernel_size[i] for i in axes),
            tuple(self.stride[i] for i in axes),
            padding,
            tuple(self.dilation[i] for i in axes),
            self.groups,
            bias,
            self.padding_mode,
            **factory,
        )
        return block

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weight by source name."""
        return {name: getattr(self, f"{name}_block").weight for name in self.config.source_names}

    @property
    def bias(self) -> Tensor | None:
        """[O], wherever it sits."""
        bias: Tensor | None = getattr(self, f"{self.config.source_names[0]}_block").bias
        return bias

    def forward(
        self, nchw: Tensor | None, nch: Tensor | None = None, ncw: Tensor | None = None, nc: Tensor | None = None
    ) -> Tensor:
        given = zip(SOURCE_NAMES, (nchw, nch, ncw, nc), strict=True)
        sources = {name: source for name, source in given if source is not None}
        if not recording():
            self._check(sources)
        if self._single_node:
            return operator.call(self.config, sources, self.weights, self.bias)
        return msconv2d(self.config, sources, self.weights, self.bias, self._row_membership, self._column_membership)

    _row_membership: Tensor | None
    _column_membership: Tensor | None

    def _check(self, sources: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(source.shape) for name, source in sources.items()}
        check_sources(self.config, shapes, self._channels)
        output_shape(self.config, shapes, self.out_channels)  # refuses an image smaller than the kernel
        dtype = self.weights[self.config.source_names[0]].dtype
        for name, source in sources.items():
            if source.dtype != dtype and not torch.is_autocast_enabled(source.device.type):
                raise BadInputError(f"MSConv2d: source {name} is {source.dtype}, but the weights are {dtype}")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        other = "source" if self.config.tiled else "tiled"
        for name in self.config.source_names[int("nchw" in self.config.source_names) :]:
            key = f"{prefix}{name}_block.weight"
            if key in state_dict and state_dict[key].ndim != self.weights[name].ndim:
                error_msgs.append(
                    f"{key} has shape {tuple(state_dict[key].shape)}: this state dict was saved from an MSConv2d with "
                    f'padding_semantics="{other}", but this layer has "{self.padding_semantics}". Load it into '
                    f'MSConv2d(..., padding_semantics="{other}") and convert with '
                    f'.with_padding_semantics("{self.padding_semantics}"), which is exact or refuses'
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        parts = [f"{list(self.in_channels)}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        parts.append(f"padding_semantics={self.padding_semantics!r}")
        return ", ".join(parts)

    # -- conversions ---------------------------------------------------------------------------------------------

    @classmethod
    def from_conv2d(
        cls, conv: nn.Conv2d, in_channels: Sequence[int], padding_semantics: Semantics = "tiled"
    ) -> MSConv2d:
        """The MSConv2d that equals ``conv(tile_and_concatenate(...))`` at every pixel, borders included.

        Args:
            conv: a convolution over the concatenated channels, in the order nchw, nch, ncw, nc.
            in_channels: ``[C1, C2, C3, C4]``, summing to ``conv.in_channels``.
            padding_semantics: ``"tiled"`` is always exact. ``"source"`` sums each weight over the taps of the axes
                that its source lacks, which is exact only where no zero padding falls on such an axis.

        Raises:
            BadInputError: it would not be exact; the message says why.
        """
        if not isinstance(conv, nn.Conv2d) or isinstance(conv, nn.modules.lazy.LazyModuleMixin):
            raise BadInputError(f"from_conv2d: expected nn.Conv2d, but got {type(conv).__name__}")
        if len(in_channels) != 4 or sum(in_channels) != conv.in_channels:
            raise BadInputError(
                f"from_conv2d: in_channels {list(in_channels)} sums to {sum(in_channels)}, "
                f"but the convolution has {conv.in_channels} input channels"
            )
        vectors = sum(in_channels[1:])
        if conv.groups > 1 and in_channels[0] and vectors:
            raise BadInputError(
                f"from_conv2d: {conv.groups} groups cut across the concatenation: the first group reads "
                f"{conv.in_channels // conv.groups} channels from the {in_channels[0]} of nchw on, so nchw is not spread "
                "equally over the groups. Use groups=1, or keep this convolution as it is"
            )
        # Without an image part, grouped weights are scattered to dense ones; with it alone, groups stay.
        weight = conv.weight.detach()
        groups = conv.groups
        if groups > 1 and vectors:
            weight, groups = _scatter_groups(weight, groups), 1
        module = cls(
            in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            "tiled",
        )
        parts = weight.split([c // groups for c in in_channels], dim=1)
        with torch.no_grad():
            for name, part in zip(SOURCE_NAMES, parts, strict=True):
                if name in module.weights:
                    module.weights[name].copy_(part)
            if module.bias is not None and conv.bias is not None:
                module.bias.copy_(conv.bias)
        module.train(conv.training)
        return module if padding_semantics == "tiled" else module.with_padding_semantics(padding_semantics)

    def to_conv2d(self) -> nn.Conv2d:
        """The `nn.Conv2d` that, applied to ``tile_and_concatenate(...)``, equals this layer at every pixel.

        Groups are scattered to dense weights unless nchw is the only source, because groups cut the concatenation
        differently.

        Raises:
            BadInputError: no such convolution exists (source semantics with a padding that leaves no tap inside the
                input at every output), or no source defines the height or width.
        """
        if not (self.in_channels[0] or (self.in_channels[1] and self.in_channels[2])):
            raise BadInputError(
                "to_conv2d: the sources of this layer do not define both height and width: no tiled tensor"
            )
        tiled = self.with_padding_semantics("tiled")
        groups = self.groups if self.config.source_names == ("nchw",) else 1
        conv = nn.Conv2d(
            sum(self.in_channels),
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            groups,
            self.bias is not None,
            self.padding_mode,
            next(iter(self.weights.values())).device,
            next(iter(self.weights.values())).dtype,
        )
        with torch.no_grad():
            parts = [
                _scatter_groups(w, tiled.groups) if name == "nchw" and groups == 1 else w
                for name, w in tiled.weights.items()
            ]
            conv.weight.copy_(torch.cat(parts, dim=1))
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        conv.train(self.training)
        return conv

    def with_padding_semantics(self, padding_semantics: Semantics) -> MSConv2d:
        """This layer in the given semantics, equal at every pixel; a copy even if nothing changes.

        ``source`` to ``tiled`` puts each vector's weight on a tap that lies inside the input at every output
        (``Axis.always_inside_tap``); ``tiled`` to ``source`` sums over the taps of the missing axes.

        Raises:
            BadInputError: the two differ at the border, whatever the weights.
        """
        module = MSConv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            next(iter(self.weights.values())).device,
            next(iter(self.weights.values())).dtype,
            padding_semantics,
        )
        same = module.padding_semantics == self.padding_semantics
        with torch.no_grad():
            for name, weight in self.weights.items():
                if not same and name != "nchw":
                    weight = self._on_tap(name, weight) if padding_semantics == "tiled" else self._summed(name, weight)
                module.weights[name].copy_(weight)
            if module.bias is not None and self.bias is not None:
                module.bias.copy_(self.bias)
        module.train(self.training)
        return module

    def _missing_axes(self, name: str) -> list[tuple[int, Axis, str]]:
        """(dimension of a tiled weight, geometry, word) of the axes that the source lacks."""
        axes = [(2, self.config.rows, "height", HEIGHT_AXIS), (3, self.config.columns, "width", WIDTH_AXIS)]
        return [(dim, axis, word) for dim, axis, word, axis_of in axes if axis_of[name] is None]

    def _on_tap(self, name: str, weight: Tensor) -> Tensor:
        """A source-semantics weight as the equal tiled one: on one tap of each missing axis, zeros elsewhere."""
        if name != "nc" and self.groups > 1:
            weight = _scatter_groups(weight, self.groups)
        for dim, axis, word in self._missing_axes(name):
            tap = axis.always_inside_tap() if self.config.padding_mode == PaddingMode.ZEROS else 0
            if tap is None:
                raise BadInputError(
                    f"MSConv2d: source semantics cannot be written as a convolution of the tiled tensor here: along the "
                    f"{word}, padding {axis.pad_before}+{axis.pad_after} with kernel {axis.kernel} and dilation "
                    f"{axis.dilation} leaves no tap inside the input at every output, so the border would differ. "
                    'Keep padding_semantics="source"'
                )
            full = weight.new_zeros((*weight.shape[:dim], axis.kernel, *weight.shape[dim:]))
            full.select(dim, tap).copy_(weight)
            weight = full
        return weight

    def _summed(self, name: str, weight: Tensor) -> Tensor:
        """A tiled weight as the equal source-semantics one: summed over the taps of each missing axis."""
        for _, axis, word in self._missing_axes(name):
            if self.config.has_border(axis):
                raise BadInputError(
                    f"MSConv2d: tiled semantics cannot be written in source semantics here: zero padding "
                    f"{axis.pad_before}+{axis.pad_after} falls on the {word}, which {name} lacks, so that its "
                    'contribution is smaller at the border. Keep padding_semantics="tiled"'
                )
        if name != "nc" and self.groups > 1:
            raise BadInputError(
                f"MSConv2d: tiled weights of {name} are dense, but in source semantics its weight has {self.groups} "
                'groups. Keep padding_semantics="tiled"'
            )
        dims = [dim for dim, _, _ in self._missing_axes(name)]
        return weight.double().sum(dims).to(weight.dtype)


@contextmanager
def as_single_nodes(model: nn.Module) -> Iterator[None]:
    """Within this block, every MSConv2d of the model calls the opaque ``msconv::msconv2d`` operator (for export)."""
    layers = [module for module in model.modules() if isinstance(module, MSConv2d)]
    for layer in layers:
        layer._single_node = True
    try:
        yield
    finally:
        for layer in layers:
            layer._single_node = False


def _scatter_groups(weight: Tensor, groups: int) -> Tensor:
    """[O, C/groups, ...] -> [O, C, ...] with zeros outside each output's own group."""
    if groups == 1:
        return weight
    per_group = weight.shape[1]
    dense = weight.new_zeros((weight.shape[0], per_group * groups, *weight.shape[2:]))
    for group, rows in enumerate(weight.chunk(groups)):
        begin = group * rows.shape[0]
        dense[begin : begin + rows.shape[0], group * per_group : (group + 1) * per_group] = rows
    return dense
