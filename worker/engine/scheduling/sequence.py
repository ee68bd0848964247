"""The engine's mutable state of one request: its sequences, their tokens and how far each has come."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

from models.states import FinishReason, Strategy
from worker.engine.request import Request
from worker.engine.sampling.choices import Choice
from worker.engine.scheduling.block_manager import BlockTable, Prefix


@dataclass
class Sequence:
    """One decode: a sample of a request, or one of its beams."""

    request: Request
    index: int  # sample index, or row of the beam group
    max_new_tokens: int  # what was asked for, cut to the context window
    table: BlockTable = field(default_factory=BlockTable)
    token_ids: list[int] = field(default_factory=list)  # generated
    num_computed: int = 0  # tokens whose keys and values are in the cache
    trace: list[Choice] = field(default_factory=list)  # one entry per generated token, where a trace is asked for
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    text_end: int | None = None  # where a stop string cuts the text
    detokenizer: Any = None  # only where stop strings must be looked for
    pending_row: int | None = None  # its place among choices that are still on the device

    def append(self, choice: Choice) -> None:
        """Adds a generated token, and its trace if the request asks for one."""
        self.token_ids.append(choice.token_id)
        self.cumulative_logprob += choice.logprob
        if self.request.params.trace != "none":
            self.trace.append(choice)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens, one that is still on the device included."""
        return len(self.request.prompt_ids) + len(self.token_ids) + (self.pending_row is not None)

    @property
    def ends_with_pending(self) -> bool:
        """Whether its token on the device is its last one, whatever it is."""
        return self.pending_row is not None and len(self.token_ids) + 1 >= self.max_new_tokens

    @property
    def is_prefilled(self) -> bool:
        return self.num_computed >= self.num_prompt_tokens

    def tokens_between(self, start: int, end: int) -> SequenceOf[int]:
        """Prompt and generated ids from `start` to `end`; a chunk never straddles both. An id on the device is a 0."""
        if end <= self.num_prompt_tokens:
            return self.request.prompt_ids[start:end]
        if self.pending_row is not None and end == self.num_tokens:
            return [*self.token_ids[start - self.num_prompt_tokens :], 0]
        return self.token_ids[start - self.num_prompt_tokens : end - self.num_prompt_tokens]


@dataclass
class SequenceGroup:
    """A request in the engine, with its sequences and its times."""

    request: Request
    sequences: list[Sequence]
    arrived: float  # seconds, monotonic
    prefix: Prefix = Prefix()
    admitted: float = 0.0
    prefilled: float = 0.0
    beam_search: Any = None  # BeamSearch, for the strategy that has one

    def start_over(self) -> None:
        """Back to the prompt; since draws are keyed by position, the same tokens come again."""
        first = self.sequences[0]
        self.sequences = [Sequence(self.request, 0, first.max_new_tokens)]
        self.admitted = self.prefilled = 0.0
        self.beam_search = None

    @property
    def num_rows(self) -> int:
        """Batch rows that it takes at most."""
        return self.request.params.num_sequences

    @property
    def is_beam(self) -> bool:
        return self.request.params.strategy is Strategy.BEAM
