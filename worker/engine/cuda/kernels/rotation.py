"""Norms and rotary embedding of queries and keys, and the step's keys and values into their cache, in one launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.kernels.rms_norm import rms_norm_in_torch
from worker.engine.model.row_operations import HeadNorms, PlainRowOperations, Rotation

#: Heads that a program takes.
HEADS = 8


@triton.jit
def _weights(query_weight, key_weight, is_query, dims, is_dim) -> Any:
    """The norm's weight of each head and dimension."""
    of_queries = tl.load(query_weight + dims, mask=is_dim, other=0.0).to(tl.float32)
    of_keys = tl.load(key_weight + dims, mask=is_dim, other=0.0).to(tl.float32)
    return tl.where(is_query, of_queries, of_keys)


@triton.jit
def rotate(
    query, keys, values, heads, cos, signed_sin, slot_mapping, query_weight, key_weight,
    row_stride, key_slot_stride, key_head_stride, value_slot_stride, value_head_stride, query_eps, key_eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    HEADS: tl.constexpr, HAS_NORMS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows, groups of heads): heads of a row, which are queries, then keys, then values."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    dims = tl.arange(0, DIM_PADDED)[None, :]
    swapped_dims = (dims + DIM // 2) % DIM
    is_dim = dims < DIM
    of_row = heads + row * row_stride + head * DIM
    is_head = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & is_dim
    loaded = tl.load(of_row + dims, mask=is_head, other=0.0)
    x = loaded.to(tl.float32)
    swapped = tl.load(of_row + swapped_dims, mask=is_head, other=0.0).to(tl.float32)
    if HAS_NORMS:
        is_query = head < NUM_HEADS
        mean = tl.sum(x * x, 1)[:, None] / DIM
        scale = tl.rsqrt(mean + tl.where(is_query, query_eps, key_eps))
        x *= scale * _weights(query_weight, key_weight, is_query, dims, is_dim)
        swapped *= scale * _weights(query_weight, key_weight, is_query, swapped_dims, is_dim)
    cosines = tl.load(cos + row * DIM + dims, mask=is_dim, other=0.0).to(tl.float32)
    sines = tl.load(signed_sin + row * DIM + dims, mask=is_dim, other=0.0).to(tl.float32)
    rotated = (x * cosines + swapped * sines).to(loaded.dtype)
    slot = tl.load(slot_mapping + row)
    tl.store(query + (row * NUM_HEADS + head) * DIM + dims, rotated, mask=is_dim & (head < NUM_HEADS))
    key_head = head - NUM_HEADS
    of_key = keys + slot * key_slot_stride + key_head * key_head_stride
    tl.store(of_key + dims, rotated, mask=is_dim & (key_head >= 0) & (key_head < NUM_KV_HEADS))
    value_head = key_head - NUM_KV_HEADS
    of_value = values + slot * value_slot_stride + value_head * value_head_stride
    tl.store(of_value + dims, loaded, mask=is_dim & (value_head >= 0) & (value_head < NUM_KV_HEADS))


def rotate_and_write(
    heads: Tensor,
    norms: HeadNorms | None,
    rotation: Rotation,
    slot_mapping: Tensor,
    pools: tuple[Tensor, Tensor],
) -> Tensor:
    """`RowOperations.rotate_and_write`; computes in fp32, rounds once."""
    keys, values = pools
    num_rows, num_all, dim = heads.shape
    num_heads = num_all - 2 * keys.shape[1]
    query = heads.new_empty(num_rows, num_heads, dim)
    if num_rows:
        assert heads.stride(1) == dim and heads.stride(2) == 1
        cos, signed_sin = rotation.cos.contiguous(), rotation.signed_sin.contiguous()
        weights = (heads, heads) if norms is None else (norms.query.weight, norms.key.weight)  # read where there are
        rotate[(num_rows, triton.cdiv(num_all, HEADS))](
            query, keys, values, heads, cos, signed_sin, slot_mapping, *weights,
            heads.stride(0), *keys.stride()[:2], *values.stride()[:2],
            0.0 if norms is None else norms.query.eps, 0.0 if norms is None else norms.key.eps,
            NUM_HEADS=num_heads, NUM_KV_HEADS=keys.shape[1], DIM=dim, DIM_PADDED=triton.next_power_of_2(dim),
            HEADS=HEADS, HAS_NORMS=norms is not None, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return query


def rotate_and_write_in_torch(
    heads: Tensor,
    norms: HeadNorms | None,
    rotation: Rotation,
    slot_mapping: Tensor,
    pools: tuple[Tensor, Tensor],
) -> Tensor:
    """`rotate_and_write` for any device."""
    in_fp32 = Rotation(rotation.cos.float(), rotation.signed_sin.float())
    query = _RoundedOnce().rotate_and_write(heads.float(), norms, in_fp32, slot_mapping, pools)
    return query.to(heads.dtype, memory_format=torch.contiguous_format)


class _RoundedOnce(PlainRowOperations):
    """Operations on rows in fp32."""

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm_in_torch(rows, weight, eps)


def rotation_bytes(num_rows: int, num_all_heads: int, dim: int, itemsize: int, *, has_norms: bool) -> int:
    """The bytes that `rotate_and_write` moves.

    A head is read twice and written once; angles, slots and the norms' weights are read for each group of heads.
    """
    groups = triton.cdiv(num_all_heads, HEADS)
    per_row = (3 * num_all_heads + (6 if has_norms else 2) * groups) * dim * itemsize + groups * torch.long.itemsize
    return int(num_rows * per_row)
