"""Finding custom ids that come twice among millions, in eight bytes each.

The first pass over a file collects a hash of every id; only ids whose hash came twice are remembered with their
lines in the passes after it.
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
    """Watches a pass over the file for the ids that come again."""

    def __init__(self, hashes: frozenset[int]) -> None:
        self._hashes = hashes
        self._first_line: dict[str, int] = {}

    def first_line(self, custom_id: str, number: int) -> int | None:
        """The line that had the id before this one, if one had."""
        if not self._hashes or _hash(custom_id) not in self._hashes:
            return None
        first = self._first_line.setdefault(custom_id, number)
        return None if first == number else first


def _hash(custom_id: str) -> int:
    return int.from_bytes(blake2b(custom_id.encode(), digest_size=8).digest(), "little")
