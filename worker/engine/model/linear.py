"""What a decoder asks of its matrix products: each with the elementwise step that follows it.

`PlainLinear` is the reference, for every device; those on `CpuKernels` fuse the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.batch_invariance import AlignedActivation


class Linear(Protocol):
    """y = x Wᵀ + b on rows [rows, in_features]."""

    in_features: int
    out_features: int

    def __call__(self, rows: Tensor) -> Tensor:
        """y, [rows, out_features]"""

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """y + residual, [rows, out_features]"""

    def gated(self, rows: Tensor) -> Tensor:
        """swish(g) * y, [rows, out_features of one], of a gate g and a y that were made with `is_gated`."""


class MakeLinear(Protocol):
    def __call__(self, linears: Sequence[nn.Linear], *, is_gated: bool = False) -> Linear:
        """One product of linear layers that read the same rows.

        Their outputs stand side by side; or, with `is_gated`, they are two of one size, a gate and what it is for.
        """


class PlainLinear:
    def __init__(self, linears: Sequence[nn.Linear], *, is_gated: bool = False) -> None:  # noqa: ARG002 halves either way
        self.weight, self.bias = merged_weights(linears)
        self.out_features, self.in_features = self.weight.shape

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self(rows).add_(residual)

    def gated(self, rows: Tensor) -> Tensor:
        return gated_halves(self(rows))


def gated_halves(both: Tensor) -> Tensor:
    """swish(g) * y of a gate g and a y side by side, [rows, 2 * size] to [rows, size]."""
    gate, other = both.chunk(2, dim=-1)
    swish = F.silu(gate) if both.is_cuda else _ALIGNED_SWISH(gate.contiguous())
    return swish.mul_(other)


_ALIGNED_SWISH = AlignedActivation(nn.SiLU())


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
