"""The attributes of the operator ``msconv::MSConv2d`` as one immutable value.

Names, order and meaning are normative (``docs/spec.md``). A configuration says nothing about channel counts, extents
or dtype: those are the tensors'. Equal configurations share one model-local function, named by :attr:`function_name`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.border_classes import Axis

DOMAIN = "msconv"
DOMAIN_VERSION = 1
OP_TYPE = "MSConv2d"
SOURCE_NAMES = ("nchw", "nch", "ncw", "nc")

# What the TensorRT parser reads from a plugin node, beside the operator's own attributes.
PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": ""}


class PaddingSemantics(IntEnum):
    """What padding means for a source along the axes that it lacks."""

    SOURCE = 0
    """Each source is padded only along the axes that it owns: the original MSConv2d module."""
    TILED = 1
    """Equal to padding the tiled tensor: what an existing tile-concat-conv computes."""


class PaddingMode(IntEnum):
    """How padding is filled."""

    ZEROS = 0
    REFLECT = 1
    REPLICATE = 2
    CIRCULAR = 3


class Activation(IntEnum):
    """Elementwise function applied to the sum. ``activation_params``: slope for leaky_relu; low, high for clip."""

    NONE = 0
    RELU = 1
    LEAKY_RELU = 2
    SILU = 3
    SIGMOID = 4
    TANH = 5
    CLIP = 6


_LISTS = ("sources", "kernel_shape", "strides", "dilations", "pads")


def _check_kind(name: str, value: Any) -> None:
    """An attribute out of a file has whatever type the file gives it.

    Raises:
        BadInputError: it is not the attribute's.
    """
    if name in _LISTS or name == "activation_params":
        kind, what = (int, "integers") if name in _LISTS else ((int, float), "numbers")
        fits = isinstance(value, (list, tuple)) and all(isinstance(v, kind) for v in value)
    else:
        what, fits = "an integer", isinstance(value, int)
    if not fits:
        what = what if what == "an integer" else f"a list of {what}"
        raise BadInputError(f"MSConv2d: {name} must be {what}, but is {_shown(value)}")


def _shown(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return repr(text)[:80]


@dataclass(frozen=True)
class MSConv2dConfig:
    """All attributes of one MSConv2d. Field names are the ONNX attribute names.

    Raises:
        BadInputError: a value is out of range; the message names the attribute.
    """

    sources: tuple[int, int, int, int]
    kernel_shape: tuple[int, int]
    has_bias: int = 1
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    padding_semantics: PaddingSemantics = PaddingSemantics.SOURCE
    padding_mode: PaddingMode = PaddingMode.ZEROS
    activation: Activation = Activation.NONE
    activation_params: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name, length, low, high in (
            ("sources", 4, 0, 1),
            ("kernel_shape", 2, 1, None),
            ("strides", 2, 1, None),
            ("dilations", 2, 1, None),
            ("pads", 4, 0, None),
        ):
            values = tuple(int(v) for v in getattr(self, name))
            if len(values) != length or any(v < low or (high is not None and v > high) for v in values):
                bound = f"at least {low}" if high is None else f"{low} or {high}"
                raise BadInputError(f"MSConv2d: {name} must be {length} integers, each {bound}, but is {list(values)}")
            object.__setattr__(self, name, values)
        if not any(self.sources):
            raise BadInputError("MSConv2d: sources is [0, 0, 0, 0]; at least one source must be present")
        if self.has_bias not in (0, 1):
            raise BadInputError(f"MSConv2d: has_bias must be 0 or 1, but is {self.has_bias}")
        object.__setattr__(self, "has_bias", int(self.has_bias))
        if self.group < 1:
            raise BadInputError(f"MSConv2d: group must be at least 1, but is {self.group}")
        for name, kind in (
            ("padding_semantics", PaddingSemantics),
            ("padding_mode", PaddingMode),
            ("activation", Activation),
        ):
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError:
                known = ", ".join(f"{k.value} {k.name.lower()}" for k in kind)
                raise BadInputError(f"MSConv2d: {name} is {getattr(self, name)}; known are {known}") from None
        params = tuple(float(np.float32(v)) for v in self.activation_params)  # ONNX FLOATS are 32 bits wide
        if len(params) != 2:
            raise BadInputError(f"MSConv2d: activation_params must be 2 numbers, but is {list(params)}")
        object.__setattr__(self, "activation_params", params)
        if self.tiled and not ((self.sources[0] or self.sources[1]) and (self.sources[0] or self.sources[2])):
            missing = "height" if not (self.sources[0] or self.sources[1]) else "width"
            raise BadInputError(
                f"MSConv2d: no source of {self.source_names} defines the {missing}, so there is no tiled tensor; "
                'use padding semantics "source", which gives an extent of 1 there'
            )

    @property
    def tiled(self) -> bool:
        return self.padding_semantics == PaddingSemantics.TILED

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources that are present, in the operator's order."""
        return tuple(name for name, present in zip(SOURCE_NAMES, self.sources, strict=True) if present)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of all inputs in the operator's order: sources, their weights, the bias."""
        weights = tuple(f"w_{name}" for name in self.source_names)
        return self.source_names + weights + (("bias",) if self.has_bias else ())

    @property
    def rows(self) -> Axis:
        """Geometry along H."""
        return Axis(self.kernel_shape[0], self.strides[0], self.dilations[0], self.pads[0], self.pads[2])

    @property
    def columns(self) -> Axis:
        """Geometry along W."""
        return Axis(self.kernel_shape[1], self.strides[1], self.dilations[1], self.pads[1], self.pads[3])

    def has_border(self, axis: Axis) -> bool:
        """Does a tensor that is uniform along the axis contribute differently at the border?

        Only in tiled semantics with zero padding: reflect, replicate and circular padding keep a uniform tensor uniform.
        """
        return self.tiled and self.padding_mode == PaddingMode.ZEROS and axis.padded

    def attributes(self) -> dict[str, Any]:
        """Attribute name -> plain Python value, in a fixed order."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            out[field.name] = list(value) if isinstance(value, tuple) else int(value)
        return out

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> MSConv2dConfig:
        """The inverse of :meth:`attributes`. Attributes that belong to a plugin node are ignored.

        Raises:
            BadInputError: an attribute is unknown, missing or out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = set(attributes) - known - set(PLUGIN_ATTRIBUTES)
        if unknown:
            raise BadInputError(f"MSConv2d: unknown attribute {', '.join(sorted(unknown))}; known are {sorted(known)}")
        missing = {"sources", "kernel_shape"} - set(attributes)
        if missing:
            raise BadInputError(f"MSConv2d: attribute {', '.join(sorted(missing))} is missing")
        for name in known & set(attributes):
            _check_kind(name, attributes[name])
        return cls(**{name: value for name, value in attributes.items() if name in known})

    @property
    def function_name(self) -> str:
        """``MSConv2d_<8 hex>``: SHA-256 of the canonical attributes (JSON, sorted keys, no spaces)."""
        canonical = json.dumps(self.attributes(), sort_keys=True, separators=(",", ":"))
        return f"{OP_TYPE}_{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"
