"""Steps like those of a run, on padding alone: what they compile and take is known before the first request comes.

Kernels have variants by a layer's constants, by strides and by alignments; a step that is computed as any other has
all of them, whatever they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from worker.engine.model.recurrent.delta_net import Run, batch_of
from worker.engine.model.step_batch import MIN_ROWS, SCRATCH_BLOCK, PagedRows, StateRows, StepBatch


def prompt_step(
    num_rows: int, num_logits: int, block_size: int, device: torch.device, scratch: int | None
) -> StepBatch:
    """A prompt of `num_rows` rows beside nothing, all of whose keys are in the scratch block.

    `scratch` is the number of its recurrent state, None for a model without.
    """
    step = _step([num_rows], [num_rows], num_rows, num_logits, block_size, device)
    return replace(step, states=None if scratch is None else _states([num_rows], scratch, device))


def decode_step(max_seqlen_k: int, block_size: int, device: torch.device, scratch: int | None) -> StepBatch:
    """Decoding rows of one key each, in a step that takes the longest of its sequences for `max_seqlen_k` keys."""
    ones = [1] * MIN_ROWS
    step = _step(ones, ones, max_seqlen_k, MIN_ROWS, block_size, device)
    return replace(step, states=None if scratch is None else _states(ones, scratch, device))


def _step(
    num_rows: list[int], seqlens_k: list[int], max_seqlen_k: int, num_logits: int, block_size: int, device: torch.device
) -> StepBatch:
    total = sum(num_rows)
    zeros = torch.zeros(total, dtype=torch.long, device=device)
    starts = torch.tensor([0, *num_rows]).cumsum(0)
    table = torch.full((len(num_rows), -(-max_seqlen_k // block_size)), SCRATCH_BLOCK, dtype=torch.int32)
    return StepBatch(
        input_ids=zeros[None],
        positions=zeros[None],
        slot_mapping=zeros + SCRATCH_BLOCK * block_size,
        logit_rows=torch.arange(min(total, num_logits), device=device),
        tiles=[],
        paged=PagedRows(
            block_table=table.to(device),
            seqused_k=torch.tensor(seqlens_k, dtype=torch.int32).to(device),
            cu_seqlens_q=starts.to(device, torch.int32),
            max_seqlen_q=max(num_rows),
            max_seqlen_k=max_seqlen_k,
            num_decoding=sum(rows == 1 for rows in num_rows),
        ),
        num_paged_rows=total,
    )


def _states(num_rows: list[int], scratch: int, device: torch.device) -> StateRows | None:
    """One state for all sequences; those of several rows are prompts."""
    runs = [Run(scratch, count, begins=True) if count > 1 else Run(scratch) for count in num_rows]
    return batch_of(runs, device).states
