"""The fused sampler at work in an engine's steps: which rows it takes, their parameters on the device, their choices.

Never waits for the device before `collect`. Rows that the table does not fit, and beams, are the host's as before: they
make no other row wait.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.engine.backend import LogitsLayout
from worker.engine.choices import Choices
from worker.engine.cuda.running_rows import RowUpdates, batch_index_of
from worker.engine.cuda.sampling.output import Column, SamplerOutput, choices_of
from worker.engine.cuda.sampling.table import fits_table, table_row
from worker.engine.model.device_copies import fetch, to_device
from worker.engine.sampling.in_flight import InFlight, is_beam, pick_rows, state_of
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import SampledRow


@dataclass(frozen=True)
class PackedChoices:
    """A step's choices on their way to the host."""

    token_ids: Tensor  # the table's newest tokens [max_num_seqs + 1], by batch index
    _packed: Callable[[], Tensor]
    _alternatives: Callable[[], Tensor] | None = None  # where they are not packed with the others
    _places: SequenceOf[int] | None = None  # of the rows that the device samples; None: all

    def collect(self) -> Choices:
        packed = self._packed().numpy()
        if self._alternatives is not None:
            packed = np.concatenate([packed, self._alternatives().numpy()[:, len(Column) :]], axis=1)
        choices = choices_of(packed)
        return choices if self._places is None else choices.of_rows(self._places)


class TableInFlight(InFlight):
    """A step whose tokens in flight lie in the sampler's table, by the batch indices at its launch."""

    def __init__(
        self,
        logits: Tensor,
        on_device: list[SampledRow],
        on_host: list[SampledRow],
        launched: PackedChoices | None,
    ) -> None:
        super().__init__(logits, on_device, on_host, launched)
        self._indices = [batch_index_of(sequence) for sequence in self.sampled_sequences]

    @property
    def in_flight_indices(self) -> SequenceOf[int]:
        return self._indices


class DeviceSampler:
    """Samples the rows of an engine's steps by the table of their sequences."""

    def __init__(self, layout: LogitsLayout, updates: RowUpdates, model_eos_ids: tuple[int, ...]) -> None:
        from worker.engine.cuda.sampling.sampler import TritonSampler  # a CPU's installation lacks Triton

        self._layout = layout
        self._model_eos_ids = model_eos_ids
        self.updates = updates
        self._step_rows, self._table = updates.rows.step_rows, updates.rows.table
        max_rows = len(self._step_rows)
        with torch.cuda.device(layout.device):
            self._kernels = TritonSampler(max_rows, layout.vocab, layout.device)
            self._output = SamplerOutput.make(max_rows, 0, layout.device)

    def launch(self, logits: Tensor, rows: list[SampledRow]) -> InFlight:
        """Begins to sample the rows of logits [rows, vocab] that the table fits."""
        assert logits.shape[1] == self._layout.vocab, "the logits are not those that the table was made for"
        on_device, on_host = self._divided(rows)
        launched = self._sample(logits, on_device) if on_device else None
        return TableInFlight(logits, on_device, on_host, launched)

    def sample_step(self, logits: Tensor) -> None:
        """The kernels of a recorded step: samples every row [rows, vocab], those that are the host's in vain."""
        assert logits.shape[1] == self._layout.vocab, "the logits are not those that the table was made for"
        output = SamplerOutput(self._output.packed[: len(logits)])
        self._kernels(logits, self._step_rows[: len(logits)], self._table, output)

    def fetch_step(self, logits: Tensor, rows: list[SampledRow]) -> InFlight:
        """Begins to bring what a recorded step has sampled to the host; its rows are those of the logits, in order."""
        on_device, on_host = self._divided(rows)
        if not on_device:
            return TableInFlight(logits, [], on_host, None)
        packed = fetch(self._output.packed[: len(rows)])
        alternatives = self._alternatives(logits[: len(rows)], on_device)
        places = [row for row, _ in on_device] if on_host else None
        found = PackedChoices(self._table.last_token_ids, packed, alternatives, places)
        return TableInFlight(logits, on_device, on_host, found)

    def _alternatives(self, logits: Tensor, rows: list[SampledRow]) -> Callable[[], Tensor] | None:
        if not (num_alternatives := num_alternatives_of(rows)):
            return None
        output = SamplerOutput.make(len(logits), num_alternatives, self._layout.device)
        self._kernels.find_alternatives(logits, self._step_rows[: len(logits)], self._table, output)
        return fetch(output.packed)

    def _divided(self, rows: list[SampledRow]) -> tuple[list[SampledRow], list[SampledRow]]:
        """The rows that the table fits, and those that are the host's."""
        is_taken = [
            (state.is_in_table if (state := row[1].row_state) is not None else None)
            or (not is_beam(row) and self._takes(row[1]))
            for row in rows
        ]
        if all(is_taken):
            return rows, []
        return (
            [row for row, taken in zip(rows, is_taken, strict=True) if taken],
            [row for row, taken in zip(rows, is_taken, strict=True) if not taken],
        )

    def _takes(self, sequence: Sequence) -> bool:
        """Whether the table fits the sequence; its row is among the updates from its first token on."""
        state = sequence.row_state or state_of(sequence, self._model_eos_ids)
        if state.is_in_table is None:
            state.is_in_table = fits_table(state.rules)
            if state.is_in_table:
                params = sequence.request.params
                wants_trace, seed = params.trace != "none", params.seed or 0
                row = table_row(state.rules, seed, sequence.index, params.top_logprobs, wants_trace, has_allowed=False)
                self.updates.begin(sequence, row)
        return state.is_in_table

    def _sample(self, logits: Tensor, rows: list[SampledRow]) -> PackedChoices:
        with torch.cuda.device(self._layout.device):  # Triton launches on the current device
            self.updates.send()
            picked = pick_rows(logits, rows)
            indices = [batch_index_of(sequence) for _, sequence in rows]
            batch_index = to_device(indices, torch.int32, self._layout.device)
            output = SamplerOutput(self._output.packed[: len(rows)])
            if num_alternatives := num_alternatives_of(rows):
                output = SamplerOutput.make(len(rows), num_alternatives, self._layout.device)
            self._kernels(picked, batch_index, self._table, output)
            return PackedChoices(self._table.last_token_ids, fetch(output.packed))


def num_alternatives_of(rows: list[SampledRow]) -> int:
    return max(sequence.request.params.top_logprobs for _, sequence in rows)
