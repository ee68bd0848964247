"""The KV cache's tensors: one pool of blocks per layer, for keys and for values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.model.device_copies import to_device
from worker.engine.model.large_pages import large_pages


@dataclass(frozen=True)
class LayerShape:
    """The keys and values of one token in one layer."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device | None = None  # where the layer is; None: where the cache is told to be

    @property
    def num_elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache:
    """Keys and values of every layer, [num_blocks * block_size, num_kv_heads, dim] each."""

    def __init__(
        self,
        layers: dict[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        num_slots = num_blocks * block_size
        self._keys = {
            index: lazy_zeros((num_slots, shape.num_kv_heads, shape.key_dim), dtype, shape.device or device)
            for index, shape in layers.items()
        }
        self._values = {
            index: lazy_zeros((num_slots, shape.num_kv_heads, shape.value_dim), dtype, shape.device or device)
            for index, shape in layers.items()
        }

    @property
    def _devices(self) -> set[torch.device]:
        return {pool.device for pool in self._keys.values()}

    def write(self, layer: int, slot_mapping: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values, [rows, num_kv_heads, dim], at each row's slot."""
        self._keys[layer].index_copy_(0, slot_mapping, keys)
        self._values[layer].index_copy_(0, slot_mapping, values)

    def pools(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and all values of a layer, [num_blocks * block_size, num_kv_heads, dim] each."""
        return self._keys[layer], self._values[layer]

    def gather(self, layer: int, block_ids: Tensor, keys_per_tile: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tiles, [num_tiles, num_kv_heads, keys_per_tile, dim]."""
        return self._gather(self._keys[layer], block_ids, keys_per_tile), self._gather(
            self._values[layer], block_ids, keys_per_tile
        )

    def clear_blocks(self, block_ids: list[int]) -> None:
        """Fills whole blocks with zeros, in every layer."""
        indices = {device: to_device(block_ids, None, device) for device in self._devices}
        for pool in (*self._keys.values(), *self._values.values()):
            pool.view(self.num_blocks, -1).index_fill_(0, indices[pool.device], 0)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to) each, in every layer."""
        indices = {device: to_device(pairs, None, device).t() for device in self._devices}
        for pool in (*self._keys.values(), *self._values.values()):
            sources, targets = indices[pool.device]
            blocks = pool.view(self.num_blocks, -1)
            blocks.index_copy_(0, targets, blocks.index_select(0, sources))

    def _gather(self, pool: Tensor, block_ids: Tensor, keys_per_tile: int) -> Tensor:
        blocks = pool.view(self.num_blocks, -1).index_select(0, block_ids)
        return blocks.view(-1, keys_per_tile, *pool.shape[1:]).transpose(1, 2)


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, because a masked key still meets a weight of zero and NaN * 0 is NaN.

    On a CPU they are not written: the system gives zeroed pages when they are first touched, so that a worker does
    not spend its first seconds, and memory, on blocks that nobody uses.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return large_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def num_blocks_for(memory_bytes: int, layers: dict[int, LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """The number of blocks that fit into the memory."""
    per_token = sum(shape.num_elements for shape in layers.values()) * dtype.itemsize
    return memory_bytes // (per_token * block_size)
