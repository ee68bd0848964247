"""Gives every sequence that has logits its next token: at once, or a step later where the device samples on its own.

Ends sequences, too, but knows no KV blocks: the scheduler retires what has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as SequenceOf

from torch import Tensor

from worker.engine.config import ModelLimits
from worker.engine.detokenizer import Detokenizer
from worker.engine.request import Request
from worker.engine.sampling.batch_sampler import SampleBatch
from worker.engine.sampling.beam_group import advance_beams, start_beams
from worker.engine.sampling.choices import Choice
from worker.engine.sampling.in_flight import InFlight, pick_rows, sampling_rows_of
from worker.engine.sampling.row_sampler import sample_rows
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import SampledRow
from worker.engine.scheduling.stopping import check_stop, eos_ids_of
from worker.engine.stats import EngineStats

#: Replaces a group's sequences by the beams of (parent, beam) pairs, which continue on their parents' blocks.
ForkBeams = Callable[[SequenceGroup, SequenceOf[tuple[Sequence, Sequence]]], None]


class Sampler:
    """`groups` are the scheduler's, by request id; one that is no longer there gets no token."""

    def __init__(
        self,
        limits: ModelLimits,
        groups: Mapping[int, SequenceGroup],
        fork_beams: ForkBeams,
        detokenizer: Detokenizer | None,
        stats: EngineStats,
        sample_batch: SampleBatch | None = None,
    ) -> None:
        self._limits = limits
        self._groups = groups
        self._fork_beams = fork_beams
        self._detokenizer = detokenizer
        self._stats = stats
        self._sample_batch = sample_batch

    def collect(self, step: InFlight | None) -> Collection[SequenceGroup]:
        """Takes the tokens that the device sampled in a step; returns the groups they belong to."""
        if step is None:
            return []
        touched: dict[int, SequenceGroup] = {}
        for (_, sequence), choice in zip(step.on_device, step.collect(), strict=True):
            sequence.in_flight_index = None
            if (group := self._group_of(sequence)) is not None:
                self._take(sequence, choice)
                touched[sequence.request.id] = group
        return touched.values()

    def sample(self, step: InFlight | None) -> Collection[SequenceGroup]:
        """A token for every row that the host samples; returns the groups they belong to.

        The rows that the device samples are in flight from now on.
        """
        if step is None:
            return []
        step.start_sampling()
        logits = step.take_logits()
        for index, (_, sequence) in enumerate(step.on_device):
            if self._group_of(sequence) is not None:
                sequence.in_flight_index = index
                self._stats.num_generated_tokens += 1
        return self._sample_on_host(logits, step.on_host)

    def _sample_on_host(self, logits: Tensor, rows: Iterable[SampledRow]) -> Collection[SequenceGroup]:
        """A token for every sequence from its row of logits [rows, vocab]; returns the groups they belong to."""
        touched: dict[int, SequenceGroup] = {}
        plain: list[SampledRow] = []
        beams: dict[int, list[SampledRow]] = {}
        for row, sequence in rows:
            if (group := self._group_of(sequence)) is None:
                continue
            self._stats.num_generated_tokens += 1
            touched[sequence.request.id] = group
            (beams.setdefault(sequence.request.id, []) if group.is_beam else plain).append((row, sequence))
        for request_id, rows_of_group in beams.items():
            self._advance_beams(touched[request_id], logits, rows_of_group)
        if plain:
            self._sample_plain(logits, plain)
        return touched.values()

    def _group_of(self, sequence: Sequence) -> SequenceGroup | None:
        """The sequence's group; None where the sequence has ended meanwhile, and was computed once too often."""
        group = self._groups.get(sequence.request.id)
        if group is None or sequence.finish_reason is not None:
            return None
        return group if group.has(sequence) else None

    def _advance_beams(self, group: SequenceGroup, logits: Tensor, rows: list[SampledRow]) -> None:
        eos_ids = self._eos_ids(group.request)
        if group.beam_search is None:
            start_beams(group, eos_ids)
        # The batch ordered the beams by their blocks; the search wants them by their index.
        ordered = [row for row, _ in sorted(rows, key=lambda each: each[1].index)]
        self._fork_beams(group, advance_beams(group, logits[ordered], eos_ids, self._detokenizer))

    def _sample_plain(self, logits: Tensor, rows: list[SampledRow]) -> None:
        sequences = [sequence for _, sequence in rows]
        sampling_rows = sampling_rows_of(sequences, self._limits.eos_token_ids)
        choices = sample_rows(pick_rows(logits, rows), sampling_rows, self._sample_batch)
        for sequence, choice in zip(sequences, choices, strict=True):
            self._take(sequence, choice)

    def _take(self, sequence: Sequence, choice: Choice) -> None:
        sequence.append(choice)
        check_stop(sequence, self._eos_ids(sequence.request), self._detokenizer)

    def _eos_ids(self, request: Request) -> tuple[int, ...]:
        return eos_ids_of(request.params, self._limits.eos_token_ids)
