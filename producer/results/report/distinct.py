"""Counting distinct numbers exactly, with eight bytes of memory for each distinct one."""

from __future__ import annotations

from array import array

import numpy
import numpy.typing

#: Numbers that are held before they are merged; later as many as are distinct.
LEAST_PENDING = 4_096


Numbers = numpy.typing.NDArray[numpy.uint64]


class DistinctCounter:
    """The number of distinct numbers of 64 bits among those added."""

    def __init__(self) -> None:
        self._pending = array("Q")
        self._merged: Numbers = numpy.empty(0, numpy.uint64)
        self._limit = LEAST_PENDING

    def add(self, number: int) -> None:
        self._pending.append(number)
        if len(self._pending) >= self._limit:
            self._distinct()

    def update(self, other: DistinctCounter) -> None:
        """Adds the numbers of another counter."""
        self._merge(other._distinct())

    def __len__(self) -> int:
        return len(self._distinct())

    def _distinct(self) -> Numbers:
        if self._pending:
            pending, self._pending = self._pending, array("Q")
            self._merge(numpy.frombuffer(pending, numpy.uint64))
        return self._merged

    def _merge(self, added: Numbers) -> None:
        self._merged = numpy.unique(numpy.concatenate((self._merged, added)))
        self._limit = max(LEAST_PENDING, len(self._merged))
