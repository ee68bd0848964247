"""The C kernels of `csrc/` on tensors of one dtype: gemm, norm, rotary positions, quantization and sampling.

`cpu_library` builds them, `weight_layout` orders the weights that they read. Knows no model.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.cpu.delta_rule import CpuDeltaRule
from worker.engine.cpu.library import cpu_library, pointer
from worker.engine.cpu.sampler import CpuSampler
from worker.engine.cpu.weight_layout import TILE_DIM, VNNI_BYTES, pack_amx, pack_vnni
from worker.engine.model.large_pages import LargePages, large_pages
from worker.engine.model.row_operations import SeparateRowOperations

#: Bytes of a row of an AMX tile.
TILE_ROW_BYTES = TILE_DIM * VNNI_BYTES

_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class Epilogue(Enum):
    """The elementwise step after a matmul, before its one rounding; the enum of epilogue.h."""

    NONE = 0
    ADD = 1  # y + residual
    SWIGLU = 2  # swish(gate) * up


@dataclass(frozen=True)
class PackedWeights:
    """Weights in the order that gemm.c reads; made with `CpuKernels.pack`."""

    packed: Tensor
    in_features: int  # padded to whole VNNI groups or tile rows
    bias: Tensor | None  # [out_features], fp32


@dataclass(frozen=True)
class Int8PackedWeights(PackedWeights):
    scales: Tensor  # [out_features], fp32
    compensation: Tensor  # [out_features], int32: the zero point of the rows times the sum of each channel's weights


class _DequantizationScales(ctypes.Structure):
    """The `DequantizationScales` of gemm.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("row_scales", "weight_scales", "compensation")]


