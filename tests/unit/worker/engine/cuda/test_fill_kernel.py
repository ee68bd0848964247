"""The first kernel of a recorded step beside the same function in Torch; and what the host sends of running rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.params import GenerationParams
from worker.engine.cuda.decode_graphs import static_batch, static_states
from worker.engine.cuda.fill_kernel import fill_from_rows
from worker.engine.cuda.running_rows import RowUpdates, RunningRows, fill_in_torch, fill_states, paged_rows_of
from worker.engine.model.step_batch import SCRATCH_BLOCK, StepBatch
from worker.engine.request import Request
from worker.engine.sampling_row import RowState
from worker.engine.scheduling.block_manager import BlockTable
from worker.engine.scheduling.sequence import Sequence

CPU = torch.device("cpu")
MAX_NUM_SEQS, VOCAB, SIZE = 5, 40, 16


def sequence_of(batch_index: int, num_prompt_tokens: int, token_ids: list[int]) -> Sequence:
    request = Request(batch_index, tuple(range(num_prompt_tokens)), GenerationParams())
    num_blocks = -(-(num_prompt_tokens + len(token_ids)) // SIZE)
    table = BlockTable([batch_index * 1000 + place for place in range(num_blocks)])
    return Sequence(request, 0, 100, table, token_ids=token_ids, batch_index=batch_index)


def filled(rows: RunningRows, num_rows: int, max_blocks: int) -> list[StepBatch]:
    """By the kernel and by Torch, over values of an earlier step."""
    batches = [static_batch(num_rows, max_blocks * SIZE, SIZE, CPU) for _ in range(2)]
    for batch in batches:
        for tensor in tensors_of(batch):
            tensor.fill_(-5)
    fill_from_rows(batches[0], rows, SIZE)
    fill_in_torch(batches[1], rows, SIZE)
    return batches


def tensors_of(batch: StepBatch) -> list[Tensor]:
    paged = paged_rows_of(batch)
    return [batch.input_ids, batch.positions, batch.slot_mapping, paged.seqused_k, paged.block_table]


@settings(max_examples=25)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 40)), min_size=1, max_size=MAX_NUM_SEQS),
    order=st.randoms(use_true_random=False),
)
def test_the_rows_of_a_step(lengths: list[tuple[int, int]], order: object) -> None:
    """Sequences that the host samples: their newest tokens are sent. Rows after them are padding."""
    max_blocks = 200
    sequences = [
        sequence_of(index, num_prompt, list(range(50, 50 + num_generated)))
        for index, (num_prompt, num_generated) in enumerate(lengths, 1)
    ]
    order.shuffle(sequences)  # type: ignore[attr-defined]
    updates = RowUpdates(RunningRows.make(MAX_NUM_SEQS, VOCAB, max_blocks, CPU))
    updates.grow(sequences)
    for decoded in (sequences, sequences[: len(sequences) // 2 + 1]):
        updates.decode(decoded)
        updates.send()
        batches = filled(updates.rows, MAX_NUM_SEQS, max_blocks)
        for one, other in zip(*map(tensors_of, batches), strict=True):
            assert torch.equal(one, other)
        input_ids, positions, slot_mapping, seqused_k, block_table = tensors_of(batches[0])
        for row, sequence in enumerate(decoded):
            position, block_ids = sequence.num_tokens - 1, sequence.table.block_ids
            assert input_ids[0, row] == sequence.token_ids[-1] and positions[0, row] == position
            assert slot_mapping[row] == block_ids[-1] * SIZE + position % SIZE
            assert seqused_k[row] == position + 1
            assert block_table[row, : len(block_ids)].tolist() == block_ids
        for row in range(len(decoded), MAX_NUM_SEQS):
            padding = [input_ids[0, row], positions[0, row], slot_mapping[row], block_table[row, 0], seqused_k[row]]
            assert torch.stack([each.long() for each in padding]).tolist() == [0, 0, SCRATCH_BLOCK, SCRATCH_BLOCK, 1]


def test_only_what_changed_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = RowUpdates(RunningRows.make(MAX_NUM_SEQS, VOCAB, 10, CPU))
    sequences = [sequence_of(1, 20, [1]), sequence_of(2, 20, [2])]
    sent: list[int] = []

    def noting(words: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
        sent.append(len(index))
        return exact(words, dim, index, values)

    exact = Tensor.index_copy_
    monkeypatch.setattr(Tensor, "index_copy_", noting)
    updates.grow(sequences)
    updates.decode(sequences)
    updates.send()
    assert len(sent) == 1
    for sequence in sequences:  # from now on the device samples them
        sequence.row_state = RowState(sequence.request.params, sequence.request.prompt_ids, ())
        sequence.row_state.is_in_table = True
    updates.decode(sequences)
    updates.send()
    assert len(sent) == 1
    sequences[1].table.block_ids.append(77)
    updates.grow(sequences[1:])
    updates.decode(sequences)
    updates.send()
    assert sent[1:] == [1] and updates.rows.block_table[2, 2] == 77
    updates.decode(sequences[1:])
    updates.send()
    assert sent[2:] == [2] and updates.rows.step_rows.tolist() == [2, 0, 0, 0, 0]
    updates.drop()
    updates.decode(sequences[1:])
    updates.send()
    assert sent[3:] == [MAX_NUM_SEQS] and updates.rows.step_rows.tolist() == [2, 0, 0, 0, 0]


@settings(max_examples=25)
@given(st.lists(st.lists(st.sampled_from(range(1, MAX_NUM_SEQS + 1)), unique=True, min_size=1), max_size=6), st.data())
def test_the_recurrent_states_of_a_step(steps: list[list[int]], data: st.DataObject) -> None:
    """A sequence may get another state at any time; what was dropped before it was sent is sent again."""
    scratch, sequences = 40, {index: sequence_of(index, 20, [1]) for index in range(1, MAX_NUM_SEQS + 1)}
    updates = RowUpdates(RunningRows.make(MAX_NUM_SEQS, VOCAB, 10, CPU))
    updates.rows.state_indices[0] = scratch
    states = static_states(MAX_NUM_SEQS, CPU)
    batch = replace(static_batch(MAX_NUM_SEQS, 10 * SIZE, SIZE, CPU), states=states)
    for indices in steps:
        decoded = [sequences[index] for index in indices]
        for sequence in decoded:
            if sequence.table.state_index is None or data.draw(st.booleans()):
                sequence.table.state_index = data.draw(st.integers(0, scratch - 1))
        updates.decode(decoded)
        if data.draw(st.booleans()):
            updates.drop()
            updates.decode(decoded)
        updates.send()
        fill_states(batch, updates.rows)
        expected = [sequence.table.state_index for sequence in decoded]
        assert states.decoding.tolist() == expected + [scratch] * (MAX_NUM_SEQS - len(decoded))
        assert states.sequences.states is states.decoding
