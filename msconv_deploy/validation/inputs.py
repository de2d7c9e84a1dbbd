"""Inputs for a validation, made from the ONNX graph's own inputs: names, types and symbolic dimensions.

A *size* assigns an extent to every free symbol, and a symbol that two inputs share is one number, so that row and
column vectors always fit their image. A dimension may also be an expression over symbols (``2*H``), as the dynamo
exporter writes them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.symbolic import Dim, NotAnExtentError, Size, extent, names_in, size_text
from msconv_deploy.validation.difference import is_float
from msconv_deploy.validation.graph import TensorSpec

Range = tuple[float, float]

DEFAULT_SEED = 0
_HOW_TO_SAVE = "write it with numpy.savez(FILE, input_name=array, ...)"

# (batch, extents in turn): even, odd and unequal ones, N = 1 and 4, and images smaller than most kernels, where all
# pixels are border. Which of them a network accepts is its own affair: those that the reference refuses are listed.
_SIZES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (1, (32, 48)),
    (4, (17, 23)),
    (2, (33, 18)),
    (1, (1, 1)),
    (4, (2, 3)),
    (1, (3, 2)),
)
# Batches of different names need not be equal: what holds only where they are has to show. Networks that want them equal
# refuse it.
_UNEQUAL_BATCHES = ((3, 1, 2), (6, 5))
# Several extents that are no batches: each is 1 once while the others are not. What is broadcast along one of them is told by
# that from what has its extent. At most so many are tried.
_ONE_AT_ONE = ((2,), (5, 7))
_MOST_AT_ONE = 4
# Tried in this order, when the reference refuses most of the above (a U-Net wants multiples of its stride), until
# ENOUGH sizes work.
ENOUGH = 2
_LARGEST_MENTIONED = 1024
_MOST_DIGITS = 18  # of an extent: ONNX has 64-bit integers
_MOST_ELEMENTS = 1 << 28  # of one input
_LARGEST_DOUBLE = 8e307  # of a range: the distance between two of them is a number, too
_LARGEST_BFLOAT16 = 3.3e38
_WIDEST = 2.0**62  # of a range of integers
_MENTIONED = 8  # extents that are taken from the model's own tensors where nothing else works
_LARGER_SIZES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (4, (64, 96)),
    (2, (160, 128)),
    (1, (256, 224)),
    (1, (512, 512)),
)


@dataclass(frozen=True)
class Inputs:
    """One set of inputs: name -> array, and the size they were made for."""

    name: str
    size: Size
    arrays: dict[str, np.ndarray]
    origin: Literal["generated", "file"] = "generated"

    @property
    def elements(self) -> int:
        return sum(a.size for a in self.arrays.values())


@dataclass(frozen=True)
class InputOptions:
    """What the user asked for.

    Attributes:
        sizes: sizes to use; empty: the defaults. A size may leave symbols out; they get the first default.
        seed: of all random numbers.
        ranges: input -> (low, high): floats uniform in [low, high), integers uniform in low..high, both included.
        files: NumPy ``.npz`` files; an input found there is taken from it. Each file is one set of inputs.
        also_defaults: the default sizes are used in addition to ``sizes`` and ``files``.
    """

    sizes: Sequence[Size] = ()
    seed: int = DEFAULT_SEED
    ranges: Mapping[str, Range] = field(default_factory=dict)
    files: Sequence[Path] = ()
    also_defaults: bool = False

    @property
    def wants_defaults(self) -> bool:
        """Are the default sizes to be used?"""
        return self.also_defaults or not (self.sizes or self.files)


# -- symbolic dimensions ---------------------------------------------------------------------------------------------


def free_symbols(inputs: Sequence[TensorSpec]) -> list[str]:
    """Names of all free dimensions, in order of appearance."""
    return list(dict.fromkeys(name for spec in inputs for dim in spec.dims for name in names_in(dim)))


def batch_symbols(inputs: Sequence[TensorSpec]) -> set[str]:
    """Symbols that occur as a first dimension only."""
    first = {n for spec in inputs for dim in spec.dims[:1] for n in names_in(dim)}
    later = {n for spec in inputs for dim in spec.dims[1:] for n in names_in(dim)}
    return first - later


def parse_size(text: str) -> Size:
    """Inverse of :func:`size_text`.

    Raises:
        BadInputError: the text is not of that form.
    """
    size: Size = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^=]+?)\s*=\s*(\d+)\s*", part)
        if not match or len(match[2]) > _MOST_DIGITS or int(match[2]) < 1:
            raise BadInputError(
                f"size {text[:200]!r}: write NAME=EXTENT,..., extents of at least 1, such as N=1,H=17,W=23"
            )
        if match[1] in size:
            raise BadInputError(f"size {text!r}: {match[1]} is given twice")
        size[match[1]] = int(match[2])
    return size


def parse_range(text: str) -> tuple[str, Range]:
    """``NAME:lo:hi`` -> (name, (lo, hi)). The name may contain colons.

    Raises:
        BadInputError: the text is not of that form, or lo > hi.
    """
    try:
        name, low, high = text.rsplit(":", 2)
        limits = (float(low), float(high))
    except ValueError:
        raise BadInputError(f"input range {text!r}: write NAME:LOW:HIGH, such as iso:0:1") from None
    if not name or not (np.isfinite(limits).all() and limits[0] <= limits[1]):
        raise BadInputError(f"input range {text!r}: needs a name and finite LOW <= HIGH")
    return name, limits


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Several of them.

    Raises:
        BadInputError: one is not of that form, or an input is named twice.
    """
    ranges: dict[str, Range] = {}
    for text in texts:
        name, limits = parse_range(text)
        if name in ranges:
            raise BadInputError(f"input range {text!r}: {name} is given twice")
        ranges[name] = limits
    return ranges


