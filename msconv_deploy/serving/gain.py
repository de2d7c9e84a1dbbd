"""Is a joined run faster than single ones? Measured while requests are served, for every kind of request.

It depends on model, size and machine: a batch saves the fixed cost of a run and fills wide hardware, but on a CPU it may
also leave the caches (16 images of 64x64 took 0.7 to 1 of the speed of single ones on one core, those of 8x8 1.3 to 4).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

_MOST_KINDS = 512
_TRY_AGAIN = 50  # runs of one kind, after which the way that is not chosen is measured anew
_WEIGHT = 0.2  # of the newest run in the mean


@dataclass
class _Kind:
    """Seconds for one row, smoothed; None: not measured."""

    alone: float | None = None
    joined: float | None = None
    decisions: int = 0  # runs before which there was a choice


class Gain:
    """What joining is worth, by kind of request."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def _kind(self, key: Hashable) -> _Kind:
        kind = self._kinds.setdefault(key, _Kind())
        self._kinds.move_to_end(key)
        if len(self._kinds) > _MOST_KINDS:
            self._kinds.popitem(last=False)
        return kind

    def joins(self, key: Hashable) -> bool:
        """Shall requests of this kind that wait together be joined? Until both ways are measured: yes.

        It may be asked as often as one likes before a run.
        """
        kind = self._kind(key)
        slower = kind.joined is not None and kind.alone is not None and kind.joined > kind.alone
        return slower if kind.decisions % _TRY_AGAIN == _TRY_AGAIN - 1 else not slower

    def decide(self, key: Hashable) -> bool:
        """The same, for a run that starts now."""
        joins = self.joins(key)
        self._kind(key).decisions += 1
        return joins

    def ran(self, key: Hashable, requests: int, rows: int, seconds: float) -> None:
        """A run has ended."""
        kind, each = self._kind(key), seconds / rows
        if requests == 1:
            kind.alone = each if kind.alone is None else (1 - _WEIGHT) * kind.alone + _WEIGHT * each
        else:
            kind.joined = each if kind.joined is None else (1 - _WEIGHT) * kind.joined + _WEIGHT * each
