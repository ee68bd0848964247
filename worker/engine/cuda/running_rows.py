"""The state of running sequences on the device: persistent tensors with a row for each, its `batch_index`.

A step that only decodes reads its rows there: newest token, position, block table, sampling parameters. The host writes
what changed since the last step, mostly nothing, and `fill_in_torch` is the function that the graph's first kernel is.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.cuda.row_words import Field, WordUpdates, carve
from worker.engine.cuda.sampling.table import SamplingTable, TableRow, update_row
from worker.engine.model.step_batch import MIN_ROWS, PagedRows, StepBatch
from worker.engine.scheduling.sequence import Sequence


@dataclass(frozen=True)
class RunningRows:
    """Rows from 1 on; row 0 is padding's. The addresses never change, so that graphs hold them."""

    table: SamplingTable
    step_rows: Tensor  # int32 [rows] the batch index of each row of the step, then zeros
    num_prompt_ids: Tensor  # int32 [max_num_seqs + 1]
    block_table: Tensor  # int32 [max_num_seqs + 1, blocks]
    state_indices: Tensor  # int64 [max_num_seqs + 1], of models that keep recurrent states

    @classmethod
    def make(cls, max_num_seqs: int, vocab: int, max_blocks: int, device: torch.device) -> RunningRows:
        num_rows = max_num_seqs + 1
        of_sampler = SamplingTable.fields(num_rows, vocab)
        own = {
            "step_rows": Field((max(max_num_seqs, MIN_ROWS),), torch.int32),
            "num_prompt_ids": Field((num_rows,), torch.int32),
            "block_table": Field((num_rows, max_blocks), torch.int32),
            "state_indices": Field((num_rows,), torch.int64),
        }
        words, fields = carve({**of_sampler, **own}, device)
        table = SamplingTable(**{name: fields[name] for name in of_sampler}, words=words)
        return cls(table, **{name: fields[name] for name in own})


class RowUpdates:
    """Writes what changed of the rows since the last step."""

    def __init__(self, rows: RunningRows) -> None:
        self.rows = rows
        self._updates = WordUpdates(rows.table.words)
        self._step_rows: list[int] = []
        self._states_sent = np.full(len(rows.state_indices), -1)

    def begin(self, sequence: Sequence, row: TableRow) -> None:
        """Writes the row of a sequence that the device samples from now on."""
        index, prompt_ids = batch_index_of(sequence), sequence.request.prompt_ids
        update_row(self._updates, self.rows.table, index, row, prompt_ids, sequence.token_ids)
        self._updates.write(self.rows.num_prompt_ids, index, np.array([len(prompt_ids)], np.int32))

    def grow(self, sequences: SequenceOf[Sequence]) -> None:
        """Writes the blocks that sequences have got since they were last sent; those of every step, recorded or not."""
        for sequence in sequences:
            self._write_blocks(sequence)

    def decode(self, sequences: SequenceOf[Sequence]) -> None:
        """Writes the rows of a step that decodes these sequences alone."""
        states = [sequence.row_state for sequence in sequences]
        of_host = [index for index, state in enumerate(states) if state is None or not state.is_in_table]
        if of_host:
            self._write_newest([sequences[index] for index in of_host])
        indices = [sequence.batch_index or 0 for sequence in sequences]
        if indices != self._step_rows:
            padding = [0] * (len(self._step_rows) - len(indices))
            self._updates.write(self.rows.step_rows, 0, np.array(indices + padding, np.int32))
            self._step_rows = indices
        if sequences and sequences[0].table.state_index is not None:
            self._write_states(np.array(indices), np.array([sequence.table.state_index for sequence in sequences]))

    def send(self) -> None:
        self._updates.send()

    def drop(self) -> None:
        """Drops the values that are not sent yet, of sequences that start over."""
        self._updates = WordUpdates(self.rows.table.words)
        self._step_rows = [-1] * len(self.rows.step_rows)
        self._states_sent.fill(-1)

    def _write_blocks(self, sequence: Sequence) -> None:
        start, block_ids = sequence.num_blocks_sent, sequence.table.block_ids
        new = np.array(block_ids[start:], np.int32)
        self._updates.write(self.rows.block_table, batch_index_of(sequence), new, start)
        sequence.num_blocks_sent = len(block_ids)

    def _write_states(self, indices: NDArray[np.int64], states: NDArray[np.int64]) -> None:
        """The states of sequences that have another one than was last sent: they are new, or it was shared."""
        is_new = self._states_sent[indices] != states
        if is_new.any():
            self._updates.write_rows(self.rows.state_indices, indices[is_new], states[is_new])
            self._states_sent[indices] = states

    def _write_newest(self, sequences: SequenceOf[Sequence]) -> None:
        """The newest tokens and the lengths of sequences that the host samples."""
        rows, table = self.rows, self.rows.table
        indices = np.array([batch_index_of(sequence) for sequence in sequences], np.int64)
        for field, values in (
            (table.last_token_ids, np.array([sequence.token_ids[-1] for sequence in sequences], np.int64)),
            (table.num_generated, np.array([sequence.num_generated for sequence in sequences], np.int32)),
            (rows.num_prompt_ids, np.array([sequence.num_prompt_tokens for sequence in sequences], np.int32)),
        ):
            self._updates.write_rows(field, indices, values)


def fill_in_torch(batch: StepBatch, rows: RunningRows, block_size: int) -> None:
    """Writes a static batch of decoding rows from the state of the step's sequences; padding computes block 0."""
    table, num_rows = rows.table, batch.num_rows
    indices = rows.step_rows[:num_rows].long()
    is_padding = indices == 0
    positions = (rows.num_prompt_ids[indices] + table.num_generated[indices] - 1).masked_fill(is_padding, 0).long()
    block_table, paged = rows.block_table[indices], paged_rows_of(batch)
    width = min(block_table.shape[1], paged.block_table.shape[1])
    block_ids = block_table.gather(1, (positions // block_size)[:, None])[:, 0]
    batch.input_ids[0] = table.last_token_ids[indices].masked_fill(is_padding, 0)
    batch.positions[0] = positions
    batch.slot_mapping.copy_(block_ids * block_size + positions % block_size)
    paged.seqused_k.copy_(positions + 1)
    is_used = torch.arange(width, device=indices.device) <= (positions // block_size)[:, None]
    paged.block_table[:, :width] = torch.where(is_used, block_table[:, :width], paged.block_table[:, :width])


def fill_states(batch: StepBatch, rows: RunningRows) -> None:
    """Writes the recurrent states of the step's sequences into a static batch, where it has any."""
    if batch.states is not None:
        step_rows = rows.step_rows[: batch.num_rows]
        torch.index_select(rows.state_indices, 0, step_rows, out=batch.states.decoding)


def paged_rows_of(batch: StepBatch) -> PagedRows:
    assert batch.paged is not None, "the batch was made for a paged kernel"
    return batch.paged


def batch_index_of(sequence: Sequence) -> int:
    assert sequence.batch_index is not None, "a sequence without a row of the batch is computed"
    return sequence.batch_index
