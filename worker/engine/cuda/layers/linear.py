"""The linear layers of a GPU, on cuBLAS's matmul or, where answers are to be batch-invariant, on our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.model.linear import merged_weights

if TYPE_CHECKING:  # Triton is there where torch has CUDA
    from worker.engine.cuda.layers.layer_kernels import LayerKernels


class CublasLinear:
    """A `Linear` whose residual is the first value of the matmul's accumulators."""

    def __init__(self, linears: Sequence[nn.Linear], kernels: LayerKernels, *, is_gate_up: bool = False) -> None:  # noqa: ARG002 halves either way
        self.weight, self.bias = merged_weights(linears)
        self.out_features, self.in_features = self.weight.shape
        self._kernels = kernels

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)

    def add_residual(self, rows: Tensor, residual: Tensor) -> Tensor:
        if self.bias is None:
            return residual.addmm_(rows, self.weight.t())
        return self(rows).add_(residual)

    def swiglu(self, rows: Tensor) -> Tensor:
        return self._kernels.swiglu(self(rows))


class BatchInvariantLinear(CublasLinear):
    """The same on our matmul: a row's bits do not depend on the number of rows, which choose cuBLAS's kernel."""

    def __call__(self, rows: Tensor) -> Tensor:
        return self._kernels.matmul(rows, self.weight, self.bias)

    def add_residual(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._kernels.matmul(rows, self.weight, self.bias, residual)


class BatchInvariantModule(nn.Module):
    """A `BatchInvariantLinear` among the modules of a model that runs through Transformers' own layers."""

    def __init__(self, linear: nn.Linear, kernels: LayerKernels) -> None:
        super().__init__()
        self._linear = BatchInvariantLinear([linear], kernels)

    def forward(self, rows: Tensor) -> Tensor:
        """[…, in_features] to […, out_features]"""
        return self._linear(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], self._linear.out_features)
