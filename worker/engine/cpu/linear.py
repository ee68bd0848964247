"""Linear layers through the products of `csrc/gemm.c`, in bf16, fp32 and int8.

As exact as oneDNN's, faster where few rows run (`docs/decisions/0011`), and on every processor a row's bits do not
depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.engine.cpu.int8_linear import ZERO, quantise_weight
from worker.engine.cpu.kernel_linear import KernelLinear
from worker.engine.cpu.kernels import After, CpuKernels, Int8Panels, Panels


class TiledLinear(KernelLinear):
    """Stands in for one or several `nn.Linear` in bf16 or fp32."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        filled = self._kernels.filled(weight)
        self._weights = Panels(self._kernels.pack(filled), filled.shape[1], bias)

    def _multiply(self, rows: Tensor, after: After, outputs: int, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply(rows, self._weights, after, outputs, other)


class TiledInt8Linear(KernelLinear):
    """The same in int8, as `Int8Linear` rounds."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        quantised, scales = quantise_weight(weight)
        filled = self._kernels.filled(quantised)
        zeros = ZERO * filled.sum(1, dtype=torch.int32)
        packed = self._kernels.pack(filled)
        self._weights = Int8Panels(packed, filled.shape[1], bias, scales, zeros)

    def _multiply(self, rows: Tensor, after: After, outputs: int, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply_int8(rows, self._weights, after, outputs, other)


class TiledModule(nn.Module):
    """A `TiledLinear` among the modules of a model that runs through Transformers' own layers."""

    def __init__(self, linear: nn.Linear, kernels: CpuKernels) -> None:
        super().__init__()
        self._linear = TiledLinear([linear], kernels)

    def forward(self, rows: Tensor) -> Tensor:
        """[…, in_features] to […, out_features]"""
        return self._linear(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], -1)
