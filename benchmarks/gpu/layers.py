"""The layers that are measured: sizes at which image-plus-metadata networks take their metadata in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from msconv_deploy.ops.configuration import Activation, MSConv2dConfig, PaddingSemantics

FULL_HD = (1080, 1920)
UHD = (2160, 3840)


@dataclass(frozen=True)
class Layer:
    """One convolution, padded so that the output has the image's extents, tiled semantics, ReLU, bias.

    Attributes:
        channels: C1 of the image and C2, C3, C4 of the metadata (per row, per column, scalars).
        out_channels: O.
        size: H, W.
        kernel: k x k.
        batch: N.
        dtype: float32, float16 or bfloat16.
    """

    channels: tuple[int, int, int, int]
    out_channels: int
    size: tuple[int, int]
    kernel: int = 3
    batch: int = 1
    dtype: str = "float16"

    @property
    def name(self) -> str:
        image, *metadata = self.channels
        kinds = [f"{c} {kind}" for c, kind in zip(metadata, ("rows", "columns", "scalars"), strict=True) if c]
        height, width = self.size
        return (
            f"{image} + {', '.join(kinds)} -> {self.out_channels}, {self.kernel}x{self.kernel}, "
            f"{height}x{width}, N {self.batch}, {self.dtype}"
        )

    @property
    def config(self) -> MSConv2dConfig:
        return MSConv2dConfig(
            sources=tuple(int(c > 0) for c in self.channels),  # type: ignore[arg-type]
            kernel_shape=(self.kernel, self.kernel),
            pads=(self.kernel // 2,) * 4,
            padding_semantics=PaddingSemantics.TILED,
            activation=Activation.RELU,
        )

    @property
    def few_channels(self) -> bool:
        """Is the layer bound by memory once tensor cores do the products? Then it should cost what its output costs."""
        return self.channels[0] * self.kernel**2 <= 192

    @property
    def bytes_moved(self) -> int:
        """The image read once and the output written once, in bytes: what no implementation can avoid."""
        element = 4 if self.dtype == "float32" else 2
        return self.batch * self.size[0] * self.size[1] * (self.channels[0] + self.out_channels) * element

    @property
    def multiply_adds(self) -> int:
        """Of the image's part."""
        return self.batch * self.size[0] * self.size[1] * self.channels[0] * self.out_channels * self.kernel**2


_THREE_SCALARS = Layer((3, 0, 0, 4), 64, FULL_HD)
_TYPES = ("float32", "float16", "bfloat16")

LAYERS: tuple[Layer, ...] = (
    *(
        replace(_THREE_SCALARS, out_channels=o, size=s, dtype=t)
        for o in (32, 64)
        for s in (FULL_HD, UHD)
        for t in _TYPES
    ),
    *(replace(_THREE_SCALARS, kernel=k, dtype=t) for k in (1, 5, 7) for t in ("float32", "float16")),
    *(replace(_THREE_SCALARS, batch=8, dtype=t) for t in ("float32", "float16")),
    *(Layer((4, 0, 0, 8), 64, FULL_HD, dtype=t) for t in _TYPES),
    *(Layer((16, 8, 8, 16), 32, FULL_HD, dtype=t) for t in _TYPES),
    Layer((16, 8, 8, 16), 32, FULL_HD, batch=8),
    *(Layer((64, 0, 0, 64), 64, (270, 480), dtype=t) for t in _TYPES),
    Layer((64, 0, 0, 64), 64, (270, 480), batch=8),
    *(Layer((256, 0, 0, 64), 256, (135, 240), kernel=1, dtype=t) for t in _TYPES),
    Layer((256, 0, 0, 64), 256, (135, 240), kernel=1, batch=8),
)
