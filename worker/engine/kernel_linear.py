"""What the linear layers on `CpuKernels` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from worker.engine.cpu_kernels import After, CpuKernels
from worker.engine.linear import merged_weights


class KernelLinear(ABC):
    """A `Linear`, of one or several `nn.Linear`, whose products take what follows them as an argument."""

    def __init__(self, linears: Sequence[nn.Linear], kernels: CpuKernels) -> None:
        weight, bias = merged_weights(linears)
        self.out_features, self.in_features = weight.shape
        self._kernels = kernels
        self._pack(weight, None if bias is None else bias.float())

    def __call__(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.NOTHING)

    def swish(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.SWISH)

    def times(self, rows: Tensor, factors: Tensor) -> Tensor:
        return self._multiply(rows, After.TIMES, factors)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._multiply(rows, After.PLUS, residual)

    @abstractmethod
    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        """Keeps the weight [out_features, in_features] and the fp32 bias as the products want them."""

    @abstractmethod
    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        """Rows [rows, in_features] to [rows, out_features]."""
