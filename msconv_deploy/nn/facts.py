"""What is known of a tensor in a traced network, whatever the sizes it will meet at run time.

Dimensions are counted from the right (-1 is the width of an image, -4 its batch), because broadcasting aligns them
there. Only while the rank is unknown may a fact also carry dimensions counted from the left: ``z[:, :, None, None]``
has extent 1 in dimensions 2 and 3 however many follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

BATCH, CHANNELS, HEIGHT, WIDTH = -4, -3, -2, -1
SPACE = frozenset((HEIGHT, WIDTH))


@dataclass(frozen=True)
class Fact:
    """Structural knowledge of one value. An extent seen in an example is never recorded here.

    Attributes:
        rank: number of dimensions; 0 for a Python number, None if it is not known or the value is not a tensor.
        min_rank: a lower bound of the rank.
        sizes: extents that the structure of the network fixes, by dimension.
        uniform: dimensions along which all slices are equal. Extent 1 need not be listed.
        lost: why a tile upstream is not known to be uniform here; empty if none was lost.
    """

    rank: int | None = None
    min_rank: int = 0
    sizes: Mapping[int, int] = field(default_factory=dict)
    uniform: frozenset[int] = frozenset()
    lost: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_rank", max(self.min_rank, self.rank or 0))
        if self.rank is not None:
            dims = range(-self.rank, 0)
            object.__setattr__(self, "sizes", {self.dim(d): n for d, n in self.sizes.items() if self.dim(d) in dims})
            object.__setattr__(self, "uniform", frozenset(self.dim(d) for d in self.uniform if self.dim(d) in dims))

    def dim(self, dim: int) -> int:
        """The dimension counted from the right where the rank allows it."""
        return dim - self.rank if dim >= 0 and self.rank is not None else dim

    def lacks(self, dim: int) -> bool:
        """Is the tensor known to have no such dimension (counted from the right)? Broadcasting then repeats it."""
        return self.rank is not None and dim < -self.rank

    def is_one(self, dim: int) -> bool:
        """Is the extent 1 at every run?"""
        return self.sizes.get(self.dim(dim)) == 1

    def is_uniform(self, dim: int) -> bool:
        """Are all slices along the dimension equal at every run? Extent 1 and a dimension it lacks count."""
        return self.lacks(dim) or self.is_one(dim) or self.dim(dim) in self.uniform

    def is_copied(self, dim: int) -> bool:
        """Is the tensor uniform along the dimension without being known to have extent 1 there: a tile?"""
        return self.dim(dim) in self.uniform and not self.is_one(dim)

    @property
    def is_tile(self) -> bool:
        """Is it copied along height or width?"""
        return self.is_copied(HEIGHT) or self.is_copied(WIDTH)

    def with_rank(self, rank: int) -> Fact:
        """The same knowledge with a rank that has become known."""
        return replace(self, rank=rank) if self.rank is None else self

    def with_sizes(self, sizes: Mapping[int, int]) -> Fact:
        """More extents; dimensions may be counted from either end."""
        return replace(self, sizes={**self.sizes, **{self.dim(d): n for d, n in sizes.items()}})


def broadcast(operands: Iterable[Fact]) -> Fact:
    """The fact of an elementwise operation on these operands."""
    operands = list(operands)
    tensors = [f for f in operands if f.rank != 0]
    if len(tensors) <= 1:
        return tensors[0] if tensors else Fact(rank=0)
    ranks = [f.rank for f in tensors]
    rank = None if None in ranks else max(r for r in ranks if r is not None)
    dims = range(-rank, 0) if rank is not None else {d for f in tensors for d in {*f.sizes, *f.uniform} if d < 0}
    sizes = {d: n for d in dims if (n := _broadcast_size(tensors, d)) is not None}
    uniform = frozenset(d for d in dims if all(f.is_uniform(d) for f in tensors))
    lost = next((f.lost for f in tensors if f.lost), "")
    return Fact(rank, max(f.min_rank for f in tensors), sizes, uniform, lost)


def _broadcast_size(tensors: Iterable[Fact], dim: int) -> int | None:
    """Any extent other than 1 decides; 1 only if every operand has it."""
    known = [1 if f.lacks(dim) else f.sizes.get(dim) for f in tensors]
    decided = [n for n in known if n not in (None, 1)]
    return decided[0] if decided else (None if None in known else 1)
