"""SwiGLU's activation: swish(gate) * up, rounded once."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def gated(output, gate_up, row_stride, size, BLOCK: tl.constexpr) -> None:
    """Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_place = places < size
    gate = tl.load(gate_up + row * row_stride + places, mask=is_place, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * row_stride + size + places, mask=is_place, other=0.0).to(tl.float32)
    swish = tl.div_rn(gate, 1.0 + tl.exp(-gate))
    tl.store(output + row * size + places, (swish * up).to(output.dtype.element_ty), mask=is_place)


def swiglu(gate_up: Tensor) -> Tensor:
    """swish(gate) * up of a gate and an up side by side, [rows, 2 * size] to [rows, size]."""
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_rows, size)
    if num_rows:
        assert gate_up.stride(1) == 1
        gated[(num_rows, triton.cdiv(size, BLOCK))](
            output, gate_up, gate_up.stride(0), size, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False
        )
    return output


def swiglu_in_torch(gate_up: Tensor) -> Tensor:
    """`swiglu` for any device."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def swiglu_bytes(num_rows: int, size: int, itemsize: int) -> int:
    """The bytes that `swiglu` moves."""
    return num_rows * 3 * size * itemsize
