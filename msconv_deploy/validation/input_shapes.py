"""Shapes of inputs as the user gives them (``NAME:1x3x64x64``), and the sizes that follow from them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.symbolic import Dim, Size, extent
from msconv_deploy.validation.graph import TensorSpec
from msconv_deploy.validation.inputs import batch_symbols, complete_size, free_symbols

Shapes = Mapping[str, Sequence[int]]
_MOST_ELEMENTS = 1 << 40
_MOST_DIGITS = 18  # of an extent: ONNX has 64-bit integers


def parse_input_shape(text: str) -> tuple[str, list[int]]:
    """``NAME:1x3x64x64`` -> (name, extents). The name may contain colons; a scalar is ``NAME:``.

    Raises:
        BadInputError: the text is not of that form.
    """
    name, colon, shape = text.rpartition(":")
    if not name or not colon or not re.fullmatch(r"(\d+(x\d+)*)?", shape):
        raise BadInputError(f"input shape {text[:200]!r}: write NAME:EXTENTxEXTENT..., such as image:1x3x64x64")
    if any(len(part) > _MOST_DIGITS for part in shape.split("x")):
        raise BadInputError(f"input shape for {name!r}: an extent has more than {_MOST_DIGITS} digits")
    extents = [int(part) for part in shape.split("x") if part]
    if 0 in extents:
        raise BadInputError(f"input shape {text!r}: extents are at least 1")
    if math.prod(extents) > _MOST_ELEMENTS:
        raise BadInputError(f"input shape {text!r}: has {math.prod(extents):,} values, which no machine holds")
    return name, extents


def parse_input_shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Several of them.

    Raises:
        BadInputError: one is not of that form, or an input is named twice.
    """
    shapes: dict[str, list[int]] = {}
    for text in texts:
        name, shape = parse_input_shape(text)
        if name in shapes:
            raise BadInputError(f"input shape {text!r}: {name} is given twice")
        shapes[name] = shape
    return shapes


def size_of_shapes(inputs: Sequence[TensorSpec], shapes: Shapes) -> Size:
    """The extents of the dynamic dimensions that the shapes imply.

    Raises:
        BadInputError: a name is no input, a rank is wrong, or a shape contradicts a static extent or another shape.
    """
    specs = {spec.name: spec for spec in inputs}
    size: Size = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise BadInputError(f"input shape for {name!r}: the model has no such input; known are {', '.join(specs)}")
        dims = specs[name].dims
        wanted = "x".join(map(str, dims)) or "a scalar"
        given = "x".join(map(str, shape)) or "a scalar"
        if len(shape) != len(dims):
            raise BadInputError(f"input shape {name}:{given}: rank {len(shape)}, but the model has {wanted}")
        for dim, actual in zip(dims, shape, strict=True):
            if isinstance(dim, int) and dim != actual:
                raise BadInputError(f"input shape {name}:{given}: the model has {wanted}, which fixes {dim}")
            if _symbols(specs[name], dim) == [dim]:
                assert isinstance(dim, str)
                if size.setdefault(dim, actual) != actual:
                    raise BadInputError(f"input shape {name}:{given}: {dim} is {size[dim]} in another input")
    _check_expressions(specs, shapes, size)
    return size


def _check_expressions(specs: Mapping[str, TensorSpec], shapes: Shapes, size: Size) -> None:
    """Dimensions that are arithmetic over others (``2*H``) must have that value."""
    complete = complete_size(size, list(specs.values()))
    for name, shape in shapes.items():
        for dim, actual in zip(specs[name].dims, shape, strict=True):
            symbols = _symbols(specs[name], dim)
            if set(symbols) <= set(size) and extent(dim, complete) != actual:
                raise BadInputError(
                    f"input shape {name}:{'x'.join(map(str, shape))}: {dim} is {extent(dim, complete)} by other inputs"
                )


def _symbols(spec: TensorSpec, dim: Dim) -> list[str]:
    return free_symbols([TensorSpec(spec.name, spec.dtype, (dim,))])


def sizes_around(size: Size, inputs: Sequence[TensorSpec]) -> list[Size]:
    """The size itself, a larger, a smaller and a very small one.

    Extents that are equal stay equal: dimensions without a common name may still have to agree. Batches stay.
    """
    batch = batch_symbols(inputs)
    sizes = [size]
    changes: tuple[Callable[[int], int], ...] = (lambda n: n + 4, lambda n: max(2, n // 2 + 1), lambda n: min(n, 3))
    for change in changes:
        changed = {name: value if name in batch else change(value) for name, value in size.items()}
        if changed not in sizes:
            sizes.append(changed)
    return sizes