class LogitsWorkspace:
    """Memory that every step's logits are written to.

    Kept, because torch returns blocks of tens of megabytes to the system, and fresh ones cost a page fault for every
    4 KiB.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def view(self, num_rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
        """[num_rows, vocab] of the workspace, which grows when it must."""
        num_bytes = num_rows * vocab * dtype.itemsize
        if num_bytes > len(self._memory):
            self._memory = large_pages(num_bytes)
        return self._memory[:num_bytes].view(dtype).view(num_rows, vocab)


class CpuKernels(SeparateRowOperations):
    """The functions of the library for one dtype."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, matmul_name: str | None = None) -> None:
        """`matmul_name` is a function of gemm.c, the fastest one unless a test names another."""
        suffix = _SUFFIXES[dtype]
        self.dtype = dtype
        self.matmul_name = matmul_name or fastest_matmul(library, dtype)
        self._has_amx = bool(library.request_amx())
        self.int8_matmul_name = f"matmul_int8_{'amx_' * self._has_amx}{suffix}"
        self._weight_memory = LargePages()
        self._logits_workspace = LogitsWorkspace()
        self._min_logits_n = ctypes.c_int64.in_dll(library, "min_logits_n").value
        self._rotate = getattr(library, f"rotate_{suffix}")
        self.sample = CpuSampler(library)
        self.delta_rule = CpuDeltaRule(library, suffix)
        self._rms_norm = {dtype: getattr(library, f"rms_norm_{suffix}")}
        self._rms_norm.setdefault(torch.float32, library.rms_norm_bf16_by_f32)  # by the dtype of the weight
        self._quantize = getattr(library, f"quantize_{suffix}")
        # Only where the processor has AVX-512, and for int8 VNNI.
        self._matmul = getattr(library, self.matmul_name, None)
        self._matmul_int8 = getattr(library, self.int8_matmul_name, None)
        self._epilogue = getattr(library, f"epilogue_{suffix}")

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows / sqrt(mean of squares + eps) * weight over the last dimension; weights of the dtype or fp32."""
        assert rows.dtype is self.dtype
        rows = rows.contiguous()
        output = torch.empty_like(rows)
        size = rows.shape[-1]
        self._rms_norm[weight.dtype](
            pointer(output), pointer(rows), pointer(weight),
            ctypes.c_int64(rows.numel() // size), ctypes.c_int64(size), ctypes.c_float(eps),
        )  # fmt: skip
        return output

    def rotate(self, heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        """Rotates heads [rows, heads, dim] in place by angles [rows, 1, dim]; rows need not be adjacent."""
        num_rows, num_heads, dim = heads.shape
        sizes = (num_rows, num_heads, dim, heads.stride(0))
        self._rotate(pointer(heads), pointer(cos), pointer(signed_sin), *map(ctypes.c_int64, sizes))
        return heads

    @property
    def has_matmul(self) -> bool:
        """Whether this processor has the matmul of the dtype itself."""
        return self._matmul is not None and (self._has_amx or not self._is_amx(self.dtype))

    @property
    def has_int8_matmul(self) -> bool:
        return self._matmul_int8 is not None

    def pad_in_features(self, weight: Tensor) -> Tensor:
        """Weight [out_features, in_features] with zeros up to whole VNNI groups, or for AMX whole tile rows."""
        multiple = (TILE_ROW_BYTES if self._is_amx(weight.dtype) else VNNI_BYTES) // weight.itemsize
        return F.pad(weight, (0, -weight.shape[1] % multiple))

    def pack(self, weight: Tensor) -> Tensor:
        """A padded weight, of the dtype or int8, in the order that its matmul reads, in large pages."""
        return self._weight_memory.keep(pack_amx(weight) if self._is_amx(weight.dtype) else pack_vnni(weight))

    def _is_amx(self, dtype: torch.dtype) -> bool:
        return "amx" in (self.matmul_name if dtype is self.dtype else self.int8_matmul_name)

    def matmul(
        self, rows: Tensor, weights: PackedWeights, epilogue: Epilogue, out_features: int,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Rows [rows, in_features] times the weights plus bias, through the epilogue; [rows, out_features].

        The next logits overwrite these: use or copy them before.
        """
        output = self._empty_output(rows, out_features)
        return self._gemm(self._matmul, output, _pad_rows(rows, weights), weights, None, epilogue, residual)

    def matmul_int8(
        self, rows: Tensor, weights: Int8PackedWeights, epilogue: Epilogue, out_features: int,
        residual: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`matmul` in int8, of rows quantized one by one."""
        quantized, row_scales = self.quantize(_pad_rows(rows, weights))
        scales = _DequantizationScales(*map(pointer, (row_scales, weights.scales, weights.compensation)))
        output = self._empty_output(rows, out_features)
        return self._gemm(self._matmul_int8, output, quantized, weights, scales, epilogue, residual)

    def _gemm(
        self, function: Any, output: Tensor, rows: Tensor, weights: PackedWeights,
        scales: _DequantizationScales | None, epilogue: Epilogue, residual: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """A function of gemm.c on padded rows; returns the output."""
        if not len(output):
            return output  # AMX has no tile without rows
        rows, residual = rows.contiguous(), None if residual is None else residual.contiguous()
        pointers = map(pointer, (output, rows, weights.packed, weights.bias, residual))
        num_vnni_groups = rows.shape[1] * rows.itemsize // VNNI_BYTES
        sizes = map(ctypes.c_int64, (len(output), output.shape[1], num_vnni_groups, epilogue.value))
        function(*pointers, None if scales is None else ctypes.byref(scales), *sizes)
        return output

    def _empty_output(self, rows: Tensor, out_features: int) -> Tensor:
        """[rows, out_features] of the rows' dtype; logits are in their workspace."""
        if out_features < self._min_logits_n:
            return rows.new_empty(len(rows), out_features)
        return self._logits_workspace.view(len(rows), out_features, rows.dtype)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [rows, size] as uint8 with zero point 128, and each row's scale [rows]: rows ~ (q - 128) * scale."""
        rows = rows.contiguous()
        num_rows, size = rows.shape
        quantized = rows.new_empty(num_rows, size, dtype=torch.uint8)
        scales = rows.new_empty(num_rows, dtype=torch.float32)
        self._quantize(
            pointer(quantized), pointer(scales), pointer(rows), ctypes.c_int64(num_rows), ctypes.c_int64(size)
        )
        return quantized, scales

    def apply_epilogue(
        self, accumulators: Tensor, row_scales: Tensor, bias: Tensor | None, epilogue: Epilogue, out_features: int,
        residual: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """fp32 accumulators [rows, size] times each row's scale, plus bias [size], through the epilogue.

        Returns [rows, out_features] in the model's dtype.
        """
        output = accumulators.new_empty(len(accumulators), out_features, dtype=self.dtype)
        self._epilogue(
            pointer(output), pointer(accumulators), pointer(row_scales), pointer(bias),
            pointer(None if residual is None else residual.contiguous()),
            ctypes.c_int64(len(accumulators)), ctypes.c_int64(out_features), ctypes.c_int64(epilogue.value),
        )  # fmt: skip
        return output


def _pad_rows(rows: Tensor, weights: PackedWeights) -> Tensor:
    """Rows [rows, in_features] with as many zeros as the weights have."""
    missing = weights.in_features - rows.shape[1]
    return F.pad(rows, (0, missing)) if missing else rows


def fastest_matmul(library: ctypes.CDLL, dtype: torch.dtype) -> str:
    """The name of the fastest matmul here; a processor always has the same one, so its answers stay the same."""
    if dtype is torch.float32:
        return "matmul_f32"
    if library.request_amx():
        return "matmul_bf16_amx"
    return "matmul_bf16_pairs" if library.is_dpbf16_fast() else "matmul_bf16_widened"


def cpu_kernels(dtype: torch.dtype) -> CpuKernels | None:
    """The kernels for the dtype, or None where they cannot be built."""
    library = cpu_library() if dtype in _SUFFIXES else None
    return None if library is None else CpuKernels(library, dtype)
