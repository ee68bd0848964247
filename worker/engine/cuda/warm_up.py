"""Steps like those of a run, on padding alone: what they compile and take is known before the first request comes.

Kernels have variants by a layer's constants, by strides and by alignments; a step that is computed as any other has
all of them, whatever they are.
"""

from __future__ import annotations

import torch

from worker.engine.model.step_batch import MIN_ROWS, SCRATCH_BLOCK, PagedRows, StepBatch


def prompt_step(num_rows: int, num_logits: int, block_size: int, device: torch.device) -> StepBatch:
    """A prompt of `num_rows` rows beside nothing, all of whose keys are in the scratch block."""
    return _step([num_rows], [num_rows], num_rows, num_logits, block_size, device)


def decode_step(max_seqlen_k: int, block_size: int, device: torch.device) -> StepBatch:
    """Decoding rows of one key each, in a step that takes the longest of its sequences for `max_seqlen_k` keys."""
    ones = [1] * MIN_ROWS
    return _step(ones, ones, max_seqlen_k, MIN_ROWS, block_size, device)


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
