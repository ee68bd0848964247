"""Linear layers in bf16 through the products of `kernels/products.c`.

As exact as oneDNN's, and faster where few rows run: those then wait for weights, and these fetch them ahead
(`docs/decisions/0011`). A row's bits do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.cpu_kernels import After, CpuKernels
from worker.engine.linear import merged_weights

#: Outputs whose weights stand together; PANEL of products.c.
PANEL = 64


class TiledLinear:
    """Stands in for one or several `nn.Linear` on the CPU in inference."""

    def __init__(self, linears: Sequence[nn.Linear], kernels: CpuKernels) -> None:
        weight, bias = merged_weights(linears)
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else bias.float()
        self.packed = pack_panels(weight)
        self._kernels = kernels

    def __call__(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.NOTHING)

    def swish(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.SWISH)

    def times(self, rows: Tensor, factors: Tensor) -> Tensor:
        return self._multiply(rows, After.TIMES, factors)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._multiply(rows, After.PLUS, residual)

    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply(rows, self.packed, self.bias, self.out_features, after, other)


def pack_panels(weight: Tensor) -> Tensor:
    """Weight [out_features, in_features], in_features even, [panels, in_features / 2, PANEL, 2]; rest zeros."""
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return padded.view(-1, PANEL, weight.shape[1] // 2, 2).transpose(1, 2).contiguous()


def can_tile(model: nn.Module, kernels: CpuKernels) -> bool:
    """Whether the products are for this model and the faster ones on this processor: oneDNN has AMX where there is."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return (
        kernels.has_products
        and not torch.cpu._is_amx_tile_supported()
        and all(linear.in_features % 2 == 0 for linear in linears)
    )
