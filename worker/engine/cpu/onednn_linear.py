"""Linear layers whose weights oneDNN has packed once for the CPU.

Packing saves the reordering that `F.linear` does at every call (`benchmarks/ablations.py` measures it), and its
products give each row the same bits whatever the other rows are, which plain fp32 products do not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.engine.model.linear import gated_halves, merged_weights


class PackedLinear(nn.Module):
    """Stands in for one or several `nn.Linear` on the CPU in inference; the weight can no longer be read back."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linears: Sequence[nn.Linear], *, is_gated: bool = False) -> None:  # noqa: ARG002 halves either way
        super().__init__()
        weight, self.bias = merged_weights(linears)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return outputs

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.packed, self.bias, "add")
        return outputs

    def gated(self, rows: Tensor) -> Tensor:
        return gated_halves(self(rows))


def can_pack(dtype: torch.dtype) -> bool:
    """True where this build of torch and this processor have the packed products for the dtype."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def keep_from_amx() -> None:
    """Makes oneDNN do without AMX, before it multiplies for the first time in this process.

    Its kernels for AMX divide the sums of a small layer among the threads by the number of rows, so that a row's
    bits depend on its neighbours (docs/decisions/0014).
    """
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
