"""Counting distinct numbers exactly, with eight bytes of memory for each distinct one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import numpy.typing

#: Numbers that are held before they are merged; later as many as are distinct.
LEAST_PENDING = 4_096


Numbers = numpy.typing.NDArray[numpy.uint64]


class DistinctCounter:
    """The number of distinct numbers of 64 bits among those added."""

    def __init__(self) -> None:
        self._pending: list[Numbers] = []
        self._num_pending = 0
        self._merged: Numbers = numpy.empty(0, numpy.uint64)

    def add(self, numbers: Numbers | Sequence[int]) -> None:
        self._pending.append(numpy.asarray(numbers, numpy.uint64))
        self._num_pending += len(numbers)
        if self._num_pending >= max(LEAST_PENDING, len(self._merged)):
            self._distinct()

    def update(self, other: DistinctCounter) -> None:
        """Adds the numbers of another counter."""
        self.add(other._distinct())

    def __len__(self) -> int:
        return len(self._distinct())

    def _distinct(self) -> Numbers:
        if self._num_pending:
            # Without counts, numpy hashes the numbers, which takes five to ten times as long as sorting them.
            merged, _ = numpy.unique(numpy.concatenate([self._merged, *self._pending]), return_counts=True)
            self._merged, self._pending, self._num_pending = merged, [], 0
        return self._merged
