"""Gives every sequence that has logits its next token: at once, or a step later where the device samples on its own.

Ends sequences, too, but knows no KV blocks: the scheduler retires what has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from torch import Tensor

from worker.engine.config import ModelLimits
from worker.engine.detokenizer import Detokenizer
from worker.engine.model.device_copies import to_device
from worker.engine.request import Request
from worker.engine.sampling.batch_sampler import ChooseBatch, LaunchBatch, LaunchedChoices
from worker.engine.sampling.beam_group import advance_beams, start_beams
from worker.engine.sampling.choices import Choice
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import SamplingRow, choose_tokens, is_special
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import SampledRow
from worker.engine.scheduling.stopping import check_stop, eos_ids_of
from worker.engine.stats import EngineStats

#: Replaces a group's sequences by the beams of (parent, beam) pairs, which continue on their parents' blocks.
ForkBeams = Callable[[SequenceGroup, SequenceOf[tuple[Sequence, Sequence]]], None]


@dataclass(frozen=True)
class TokensInFlight:
    """A step's tokens that the host has not read yet, and whose they are."""

    sequences: list[tuple[Sequence, SequenceGroup]]
    launched: LaunchedChoices


class Sampler:
    """`groups` are the scheduler's, by request id; one that is no longer there gets no token."""

    def __init__(
        self,
        limits: ModelLimits,
        groups: Mapping[int, SequenceGroup],
        fork_beams: ForkBeams,
        detokenizer: Detokenizer | None,
        stats: EngineStats,
        choose_batch: ChooseBatch | None = None,
        launch_batch: LaunchBatch | None = None,
    ) -> None:
        self._limits = limits
        self._groups = groups
        self._fork_beams = fork_beams
        self._detokenizer = detokenizer
        self._stats = stats
        self._choose_batch = choose_batch
        self._launch_batch = launch_batch
        self._in_flight: TokensInFlight | None = None

    @property
    def ids_in_flight(self) -> Tensor | None:
        """The last step's tokens [tokens], where they are still on the device."""
        return None if self._in_flight is None else self._in_flight.launched.token_ids

    def drop_in_flight(self) -> None:
        """Drops the tokens on the device: their sequences start over and, since draws are keyed by position, get
        the same ones again."""
        self._in_flight = None

    def collect(self) -> Collection[SequenceGroup]:
        """Takes the tokens of the step before, if they are still on the device; returns the groups they belong to."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return []
        choices = in_flight.launched.read()
        touched: dict[int, SequenceGroup] = {}
        for index, (sequence, group) in enumerate(in_flight.sequences):
            sequence.in_flight_index = None
            if self._groups.get(group.request.id) is group:  # not cancelled meanwhile
                self._take(sequence, choices.of_row(index, sequence.request.params.top_logprobs))
                touched[group.request.id] = group
        return touched.values()

    def sample(self, logits: Tensor, rows: Iterable[SampledRow]) -> Collection[SequenceGroup]:
        """A token for every sequence from its row of logits [rows, vocab]; returns the groups they belong to."""
        # Sequences that have ended meanwhile were computed once too often.
        alive = [(row, s) for row, s in rows if s.finish_reason is None and s.request.id in self._groups]
        self._stats.num_generated_tokens += len(alive)
        touched: dict[int, SequenceGroup] = {}
        plain: list[SampledRow] = []
        beams: dict[int, list[SampledRow]] = {}
        for row, sequence in alive:
            group = touched.setdefault(sequence.request.id, self._groups[sequence.request.id])
            (beams.setdefault(sequence.request.id, []) if group.is_beam else plain).append((row, sequence))
        for request_id, rows_of_group in beams.items():
            self._advance_beams(touched[request_id], logits, rows_of_group)
        if plain:
            self._sample_plain(logits, plain)
        return touched.values()

    def _advance_beams(self, group: SequenceGroup, logits: Tensor, rows: list[SampledRow]) -> None:
        eos_ids = self._eos_ids(group.request)
        if group.beam_search is None:
            start_beams(group, eos_ids)
        # The batch ordered the beams by their blocks; the search wants them by their index.
        ordered = [row for row, _ in sorted(rows, key=lambda each: each[1].index)]
        self._fork_beams(group, advance_beams(group, logits[ordered], eos_ids, self._detokenizer))

    def _sample_plain(self, logits: Tensor, plain: list[SampledRow]) -> None:
        rows = [row for row, _ in plain]
        sequences = [sequence for _, sequence in plain]
        params = [s.request.params for s in sequences]
        numbers = uniforms(
            [each.seed or 0 for each in params],
            [s.index for s in sequences],
            [len(s.token_ids) for s in sequences],
        ).tolist()
        is_all = rows == list(range(logits.shape[0]))
        picked = logits if is_all else logits[to_device(rows, None, logits.device)]
        if self._launch_batch is not None and not any(map(is_special, params)):
            launched = self._launch_batch(picked, params, numbers)
            self._in_flight = TokensInFlight([(s, self._groups[s.request.id]) for s in sequences], launched)
            for index, sequence in enumerate(sequences):
                sequence.in_flight_index = index
            return
        sampling_rows = [
            SamplingRow(s.request.params, s.request.prompt_ids, s.token_ids, self._eos_ids(s.request), number)
            for s, number in zip(sequences, numbers, strict=True)
        ]
        choices = choose_tokens(picked, sampling_rows, self._choose_batch)
        for sequence, choice in zip(sequences, choices, strict=True):
            self._take(sequence, choice)

    def _take(self, sequence: Sequence, choice: Choice) -> None:
        sequence.append(choice)
        check_stop(sequence, self._eos_ids(sequence.request), self._detokenizer)

    def _eos_ids(self, request: Request) -> tuple[int, ...]:
        return eos_ids_of(request.params, self._limits.eos_token_ids)
