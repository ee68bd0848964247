"""Linear layers through the products of `kernels/products.c`, in bf16, fp32 and int8.

As exact as oneDNN's, and faster where few rows run: those then wait for weights, and these fetch them ahead
(`docs/decisions/0011`). A row's bits do not depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.engine.cpu_kernels import After, CpuKernels, Int8Panels, Panels
from worker.engine.int8_linear import ZERO, quantise_weight
from worker.engine.kernel_linear import KernelLinear


class TiledLinear(KernelLinear):
    """Stands in for one or several `nn.Linear` in bf16 or fp32."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weights = Panels(self._kernels.pack(weight), self.out_features, bias)

    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply(rows, self._weights, after, other)


class TiledInt8Linear(KernelLinear):
    """The same in int8, as `Int8Linear` rounds."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        quantised, scales = quantise_weight(weight)
        zeros = ZERO * quantised.sum(1, dtype=torch.int32)
        self._weights = Int8Panels(self._kernels.pack(quantised), self.out_features, bias, scales, zeros)

    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply_int8(rows, self._weights, after, other)


def can_tile(model: nn.Module, kernels: CpuKernels, dtype: torch.dtype) -> bool:
    """Whether there are products of this dtype on this processor, and the model's inputs fill what they multiply."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    has_products = kernels.has_int8_products if dtype is torch.int8 else kernels.has_products
    least = kernels.input_bytes(dtype)
    return has_products and all(linear.in_features * dtype.itemsize % least == 0 for linear in linears)
