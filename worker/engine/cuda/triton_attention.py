"""The `PagedAttention` of a GPU: decoding rows and prompts, each by the Triton kernel that suits it.

Decoding rows and prompts are never in one launch: a row is computed in tiles of the same shape whatever is beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.cuda.attention_kernels import attend, attend_split, join_sections
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.step_batch import PagedRows

#: Keys that are summed by themselves, before they are joined to those before them.
SECTION = 256

#: Rows of a tile of a matmul on tensor cores, at least.
MIN_TILE_ROWS = 16

#: Rows of a prompt's tile, where the heads of a key head do not need more.
PROMPT_TILE_ROWS = 64

#: Bytes of partial results beyond which a row's sections are left to one program.
MAX_PARTIAL_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TileShape:
    """The sizes of a kernel's tiles, for the shapes of one layer."""

    rows: int  # query heads of a key head times rows of the step
    keys: int
    dim: int  # padded to a power of two
    value_dim: int
    num_warps: int

    @classmethod
    def of(cls, key_dim: int, value_dim: int, itemsize: int, group: int, wanted_rows: int) -> TileShape:
        """A key and a value tile of at most 16 KiB each, so that two stages fit a small card's shared memory."""
        dim, padded_value_dim = _padded(key_dim), _padded(value_dim)
        most = max(dim, padded_value_dim)
        keys = max(16, min(64, 16384 // (most * itemsize)))
        # More rows than these spill registers; a matmul of fp32 takes no tensor core and many of them.
        most_rows = MIN_TILE_ROWS if itemsize == 4 or most > 256 else 64 if most <= 64 else 32
        rows = max(_padded(group), min(wanted_rows, most_rows))
        # A larger accumulator, and the operands beside it, spill the registers of so few threads.
        num_warps = 4 if rows * padded_value_dim * itemsize <= 8192 else 8
        if rows == MIN_TILE_ROWS and most == 128 and itemsize == 2:
            num_warps = 2  # of 8 heads on an H200 8 % faster than 4 with 256 decoding rows, 22 % with 64
        return cls(rows, keys, dim, padded_value_dim, num_warps)


class TritonAttention:
    """A `PagedAttention` by Triton's kernels; knows the number of processors to fill with few rows."""

    covers_prefill = True

    def __init__(self, num_processors: int) -> None:
        self._num_processors = num_processors

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        """Attention of rows [rows, heads, dim] over their own keys; returns [rows, heads, value_dim]."""
        if query.stride(2) != 1:
            query = query.contiguous()
        output = query.new_empty(*query.shape[:2], cache.pools(layer.index)[1].shape[2])
        if rows.num_decoding:
            self._decode(layer, output, query, cache, rows)
        if rows.num_decoding < len(rows.seqused_k):
            self._prefill(layer, output, query, cache, rows)
        return output

    def _prefill(self, layer: AttentionLayer, output: Tensor, query: Tensor, cache: KVCache, rows: PagedRows) -> None:
        call = _Call.of(layer, query, cache, PROMPT_TILE_ROWS)
        num_tiles = -(-rows.max_seqlen_q // (call.tile.rows // call.group))
        num_segments = len(rows.seqused_k) - rows.num_decoding
        call.attend((num_segments, call.num_kv_heads, num_tiles), output, query, rows, rows.num_decoding)

    def _decode(self, layer: AttentionLayer, output: Tensor, query: Tensor, cache: KVCache, rows: PagedRows) -> None:
        call = _Call.of(layer, query, cache, MIN_TILE_ROWS)
        grid = (rows.num_decoding, call.num_kv_heads)
        num_programs = num_programs_of_a_row(math.prod(grid), rows.max_seqlen_k, call.tile, self._num_processors)
        if num_programs == 1:
            call.attend((*grid, 1), output, query, rows, 0)
            return
        max_sections = -(-rows.max_seqlen_k // SECTION)
        num_partial = math.prod(grid) * max_sections * call.tile.rows
        row_max, row_sum = torch.empty(2, num_partial, dtype=torch.float32, device=query.device)
        accumulator = torch.empty(num_partial, call.tile.value_dim, dtype=torch.float32, device=query.device)
        partial = (row_max, row_sum, accumulator)
        attend_split[(*grid, num_programs)](
            *partial, query, *call.pools, rows.block_table, rows.seqused_k, call.scale_log2,
            rows.block_table.shape[1], max_sections, *query.stride()[:2], *call.pool_strides,
            **call.constants, **call.options,
        )  # fmt: skip
        join_sections[grid](
            output, call.sinks, *partial, rows.seqused_k, max_sections, *output.stride()[:2],
            GROUP=call.group, VALUE_DIM=output.shape[2], VALUE_DIM_PADDED=call.tile.value_dim,
            BLOCK_M=call.tile.rows, SECTION=SECTION, WINDOW=call.constants["WINDOW"], CHUNK=call.constants["CHUNK"],
            HAS_SINKS=call.has_sinks, **call.options,
        )  # fmt: skip


def num_programs_of_a_row(num_row_heads: int, max_seqlen_k: int, tile: TileShape, num_processors: int) -> int:
    """Programs that share the keys of a decoding row and a key head, where too few of these would fill the GPU."""
    max_sections = -(-max_seqlen_k // SECTION)
    partial_bytes = num_row_heads * max_sections * tile.rows * (tile.value_dim + 2) * 4
    if partial_bytes > MAX_PARTIAL_BYTES or not num_row_heads:
        return 1
    return min(max_sections, -(-2 * num_processors // num_row_heads))


@dataclass(frozen=True)
class _Call:
    """The arguments that the kernels of one layer have in common."""

    group: int  # query heads of a key head
    num_kv_heads: int
    tile: TileShape
    pools: tuple[Tensor, Tensor]
    scale_log2: float
    constants: dict[str, int | float]
    sinks: Tensor  # [heads]; anything where there are none
    has_sinks: bool

    @classmethod
    def of(cls, layer: AttentionLayer, query: Tensor, cache: KVCache, wanted_rows: int) -> _Call:
        keys, values = cache.pools(layer.index)
        num_heads, dim = query.shape[1:]
        num_kv_heads, value_dim = keys.shape[1], values.shape[2]
        group = num_heads // num_kv_heads
        tile = TileShape.of(dim, value_dim, keys.itemsize, group, wanted_rows)
        constants: dict[str, int | float] = {
            "GROUP": group,
            "DIM": dim,
            "DIM_PADDED": tile.dim,
            "VALUE_DIM": value_dim,
            "VALUE_DIM_PADDED": tile.value_dim,
            "BLOCK_SIZE": cache.block_size,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "SECTION": SECTION,
            "WINDOW": layer.window or 0,
            "CHUNK": layer.chunk or 0,
            "SOFTCAP": layer.softcap or 0.0,
        }
        sinks = query if layer.sinks is None else layer.sinks
        scale_log2 = layer.scale * math.log2(math.e)
        return cls(group, num_kv_heads, tile, (keys, values), scale_log2, constants, sinks, layer.sinks is not None)

    @property
    def pool_strides(self) -> list[int]:
        return [stride for pool in self.pools for stride in pool.stride()[:2]]

    @property
    def options(self) -> dict[str, int | bool]:
        return {"num_warps": self.tile.num_warps, "num_stages": 2, "enable_fp_fusion": False}

    def attend(self, grid: tuple[int, int, int], output: Tensor, query: Tensor, rows: PagedRows, first: int) -> None:
        """Launches the kernel for the segments from `first` on."""
        attend[grid](
            output, self.sinks, query, *self.pools, rows.block_table, rows.seqused_k, rows.cu_seqlens_q,
            self.scale_log2, first, rows.block_table.shape[1], *output.stride()[:2], *query.stride()[:2],
            *self.pool_strides, **self.constants, HAS_SINKS=self.has_sinks, **self.options,
        )  # fmt: skip


def _padded(size: int) -> int:
    """The next power of two, at least what a tensor core's tile has."""
    return max(16, 1 << (size - 1).bit_length())
