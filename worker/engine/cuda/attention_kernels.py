"""Paged attention in Triton: `attend` computes all keys of a row in one program, `attend_split` and `join` in several.

Keys are taken in sections of fixed length at fixed positions of a sequence. Each section has a maximum, a sum and an
accumulator of its own (online softmax, Milakov and Gimelshein 2018), and `_join` adds the sections in their order.
So a row's result depends neither on the other rows nor on how its sections are divided among programs. The query
heads that share a key head are rows of one tile (grouped-query attention), so that keys are read once for them.

Needs `enable_fp_fusion=False`: a compiler that fuses multiplications and additions in one kernel and not in the other
would make their last bits differ.
"""

# Kernels are written in Triton's language, whose values have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _no_keys(BLOCK_M: tl.constexpr, VALUE_DIM_PADDED: tl.constexpr) -> tuple[Any, Any, Any]:
    """Maximum, sum and accumulator before any key."""
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, VALUE_DIM_PADDED], tl.float32)
    return row_max, row_sum, accumulator


@triton.jit
def _join(row_max, row_sum, accumulator, other_max, other_sum, other_accumulator) -> tuple[Any, Any, Any]:
    """Adds a section to the sections before it; one without a visible key changes nothing."""
    joint_max = tl.maximum(row_max, other_max)
    finite_max = tl.where(joint_max == float("-inf"), 0.0, joint_max)
    scale = tl.exp2(row_max - finite_max)
    other_scale = tl.exp2(other_max - finite_max)
    row_sum = row_sum * scale + other_sum * other_scale
    accumulator = accumulator * scale[:, None] + other_accumulator * other_scale[:, None]
    return joint_max, row_sum, accumulator


@triton.jit
def _add_sink(row_max, row_sum, accumulator, sinks, heads, is_row, HAS_SINKS: tl.constexpr) -> tuple[Any, Any, Any]:
    """Adds a key that has no value: the sink of each head, a score that is not scaled."""
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=is_row, other=float("-inf")).to(tl.float32) * 1.4426950408889634
        row_max, row_sum, accumulator = _join(
            row_max, row_sum, accumulator, sink, tl.full(sink.shape, 1.0, tl.float32), tl.zeros_like(accumulator)
        )
    return row_max, row_sum, accumulator


@triton.jit
def _first_key(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr) -> Any:
    """The first key that a row sees."""
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first


