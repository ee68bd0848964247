"""Gives every sequence that has logits its next token: at once, or a step later where the device chooses by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from time import monotonic

from torch import Tensor

from worker.engine.detokenizer import Detokenizer
from worker.engine.model.device_copies import to_device
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request
from worker.engine.sampling.batch_sampler import LaunchedChoices
from worker.engine.sampling.beam_group import advance_beams, fork_sequences, start_beams
from worker.engine.sampling.choices import Choice
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import SamplingRow, choose_tokens, is_special
from worker.engine.scheduling.block_manager import KVBlocks
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.stopping import check_stop, eos_ids_of
from worker.engine.stats import EngineStats


@dataclass(frozen=True)
class PendingChoices:
    """A step's choices that the host has not read yet, and whose they are."""

    rows: list[tuple[Sequence, SequenceGroup]]
    launched: LaunchedChoices


class TokenChooser:
    """`groups` are the engine's, by request id; one that is no longer there gets no token."""

    def __init__(
        self,
        loaded: LoadedModel,
        blocks: KVBlocks,
        detokenizer: Detokenizer | None,
        groups: Mapping[int, SequenceGroup],
        stats: EngineStats,
    ) -> None:
        self._loaded = loaded
        self._blocks = blocks
        self._detokenizer = detokenizer
        self._groups = groups
        self._stats = stats
        self._pending: PendingChoices | None = None

    @property
    def pending_ids(self) -> Tensor | None:
        """The last step's tokens [choices], where they are still on the device."""
        return None if self._pending is None else self._pending.launched.token_ids

    def drop_pending(self) -> None:
        """Forgets the tokens that are still on the device.

        Whose they were starts over; draws are keyed by position, so the same ones come again.
        """
        self._pending = None

    def settle(self) -> Collection[SequenceGroup]:
        """Takes the tokens of the step before, if they are still on the device; returns whose they were."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        found = pending.launched.read()
        touched: dict[int, SequenceGroup] = {}
        for place, (sequence, group) in enumerate(pending.rows):
            sequence.pending_row = None
            if self._groups.get(group.request.id) is group:  # not cancelled meanwhile
                self._take(sequence, found.of_row(place, sequence.request.params.top_logprobs))
                touched[group.request.id] = group
        return touched.values()

    def choose(self, logits: Tensor, sequences: SequenceOf[Sequence]) -> Collection[SequenceGroup]:
        """A token for every sequence, of its row of logits [sequences, vocab]; returns the groups they belong to."""
        rows_of_group: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows_of_group.setdefault(sequence.request.id, []).append(row)
        # Those that have ended meanwhile were computed once too often.
        touched = [self._groups[request_id] for request_id in rows_of_group if request_id in self._groups]
        plain: list[tuple[int, Sequence]] = []
        for group in touched:
            rows = rows_of_group[group.request.id]
            if group.prefilled == 0.0:
                self._after_prefill(group)
                rows = rows * len(group.sequences)
            if group.is_beam:
                self._stats.num_generated_tokens += len(rows)
                self._advance_beams(group, logits, rows, sequences)
            else:
                alive = [s for s in group.sequences if s.finish_reason is None]
                by_row = {id(sequences[row]): row for row in rows}
                plain += [(by_row.get(id(sequence), rows[0]), sequence) for sequence in alive]
        if plain:
            self._stats.num_generated_tokens += len(plain)
            self._sample(logits, plain)
        return touched

    def _after_prefill(self, group: SequenceGroup) -> None:
        group.prefilled = monotonic()
        if group.is_beam:
            start_beams(group, self._eos_ids(group.request), self._blocks)
        else:
            fork_sequences(group, self._blocks)

    def _advance_beams(
        self, group: SequenceGroup, logits: Tensor, rows: list[int], sequences: SequenceOf[Sequence]
    ) -> None:
        # The batch ordered the beams by their blocks; the search wants them by their index.
        ordered = sorted(rows, key=lambda row: sequences[row].index)
        advance_beams(group, logits[ordered], self._eos_ids(group.request), self._detokenizer, self._blocks)

    def _sample(self, logits: Tensor, plain: list[tuple[int, Sequence]]) -> None:
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
        if self._loaded.launch_batch is not None and not any(map(is_special, params)):
            launched = self._loaded.launch_batch(picked, params, numbers)
            self._pending = PendingChoices([(s, self._groups[s.request.id]) for s in sequences], launched)
            for place, sequence in enumerate(sequences):
                sequence.pending_row = place
            return
        sampling_rows = [
            SamplingRow(s.request.params, s.request.prompt_ids, s.token_ids, self._eos_ids(s.request), number)
            for s, number in zip(sequences, numbers, strict=True)
        ]
        choices = choose_tokens(picked, sampling_rows, self._loaded.choose_batch)
        for sequence, choice in zip(sequences, choices, strict=True):
            self._take(sequence, choice)

    def _take(self, sequence: Sequence, choice: Choice) -> None:
        sequence.append(choice)
        check_stop(sequence, self._eos_ids(sequence.request), self._detokenizer)
        if sequence.finish_reason is not None:
            self._blocks.free(sequence.table)

    def _eos_ids(self, request: Request) -> tuple[int, ...]:
        return eos_ids_of(request.params, self._loaded.eos_token_ids)
