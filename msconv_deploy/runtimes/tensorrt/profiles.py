"""Shapes of dynamic inputs: what an engine must take (min to max) and what it is tuned for (opt).

The user gives ``NAME:MIN:OPT:MAX`` for as many inputs as there is something to say about. A symbol that has extents there
has them in every other input; a symbol that has none gets a default: a batch (a symbol that only occurs as first
dimension) 1, 1, 4, anything else 16, 256, 1024. Equal symbols are always one extent, so that row and column vectors fit
their image at all three points, and dimensions like ``2*H`` follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.symbolic import Dim, extent, names_in

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
Profile = dict[str, Range]
"""Input -> (min, opt, max) shape."""

POINTS = ("min", "opt", "max")
DEFAULT_BATCH = (1, 1, 4)
DEFAULT_EXTENT = (16, 256, 1024)

Extents = tuple[int, int, int]
Dims = Mapping[str, Sequence[Dim]]
"""Input -> its dimensions."""

_SHAPE = r"\d+(?:x\d+)*"
_OPTION = re.compile(rf"(?P<name>.+):(?P<min>{_SHAPE}):(?P<opt>{_SHAPE}):(?P<max>{_SHAPE})")


def parse_shapes(text: str) -> tuple[str, Range]:
    """``NAME:MIN:OPT:MAX`` -> (name, three shapes). The name may contain colons.

    Raises:
        BadInputError: the text is not of that form, or the three are not in order.
    """
    match = _OPTION.fullmatch(text)
    if match is None:
        raise BadInputError(
            f"shapes {text!r}: write NAME:MIN:OPT:MAX, such as image:1x3x16x16:1x3x256x256:4x3x1080x1920"
        )
    low, best, high = (tuple(int(part) for part in match[point].split("x")) for point in POINTS)
    if not len(low) == len(best) == len(high):
        raise BadInputError(f"shapes {text!r}: the three shapes have different ranks")
    if not all(1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise BadInputError(f"shapes {text!r}: every extent needs 1 <= min <= opt <= max")
    return match["name"], (low, best, high)


def parse_all_shapes(texts: Iterable[str]) -> Profile:
    """Several of them.

    Raises:
        BadInputError: one is not of that form, or an input is named twice.
    """
    profile: Profile = {}
    for text in texts:
        name, shapes = parse_shapes(text)
        if name in profile:
            raise BadInputError(f"shapes {text!r}: {name} is given twice")
        profile[name] = shapes
    return profile


def shapes_text(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """Inverse of :func:`parse_shapes`."""
    return ":".join([name, *("x".join(map(str, shape)) for shape in shapes)])


def complete_profile(inputs: Dims, given: Profile) -> Profile:
    """(min, opt, max) of every input with a dynamic dimension.

    Raises:
        BadInputError: a name is no input, or shapes contradict the model or each other; the input is named.
    """
    for name, shapes in given.items():
        _check(name, shapes, inputs)
    symbols = _symbols(inputs, given)
    profile: Profile = {}
    for name, dims in inputs.items():
        if any(isinstance(dim, str) for dim in dims):
            profile[name] = given.get(name) or _shapes(name, dims, symbols)
    _check_expressions(inputs, given, symbols)
    return profile


def spanning(shapes: Sequence[Mapping[str, Sequence[int]]]) -> Profile:
    """The profile of several sets of inputs (input -> shape): from the smallest extents to the largest, opt the first."""
    profile: Profile = {}
    for name in shapes[0]:
        extents = list(zip(*(one[name] for one in shapes), strict=True))
        low, high = tuple(min(e) for e in extents), tuple(max(e) for e in extents)
        profile[name] = (low, tuple(shapes[0][name]), high)
    return profile


def _check(name: str, shapes: Range, inputs: Dims) -> None:
    text = shapes_text(name, shapes)
    if name not in inputs:
        raise BadInputError(f"shapes {text}: the model has no input {name}; known are {', '.join(inputs)}")
    dims = inputs[name]
    wanted = "x".join(map(str, dims)) or "a scalar"
    if len(shapes[0]) != len(dims):
        raise BadInputError(f"shapes {text}: rank {len(shapes[0])}, but input {name} is {wanted}")
    for shape in shapes:
        for dim, actual in zip(dims, shape, strict=True):
            if isinstance(dim, int) and dim != actual:
                raise BadInputError(f"shapes {text}: input {name} is {wanted}, which fixes {dim}, not {actual}")


def _symbols(inputs: Dims, given: Profile) -> dict[str, Extents]:
    """Extents of every symbol: from the given shapes, else the default."""
    found: dict[str, tuple[Extents, str]] = {}
    for name, shapes in given.items():
        for axis, dim in enumerate(inputs[name]):
            if not isinstance(dim, str) or names_in(dim) != [dim]:
                continue
            extents = (shapes[0][axis], shapes[1][axis], shapes[2][axis])
            before, where = found.setdefault(dim, (extents, name))
            if before != extents:
                raise BadInputError(
                    f"shapes of input {name}: {dim} is {_text(extents)}, but {_text(before)} in input {where}; equal "
                    "names are equal extents"
                )
    every = dict.fromkeys(symbol for dims in inputs.values() for dim in dims for symbol in names_in(dim))
    later = {symbol for dims in inputs.values() for dim in dims[1:] for symbol in names_in(dim)}
    default = {symbol: DEFAULT_EXTENT if symbol in later else DEFAULT_BATCH for symbol in every}
    return default | {symbol: extents for symbol, (extents, _) in found.items()}


def _shapes(name: str, dims: Sequence[Dim], symbols: Mapping[str, Extents]) -> Range:
    shapes = []
    for point in range(3):
        size = {symbol: extents[point] for symbol, extents in symbols.items()}
        try:
            shapes.append(tuple(extent(dim, size) for dim in dims))
        except BadInputError as error:
            raise BadInputError(f"input {name}: {error}; give it with --shapes {name}:MIN:OPT:MAX") from None
    low, best, high = shapes
    if not all(1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        text = shapes_text(name, shapes)
        raise BadInputError(f"input {name} would get the shapes {text}; give others with --shapes {name}:MIN:OPT:MAX")
    return low, best, high


def _check_expressions(inputs: Dims, given: Profile, symbols: Mapping[str, Extents]) -> None:
    """Given extents of dimensions like ``2*H`` must have that value."""
    for name, shapes in given.items():
        expected = _shapes(name, inputs[name], symbols)
        if expected != shapes:
            raise BadInputError(
                f"shapes {shapes_text(name, shapes)}: by the model's symbolic dimensions they would be "
                f"{shapes_text(name, expected)}"
            )


def _text(extents: Extents) -> str:
    return ":".join(map(str, extents))
