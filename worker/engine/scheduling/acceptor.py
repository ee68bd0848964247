"""Takes sampled tokens in: sequences grow by them and end, beams go on or are finished, requests fail alone.

The sampler returns values, and the scheduler retires what has ended here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from worker.engine.choices import Choice, NotFinite, check_finite
from worker.engine.config import ModelLimits
from worker.engine.detokenizer import Detokenizer
from worker.engine.request import EngineError, InvalidRequest, NaNLogits, Request, request_error
from worker.engine.scheduling.beam_state import BeamScores, BeamSearchState
from worker.engine.scheduling.beams import advance_beams
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import Sampled, SampledTokens, TokensInFlight
from worker.engine.scheduling.stopping import WatchedTokens, check_stop, eos_ids_of, stop_search_of
from worker.engine.scheduling.trace_buffer import TracedStep
from worker.engine.stats import EngineStats

#: Kinds of ends that are remembered, of jobs that do not end alike.
MAX_WATCHED = 256

NO_STOP_STRINGS = "the answer cannot be detokenized, to look for its stop strings"

#: Makes the search of a request from its number of beams, its length penalty and its number of end ids.
StartSearch = Callable[[int, float, int], BeamSearchState[Sequence]]


class Acceptor:
    """Knows where each sequence ends; the groups are the scheduler's."""

    def __init__(
        self,
        scheduler: Scheduler,
        limits: ModelLimits,
        detokenizer: Detokenizer | None,
        start_search: StartSearch,
        stats: EngineStats,
    ) -> None:
        self._scheduler = scheduler
        self._limits = limits
        self._detokenizer = detokenizer
        self._start_search = start_search
        self._stats = stats
        self._watched: dict[tuple[Any, ...], WatchedTokens] = {}

    def accept(self, sampled: Iterable[Sampled]) -> list[SequenceGroup]:
        """Adds each token to its sequence; returns the groups where one ended, those of beams and those that failed."""
        changed = [sequence for each in sampled for sequence in self._accept(each)]
        groups = {sequence.request.id: self._scheduler.groups[sequence.request.id] for sequence in changed}
        return list(groups.values())

    def _accept(self, sampled: Sampled) -> Iterable[Sequence]:
        """The sequences that have ended, or whose group has changed."""
        if isinstance(sampled, TokensInFlight):
            _note_in_flight(sampled)
            return ()
        if isinstance(sampled, SampledTokens):
            return self._append(sampled)
        return [sampled.sequence] if self._take(*sampled) else ()

    def _take(self, sequence: Sequence, outcome: BeamScores | Exception) -> bool:
        """Goes on with the beams of a sequence's group, or fails it; false where it has ended meanwhile."""
        sequence.in_flight_index = None
        if (group := self._scheduler.group_of(sequence)) is None:
            return False
        if isinstance(outcome, Exception):
            group.error = self._sampling_error(sequence, outcome)
        else:
            self._advance_beams(group, outcome)
        return True

    def _append(self, sampled: SampledTokens) -> list[Sequence]:
        """Adds a token to each sequence, but to those that ended meanwhile and were computed once too often.

        Does for one that goes on as little as it can: this loop is most of the host's part of a step.
        """
        step, columns, changed = TracedStep(sampled.choices), sampled.choices.columns, []
        is_finite, num_appended = bool(np.isfinite(columns).all()), 0
        token_ids, logprobs = columns[:, 0].astype(np.int64).tolist(), columns[:, 1].tolist()
        for row, sequence in enumerate(sampled.sequences):
            sequence.in_flight_index = None
            if sequence.is_dropped or sequence.finish_reason is not None:
                continue
            if not is_finite and not self._is_finite(sequence, sampled.choices.of_row(row, 0)):
                changed.append(sequence)
                continue
            token_id, watched = token_ids[row], sequence.watched
            try:
                if watched is None:
                    watched = self._watch(sequence)
                may_end = watched[token_id]
            except BaseException as error:
                self._fail(sequence, request_error(NO_STOP_STRINGS, error))
                changed.append(sequence)
                continue
            sequence.token_ids.append(token_id)
            sequence.cumulative_logprob += logprobs[row]
            if sequence.trace is not None:
                sequence.trace.append_row(step, row)
            num_appended += 1
            if (may_end or len(sequence.token_ids) >= sequence.max_new_tokens) and self._ends(sequence):
                changed.append(sequence)
        self._stats.num_generated_tokens += num_appended
        return changed

    def _watch(self, sequence: Sequence) -> dict[int, bool]:
        """Finds the tokens that a sequence may end with, before its first one; those that end alike share them."""
        params, search = sequence.request.params, stop_search_of(sequence, self._detokenizer)
        end_ids = (*self._eos_ids(sequence.request), *params.stop_token_ids)
        key = (end_ids, tuple(params.stop) if search else (), search and search.kind)
        if key not in self._watched:
            if len(self._watched) >= MAX_WATCHED:
                self._watched.clear()
            self._watched[key] = WatchedTokens(end_ids, search)
        sequence.watched = watched = self._watched[key]
        return watched

    def _is_finite(self, sequence: Sequence, choice: Choice) -> bool:
        """Whether a choice may be stored; if not, the sequence's group fails."""
        try:
            check_finite(choice)
        except NotFinite as error:
            self._fail(sequence, self._sampling_error(sequence, error))
            return False
        return True

    def _ends(self, sequence: Sequence) -> bool:
        """Whether a sequence ends with its newest token, or its group fails."""
        try:
            check_stop(sequence, self._eos_ids(sequence.request), self._detokenizer)
        except BaseException as error:
            self._fail(sequence, request_error(NO_STOP_STRINGS, error))
            return True
        return sequence.finish_reason is not None

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        """Fails the group of a sequence; of several errors in one step it keeps the first."""
        group = self._scheduler.groups[sequence.request.id]
        group.error = group.error or error

    def _advance_beams(self, group: SequenceGroup, scores: BeamScores) -> None:
        params, eos_ids = group.request.params, self._eos_ids(group.request)
        search = group.beam_search or self._start_search(params.num_beams, params.length_penalty, len(eos_ids))
        group.beam_search = search
        self._stats.num_generated_tokens += len(group.sequences)
        try:
            beams = advance_beams(group, search, scores, eos_ids, self._detokenizer)
        except BaseException as error:
            group.error = self._sampling_error(group.sequences[0], error)
        else:
            self._scheduler.fork_beams(group, beams)

    def _sampling_error(self, sequence: Sequence, error: BaseException) -> EngineError:
        """The error of a request whose sequence gets no next token."""
        position = len(sequence.token_ids) + 1
        if isinstance(error, NotFinite):
            return _not_finite(error, position, self._limits.dtype)
        return request_error(f"token {position} of the answer cannot be sampled", error)

    def _eos_ids(self, request: Request) -> tuple[int, ...]:
        return eos_ids_of(request.params, self._limits.eos_token_ids)


def _note_in_flight(tokens: TokensInFlight) -> None:
    for sequence, index in zip(tokens.sequences, tokens.indices, strict=True):
        has_left = sequence.is_dropped or sequence.finish_reason is not None
        sequence.in_flight_index = None if has_left else index


def _not_finite(error: NotFinite, position: int, dtype: str) -> EngineError:
    """The error of a request whose `position`th token came of no proper distribution."""
    if not error.is_of_model:
        return InvalidRequest(
            f"token {position} of the answer cannot be sampled: temperature, penalties and biases leave no token with "
            "a probability"
        )
    remedy = "the weights may be damaged" if dtype == "float32" else "try --dtype float32"
    return NaNLogits(f"the model gave NaN at token {position} (dtype {dtype}); {remedy}")