def default_sizes(inputs: Sequence[TensorSpec], larger: bool = False) -> list[Size]:
    """Sizes that are tried if none are asked for; ``larger``: the second list, for networks that refuse the first."""
    symbols = free_symbols(inputs)
    batch = batch_symbols(inputs)
    others = [s for s in symbols if s not in batch]
    wanted: list[tuple[tuple[int, ...], tuple[int, ...], str]]  # batches, extents, what is 1
    wanted = [((n,), extents, "") for n, extents in (_LARGER_SIZES if larger else _SIZES)]
    if len(batch) > 1 and not larger:
        wanted.append((*_UNEQUAL_BATCHES, ""))
    if len(others) > 1 and not larger:
        wanted += [(*_ONE_AT_ONE, at_one) for at_one in others[:_MOST_AT_ONE]]
    sizes: list[Size] = []
    for batches, extents, at_one in wanted:
        values = {s: batches[i % len(batches)] for i, s in enumerate(s for s in symbols if s in batch)}
        values |= {s: extents[i % len(extents)] for i, s in enumerate(others)}
        size = {s: 1 if s == at_one else values[s] for s in symbols}  # the order of the file
        if size not in sizes:
            sizes.append(size)
    return sizes


def mentioned_sizes(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> list[Size]:
    """Sizes made of extents that the model's own tensors have, the most frequent first; the last resort.

    A file may call an extent dynamic and still work at one value only, that of a constant of that extent.
    """
    shapes = [list(tensor.dims) for tensor in model.graph.initializer]
    shapes += [[dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in model.graph.value_info]
    found = Counter(extent for shape in shapes for extent in shape[2:] if 1 < extent <= _LARGEST_MENTIONED)
    batch = batch_symbols(inputs)
    symbols = free_symbols(inputs)
    if set(symbols) <= batch:
        return []
    return [
        {symbol: n if symbol in batch else extent for symbol in symbols}
        for extent, _ in found.most_common(_MENTIONED)
        for n in (1, 2)
    ]


def complete_size(size: Size, inputs: Sequence[TensorSpec]) -> Size:
    """A user's size with every symbol filled in.

    Raises:
        BadInputError: a symbol is unknown.
    """
    symbols = free_symbols(inputs)
    unknown = [s for s in size if s not in symbols]
    if unknown:
        known = ", ".join(symbols) if symbols else "none: all its dimensions are static"
        raise BadInputError(
            f"size {size_text(size)}: the model has no dynamic dimension {', '.join(unknown)}; known are {known}"
        )
    return {**default_sizes(inputs)[0], **size}


def elements(inputs: Sequence[TensorSpec], size: Size) -> int:
    """Number of values of all inputs together.

    Raises:
        NotAnExtentError: a dimension cannot be computed for this size.
    """
    return sum(math.prod(extent(dim, size) for dim in spec.dims) for spec in inputs)


# -- values ----------------------------------------------------------------------------------------------------------


def generate(inputs: Sequence[TensorSpec], size: Size, options: InputOptions, index: int = 0) -> Inputs:
    """Random inputs: floats standard normal, integers and booleans 0 or 1, unless a range is given.

    Args:
        index: number of the set; the generator is seeded by the pair (seed, index).

    Raises:
        NotAnExtentError: a dimension cannot be computed for this size, or would make the input too large to test.
        BadInputError: a range names no input, or has values that the input's type does not have.
    """
    check_ranges(inputs, options)
    rng = np.random.default_rng([options.seed, index])
    arrays = {spec.name: _random(spec, size, options, rng) for spec in inputs}
    return Inputs(f"case{index}", size, arrays)


def check_ranges(inputs: Sequence[TensorSpec], options: InputOptions) -> None:
    """Raises:
    BadInputError: a range is given for something that is no input, or has values that the input's type does not have.
    """
    specs = {spec.name: spec for spec in inputs}
    for name, (low, high) in options.ranges.items():
        if name not in specs:
            raise BadInputError(f"input range for {name!r}: the model has no such input; known are {', '.join(specs)}")
        dtype = specs[name].dtype
        least, most = _limits(dtype)
        if not least <= low <= high <= most:
            raise BadInputError(
                f"input range for {name}: {low:g} to {high:g} leaves its type {dtype.name}, {least:g} to {most:g}"
            )
        if dtype.kind in "iu" and math.ceil(low) > math.floor(high):
            raise BadInputError(f"input range for {name}: no integer lies in {(low, high)}")


def _limits(dtype: np.dtype) -> Range:
    """The least and the largest value of a type; of wide ones, what can be drawn: NumPy computes ``high - low``."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return max(float(limits.min), -_WIDEST), min(float(limits.max), _WIDEST)
    if dtype.kind == "b":
        return 0.0, 1.0
    if dtype.name in ("float16", "float32"):
        most = float(np.finfo(dtype).max)
        return -most, most
    most = _LARGEST_BFLOAT16 if dtype.name == "bfloat16" else _LARGEST_DOUBLE
    return -most, most


def _random(spec: TensorSpec, size: Size, options: InputOptions, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(extent(dim, size) for dim in spec.dims)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise NotAnExtentError(
            f"input {spec.name} would have shape {list(shape)} for {size_text(size)}: too large to test"
        )
    kind = spec.dtype.kind
    limits = options.ranges.get(spec.name)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind in "iu":
        low, high = (0, 1) if limits is None else (int(np.ceil(limits[0])), int(np.floor(limits[1])))
        return rng.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(spec.dtype)
    if kind == "c":
        raise BadInputError(f"input {spec.name} is {spec.dtype.name}: complex inputs are not generated; give a file")
    values = rng.standard_normal(shape) if limits is None else rng.uniform(*limits, shape)
    return values.astype(spec.dtype)


def from_file(inputs: Sequence[TensorSpec], path: Path, options: InputOptions, index: int = 0) -> Inputs:
    """Inputs from an ``.npz`` file; those that it lacks are generated, at the size that it implies.

    Floats are converted to the model's width, and integers where no value changes.

    Raises:
        BadInputError: the file cannot be read, names no input of the model, or an array does not fit.
    """
    check_ranges(inputs, options)
    given = _load(path)
    specs = {spec.name: spec for spec in inputs}
    unknown = [name for name in given if name not in specs]
    if unknown or not given:
        what = f"holds {', '.join(unknown)}" if unknown else "holds no arrays"
        raise BadInputError(f"{path}: {what}; the model's inputs are {', '.join(specs)}")
    size: Size = {}
    for name, array in given.items():
        dims = specs[name].dims
        if array.ndim != len(dims):
            raise BadInputError(f"{path}: {name} has shape {list(array.shape)}, but the model wants {_dims_text(dims)}")
        for dim, actual in zip(dims, array.shape, strict=True):
            if isinstance(dim, str) and names_in(dim) == [dim] and size.setdefault(dim, actual) != actual:
                raise BadInputError(f"{path}: {name} has {dim}={actual}, but another input has {dim}={size[dim]}")
    size = complete_size(size, inputs)
    for name, array in given.items():
        wanted = [_extent_or(dim, size, actual) for dim, actual in zip(specs[name].dims, array.shape, strict=True)]
        if list(array.shape) != wanted:
            raise BadInputError(f"{path}: {name} has shape {list(array.shape)}, but the model wants {wanted}")
    rng = np.random.default_rng([options.seed, index])
    arrays = {
        spec.name: _converted(path, given[spec.name], spec) if spec.name in given else _random(spec, size, options, rng)
        for spec in inputs
    }
    return Inputs(f"case{index}", size, arrays, "file")


def _extent_or(dim: Dim, size: Size, actual: int) -> int:
    """The extent that a dimension must have; the one that it has, where that cannot be computed from others."""
    try:
        return extent(dim, size)
    except NotAnExtentError:
        return actual


def _dims_text(dims: Sequence[Dim]) -> str:
    return "[" + ", ".join(map(str, dims)) + "]"


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        what = "is no plain file; name a NumPy .npz file" if path.exists() else "no such file"
        raise BadInputError(f"{path}: {what}")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array without a name")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        if wrong := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{wrong[0]} is no array")
        return arrays
    except MemoryError:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy's header parser raise whatever they like
        raise BadInputError(f"{path}: is not a NumPy .npz file of plain arrays ({error}); {_HOW_TO_SAVE}") from None


def _converted(path: Path, array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if array.dtype == spec.dtype:
        return array
    if is_float(array.dtype) and is_float(spec.dtype):
        return array.astype(spec.dtype)
    if array.dtype.kind in "iub" and spec.dtype.kind in "iub":
        converted = array.astype(spec.dtype)
        if np.array_equal(converted, array):
            return converted
    raise BadInputError(f"{path}: {spec.name} is {array.dtype.name}, but the model wants {spec.dtype.name}")
