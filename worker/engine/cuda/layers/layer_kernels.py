"""The Triton kernels of a layer beside attention, checked on the device before a step enters them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.cuda.kernels.matmul import FULL, TILES, matmul, matmul_in_torch
from worker.engine.cuda.kernels.rms_norm import rms_norm, rms_norm_in_torch
from worker.engine.cuda.kernels.rotation import rotate_and_write, rotate_and_write_in_torch
from worker.engine.cuda.kernels.swiglu import swiglu, swiglu_in_torch
from worker.engine.model.row_operations import HeadNorms, RMSNorm, Rotation, RowOperations


class LayerKernels(RowOperations):
    """The launch functions of the kernels. A row's results have the same bits in any batch."""

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(rows, weight, eps)

    def rotate_and_write(
        self,
        heads: Tensor,
        norms: HeadNorms | None,
        rotation: Rotation,
        slot_mapping: Tensor,
        pools: tuple[Tensor, Tensor],
    ) -> Tensor:
        return rotate_and_write(heads, norms, rotation, slot_mapping, pools)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """swish(gate) * up of a gate and an up side by side, [rows, 2 * size] to [rows, size]."""
        return swiglu(gate_up)

    def matmul(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """rows Wᵀ + b + residual, rounded once."""
        return matmul(rows, weight, bias, residual)


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of a model's layers for which kernels are checked."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@torch.inference_mode()
def largest_difference(
    kernels: LayerKernels, device: torch.device, dtype: torch.dtype, sizes: LayerSizes, *, has_matmul: bool
) -> float:
    """The largest difference of any kernel's output from torch's, relative to it beyond 1; NaN if one is NaN.

    The matmul is checked where it is used: it takes longest to compile.
    """
    case = _Case(device, dtype, sizes)
    differences = [*case.of_rows(kernels), *(case.of_matmuls(kernels) if has_matmul else ())]
    return float(torch.stack(differences).max())  # NaN wins


@dataclass(frozen=True)
class _Case:
    """Random rows of a layer's sizes."""

    device: torch.device
    dtype: torch.dtype
    sizes: LayerSizes

    def of_rows(self, kernels: LayerKernels) -> Iterator[Tensor]:
        gate_up = self._randn(5, 2 * self.sizes.intermediate)
        yield _difference(kernels.swiglu(gate_up), swiglu_in_torch(gate_up))
        yield from self._of_rotation(kernels, None)
        rows = self._randn(5, self.sizes.hidden)
        for dtype in {self.dtype, torch.float32}:  # the latter of norms whose weights are differences from one
            weight = self._randn(self.sizes.hidden).to(dtype)
            yield _difference(kernels.rms_norm(rows, weight, 1e-6), rms_norm_in_torch(rows, weight, 1e-6))
            norm = RMSNorm(self._randn(self.sizes.head_dim).to(dtype), 1e-6)
            yield from self._of_rotation(kernels, HeadNorms(norm, norm))

    def _of_rotation(self, kernels: LayerKernels, norms: HeadNorms | None) -> Iterator[Tensor]:
        num_kv_heads, dim = self.sizes.num_kv_heads, self.sizes.head_dim
        heads = self._randn(5, self.sizes.num_heads + 2 * num_kv_heads, dim)
        rotation = Rotation(self._randn(5, 1, dim), self._randn(5, 1, dim))
        slots = torch.arange(5, 0, -1, device=self.device)
        found, expected = ([heads.new_zeros(7, num_kv_heads, dim) for _ in range(2)] for _ in range(2))
        query = kernels.rotate_and_write(heads, norms, rotation, slots, (found[0], found[1]))
        exact = rotate_and_write_in_torch(heads, norms, rotation, slots, (expected[0], expected[1]))
        for output, other in ((query, exact), *zip(found, expected, strict=True)):
            yield _difference(output, other)

    def of_matmuls(self, kernels: LayerKernels) -> Iterator[Tensor]:
        """All columns by one program a tile, few by several; the same bits are asked for, too.

        Sizes are multiples of 16, as a model's are: for others kernels are compiled that no step uses.
        """
        few = TILES[self.dtype.itemsize].columns
        rows, weight = self._randn(3, 304), self._randn(FULL * few + 16, 304) / 17
        bias, residual = self._randn(len(weight)), self._randn(3, len(weight))
        whole = kernels.matmul(rows, weight, bias, residual)
        yield _difference(whole, matmul_in_torch(rows, weight, bias, residual))
        split = kernels.matmul(rows[1:2], weight[:few], bias[:few], residual[1:2, :few])
        is_same = torch.equal(split, whole[1:2, :few])
        yield torch.full_like(split[0, 0], 0.0 if is_same else torch.inf, dtype=torch.float32)

    def _randn(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)


def _difference(found: Tensor, exact: Tensor) -> Tensor:
    return ((found.float() - exact.float()).abs() / exact.float().abs().clamp(min=1)).max()
