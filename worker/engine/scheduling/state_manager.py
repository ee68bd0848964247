"""The recurrent states of running sequences: free, owned or shared. Indices and counts only; knows no tensors."""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class StateManager:
    """Hands out state indices. There are as many as sequences may run, so one that runs always gets one."""

    def __init__(self, num_states: int) -> None:
        self.num_states = num_states
        self._free = list(range(num_states))  # a heap: low indices first
        heapify(self._free)
        self._num_references = [0] * num_states

    @property
    def num_in_use(self) -> int:
        return self.num_states - len(self._free)

    def allocate(self) -> int:
        """A state with one reference; its content is that of an earlier sequence."""
        assert self._free, "more sequences run than there are states"
        index = heappop(self._free)
        self._num_references[index] = 1
        return index

    def reference(self, index: int) -> None:
        """Shares a state: a sequence that writes to it needs a copy from now on."""
        self._num_references[index] += 1

    def is_shared(self, index: int) -> bool:
        return self._num_references[index] > 1

    def release(self, index: int) -> None:
        """Drops one reference."""
        self._num_references[index] -= 1
        if not self._num_references[index]:
            heappush(self._free, index)
