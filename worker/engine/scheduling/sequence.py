"""The mutable state of one request: its sequences, their tokens, how far each has come. No tensors."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from models.states import FinishReason, Strategy
from worker.engine.choices import Choice, check_finite
from worker.engine.request import EngineError, Request
from worker.engine.sampling_row import RowState
from worker.engine.scheduling.beam_state import BeamSearchState
from worker.engine.scheduling.block_manager import BlockTable, Prefix
from worker.engine.scheduling.stop_search import StopSearch
from worker.engine.scheduling.trace_buffer import TraceBuffer


@dataclass(eq=False, slots=True)
class Sequence:
    """One decode: a sample of a request, or one of its beams."""

    request: Request
    index: int  # of the sample, or of the beam
    max_new_tokens: int  # as asked for, cut to the context window
    table: BlockTable = field(default_factory=BlockTable)
    token_ids: list[int] = field(default_factory=list)  # generated
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_writable: int = 0  # tokens that its own blocks hold, shared with nobody where it writes
    trace: TraceBuffer | None = None  # of its generated tokens; None where no trace is asked for
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    is_dropped: bool = False  # its request has left the batch, whether the sequence has ended or not
    watched: dict[int, bool] | None = None  # whether it may end with a token; None before its first one
    text_end: int | None = None  # where a stop string cuts the text
    stop_search: StopSearch | None = None  # only where stop strings must be looked for
    row_state: RowState | None = None  # of its sampler, from its first token on
    batch_index: int | None = None  # its row of the backend's persistent tensors, from its first token on
    num_blocks_sent: int = 0  # of its table's blocks, as far as that row has them
    in_flight_index: int | None = None  # of its newest token among those that are still on the device
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.request.prompt_ids)
        if self.trace is None and self.request.params.trace != "none":
            self.trace = TraceBuffer(self.request.params.top_logprobs)

    def fork(self, index: int) -> Sequence:
        """A copy with the same tokens and trace, and no blocks yet."""
        return Sequence(
            request=self.request,
            index=index,
            max_new_tokens=self.max_new_tokens,
            token_ids=list(self.token_ids),
            num_computed=self.num_computed,
            trace=None if self.trace is None else self.trace.copy(),
            cumulative_logprob=self.cumulative_logprob,
            stop_search=None if self.stop_search is None else self.stop_search.copy(),
        )

    def append(self, choice: Choice) -> None:
        """Adds a generated token, and its trace if the request asks for one. Raises `NotFinite`."""
        check_finite(choice)
        self.token_ids.append(choice.token_id)
        self.cumulative_logprob += choice.logprob
        if self.trace is not None:
            self.trace.append(choice)

    @property
    def num_generated(self) -> int:
        """Generated tokens, including one in flight."""
        return len(self.token_ids) + (self.in_flight_index is not None)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + len(self.token_ids) + (self.in_flight_index is not None)

    @property
    def is_prefilled(self) -> bool:
        return self.num_computed >= self.num_prompt_tokens

    @property
    def decodes(self) -> bool:
        """Whether the next step computes its newest token: not if one in flight is the last, whatever it is."""
        if self.finish_reason is not None:
            return False
        # All tokens before one in flight are computed.
        return self.in_flight_index is None or self.num_computed + 1 - self.num_prompt_tokens < self.max_new_tokens

    def tokens_between(self, start: int, end: int) -> SequenceOf[int]:
        """Prompt and generated ids from `start` to `end`; a chunk never straddles both. An id in flight is a 0."""
        if end <= self.num_prompt_tokens:
            return self.request.prompt_ids[start:end]
        if self.in_flight_index is not None and end == self.num_tokens:
            return [*self.token_ids[start - self.num_prompt_tokens :], 0]
        return self.token_ids[start - self.num_prompt_tokens : end - self.num_prompt_tokens]


@dataclass(eq=False)
class SequenceGroup:
    """A request in the engine, with its sequences and its times in seconds of the monotonic clock.

    It has one sequence until its prompt is planned to the end, then a sequence for each sample or beam. Samples that do
    not fit side by side decode in rounds, each from the prompt on.
    """

    request: Request
    sequences: list[Sequence]
    arrived: float
    prefix: Prefix = Prefix()
    admitted: float | None = None  # None while it waits
    prefilled: float | None = None  # None until its whole prompt is computed
    retired: float | None = None  # None until its last sequence has ended
    beam_search: BeamSearchState[Sequence] | None = None  # None until its first tokens
    error: EngineError | None = None  # ends the group, whatever its sequences are at
    samples_per_round: int | None = None  # None: all of them
    ended: list[Sequence] = field(default_factory=list)  # the samples of earlier rounds

    def begin_round(self) -> None:
        """Returns to the prompt for the samples that are left."""
        self.ended += self.sequences
        self.sequences = [Sequence(self.request, len(self.ended), self.sequences[0].max_new_tokens)]

    def start_over(self) -> None:
        """Returns to the round's prompt; since draws are keyed by position, the same tokens come again."""
        first = self.sequences[0]
        self.sequences = [Sequence(self.request, len(self.ended), first.max_new_tokens)]
        self.admitted = self.prefilled = self.beam_search = None

    @property
    def max_sequences(self) -> int:
        """Sequences that it decodes side by side at most."""
        num_left = self.request.params.num_sequences - len(self.ended)
        return num_left if self.samples_per_round is None else min(num_left, self.samples_per_round)

    @property
    def is_finished(self) -> bool:
        if self.error is not None:
            return True
        if self.is_beam:
            return self.beam_search is not None and self.beam_search.is_done
        return self.ends_round and len(self.ended) + len(self.sequences) >= self.request.params.num_sequences

    @property
    def ends_round(self) -> bool:
        """Whether every sample that decodes side by side has ended."""
        return not self.is_beam and all(sequence.finish_reason is not None for sequence in self.sequences)

    def has(self, sequence: Sequence) -> bool:
        """Whether the sequence is one of those that decode now."""
        position = sequence.index - len(self.ended)
        return 0 <= position < len(self.sequences) and self.sequences[position] is sequence

    @property
    def is_beam(self) -> bool:
        return self.request.params.strategy is Strategy.BEAM
