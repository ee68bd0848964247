"""The fused sampler at work in an engine's steps: which rows it takes, their parameters on the device, their choices.

Never waits for the device before `collect`. Rows that the table does not fit, and beams, are the host's as before: they
make no other row wait.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.backend import LogitsLayout
from worker.engine.choices import Choices
from worker.engine.cuda.row_words import WordUpdates
from worker.engine.cuda.sampling.output import SamplerOutput, choices_of
from worker.engine.cuda.sampling.table import SamplingTable, fits_table, table_row, update_row
from worker.engine.model.device_copies import fetch, to_device
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.sampling.in_flight import InFlight, is_beam, pick_rows, state_of
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import SampledRow


@dataclass(frozen=True)
class PackedChoices:
    """A step's choices on their way to the host."""

    token_ids: Tensor  # the table's newest tokens [max_num_seqs + 1], by batch index
    _packed: Callable[[], Tensor]

    def collect(self) -> Choices:
        return choices_of(self._packed().numpy())


class TableInFlight(InFlight):
    """A step whose tokens in flight lie in the sampler's table, by the batch indices at its launch."""

    def __init__(
        self, logits: Tensor, on_device: list[SampledRow], on_host: list[SampledRow], launched: PackedChoices | None
    ) -> None:
        super().__init__(logits, on_device, on_host, launched)
        self._indices = [batch_index_of(sequence) for _, sequence in on_device]

    @property
    def in_flight_indices(self) -> SequenceOf[int]:
        return self._indices


class DeviceSampler:
    """Samples the rows of an engine's steps; its table has a row for each running sequence."""

    def __init__(self, layout: LogitsLayout, max_num_seqs: int, model_eos_ids: tuple[int, ...]) -> None:
        from worker.engine.cuda.sampling.sampler import TritonSampler  # a CPU's installation lacks Triton

        self._layout = layout
        self._model_eos_ids = model_eos_ids
        max_rows = max(max_num_seqs, MIN_ROWS)
        with torch.cuda.device(layout.device):
            self.table = SamplingTable.make(max_num_seqs + 1, layout.vocab, layout.device)
            self._kernels = TritonSampler(max_rows, layout.vocab, layout.device)
            self._output = SamplerOutput.make(max_rows, 0, layout.device)
        self._updates = WordUpdates(self.table.words)

    def launch(self, logits: Tensor, rows: list[SampledRow]) -> InFlight:
        """Begins to sample the rows of logits [rows, vocab] that the table fits."""
        is_taken = [not is_beam(row) and self._takes(row[1]) for row in rows]
        on_device = [row for row, taken in zip(rows, is_taken, strict=True) if taken]
        on_host = [row for row, taken in zip(rows, is_taken, strict=True) if not taken]
        launched = self._sample(logits, on_device) if on_device else None
        return TableInFlight(logits, on_device, on_host, launched)

    def drop_updates(self) -> None:
        """Forgets rows that were to be written, of sequences that start over."""
        self._updates = WordUpdates(self.table.words)

    def _takes(self, sequence: Sequence) -> bool:
        """Whether the table fits the sequence; its row is among the updates from its first token on."""
        state = state_of(sequence, self._model_eos_ids)
        if state.is_in_table is None:
            state.is_in_table = fits_table(state.rules)
            if state.is_in_table:
                self._begin(sequence)
        return state.is_in_table

    def _begin(self, sequence: Sequence) -> None:
        params, rules = sequence.request.params, state_of(sequence, self._model_eos_ids).rules
        row = table_row(
            rules, params.seed or 0, sequence.index, params.top_logprobs, params.trace != "none", has_allowed=False
        )
        prompt_ids, index = sequence.request.prompt_ids, batch_index_of(sequence)
        update_row(self._updates, self.table, index, row, prompt_ids, sequence.token_ids)

    def _sample(self, logits: Tensor, rows: list[SampledRow]) -> PackedChoices:
        assert logits.shape[1] == self._layout.vocab, "the logits are not those that the table was made for"
        with torch.cuda.device(self._layout.device):  # Triton launches on the current device
            self._updates.send()
            picked = pick_rows(logits, rows)
            indices = [batch_index_of(sequence) for _, sequence in rows]
            batch_index = to_device(indices, torch.int32, self._layout.device)
            output = self._output_of(rows)
            self._kernels(picked, batch_index, self.table, output)
            return PackedChoices(self.table.last_token_ids, fetch(output.packed))

    def _output_of(self, rows: list[SampledRow]) -> SamplerOutput:
        num_alternatives = max(sequence.request.params.top_logprobs for _, sequence in rows)
        if num_alternatives:
            return SamplerOutput.make(len(rows), num_alternatives, self._layout.device)
        return SamplerOutput(self._output.packed[: len(rows)])


def batch_index_of(sequence: Sequence) -> int:
    assert sequence.batch_index is not None, "a sequence without a row of the batch is sampled"
    return sequence.batch_index
