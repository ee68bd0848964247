"""Rotary embedding of queries and keys, and the step's keys and values into their cache, in one launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Heads that a program takes.
HEADS = 8


@triton.jit
def _rotate_and_write(
    query, keys, values, heads, cos, signed_sin, slot_mapping,
    row_stride, key_slot_stride, key_head_stride, value_slot_stride, value_head_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows, groups of heads): heads of a row, which are queries, then keys, then values."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    dims = tl.arange(0, DIM_PADDED)[None, :]
    is_dim = dims < DIM
    of_row = heads + row * row_stride + head * DIM
    is_head = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & is_dim
    x = tl.load(of_row + dims, mask=is_head, other=0.0)
    swapped = tl.load(of_row + (dims + DIM // 2) % DIM, mask=is_head, other=0.0)
    cosines = tl.load(cos + row * DIM + dims, mask=is_dim, other=0.0).to(tl.float32)
    sines = tl.load(signed_sin + row * DIM + dims, mask=is_dim, other=0.0).to(tl.float32)
    rotated = (x.to(tl.float32) * cosines + swapped.to(tl.float32) * sines).to(x.dtype)
    slot = tl.load(slot_mapping + row)
    tl.store(query + (row * NUM_HEADS + head) * DIM + dims, rotated, mask=is_dim & (head < NUM_HEADS))
    key_head = head - NUM_HEADS
    of_key = keys + slot * key_slot_stride + key_head * key_head_stride
    tl.store(of_key + dims, rotated, mask=is_dim & (key_head >= 0) & (key_head < NUM_KV_HEADS))
    value_head = key_head - NUM_KV_HEADS
    of_value = values + slot * value_slot_stride + value_head * value_head_stride
    tl.store(of_value + dims, x, mask=is_dim & (value_head >= 0) & (value_head < NUM_KV_HEADS))


def rotate_and_write(
    heads: Tensor, cos: Tensor, signed_sin: Tensor, slot_mapping: Tensor, keys: Tensor, values: Tensor, num_heads: int
) -> Tensor:
    """Rotates heads [rows, num_heads + 2 * kv_heads, dim]: queries, keys and values of a step side by side.

    Returns the queries [rows, num_heads, dim]; stores keys and values in pools [slots, kv_heads, dim] at each row's
    slot. `cos` and `signed_sin` [rows, dim] are a `Rotation`'s.
    """
    num_rows, num_all, dim = heads.shape
    query = heads.new_empty(num_rows, num_heads, dim)
    if num_rows:
        assert heads.stride(1) == dim and heads.stride(2) == 1
        _rotate_and_write[(num_rows, triton.cdiv(num_all, HEADS))](
            query, keys, values, heads, cos.contiguous(), signed_sin.contiguous(), slot_mapping, heads.stride(0),
            *keys.stride()[:2], *values.stride()[:2], NUM_HEADS=num_heads, NUM_KV_HEADS=(num_all - num_heads) // 2,
            DIM=dim, DIM_PADDED=triton.next_power_of_2(dim), HEADS=HEADS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return query


def rotate_and_write_in_torch(
    heads: Tensor, cos: Tensor, signed_sin: Tensor, slot_mapping: Tensor, keys: Tensor, values: Tensor, num_heads: int
) -> Tensor:
    """`rotate_and_write` for any device."""
    num_kv_heads = (heads.shape[1] - num_heads) // 2
    query_key = heads[:, : num_heads + num_kv_heads].float()
    swapped = query_key.roll(heads.shape[2] // 2, -1)
    rotated = (query_key * cos.float()[:, None] + swapped * signed_sin.float()[:, None]).to(heads.dtype)
    keys.index_copy_(0, slot_mapping, rotated[:, num_heads:])
    values.index_copy_(0, slot_mapping, heads[:, num_heads + num_kv_heads :])
    return rotated[:, :num_heads].contiguous()


def rotation_bytes(num_rows: int, num_all_heads: int, dim: int, itemsize: int) -> int:
    """The bytes that `rotate_and_write` moves: a head twice, angles once for each group of heads, and its results."""
    groups = triton.cdiv(num_all_heads, HEADS)
    return int(num_rows * (3 * num_all_heads * dim * itemsize + groups * (2 * dim * itemsize + torch.long.itemsize)))
