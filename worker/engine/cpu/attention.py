"""Attention in C over the KV cache's blocks: the `PagedAttention` of a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from worker.engine.cpu.library import cpu_library, pointer
from worker.engine.cpu.weight_layout import TILE_DIM
from worker.engine.model.attention import AttentionLayer, PagedAttention
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows


class _AttentionShape(ctypes.Structure):
    """The `AttentionShape` of attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_heads", "num_kv_heads", "dim", "value_dim", "block_size")),
        *((name, ctypes.c_int64) for name in ("max_blocks", "window", "chunk", "query_stride")),
        ("scale", ctypes.c_float),
        ("sinks", ctypes.c_void_p),
    ]


class CpuAttention:
    """A `PagedAttention` on a function of attention.c, or on that of attention_amx.c."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        """`name` is paged_attention_bf16, paged_attention_f32 or varlen_attention_amx."""
        self.covers_prefill = name == "varlen_attention_amx"
        self._attention = getattr(library, name)

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        """Attention of rows [rows, heads, dim] over their own keys; returns [rows, heads, value_dim]."""
        keys, values = cache.pools(layer.index)
        num_rows, num_heads, dim = query.shape
        if query.stride(1) != dim or query.stride(2) != 1:
            query = query.contiguous()
        output = query.new_empty(num_rows, num_heads, values.shape[2])
        sinks = None if layer.sinks is None else layer.sinks.float().contiguous()
        shape = _AttentionShape(
            num_heads, keys.shape[1], dim, values.shape[2], cache.block_size, rows.block_table.shape[1],
            layer.window or 0, layer.chunk or 0, query.stride(0), layer.scale, pointer(sinks),
        )  # fmt: skip
        tensors = (output, query, keys, values, rows.block_table, rows.seqused_k, rows.cu_seqlens_q)
        if self._attention(*map(pointer, tensors), ctypes.c_int64(len(rows.seqused_k)), ctypes.byref(shape)):
            raise MemoryError("not enough memory for the attention of a step")
        return output


def cpu_attention(dtype: torch.dtype, layers: Iterable[LayerShape], num_heads: int) -> PagedAttention | None:
    """The fastest for these layers, or None where it cannot be built; a processor always has the same one."""
    library = cpu_library()
    if library is None or dtype not in (torch.bfloat16, torch.float32):
        return None
    if dtype is torch.float32:
        return CpuAttention(library, "paged_attention_f32")
    use_amx = library.request_amx() and all(fits_tiles(layer, num_heads) for layer in layers)
    return CpuAttention(library, "varlen_attention_amx" if use_amx else "paged_attention_bf16")


def fits_tiles(layer: LayerShape, num_heads: int) -> bool:
    """Whether the query heads of a key head fit a tile's columns, and dimensions are whole tile rows of bf16."""
    row = 2 * TILE_DIM
    return num_heads <= TILE_DIM * layer.num_kv_heads and layer.key_dim % row == 0 and layer.value_dim % row == 0
