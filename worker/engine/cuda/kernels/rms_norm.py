"""RMSNorm by one program a row, in an order that does not depend on the other rows."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm(output, rows, weight, row_stride, size, eps, BLOCK: tl.constexpr) -> None:
    """Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    is_place = places < size
    x = tl.load(rows + row * row_stride + places, mask=is_place, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    weights = tl.load(weight + places, mask=is_place, other=0.0).to(tl.float32)
    tl.store(output + row * size + places, (x * scale * weights).to(output.dtype.element_ty), mask=is_place)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rows / sqrt(mean of squares + eps) * weight over the last dimension; computes in fp32, rounds once."""
    size = rows.shape[-1]
    flat = rows.reshape(-1, size)
    output = flat.new_empty(len(flat), size)
    if len(flat):
        block = triton.next_power_of_2(size)
        norm[(len(flat),)](
            output, flat, weight, flat.stride(0), size, eps, BLOCK=block, num_warps=num_warps_of(block),
            enable_fp_fusion=False,
        )  # fmt: skip
    return output.view(rows.shape)


def num_warps_of(block: int) -> int:
    return min(max(block // 512, 1), 16)


def rms_norm_in_torch(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` for any device."""
    x = rows.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()).to(rows.dtype)


def rms_norm_bytes(num_rows: int, size: int, itemsize: int) -> int:
    """The bytes that `rms_norm` moves."""
    return num_rows * 3 * size * itemsize
