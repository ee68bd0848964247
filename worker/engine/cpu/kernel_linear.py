"""What the linear layers on `CpuKernels` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from worker.engine.cpu.kernels import After, CpuKernels
from worker.engine.cpu.weight_layout import alternate
from worker.engine.model.linear import merged_weights


class KernelLinear(ABC):
    """A `Linear`, of one or several `nn.Linear`, whose products take what follows them as an argument."""

    def __init__(self, linears: Sequence[nn.Linear], kernels: CpuKernels, *, is_gated: bool = False) -> None:
        weight, bias = merged_weights(linears)
        self.out_features, self.in_features = weight.shape
        self._kernels = kernels
        if is_gated:
            weight, bias = alternate(weight), None if bias is None else alternate(bias)
        self._pack(weight, None if bias is None else bias.float())

    def __call__(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.NOTHING, self.out_features)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._multiply(rows, After.PLUS, self.out_features, residual)

    def gated(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.GATED, self.out_features // 2)

    @abstractmethod
    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        """Keeps the weight [outputs, in_features] and the fp32 bias as the products want them."""

    @abstractmethod
    def _multiply(self, rows: Tensor, after: After, outputs: int, other: Tensor | None = None) -> Tensor:
        """Rows [rows, in_features] to [rows, outputs]."""
