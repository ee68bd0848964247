"""Takes sampled tokens in: sequences grow by them and end, beams go on or are finished, requests fail alone.

The sampler returns values, and the scheduler retires what has ended here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from worker.engine.choices import Choice, NotFinite
from worker.engine.config import ModelLimits
from worker.engine.detokenizer import Detokenizer
from worker.engine.request import EngineError, InvalidRequest, NaNLogits, Request, request_error
from worker.engine.scheduling.beam_state import BeamScores, BeamSearchState
from worker.engine.scheduling.beams import advance_beams
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import Sampled, TokenInFlight
from worker.engine.scheduling.stopping import check_stop, eos_ids_of
from worker.engine.stats import EngineStats

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

    def accept(self, sampled: Iterable[Sampled]) -> Collection[SequenceGroup]:
        """Adds each token to its sequence; returns the groups where one ended, those of beams and those that failed."""
        changed: dict[int, SequenceGroup] = {}
        for sequence, outcome in sampled:
            sequence.in_flight_index = None
            if (group := self._scheduler.group_of(sequence)) is None:
                continue  # it has ended meanwhile, and was computed once too often
            if isinstance(outcome, TokenInFlight):
                sequence.in_flight_index = outcome.index
                continue
            if isinstance(outcome, Choice):
                self._append(group, sequence, outcome)
                if sequence.finish_reason is None and group.error is None:
                    continue
            elif isinstance(outcome, Exception):
                group.error = self._sampling_error(sequence, outcome)
            else:
                self._advance_beams(group, outcome)
            changed[sequence.request.id] = group
        return changed.values()

    def _append(self, group: SequenceGroup, sequence: Sequence, choice: Choice) -> None:
        try:
            sequence.append(choice)
            self._stats.num_generated_tokens += 1
            check_stop(sequence, self._eos_ids(sequence.request), self._detokenizer)
        except NotFinite as error:
            group.error = self._sampling_error(sequence, error)
        except BaseException as error:
            group.error = request_error("the answer cannot be detokenized, to look for its stop strings", error)

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


def _not_finite(error: NotFinite, position: int, dtype: str) -> EngineError:
    """The error of a request whose `position`th token came of no proper distribution."""
    if not error.is_of_model:
        return InvalidRequest(
            f"token {position} of the answer cannot be sampled: temperature, penalties and biases leave no token with "
            "a probability"
        )
    remedy = "the weights may be damaged" if dtype == "float32" else "try --dtype float32"
    return NaNLogits(f"the model gave NaN at token {position} (dtype {dtype}); {remedy}")
