"""The size of the KV cache. Decided once, at the start: a running sequence never lacks a block later."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from worker.engine.model.kv_cache import LayerShape, num_blocks_for
from worker.engine.model.recurrent.state_pool import StateLayout
from worker.engine.request import CapacityExceeded

logger = logging.getLogger(__name__)

GIB = 2**30

#: Recurrent states take at most this share of the memory where a model keeps keys and values too.
MAX_STATE_SHARE = 0.5

#: States that are kept for prompts that begin alike: at most so many, and one in eight where memory is scarce.
MAX_SNAPSHOTS = 64
SCARCE_SHARE = 8


class NumStates(NamedTuple):
    """Recurrent states: one a sequence, and those that are kept for later ones."""

    sequences: int = 0
    snapshots: int = 0

    @property
    def total(self) -> int:
        return self.sequences + self.snapshots


def choose_num_states(
    memory: int, layout: StateLayout, max_num_seqs: int, *, has_keys: bool, share_prefixes: bool
) -> NumStates:
    """Recurrent states that the bytes hold beside KV blocks. Raises `CapacityExceeded`."""
    if not layout:
        return NumStates()
    fitting = int(memory * (MAX_STATE_SHARE if has_keys else 1)) // layout.num_bytes
    if fitting < 1:
        raise CapacityExceeded(
            f"{memory / GIB:.3f} GiB of KV memory holds no recurrent state ({layout.num_bytes / GIB:.3f} GiB a "
            "sequence); raise --kv-memory"
        )
    can_share = share_prefixes and layout.splits_prompts
    num_snapshots = min(MAX_SNAPSHOTS, max(fitting - max_num_seqs, fitting // SCARCE_SHARE)) if can_share else 0
    fitting -= num_snapshots
    if fitting < max_num_seqs:
        logger.warning(
            "%.3f GiB of KV memory holds the recurrent states of %d sequences, and so many run side by side, not %d; "
            "raise --kv-memory",
            memory / GIB, fitting, max_num_seqs,
        )  # fmt: skip
    return NumStates(min(fitting, max_num_seqs), num_snapshots)


def choose_num_blocks(
    memory: int,
    layers: dict[int, LayerShape],
    dtype: torch.dtype,
    block_size: int,
    max_num_seqs: int,
    context_window: int,
) -> int:
    """Blocks that the bytes hold; never more than all sequences could fill. Raises `CapacityExceeded`."""
    most = max_num_seqs * -(-context_window // block_size) + 1
    if not layers:  # of a model without attention: the blocks hold nothing
        return most
    num_blocks = num_blocks_for(memory, layers, block_size, dtype)
    if num_blocks < 2:
        raise CapacityExceeded(f"{memory / GIB:.3f} GiB of KV memory holds no block; raise --kv-memory")
    return min(num_blocks, most)
