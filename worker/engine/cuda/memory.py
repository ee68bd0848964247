"""The memory of a GPU that the KV cache may take."""

from __future__ import annotations

import torch

from worker.engine.backend import Decoder
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.model.attention import AttentionStep
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.step_batch import SCRATCH_BLOCK, StepBatch

#: fp32 copies of the logits that the sampler makes of a step's rows.
SAMPLER_COPIES = 4


def left_for_cache(total: int, free: int, utilization: float, step: int) -> int:
    """Bytes of a GPU for the cache: a share of all, less what is in use (the weights) and what a step will need."""
    return max(0, int(total * utilization) - (total - free) - step)


@torch.inference_mode()
def step_memory(
    decoder: Decoder, empty_cache: KVCache, device: torch.device, config: EngineConfig, limits: ModelLimits
) -> int:
    """The bytes of the largest step beside weights and cache, measured by a step with an empty cache."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    decoder(AttentionStep(_empty_step(config.prefill_tokens, config.max_num_seqs, device), empty_cache))
    measured = torch.cuda.max_memory_allocated(device) - before
    return measured + SAMPLER_COPIES * 4 * config.max_num_seqs * limits.vocab_size


def _empty_step(num_rows: int, num_logits: int, device: torch.device) -> StepBatch:
    """Rows that attend to nothing."""
    zeros = torch.zeros(num_rows, dtype=torch.long, device=device)
    return StepBatch(
        input_ids=zeros[None],
        positions=zeros[None],
        slot_mapping=zeros + SCRATCH_BLOCK,
        logit_rows=torch.arange(min(num_rows, num_logits), device=device),
        tiles=[],
        paged=None,
        num_paged_rows=0,
    )
