"""The layout of a step's rows: those that the paged kernel attends, and those in tiles."""

from __future__ import annotations

import torch

from models.params import GenerationParams
from worker.engine.batch_builder import SHORT_BLOCKS, Paging, build_step_batch
from worker.engine.model.step_batch import StepBatch
from worker.engine.request import Request
from worker.engine.scheduling.block_manager import BlockTable
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import PrefillChunk, StepPlan

BLOCK_SIZE = 4
SHORT = SHORT_BLOCKS * BLOCK_SIZE
CPU = torch.device("cpu")


def sequence_of(request_id: int, num_prompt_tokens: int, num_generated: int = 0) -> Sequence:
    """A sequence whose token ids and block ids tell its request."""
    prompt_ids = tuple(range(100 * request_id, 100 * request_id + num_prompt_tokens))
    request = Request(request_id, prompt_ids, GenerationParams())
    num_blocks = -(-(num_prompt_tokens + num_generated) // BLOCK_SIZE)
    table = BlockTable([10 * request_id + index for index in range(num_blocks)])
    return Sequence(request, 0, 16, table, token_ids=list(range(num_generated)))


def chunk_of(sequence: Sequence, start: int = 0, end: int | None = None) -> PrefillChunk:
    group = SequenceGroup(sequence.request, [sequence], arrived=0.0)
    return PrefillChunk(group, start, sequence.num_prompt_tokens if end is None else end)


def rows_in_tiles(batch: StepBatch) -> list[int]:
    return sorted(row for tiles in batch.tiles for row in tiles.kept_rows.tolist())


def test_the_beginning_of_a_prompt_is_attended_as_decoding_rows_are() -> None:
    decoding, short, long = sequence_of(1, 6, num_generated=3), sequence_of(2, SHORT - 1), sequence_of(3, SHORT + 6)
    batch, sampled = build_step_batch(
        StepPlan([decoding], [chunk_of(long), chunk_of(short)]), BLOCK_SIZE, CPU, Paging.SHORT
    )
    num_paged = 1 + SHORT + SHORT - 1
    assert batch.num_paged_rows == num_paged
    assert batch.paged is not None and batch.paged.max_seqlen_q == 1
    # Each row sees the keys up to its own.
    assert batch.paged.seqused_k.tolist() == [9, *range(1, SHORT + 1), *range(1, SHORT)]
    assert (batch.positions[0, :num_paged] + 1).tolist() == batch.paged.seqused_k.tolist()
    assert batch.paged.block_table[:, 0].tolist() == [10] + [30] * SHORT + [20] * (SHORT - 1)
    # The others, the end of the long prompt, are in tiles.
    assert rows_in_tiles(batch) == list(range(num_paged, num_paged + 6))
    assert batch.positions[0, num_paged:].tolist() == list(range(SHORT, SHORT + 6))
    assert [(row, sequence.request.id) for row, sequence in sampled] == [(0, 1), (1, 2), (2, 3)]
    last_ids = batch.input_ids[0, batch.logit_rows].tolist()
    assert last_ids == [decoding.token_ids[-1], short.request.prompt_ids[-1], long.request.prompt_ids[-1]]


def test_how_a_token_is_attended_does_not_depend_on_its_chunk() -> None:
    sequence = sequence_of(1, SHORT + 2 * BLOCK_SIZE)
    whole, _ = build_step_batch(StepPlan([], [chunk_of(sequence)]), BLOCK_SIZE, CPU, Paging.SHORT)
    in_tiles = {int(whole.positions[0, row]) for row in rows_in_tiles(whole)}
    for border in range(BLOCK_SIZE, sequence.num_prompt_tokens, BLOCK_SIZE):
        found = set()
        for chunk in (chunk_of(sequence, 0, border), chunk_of(sequence, border)):
            batch, _ = build_step_batch(StepPlan([], [chunk]), BLOCK_SIZE, CPU, Paging.SHORT)
            found |= {int(batch.positions[0, row]) for row in rows_in_tiles(batch)}
            num_tiled = len(rows_in_tiles(batch))
            assert batch.num_paged_rows + num_tiled == chunk.end - chunk.start
        assert found == in_tiles


def test_without_a_kernel_all_rows_are_in_tiles() -> None:
    decoding, prompt = sequence_of(1, 6, num_generated=3), sequence_of(2, 3)
    batch, _ = build_step_batch(StepPlan([decoding], [chunk_of(prompt)]), BLOCK_SIZE, CPU, Paging.NONE)
    assert batch.paged is None
    assert batch.num_paged_rows == 0
    assert rows_in_tiles(batch) == [0, 1, 2, 3]


def test_a_kernel_for_prompts_takes_each_chunk_at_once() -> None:
    first, second = sequence_of(1, 9), sequence_of(2, 3)
    batch, _ = build_step_batch(StepPlan([], [chunk_of(first, 4), chunk_of(second)]), BLOCK_SIZE, CPU, Paging.ALL)
    assert batch.tiles == []
    assert batch.paged is not None
    assert batch.paged.cu_seqlens_q.tolist() == [0, 5, 8]
    assert batch.paged.seqused_k.tolist() == [9, 3]
