"""The borders at which a prompt may be divided into chunks."""

from __future__ import annotations

from dataclasses import dataclass
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

    def of_blocks(self, block_size: int) -> ChunkRule:
        """The same with borders of KV blocks, which are the borders of attention tiles."""
        return ChunkRule(lcm(self.unit, block_size), self.splits, self.min_last)

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
