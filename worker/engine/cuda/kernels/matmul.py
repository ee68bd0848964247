"""A matmul y = x Wᵀ + b whose bits do not depend on the number of rows: cuBLAS takes other kernels for other numbers.

Tiles have one shape for each dtype. The inner dimension is summed in sections at fixed places, each from zero, and the
sections are added in their order, by one program or, where rows are few, by as many programs as sections.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Terms that are summed by themselves, before they are added to those before them.
SECTION = 256


@dataclass(frozen=True)
class TileShape:
    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


#: One shape for each size of an element: more rows would take other instructions, and other orders.
TILES = {2: TileShape(128, 64, 64, 4, 3), 4: TileShape(32, 32, 32, 4, 2)}

#: Programs that fill a GPU.
FULL = 128


@triton.jit
def _section(
    x, weight, rows, columns, first, num_rows, num_columns, num_inner, x_stride, weight_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SECTION: tl.constexpr,
) -> Any:  # fmt: skip
    """The sum of the terms first … first + SECTION."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, tl.minimum(first + SECTION, num_inner), BLOCK_K):
        terms = start + tl.arange(0, BLOCK_K)
        is_term = terms < num_inner
        left = tl.load(
            x + rows[:, None] * x_stride + terms[None, :],
            mask=(rows < num_rows)[:, None] & is_term[None, :],
            other=0.0,
        )
        right = tl.load(
            weight + columns[:, None] * weight_stride + terms[None, :],
            mask=(columns < num_columns)[:, None] & is_term[None, :],
            other=0.0,
        )
        total += tl.dot(left, tl.trans(right), input_precision="ieee")
    return total


@triton.jit
def _store(
    output, total, bias, residual, rows, columns, num_rows, num_columns,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
) -> None:  # fmt: skip
    """Adds bias and residual, and rounds once."""
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    places = rows[:, None] * num_columns + columns[None, :]
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < num_columns, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + places, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def gemm(
    output, x, weight, bias, residual, num_rows, num_columns, num_inner, x_stride, weight_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SECTION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (tiles of rows, tiles of columns): a tile over all of its sections."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, num_inner, SECTION):
        total += _section(
            x, weight, rows, columns, first, num_rows, num_columns, num_inner, x_stride, weight_stride,
            BLOCK_M, BLOCK_N, BLOCK_K, SECTION,
        )  # fmt: skip
    _store(output, total, bias, residual, rows, columns, num_rows, num_columns, HAS_BIAS, HAS_RESIDUAL)


@triton.jit(do_not_specialize=["num_rows"])
def gemm_split(
    partial, x, weight, num_rows, num_columns, num_inner, x_stride, weight_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SECTION: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (tiles of rows, tiles of columns, sections): `partial` [sections, rows, columns] in fp32."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    section = tl.program_id(2)
    total = _section(
        x, weight, rows, columns, section * SECTION, num_rows, num_columns, num_inner, x_stride, weight_stride,
        BLOCK_M, BLOCK_N, BLOCK_K, SECTION,
    )  # fmt: skip
    places = (section.to(tl.int64) * num_rows + rows)[:, None] * num_columns + columns[None, :]
    tl.store(partial + places, total, mask=(rows < num_rows)[:, None] & (columns < num_columns)[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def add_sections(
    output, partial, bias, residual, num_rows, num_columns, num_sections,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (tiles of rows, tiles of columns): adds what `gemm_split` wrote, in the order of `gemm`."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for section in range(num_sections):
        first = tl.full([], section, tl.int64) * num_rows
        total += tl.load(partial + (first + rows)[:, None] * num_columns + columns[None, :], mask=mask, other=0.0)
    _store(output, total, bias, residual, rows, columns, num_rows, num_columns, HAS_BIAS, HAS_RESIDUAL)


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x Wᵀ + b + residual of rows [rows, in_features]; [rows, out_features] in the dtype of x, rounded once.

    A row's bits are the same in any batch.
    """
    num_rows, num_inner = x.shape
    num_columns = weight.shape[0]
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    output = x.new_empty(num_rows, num_columns)
    if not num_rows:
        return output
    tile = TILES[x.itemsize]
    grid = (triton.cdiv(num_rows, tile.rows), triton.cdiv(num_columns, tile.columns))
    sizes = (num_rows, num_columns, num_inner, x.stride(0), weight.stride(0))
    constants = {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.inner, "SECTION": SECTION}
    flags = {"HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": False}
    after = (bias if bias is not None else x, residual if residual is not None else x)  # read where there is one
    if not is_split(num_rows, num_columns, num_inner, x.itemsize):
        gemm[grid](output, x, weight, *after, *sizes, **constants, **flags, **options)
        return output
    num_sections = triton.cdiv(num_inner, SECTION)
    partial = x.new_empty(num_sections, num_rows, num_columns, dtype=torch.float32)
    gemm_split[(*grid, num_sections)](partial, x, weight, *sizes, **constants, **options)
    add_sections[(triton.cdiv(num_rows, 16), triton.cdiv(num_columns, 64))](
        output, partial, *after, num_rows, num_columns, num_sections, BLOCK_M=16, BLOCK_N=64, **flags, **options
    )
    return output


def is_split(num_rows: int, num_columns: int, num_inner: int, itemsize: int) -> bool:
    """Whether sections are divided among programs, since tiles alone would leave a part of the GPU idle."""
    tile = TILES[itemsize]
    num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns)
    return bool(num_inner > SECTION and num_tiles < FULL)


def matmul_in_torch(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """`matmul` for any device, without its promise."""
    total = x.float() @ weight.float().T
    for addend in (bias, residual):
        total = total if addend is None else total + addend.float()
    return total.to(x.dtype)


def matmul_bytes(num_rows: int, num_columns: int, num_inner: int, itemsize: int) -> int:
    """The bytes that `matmul` moves without bias and residual: of what tiles share, each has its own."""
    tile = TILES[itemsize]
    row_tiles, column_tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_columns, tile.columns)
    read = (num_rows * column_tiles + num_columns * row_tiles) * num_inner * itemsize
    num_partial = triton.cdiv(num_inner, SECTION) * is_split(num_rows, num_columns, num_inner, itemsize)
    return int(read + num_rows * num_columns * (itemsize + 8 * num_partial))
