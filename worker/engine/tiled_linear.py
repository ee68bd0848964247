"""Linear layers through the products of `kernels/products.c`, in bf16, fp32 and int8.

As exact as oneDNN's, and faster where few rows run: those then wait for weights, and these fetch them ahead
(`docs/decisions/0011`). A row's bits do not depend on its neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.cpu_kernels import WORD_BYTES, After, CpuKernels, Int8Panels, Panels
from worker.engine.int8_linear import ZERO, quantise_weight
from worker.engine.kernel_linear import KernelLinear

#: Outputs whose weights stand together; PANEL of products.c.
PANEL = 64


class TiledLinear(KernelLinear):
    """Stands in for one or several `nn.Linear` in bf16 or fp32."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weights = Panels(pack_panels(weight), self.out_features, bias)

    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply(rows, self._weights, after, other)


class TiledInt8Linear(KernelLinear):
    """The same in int8, as `Int8Linear` rounds."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        quantised, scales = quantise_weight(weight)
        zeros = ZERO * quantised.sum(1, dtype=torch.int32)
        self._weights = Int8Panels(pack_panels(quantised), self.out_features, bias, scales, zeros)

    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        return self._kernels.multiply_int8(rows, self._weights, after, other)


def pack_panels(weight: Tensor) -> Tensor:
    """Weight [out_features, in_features] as [panels, words, PANEL, inputs in a word]; the rest is zeros.

    `in_features` fill whole words.
    """
    per_word = WORD_BYTES // weight.itemsize
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return padded.view(-1, PANEL, weight.shape[1] // per_word, per_word).transpose(1, 2).contiguous()


def can_tile(model: nn.Module, kernels: CpuKernels, itemsize: int) -> bool:
    """Whether these products, of numbers so large, are for this model and the faster ones on this processor."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return (
        (kernels.has_int8_products if itemsize == 1 else kernels.has_products)
        # oneDNN has kernels for it, and none of them is for fp32.
        and (itemsize == torch.float32.itemsize or not torch.cpu._is_amx_tile_supported())
        and all(linear.in_features * itemsize % WORD_BYTES == 0 for linear in linears)
    )
