"""What a decoder asks of its matrix products: each with the elementwise step that follows it.

`PlainLinear` is the reference, for every device; `PackedLinear` and `Int8Linear` fuse the two on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(Protocol):
    """y = x Wᵀ + b on rows [rows, in_features]; every method returns [rows, out_features]."""

    in_features: int
    out_features: int

    def __call__(self, rows: Tensor) -> Tensor: ...

    def swish(self, rows: Tensor) -> Tensor:
        """y * sigmoid(y)"""

    def times(self, rows: Tensor, factors: Tensor) -> Tensor:
        """y * factors"""

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """y + residual"""


#: Makes one product of linear layers that read the same rows, their outputs side by side.
MakeLinear = Callable[[Sequence[nn.Linear]], Linear]


class PlainLinear:
    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.weight, self.bias = merged_weights(linears)
        self.out_features, self.in_features = self.weight.shape

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)

    def swish(self, rows: Tensor) -> Tensor:
        return F.silu(self(rows), inplace=True)

    def times(self, rows: Tensor, factors: Tensor) -> Tensor:
        return self(rows).mul_(factors)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self(rows).add_(residual)


def merged_weights(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights [sum of out_features, in_features] and biases, or None where no layer has one."""
    weights = [linear.weight.detach() for linear in linears]
    if all(linear.bias is None for linear in linears):
        return torch.cat(weights) if len(weights) > 1 else weights[0], None
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    return torch.cat(weights), torch.cat(biases)