@triton.jit
def _attend_section(
    query, keys, values, block_table, start, end, seqlen_k, position, is_row, head, scale_log2,
    key_slot_stride, key_head_stride, value_slot_stride, value_head_stride,
    DIM: tl.constexpr, DIM_PADDED: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Maximum, sum and accumulator of the keys `start` … `end` for a tile of rows; BLOCK_N keys at a time."""
    dims = tl.arange(0, DIM_PADDED)
    value_dims = tl.arange(0, VALUE_DIM_PADDED)
    row_max, row_sum, accumulator = _no_keys(BLOCK_M, VALUE_DIM_PADDED)
    for first in range(start, end, BLOCK_N):
        places = first + tl.arange(0, BLOCK_N)
        is_key = places < seqlen_k
        block_ids = tl.load(block_table + places // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        slots = block_ids * BLOCK_SIZE + places % BLOCK_SIZE
        key = tl.load(
            keys + (slots * key_slot_stride + head * key_head_stride)[:, None] + dims[None, :],
            mask=is_key[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        value = tl.load(
            values + (slots * value_slot_stride + head * value_head_stride)[:, None] + value_dims[None, :],
            mask=is_key[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        if SOFTCAP > 0:  # softcap * tanh(scores / softcap), in units of log2
            exponent = tl.exp2(scores * (2.0 / SOFTCAP))
            scores = SOFTCAP * 1.4426950408889634 * (1.0 - 2.0 / (exponent + 1.0))
        is_visible = is_row[:, None] & is_key[None, :] & (places[None, :] <= position[:, None])
        if WINDOW > 0:
            is_visible = is_visible & (places[None, :] > position[:, None] - WINDOW)
        if CHUNK > 0:
            is_visible = is_visible & (places[None, :] >= position[:, None] // CHUNK * CHUNK)
        scores = tl.where(is_visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        exp_scores = tl.exp2(scores - finite_max[:, None])
        scale = tl.exp2(row_max - finite_max)
        row_sum = row_sum * scale + tl.sum(exp_scores, 1)
        weighted = tl.dot(exp_scores.to(value.dtype), value, input_precision="ieee")
        accumulator = accumulator * scale[:, None] + weighted
        row_max = new_max
    return row_max, row_sum, accumulator


@triton.jit
def _load_query(
    query, first_row, num_rows, tile, head, row_stride, head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, BLOCK_M: tl.constexpr,
) -> tuple[Any, Any, Any, Any, Any]:  # fmt: skip
    """A tile of query rows, GROUP heads each; which of its rows exist, their rows in the step and their heads."""
    tile_rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DIM_PADDED)
    rows_per_tile: tl.constexpr = BLOCK_M // GROUP
    row_in_segment = tile * rows_per_tile + tile_rows // GROUP
    is_row = (row_in_segment < num_rows) & (tile_rows < rows_per_tile * GROUP)
    rows = (first_row + row_in_segment).to(tl.int64)
    heads = head * GROUP + tile_rows % GROUP
    loaded = tl.load(
        query + (rows * row_stride + heads * head_stride)[:, None] + dims[None, :],
        mask=is_row[:, None] & (dims < DIM)[None, :],
        other=0.0,
    )
    return loaded, is_row, row_in_segment, rows, heads


@triton.jit
def _store_output(
    output, accumulator, row_sum, is_row, rows, heads, row_stride, head_stride,
    VALUE_DIM: tl.constexpr, VALUE_DIM_PADDED: tl.constexpr,
) -> None:  # fmt: skip
    value_dims = tl.arange(0, VALUE_DIM_PADDED)
    attended = accumulator / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    tl.store(
        output + (rows * row_stride + heads * head_stride)[:, None] + value_dims[None, :],
        attended.to(output.dtype.element_ty),
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["max_blocks", "first_segment"])
def attend(
    output, sinks, query, keys, values, block_table, seqused_k, cu_seqlens_q, scale_log2, first_segment, max_blocks,
    output_row_stride, output_head_stride, query_row_stride, query_head_stride,
    key_slot_stride, key_head_stride, value_slot_stride, value_head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SECTION: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (segments, key heads, tiles of rows): a tile's rows over all of their keys."""
    segment = first_segment + tl.program_id(0)
    head = tl.program_id(1)
    tile = tl.program_id(2)
    first_row = tl.load(cu_seqlens_q + segment)
    num_rows = tl.load(cu_seqlens_q + segment + 1) - first_row
    rows_per_tile: tl.constexpr = BLOCK_M // GROUP
    if tile * rows_per_tile < num_rows:
        seqlen_k = tl.load(seqused_k + segment)
        tile_query, is_row, row_in_segment, rows, heads = _load_query(
            query, first_row, num_rows, tile, head, query_row_stride, query_head_stride, GROUP, DIM, DIM_PADDED, BLOCK_M
        )
        position = seqlen_k - num_rows + row_in_segment
        start = _first_key(seqlen_k - num_rows + tile * rows_per_tile, WINDOW, CHUNK) // SECTION * SECTION
        end = tl.minimum(seqlen_k, seqlen_k - num_rows + (tile + 1) * rows_per_tile)
        row_max, row_sum, accumulator = _no_keys(BLOCK_M, VALUE_DIM_PADDED)
        for section in range(start, end, SECTION):
            section_max, section_sum, section_accumulator = _attend_section(
                tile_query, keys, values, block_table + segment * max_blocks, section,
                tl.minimum(section + SECTION, end), seqlen_k, position, is_row, head, scale_log2,
                key_slot_stride, key_head_stride, value_slot_stride, value_head_stride,
                DIM, DIM_PADDED, VALUE_DIM, VALUE_DIM_PADDED, BLOCK_SIZE, BLOCK_M, BLOCK_N,
                WINDOW, CHUNK, SOFTCAP,
            )  # fmt: skip
            row_max, row_sum, accumulator = _join(
                row_max, row_sum, accumulator, section_max, section_sum, section_accumulator
            )
        row_max, row_sum, accumulator = _add_sink(row_max, row_sum, accumulator, sinks, heads, is_row, HAS_SINKS)
        _store_output(
            output, accumulator, row_sum, is_row, rows, heads, output_row_stride, output_head_stride,
            VALUE_DIM, VALUE_DIM_PADDED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["max_blocks", "max_sections"])
def attend_split(
    partial_max, partial_sum, partial_accumulator, query, keys, values, block_table, seqused_k, scale_log2, max_blocks,
    max_sections, query_row_stride, query_head_stride,
    key_slot_stride, key_head_stride, value_slot_stride, value_head_stride,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SECTION: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (decoding rows, key heads, programs): each program writes the sections that fall to it.

    Their partial results are [rows, key heads, max_sections, BLOCK_M] and, the accumulators, [.., VALUE_DIM_PADDED].
    The number of programs does not depend on the number of keys, so that a graph holds for sequences of any length.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    seqlen_k = tl.load(seqused_k + row)
    tile_query, is_row, row_in_segment, _, _ = _load_query(
        query, row, 1, 0, head, query_row_stride, query_head_stride, GROUP, DIM, DIM_PADDED, BLOCK_M
    )
    position = seqlen_k - 1 + row_in_segment
    first_section = _first_key(seqlen_k - 1, WINDOW, CHUNK) // SECTION
    tile_rows = tl.arange(0, BLOCK_M)
    value_dims = tl.arange(0, VALUE_DIM_PADDED)
    of_row = (row * tl.num_programs(1) + head).to(tl.int64) * max_sections
    for section in range(first_section + tl.program_id(2), tl.cdiv(seqlen_k, SECTION), tl.num_programs(2)):
        section_max, section_sum, section_accumulator = _attend_section(
            tile_query, keys, values, block_table + row * max_blocks, section * SECTION,
            tl.minimum(section * SECTION + SECTION, seqlen_k), seqlen_k, position, is_row, head, scale_log2,
            key_slot_stride, key_head_stride, value_slot_stride, value_head_stride,
            DIM, DIM_PADDED, VALUE_DIM, VALUE_DIM_PADDED, BLOCK_SIZE, BLOCK_M, BLOCK_N,
            WINDOW, CHUNK, SOFTCAP,
        )  # fmt: skip
        places = (of_row + section) * BLOCK_M + tile_rows
        tl.store(partial_max + places, section_max)
        tl.store(partial_sum + places, section_sum)
        tl.store(partial_accumulator + places[:, None] * VALUE_DIM_PADDED + value_dims[None, :], section_accumulator)


@triton.jit(do_not_specialize=["max_sections"])
def join_sections(
    output, sinks, partial_max, partial_sum, partial_accumulator, seqused_k, max_sections,
    output_row_stride, output_head_stride,
    GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_DIM_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, SECTION: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    HAS_SINKS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (decoding rows, key heads): joins what `attend_split` wrote, in the order in which `attend` does."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    seqlen_k = tl.load(seqused_k + row)
    first_section = _first_key(seqlen_k - 1, WINDOW, CHUNK) // SECTION
    tile_rows = tl.arange(0, BLOCK_M)
    value_dims = tl.arange(0, VALUE_DIM_PADDED)
    row_max, row_sum, accumulator = _no_keys(BLOCK_M, VALUE_DIM_PADDED)
    of_row = (row * tl.num_programs(1) + head).to(tl.int64) * max_sections
    for section in range(first_section, tl.cdiv(seqlen_k, SECTION)):
        places = (of_row + section) * BLOCK_M + tile_rows
        row_max, row_sum, accumulator = _join(
            row_max,
            row_sum,
            accumulator,
            tl.load(partial_max + places),
            tl.load(partial_sum + places),
            tl.load(partial_accumulator + places[:, None] * VALUE_DIM_PADDED + value_dims[None, :]),
        )
    rows = row.to(tl.int64) + tl.zeros([BLOCK_M], tl.int64)
    heads = head * GROUP + tile_rows % GROUP
    is_row = tile_rows < GROUP
    row_max, row_sum, accumulator = _add_sink(row_max, row_sum, accumulator, sinks, heads, is_row, HAS_SINKS)
    _store_output(
        output, accumulator, row_sum, is_row, rows, heads, output_row_stride, output_head_stride,
        VALUE_DIM, VALUE_DIM_PADDED,
    )  # fmt: skip
