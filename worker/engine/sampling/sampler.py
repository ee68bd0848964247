"""Samples a step: logits in, the next token of each sequence and its trace out, as values.

Changes no sequence and ends none; `scheduling/acceptor.py` does, with what this module returns.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from torch import Tensor

from worker.engine.choices import Choices
from worker.engine.config import ModelLimits
from worker.engine.out_of_memory import is_device_error
from worker.engine.sampling.batch_sampler import SampleBatch
from worker.engine.sampling.beam_scores import score_beams
from worker.engine.sampling.in_flight import InFlight, is_beam, pick_rows, sampling_rows_of
from worker.engine.sampling.row_sampler import sample_together
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import Sampled, SampledAlone, SampledRow, SampledTokens, TokensInFlight
from worker.engine.scheduling.stopping import eos_ids_of


def collect(step: InFlight | None) -> list[Sampled]:
    """Waits for the tokens that the device sampled in a step."""
    return [] if step is None else [*step.collect()]


class Sampler:
    """`is_live` tells the sequences that still decode; those that have ended get no token."""

    def __init__(
        self, limits: ModelLimits, is_live: Callable[[Sequence], bool], sample_batch: SampleBatch | None = None
    ) -> None:
        self._limits = limits
        self._is_live = is_live
        self._sample_batch = sample_batch

    def sample(self, step: InFlight | None) -> list[Sampled]:
        """A token for every row that the host samples; the rows that the device samples are in flight from now on."""
        if step is None:
            return []
        step.start_sampling()
        logits = step.take_logits()
        in_flight = TokensInFlight(step.sampled_sequences, step.in_flight_indices)
        rows = [each for each in step.on_host if self._is_live(each[1])]
        beams = [each for each in rows if is_beam(each)]
        plain = rows if not beams else [each for each in rows if not is_beam(each)]
        return [in_flight, *self._sample_beams(logits, beams), *self._sample_plain(logits, plain)]

    def _sample_beams(self, logits: Tensor, rows: list[SampledRow]) -> list[Sampled]:
        """The scores of each request's beams."""

        def order(row: SampledRow) -> tuple[int, int]:
            return row[1].request.id, row[1].index  # the batch ordered them by their blocks

        groups = groupby(sorted(rows, key=order), key=lambda row: row[1].request.id)
        return [self._score_beams(logits, list(members)) for _, members in groups]

    def _score_beams(self, logits: Tensor, rows: list[SampledRow]) -> SampledAlone:
        sequences = [sequence for _, sequence in rows]
        eos_ids = eos_ids_of(sequences[0].request.params, self._limits.eos_token_ids)
        try:
            return SampledAlone(sequences[0], score_beams(sequences, pick_rows(logits, rows), eos_ids))
        except Exception as error:
            if is_device_error(error):
                raise
            return SampledAlone(sequences[0], error)

    def _sample_plain(self, logits: Tensor, rows: list[SampledRow]) -> list[Sampled]:
        """The choice of each row; where the rows cannot be sampled together, each alone, or its error."""
        if not rows:
            return []
        try:
            return [SampledTokens([sequence for _, sequence in rows], self._choices(logits, rows))]
        except Exception as error:
            if is_device_error(error):
                raise
            if len(rows) == 1:
                return [SampledAlone(rows[0][1], error)]
        return [sampled for row in rows for sampled in self._sample_plain(logits, [row])]

    def _choices(self, logits: Tensor, rows: list[SampledRow]) -> Choices:
        sequences = [sequence for _, sequence in rows]
        sampling_rows = sampling_rows_of(sequences, self._limits.eos_token_ids)
        return sample_together(pick_rows(logits, rows), sampling_rows, self._sample_batch)
