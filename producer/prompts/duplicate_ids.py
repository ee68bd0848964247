"""Finding the custom ids that a file uses twice, among millions, in eight bytes each.

The first pass over a file collects a hash of every id; later passes remember the line of those ids only whose hash
came twice.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b


class DuplicateFinder:
    """The hashes of all ids of a file."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, custom_id: str) -> None:
        self._hashes.append(_hash(custom_id))

    def duplicate_hashes(self) -> frozenset[int]:
        """The hashes that came more than once."""
        import numpy

        ordered = numpy.sort(numpy.frombuffer(self._hashes, dtype=numpy.uint64)) if self._hashes else numpy.array([])
        return frozenset(int(value) for value in numpy.unique(ordered[1:][ordered[1:] == ordered[:-1]]))


class FirstUses:
    """The line that first used each duplicate id, collected in one pass over the file."""

    def __init__(self, duplicate_hashes: frozenset[int]) -> None:
        self._hashes = duplicate_hashes
        self._first_line: dict[str, str] = {}

    def first_line(self, custom_id: str, line: str) -> str | None:
        """The line that used the id before this one, as messages show it; None for a first use."""
        if not self._hashes or _hash(custom_id) not in self._hashes:
            return None
        first = self._first_line.setdefault(custom_id, line)
        return None if first == line else first


def _hash(custom_id: str) -> int:
    return int.from_bytes(blake2b(custom_id.encode(), digest_size=8).digest(), "little")
