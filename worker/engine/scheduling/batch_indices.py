"""The rows of a backend's persistent tensors: each running sequence has one, its `batch_index`, until it ends."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from worker.engine.scheduling.sequence import Sequence


class BatchIndices:
    """Indices from 1 to the number of sequences; 0 is padding's."""

    def __init__(self, max_num_seqs: int) -> None:
        self._free = list(range(1, max_num_seqs + 1))  # a heap: low ones first keeps the used part compact

    @property
    def num_free(self) -> int:
        return len(self._free)

    def give(self, sequences: Iterable[Sequence]) -> None:
        """Gives each sequence without an index one of its own."""
        for sequence in sequences:
            if sequence.batch_index is None:
                sequence.batch_index = heappop(self._free)

    def take_back(self, sequence: Sequence) -> None:
        if sequence.batch_index is not None:
            heappush(self._free, sequence.batch_index)
            sequence.batch_index = None
