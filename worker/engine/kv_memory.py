"""How much memory the KV cache gets. Decided once, at the start: what runs later never lacks room."""

from __future__ import annotations

import psutil
import torch

from worker.engine.config import EngineConfig
from worker.engine.model.attention import AttentionStep
from worker.engine.model.kv_cache import KVCache, num_blocks_for
from worker.engine.model.step_batch import SCRATCH_BLOCK, StepBatch
from worker.engine.model_loader import LoadedModel
from worker.engine.request import CapacityExceeded

GIB = 2**30

#: Share of the free memory that the KV cache takes on a CPU where no size is given.
CPU_SHARE = 0.25

#: fp32 copies of the logits that the sampler makes of a step's rows.
SAMPLER_COPIES = 4


def choose_num_blocks(loaded: LoadedModel, config: EngineConfig, block_size: int) -> int:
    """Blocks that the memory holds; never more than all sequences could fill. Raises `CapacityExceeded`."""
    if config.kv_memory is not None:
        memory = int(config.kv_memory * GIB)
    elif loaded.device.type == "cuda":
        memory = _cuda_memory(loaded, config, block_size)
    else:
        memory = int(psutil.virtual_memory().available * CPU_SHARE)
    num_blocks = num_blocks_for(memory, loaded.layers, block_size, loaded.dtype)
    most = config.max_num_seqs * -(-loaded.limits.context_window // block_size) + 1
    if num_blocks < 2:
        raise CapacityExceeded(f"{memory / GIB:.3f} GiB of KV memory holds no block; raise --kv-memory")
    return min(num_blocks, most)


def left_for_cache(total: int, free: int, utilization: float, step: int) -> int:
    """Bytes of a GPU for the cache: a share of all, less what is in use (the weights) and what a step will need."""
    return max(0, int(total * utilization) - (total - free) - step)


def _cuda_memory(loaded: LoadedModel, config: EngineConfig, block_size: int) -> int:
    step = _step_memory(loaded, config, block_size)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(loaded.device)
    return left_for_cache(total, free, config.gpu_memory_utilization, step)


@torch.inference_mode()
def _step_memory(loaded: LoadedModel, config: EngineConfig, block_size: int) -> int:
    """Bytes that the largest step takes beside weights and cache: measured, by making one into an empty cache."""
    cache = KVCache(loaded.layers, 1, block_size, loaded.dtype, loaded.device)
    torch.cuda.reset_peak_memory_stats(loaded.device)
    before = torch.cuda.memory_allocated(loaded.device)
    loaded.decoder(AttentionStep(_empty_step(config.prefill_tokens, config.max_num_seqs, loaded.device), cache))
    measured = torch.cuda.max_memory_allocated(loaded.device) - before
    return measured + SAMPLER_COPIES * 4 * config.max_num_seqs * loaded.limits.vocab_size


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
