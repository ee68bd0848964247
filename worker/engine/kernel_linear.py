"""What the linear layers on `CpuKernels` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from worker.engine.cpu_kernels import After, CpuKernels


class KernelLinear(ABC):
    """A `Linear` whose products take what follows them as an argument."""

    def __init__(self, weight: Tensor, kernels: CpuKernels) -> None:
        self.out_features, self.in_features = weight.shape
        self._kernels = kernels

    def __call__(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.NOTHING)

    def swish(self, rows: Tensor) -> Tensor:
        return self._multiply(rows, After.SWISH)

    def times(self, rows: Tensor, factors: Tensor) -> Tensor:
        return self._multiply(rows, After.TIMES, factors)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._multiply(rows, After.PLUS, residual)

    @abstractmethod
    def _multiply(self, rows: Tensor, after: After, other: Tensor | None = None) -> Tensor:
        """Rows [rows, in_features] to [rows, out_features]."""
