"""The memory of a GPU that the KV cache may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from worker.engine.backend import DeviceModel
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.cuda.warm_up import prompt_step
from worker.engine.model.attention import AttentionStep
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import SCRATCH_BLOCK, StepBatch

#: fp32 copies of a step's logits that torch's operations make of them to sample: of all rows, where the fused sampler
#: takes none, and of those that are left to them beside it.
SAMPLER_COPIES, COPIES_BESIDE_SAMPLER = 12, 4


def left_for_cache(total: int, free: int, utilization: float, step: int) -> int:
    """Bytes of a GPU for the cache: a share of all, less what is in use (the weights) and what a step will need."""
    return max(0, int(total * utilization) - (total - free) - step)


def least_memory(layers: dict[int, LayerShape], left: dict[torch.device, int], device: torch.device) -> int:
    """Bytes of the whole cache, of which each device holds its own layers' part; the fullest device decides."""
    on_device: Counter[torch.device] = Counter()
    for shape in layers.values():
        on_device[shape.device or device] += shape.num_elements
    if not on_device:  # of a model without attention
        return min(left.values())
    return min(left[each] * on_device.total() // part for each, part in on_device.items())


@torch.inference_mode()
def step_memory(
    model: DeviceModel, empty_cache: KVCache, devices: Iterable[torch.device], config: EngineConfig, limits: ModelLimits
) -> dict[torch.device, int]:
    """The bytes of the largest step on each device beside weights and cache, measured by a step with an empty cache.

    The first device is that of the step's rows.
    """
    first, *others = devices
    before = {device: torch.cuda.memory_allocated(device) for device in (first, *others)}
    for device in before:
        torch.cuda.reset_peak_memory_stats(device)
    sizes = config.prefill_tokens, config.max_num_seqs
    if model.paged_attention is None or model.states:
        batch = empty_step(*sizes, first)
    else:
        batch = prompt_step(*sizes, empty_cache.block_size, first)
    model.decoder(AttentionStep(batch, empty_cache, model.paged_attention))
    copies = SAMPLER_COPIES if model.logits is None else COPIES_BESIDE_SAMPLER
    sampler = copies * 4 * config.max_num_seqs * limits.vocab_size
    return {device: torch.cuda.max_memory_allocated(device) - used + sampler for device, used in before.items()}


def empty_step(num_rows: int, num_logits: int, device: torch.device) -> StepBatch:
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
