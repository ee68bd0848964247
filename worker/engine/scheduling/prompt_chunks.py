"""The entry of prompts into steps: groups in which they begin, and borders at which one is divided into chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm


@dataclass(frozen=True)
class ChunkRule:
    """Chunks end at multiples of `unit` tokens, or with their prompt.

    A recurrent layer computes one token by another rule than several, with other roundings: `min_last` keeps a prompt's
    last chunk from being so short. One that forgets its state between chunks takes prompts whole.
    """

    unit: int = 1
    splits: bool = True
    min_last: int = 1
    in_blocks: bool = True  # the borders are those of KV blocks too, as attention in tiles needs

    def of_blocks(self, block_size: int) -> ChunkRule:
        """The same with borders of KV blocks, which are the borders of attention tiles."""
        return replace(self, unit=lcm(self.unit, block_size)) if self.in_blocks else self

    def whole_units(self, num_tokens: int) -> int:
        """The tokens, rounded up to whole units."""
        return -(-num_tokens // self.unit) * self.unit

    def end(self, start: int, num_prompt_tokens: int, budget: int) -> int:
        """The end of the chunk that begins at `start`; a little beyond the budget where the rest is too short."""
        end = start + budget
        if not self.splits or end >= num_prompt_tokens:
            return num_prompt_tokens
        end -= end % self.unit
        return num_prompt_tokens if num_prompt_tokens - end < self.min_last else end


class PromptGroups:
    """Holds prompts back until enough of them can begin together beside sequences that decode, or for some steps.

    Where a step with prompts costs its decoding sequences more than one without, one such step for a group costs less
    than one for each prompt, and the empty rows meanwhile cost less than they save.
    """

    def __init__(self, size: int = 1, max_steps: int = 0) -> None:
        """`size` is a number of sequences; by default every prompt begins at once."""
        self.size = size
        self._max_steps = max_steps
        self._num_steps = 0  # that a prompt has been held back

    def may_begin(self, num_ready: int) -> bool:
        """Whether this step lets prompts of `num_ready` sequences in; asked once in a step."""
        self._num_steps += 1
        if num_ready < self.size and self._num_steps <= self._max_steps:
            return False
        self._num_steps = 0
        return True
