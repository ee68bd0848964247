"""The size of the KV cache. Decided once, at the start: a running sequence never lacks a block later."""

from __future__ import annotations

import torch

from worker.engine.model.kv_cache import LayerShape, num_blocks_for
from worker.engine.request import CapacityExceeded

GIB = 2**30


def choose_num_blocks(
    memory: int,
    layers: dict[int, LayerShape],
    dtype: torch.dtype,
    block_size: int,
    max_num_seqs: int,
    context_window: int,
) -> int:
    """Blocks that the bytes hold; never more than all sequences could fill. Raises `CapacityExceeded`."""
    num_blocks = num_blocks_for(memory, layers, block_size, dtype)
    most = max_num_seqs * -(-context_window // block_size) + 1
    if num_blocks < 2:
        raise CapacityExceeded(f"{memory / GIB:.3f} GiB of KV memory holds no block; raise --kv-memory")
    return min(num_blocks, most)
