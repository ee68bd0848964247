"""One step as plain data: the work that is planned, and the tokens that were sampled.

A plan says who decodes, whose prompt is prefilled, and which KV blocks are copied before.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.engine.choices import Choices
from worker.engine.scheduling.beam_state import BeamScores
from worker.engine.scheduling.sequence import Sequence, SequenceGroup

#: A row of the step's logits, and a sequence that gets its next token from it.
SampledRow = tuple[int, Sequence]


class TokensInFlight(NamedTuple):
    """Sequences whose next tokens are still on the device."""

    sequences: SequenceOf[Sequence]
    indices: SequenceOf[int]  # among the tokens of their step


class SampledTokens(NamedTuple):
    """The next token of each sequence."""

    sequences: SequenceOf[Sequence]
    choices: Choices


class SampledAlone(NamedTuple):
    """The scores of all beams of a request, to search; or the error of a sequence that gets no next token."""

    sequence: Sequence
    outcome: BeamScores | Exception


Sampled = TokensInFlight | SampledTokens | SampledAlone


@dataclass(frozen=True)
class PrefillChunk:
    """Prompt tokens `start` … `end` of a group's first sequence."""

    group: SequenceGroup
    start: int
    end: int

    @property
    def sequence(self) -> Sequence:
        return self.group.sequences[0]

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with it, so that its sequences get their first token."""
        return self.end == self.sequence.num_prompt_tokens


@dataclass
class StepPlan:
    """One step: sequences that decode a token, and prompt chunks that are prefilled beside them."""

    decodes: list[Sequence] = field(default_factory=list)
    prefills: list[PrefillChunk] = field(default_factory=list)
    block_clears: list[int] = field(default_factory=list)  # first of all: what is in them may be NaN
    block_copies: list[tuple[int, int]] = field(default_factory=list)  # (from, to), before anything is computed
    state_copies: list[tuple[int, int]] = field(default_factory=list)  # of recurrent states, likewise
    admitted: list[SequenceGroup] = field(default_factory=list)  # running from this step on
    grown: list[Sequence] = field(default_factory=list)  # of those that decode, whose block tables are not as before

    @property
    def is_empty(self) -> bool:
        return not self.decodes and not self.prefills

    @property
    def num_prefill_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.prefills)
