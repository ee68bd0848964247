"""The linear layers of a decoder: a matmul, each with the elementwise step after it as its epilogue.

`PlainLinear` is the reference, for every device; those on `CpuKernels` fuse matmul and epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.batch_invariance import aligned


class Linear(Protocol):
    """y = x Wᵀ + b on rows [rows, in_features]."""

    in_features: int
    out_features: int

    def __call__(self, rows: Tensor) -> Tensor:
        """y, [rows, out_features]"""

    def add_residual(self, rows: Tensor, residual: Tensor) -> Tensor:
        """y + residual, [rows, out_features]; may overwrite the residual."""

    def swiglu(self, rows: Tensor) -> Tensor:
        """swish(gate) * up, [rows, out_features / 2], of two layers merged with `is_gate_up` (Shazeer 2020)."""


class MakeLinear(Protocol):
    def __call__(self, linears: Sequence[nn.Linear], *, is_gate_up: bool = False) -> Linear:
        """Merges linear layers that read the same rows into one matmul; their outputs stand side by side.

        With `is_gate_up` they are SwiGLU's gate and up projections, of one size.
        """


class PlainLinear:
    def __init__(self, linears: Sequence[nn.Linear], *, is_gate_up: bool = False) -> None:  # noqa: ARG002 halves either way
        self.weight, self.bias = merged_weights(linears)
        self.out_features, self.in_features = self.weight.shape

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)

    def add_residual(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self(rows).add_(residual)

    def swiglu(self, rows: Tensor) -> Tensor:
        return swiglu(self(rows))


def swiglu(gate_up: Tensor) -> Tensor:
    """swish(gate) * up of a gate and an up side by side, [rows, 2 * size] to [rows, size]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return aligned(F.silu, gate).mul_(up)


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
