"""The first kernel of a recorded step in Triton: the rows of the step from the state of their sequences."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from worker.engine.cuda.running_rows import RunningRows, paged_rows_of
from worker.engine.model.step_batch import StepBatch

#: Entries of a block table that are copied at once.
BLOCK = 128


@triton.jit(do_not_specialize=["width", "table_width"])
def fill_rows(
    input_ids, positions, slot_mapping, seqused_k, block_table, width, step_rows, last_token_ids, num_prompt_ids,
    num_generated, all_block_tables, table_width, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows): a row's token, position, slot and block table; padding, of batch index 0, is token 0 in block 0."""
    row = tl.program_id(0)
    index = tl.load(step_rows + row).to(tl.int64)
    is_row = index > 0
    position = tl.load(num_prompt_ids + index) + tl.load(num_generated + index) - 1
    position = tl.where(is_row, position, 0)
    last_block = position // BLOCK_SIZE
    block_id = tl.load(all_block_tables + index * table_width + last_block)
    tl.store(input_ids + row, tl.where(is_row, tl.load(last_token_ids + index), 0))
    tl.store(positions + row, position.to(tl.int64))
    tl.store(slot_mapping + row, block_id.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE)
    tl.store(seqused_k + row, position + 1)
    for start in range(0, last_block + 1, BLOCK):
        places = start + tl.arange(0, BLOCK)
        block_ids = tl.load(all_block_tables + index * table_width + places, mask=places <= last_block, other=0)
        tl.store(block_table + row.to(tl.int64) * width + places, block_ids, mask=places <= last_block)


def fill_from_rows(batch: StepBatch, rows: RunningRows, block_size: int) -> None:
    """`running_rows.fill_in_torch` in one launch."""
    paged, table = paged_rows_of(batch), rows.table
    fill_rows[(batch.num_rows,)](
        batch.input_ids, batch.positions, batch.slot_mapping, paged.seqused_k, paged.block_table,
        paged.block_table.shape[1], rows.step_rows, table.last_token_ids, rows.num_prompt_ids, table.num_generated,
        rows.block_table, rows.block_table.shape[1], BLOCK_SIZE=block_size, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
