"""Linear layers on oneDNN's gemm, in bf16, fp32 and int8: what a processor without AVX-512 has.

oneDNN packs the weights once, which saves the reordering that `F.linear` does at every call
(`benchmarks/ablations.py` measures it), and is batch-invariant without AMX, which torch's fp32 matmuls are not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.engine.cpu.kernels import Epilogue
from worker.engine.cpu.linear import ZERO_POINT, KernelLinear, quantize_weight
from worker.engine.model.linear import merged_weights, swiglu


class OneDnnLinear(nn.Module):
    """Stands in for one or several `nn.Linear` on the CPU in inference; the weight can no longer be read back."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linears: Sequence[nn.Linear], *, is_gate_up: bool = False) -> None:  # noqa: ARG002 halves either way
        super().__init__()
        weight, self.bias = merged_weights(linears)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return outputs

    def add_residual(self, rows: Tensor, residual: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.packed, self.bias, "add")
        return outputs

    def swiglu(self, rows: Tensor) -> Tensor:
        return swiglu(self(rows))


class OneDnnInt8Linear(KernelLinear):
    """The same in int8; quantization and epilogue are kernels of our own."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        quantized, self.scales = quantize_weight(weight)
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(quantized, None)

    def _matmul(self, rows: Tensor, epilogue: Epilogue, out_features: int, residual: Tensor | None = None) -> Tensor:
        quantized, row_scales = self._kernels.quantize(rows)
        accumulators: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, ZERO_POINT, self.packed, self.scales, self.zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return self._kernels.apply_epilogue(accumulators, row_scales, self.bias, epilogue, out_features, residual)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor have oneDNN's packed weights for the dtype."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def keep_onednn_from_amx() -> None:
    """Makes oneDNN do without AMX; only before its first matmul in this process.

    Its AMX kernels split K of a small layer among the threads by the number of rows, so that a row's bits depend on
    the rows beside it (docs/decisions/0014).
    """
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
