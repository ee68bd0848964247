"""Recurrent states at the ends of prompts' blocks, from which later prompts that begin alike go on.

A block's keys and values serve whoever begins with the same tokens; a recurrent layer also needs its state behind them.
A state is as large as thousands of tokens, so it is kept only where a second prompt is known to part from the first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterator, Sequence

from worker.engine.scheduling.prompt_chunks import ChunkRule
from worker.engine.scheduling.state_manager import StateManager


class StateSnapshots:
    """Kept states by the key of the block that they come after.

    The state that the fewest waiting and running prompts begin with is dropped first; of several, the least recently
    used one.
    """

    def __init__(self, states: StateManager, most: int, rule: ChunkRule, block_size: int) -> None:
        """`most` of the states may be kept beside those of running sequences."""
        self._states = states
        self._most = most
        self._rule = rule.of_blocks(block_size)
        self._block_size = block_size
        self._state_of: OrderedDict[bytes, int] = OrderedDict()
        self._num_prompts: Counter[bytes] = Counter()  # that wait or run, by their blocks

    @property
    def num_kept(self) -> int:
        return len(self._state_of)

    def expect(self, keys: Sequence[bytes]) -> None:
        """Counts a prompt that will come."""
        self._num_prompts.update(keys)

    def no_longer_expect(self, keys: Sequence[bytes]) -> None:
        self._num_prompts.subtract(keys)
        for key in keys:
            if not self._num_prompts[key]:
                del self._num_prompts[key]

    def longest(self, keys: Sequence[bytes], num_tokens: int, num_blocks: int) -> int:
        """Blocks of a prompt of so many tokens, `num_blocks` at most, behind which a state is kept; 0 where none is."""
        kept = (end for end in range(num_blocks, 0, -1) if keys[end - 1] in self._state_of)
        return next((end for end in kept if num_tokens - end * self._block_size >= self._rule.min_last), 0)

    def use(self, key: bytes) -> int:
        """The state behind the block, with a reference for the sequence that goes on from it."""
        self._state_of.move_to_end(key)
        self._states.reference(self._state_of[key])
        return self._state_of[key]

    def wanted(self, keys: Sequence[bytes], num_tokens: int, start: int, remembered: Container[bytes]) -> Iterator[int]:
        """The tokens, more than `start`, after which the prompt's state is worth keeping, in order.

        At least one other prompt, waiting, running or of the `remembered` ones, begins with these tokens, and fewer
        begin with one unit more.
        """
        unit = self._rule.unit
        first = start // unit * unit + unit
        for end in range(first, len(keys) * self._block_size + 1, unit):
            key = keys[end // self._block_size - 1]
            level = self._level(key, remembered)
            if level < 2:
                return
            after = (end + unit) // self._block_size - 1
            is_parting = after >= len(keys) or self._level(keys[after], remembered) < level
            if is_parting and key not in self._state_of and self._may_end_at(end, num_tokens):
                yield end

    def keep(self, key: bytes, state_index: int) -> None:
        """Keeps a sequence's state, of which it makes a copy before it goes on."""
        if len(self._state_of) == self._most:
            self.drop(min(self._state_of, key=self._num_prompts.__getitem__))
        self._states.reference(state_index)
        self._state_of[key] = state_index

    def drop(self, key: bytes) -> None:
        """Drops what is kept behind a block, if anything is."""
        if (state_index := self._state_of.pop(key, None)) is not None:
            self._states.release(state_index)

    def _level(self, key: bytes, remembered: Container[bytes]) -> int:
        return self._num_prompts[key] + (key in remembered)

    def _may_end_at(self, end: int, num_tokens: int) -> bool:
        return end == num_tokens or num_tokens - end >= self._rule.min_last
