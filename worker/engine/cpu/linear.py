"""Linear layers on the gemm of `csrc/gemm.c`, in bf16, fp32 and int8.

As exact as oneDNN's, faster where few rows run (`docs/decisions/0011`), and batch-invariant on every processor.
In int8, weights are quantized by output channel and activations by row; the accumulators are integers. The accuracy
that int8 costs is in `docs/performance.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.engine.cpu.kernels import CpuKernels, Epilogue, Int8PackedWeights, PackedWeights
from worker.engine.cpu.weight_layout import interleave_gate_up
from worker.engine.model.batch_invariant_mode import without_mode
from worker.engine.model.linear import merged_weights

#: The uint8 that stands for 0 in a quantized activation.
ZERO_POINT = 128


class KernelLinear(ABC):
    """A `Linear`, of one or several `nn.Linear`, whose matmul takes the epilogue as an argument."""

    def __init__(self, linears: Sequence[nn.Linear], kernels: CpuKernels, *, is_gate_up: bool = False) -> None:
        weight, bias = merged_weights(linears)
        self.out_features, self.in_features = weight.shape
        self._kernels = kernels
        if is_gate_up:
            weight, bias = interleave_gate_up(weight), None if bias is None else interleave_gate_up(bias)
        self._pack(weight, None if bias is None else bias.float())

    def __call__(self, rows: Tensor) -> Tensor:
        return self._matmul(rows, Epilogue.NONE, self.out_features)

    def add_residual(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._matmul(rows, Epilogue.ADD, self.out_features, residual)

    def swiglu(self, rows: Tensor) -> Tensor:
        return self._matmul(rows, Epilogue.SWIGLU, self.out_features // 2)

    @abstractmethod
    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        """Keeps the weight [out_features, in_features] and the fp32 bias in the layout that the matmul reads."""

    @abstractmethod
    def _matmul(self, rows: Tensor, epilogue: Epilogue, out_features: int, residual: Tensor | None = None) -> Tensor:
        """Rows [rows, in_features] to [rows, out_features]."""


class GemmLinear(KernelLinear):
    """Stands in for one or several `nn.Linear` in bf16 or fp32."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        padded = self._kernels.pad_in_features(weight)
        self._weights = PackedWeights(self._kernels.pack(padded), padded.shape[1], bias)

    def _matmul(self, rows: Tensor, epilogue: Epilogue, out_features: int, residual: Tensor | None = None) -> Tensor:
        return self._kernels.matmul(rows, self._weights, epilogue, out_features, residual)


class Int8GemmLinear(KernelLinear):
    """The same in int8, with the rounding of `OneDnnInt8Linear`."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        quantized, scales = quantize_weight(weight)
        padded = self._kernels.pad_in_features(quantized)
        compensation = ZERO_POINT * padded.sum(1, dtype=torch.int32)
        packed = self._kernels.pack(padded)
        self._weights = Int8PackedWeights(packed, padded.shape[1], bias, scales, compensation)

    def _matmul(self, rows: Tensor, epilogue: Epilogue, out_features: int, residual: Tensor | None = None) -> Tensor:
        return self._kernels.matmul_int8(rows, self._weights, epilogue, out_features, residual)


class GemmModule(nn.Module):
    """A `GemmLinear` among the modules of a model that runs through Transformers' own layers."""

    def __init__(self, linear: nn.Linear, kernels: CpuKernels) -> None:
        super().__init__()
        self._linear = GemmLinear([linear], kernels)

    def forward(self, rows: Tensor) -> Tensor:
        """[…, in_features] to […, out_features]"""
        with without_mode():
            return self._linear(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], self._linear.out_features)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out_features, in_features], and the scale of each output channel [out_features]."""
    scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    return (weight.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales
