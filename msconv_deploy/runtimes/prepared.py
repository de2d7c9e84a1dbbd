"""Runners that have to build something for the shapes that they will see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence


class PreparedRunner(ABC):
    """A runner that is told all shapes before it runs."""

    @abstractmethod
    def prepare(self, shapes: Sequence[Mapping[str, Sequence[int]]]) -> str:
        """Build what these sets of inputs (input -> shape) need, once; what was built, as a sentence for the report.

        Raises:
            BuildFailedError: it cannot be built.
        """
