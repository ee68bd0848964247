"""The memory of a GPU that the KV cache may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from worker.engine.backend import DeviceModel
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.cuda.warm_up import prompt_step
from worker.engine.kv_memory import GIB
from worker.engine.model.attention import AttentionStep
from worker.engine.model.kv_cache import KVCache, LayerShape, num_blocks_for
from worker.engine.model.recurrent.state_pool import StatePool
from worker.engine.model.step_batch import SCRATCH_BLOCK, StepBatch
from worker.engine.request import CapacityExceeded

#: fp32 copies of a step's logits that torch's operations make of them to sample: of all rows, where the fused sampler
#: takes none, and of those that are left to them beside it.
SAMPLER_COPIES, COPIES_BESIDE_SAMPLER = 12, 4


def max_blocks(model: DeviceModel, limits: ModelLimits, config: EngineConfig) -> int:
    """Blocks of the longest sequence: those of the context window, or of a cache in all memory of the devices.

    Some models' context windows have millions of tokens, more than any memory holds.
    """
    block_size = config.block_size or model.block_size
    of_window = -(-limits.context_window // block_size)
    if not model.layers:
        return of_window
    if config.kv_memory is None:
        memory = sum(torch.cuda.mem_get_info(device)[1] for device in devices_of(model))
    else:
        memory = int(config.kv_memory * GIB)
    return max(1, min(of_window, num_blocks_for(memory, model.layers, block_size, model.dtype)))


def devices_of(model: DeviceModel) -> list[torch.device]:
    """The devices of a model; that of a step's rows comes first."""
    return list(dict.fromkeys([model.device, *(each.device or model.device for each in model.layers.values())]))


def room_for_cache(model: DeviceModel, utilization: float, step: Mapping[torch.device, int]) -> int:
    """Bytes for the cache on all devices: of each a share, less what is in use (the weights) and what a step will need.

    Raises `CapacityExceeded` where nothing is left, with what takes a device's memory.
    """
    left = {}
    for device, in_step in step.items():
        free, total = torch.cuda.mem_get_info(device)
        left[device] = int(total * utilization) - (total - free) - in_step
        if left[device] <= 0:
            own = torch.cuda.memory_reserved(device)
            raise CapacityExceeded(
                f"nothing of {device} is left for the KV cache: of its {total / GIB:.1f} GiB {own / GIB:.1f} are the "
                f"model's, {max(0, total - free - own) / GIB:.1f} those of other programs and CUDA, a step takes "
                f"{in_step / GIB:.1f}, and --gpu-memory-utilization is {utilization:g}; end the other programs, lower "
                "--max-num-seqs, or take a smaller model"
            )
    return least_memory(model.layers, left, model.device)


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
    states = StatePool(model.states, 0) if model.states else None
    if model.paged_attention is None:
        batch = empty_step(*sizes, first)
    else:
        batch = prompt_step(*sizes, empty_cache.block_size, first, None if states is None else states.scratch)
    model.decoder(AttentionStep(batch, empty_cache, model.paged_attention, states))
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
