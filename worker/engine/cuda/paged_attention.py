"""Paged attention on CUDA through torch's `varlen_attn`, for prompts and decoding rows in one call.

Not every torch, GPU and flash-attention build takes a block table: `varlen_attention` computes a small case both ways
and returns None where the call fails or differs. Attention then goes through the tiles of `StepBatch`.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.model.attention import AttentionLayer, PagedAttention
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows

logger = logging.getLogger(__name__)

#: FlashAttention 2 takes pages of multiples of this many tokens only.
PAGE_SIZE = 256

#: Largest difference to the reference that bf16 explains.
TOLERANCE = 0.02


class VarlenAttention:
    """A `PagedAttention` on `torch.nn.attention.varlen`."""

    covers_prefill = True

    def __init__(self, *, is_deterministic: bool) -> None:
        from torch.nn.attention import varlen

        self._varlen_attn: Any = varlen.varlen_attn
        # One split: the order of additions then depends on a row's own length alone.
        self._num_splits = 1 if is_deterministic else None

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        """Attention of rows [rows, heads, dim] over their own keys; returns [rows, heads, value_dim]."""
        keys, values = (pool.unflatten(0, (-1, cache.block_size)) for pool in cache.pools(layer.index))
        output: Tensor = self._varlen_attn(
            query,
            keys,
            values,
            rows.cu_seqlens_q,
            None,
            rows.max_seqlen_q,
            rows.max_seqlen_k,
            scale=layer.scale,
            window_size=(-1 if layer.window is None else layer.window - 1, 0),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=rows.seqused_k,
            block_table=rows.block_table,
            num_splits=self._num_splits,
        )
        return output


def varlen_attention(
    device: torch.device, dtype: torch.dtype, shape: LayerShape, num_heads: int, *, is_deterministic: bool = False
) -> PagedAttention | None:
    """The kernel, or None where it does not compute attention correctly on this device."""
    if dtype not in (torch.bfloat16, torch.float16) or not has_paged_varlen():
        return None
    try:
        attention = VarlenAttention(is_deterministic=is_deterministic)
        difference = difference_to_reference(attention, device, dtype, shape, num_heads)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        logger.warning("varlen_attn takes no block table here, attention goes through SDPA: %s", str(error)[:200])
        return None
    if difference > TOLERANCE:
        logger.warning("varlen_attn differs by %.3f from SDPA here and is not used", difference)
        return None
    return attention


def has_paged_varlen() -> bool:
    """Whether this torch has the call at all."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    return "block_table" in inspect.signature(varlen.varlen_attn).parameters


@torch.inference_mode()
def difference_to_reference(
    attention: PagedAttention, device: torch.device, dtype: torch.dtype, shape: LayerShape, num_heads: int
) -> float:
    """The largest difference of any output between a kernel and SDPA, on three decoding rows of unequal lengths."""
    lengths, width = (1, PAGE_SIZE - 3, 2 * PAGE_SIZE + 5), 3
    generator = torch.Generator().manual_seed(0)
    cache = KVCache({0: shape}, 1 + len(lengths) * width, PAGE_SIZE, dtype, device)
    keys, values = cache.pools(0)
    keys.copy_(torch.randn(keys.shape, generator=generator))
    values.copy_(torch.randn(values.shape, generator=generator))
    query = torch.randn(len(lengths), num_heads, shape.key_dim, generator=generator).to(device, dtype)
    table = 1 + torch.arange(len(lengths) * width).view(len(lengths), width)
    rows = PagedRows(
        block_table=table.to(device, torch.int32),
        seqused_k=torch.tensor(lengths, dtype=torch.int32, device=device),
        cu_seqlens_q=torch.arange(len(lengths) + 1, dtype=torch.int32, device=device),
        max_seqlen_q=1,
        max_seqlen_k=max(lengths),
    )
    scale = shape.key_dim**-0.5
    found = attention(AttentionLayer(0, scale), query, cache, rows)
    differences = []
    for row, length in enumerate(lengths):
        slots = (table[row, :, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).view(-1)[:length].to(device)
        expected = F.scaled_dot_product_attention(
            query[row, :, None].float(),
            keys[slots].transpose(0, 1).float(),
            values[slots].transpose(0, 1).float(),
            scale=scale,
            enable_gqa=True,
        )[:, 0]
        differences.append(float((found[row].float() - expected).abs().max()))
    return max(differences)
