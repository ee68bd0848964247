"""A fused layer's operations on rows beside matmuls and attention: norms, rotary positions, keys into their cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RMSNorm:
    """The constants of a norm over the last dimension."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class HeadNorms:
    """The norms of each head of queries and of keys, before they are rotated."""

    query: RMSNorm
    key: RMSNorm


@dataclass(frozen=True)
class Rotation:
    """Rotary angles of a step's rows: cosines, and sines with the first half negated; [rows, 1, dim] each."""

    cos: Tensor
    signed_sin: Tensor


class RowOperations(ABC):
    """The row operations of a device."""

    @abstractmethod
    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows / sqrt(mean of squares + eps) * weight over the last dimension; weights in the rows' dtype or fp32."""

    @abstractmethod
    def rotate_and_write(
        self,
        heads: Tensor,
        norms: HeadNorms | None,
        rotation: Rotation,
        slot_mapping: Tensor,
        pools: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Norms and rotates queries and keys of heads [rows, num_heads + 2 * kv_heads, dim].

        Returns the queries [rows, num_heads, dim]; stores keys and values in pools [slots, kv_heads, dim] at each
        row's slot. May overwrite the heads.
        """

    def norm(self, rows: Tensor, norm: RMSNorm) -> Tensor:
        return self.rms_norm(rows, norm.weight, norm.eps)


class SeparateRowOperations(RowOperations):
    """Row operations without a kernel for all that comes between the projection of heads and attention."""

    @abstractmethod
    def rotate(self, heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        """Rotates heads [rows, heads, dim], in place or not, by the angles of a `Rotation`."""

    def rotate_and_write(
        self,
        heads: Tensor,
        norms: HeadNorms | None,
        rotation: Rotation,
        slot_mapping: Tensor,
        pools: tuple[Tensor, Tensor],
    ) -> Tensor:
        keys, values = pools
        num_kv_heads = keys.shape[1]
        num_heads = heads.shape[1] - 2 * num_kv_heads
        query_key, value = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
        if norms is not None:
            query, key = query_key[:, :num_heads], query_key[:, num_heads:]
            query_key = torch.cat([self.norm(query, norms.query), self.norm(key, norms.key)], dim=1)
        rotated = self.rotate(query_key, rotation.cos, rotation.signed_sin)
        keys.index_copy_(0, slot_mapping, rotated[:, num_heads:].to(keys.dtype))
        values.index_copy_(0, slot_mapping, value.to(values.dtype))
        return rotated[:, :num_heads]


class PlainRowOperations(SeparateRowOperations):
    """Row operations by torch, for any device that it knows."""

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = rows.to(weight.dtype)  # where the weight is fp32, one rounding comes at the end
        return F.rms_norm(wide, (rows.shape[-1],), weight, eps).to(rows.dtype)

    def rotate(self, heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        swapped = heads.roll(heads.shape[-1] // 2, -1)
        return torch.addcmul(heads * cos, swapped, signed_sin)
