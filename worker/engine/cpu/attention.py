"""Attention in C over the KV cache's blocks, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from worker.engine.cpu.library import cpu_library, pointer
from worker.engine.cpu.weight_layout import SIDE
from worker.engine.model.attention import AttentionLayer, PagedAttention
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows


class _Shape(ctypes.Structure):
    """The `Shape` of attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_heads", "num_kv_heads", "dim", "value_dim", "block_size")),
        *((name, ctypes.c_int64) for name in ("max_blocks", "window", "query_stride")),
        ("scale", ctypes.c_float),
    ]


class CpuAttention:
    """A `PagedAttention` on a function of attention.c, or on that of attention_amx.c."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        """`name` is attend_rows_bf16, attend_rows_f32 or attend_runs_amx."""
        self.covers_prefill = name == "attend_runs_amx"
        self._attend = getattr(library, name)

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        """Attention of rows [rows, heads, dim] over their own keys; returns [rows, heads, value_dim]."""
        keys, values = cache.pools(layer.index)
        num_rows, num_heads, dim = query.shape
        if query.stride(1) != dim or query.stride(2) != 1:
            query = query.contiguous()
        output = query.new_empty(num_rows, num_heads, values.shape[2])
        shape = _Shape(
            num_heads, keys.shape[1], dim, values.shape[2], cache.block_size,
            rows.block_table.shape[1], layer.window or 0, query.stride(0), layer.scale,
        )  # fmt: skip
        tensors = (output, query, keys, values, rows.block_table, rows.num_keys, rows.first_rows)
        if self._attend(*map(pointer, tensors), ctypes.c_int64(len(rows.num_keys)), ctypes.byref(shape)):
            raise MemoryError("not enough memory for the attention of a step")
        return output


def cpu_attention(dtype: torch.dtype, layers: Iterable[LayerShape], num_heads: int) -> PagedAttention | None:
    """The fastest for these layers, or None where it cannot be built; on one processor it is always the same one."""
    library = cpu_library()
    if library is None or dtype not in (torch.bfloat16, torch.float32):
        return None
    if dtype is torch.float32:
        return CpuAttention(library, "attend_rows_f32")
    use_amx = library.may_use_amx() and all(fits_tiles(layer, num_heads) for layer in layers)
    return CpuAttention(library, "attend_runs_amx" if use_amx else "attend_rows_bf16")


def fits_tiles(layer: LayerShape, num_heads: int) -> bool:
    """Whether query heads that share a key head are a tile's lanes, and dimensions whole tiles."""
    row = 2 * SIDE  # numbers of a tile's row
    return num_heads <= SIDE * layer.num_kv_heads and layer.key_dim % row == 0 and layer.value_dim % row == 0
