"""The choice of a GPU's paged attention: Triton's, where it is there and gives what SDPA gives.

`paged_attention` computes small cases of each shape of layer both ways and raises `NoKernel` where the kernel fails or
differs. Attention may then go through the tiles of `StepBatch`, which is many times slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.model.attention import AttentionLayer, PagedAttention
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.layer_modules import TOLERANCES
from worker.engine.model.step_batch import PagedRows
from worker.engine.out_of_memory import is_out_of_memory

#: Tokens of a KV block. The kernel takes any number from 16 on; few waste less memory and share more prefixes.
PAGE_SIZE = 64

#: Older GPUs lack bfloat16 and asynchronous copies, which the kernel's tiles are made for.
LEAST_CAPABILITY = (8, 0)

#: Cases of the check: (rows, keys) of each segment, those of one row first. Keys cross blocks and sections.
CASES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((1, 1), (1, PAGE_SIZE - 3), (1, 9 * PAGE_SIZE + 5)),
    ((1, 40), (5, 70), (PAGE_SIZE + 1, PAGE_SIZE + 1)),
)


@dataclass
class OnItsDevice:
    """A kernel for a model on several devices: Triton launches on the current one, wherever the tensors are."""

    attention: PagedAttention
    covers_prefill: bool

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        with torch.cuda.device(query.device):
            return self.attention(layer, query, cache, rows)


class NoKernel(Exception):
    """The kernel does not compute attention correctly on this device; the message says why, and the remedy."""


def paged_attention(
    device: torch.device, dtype: torch.dtype, layers: Iterable[LayerShape], num_heads: int
) -> PagedAttention:
    """The kernel, if it computes attention correctly on this device. Raises `NoKernel`."""
    if dtype not in TOLERANCES:
        raise NoKernel(f"it computes in bfloat16, float16 and float32, and not in {dtype}")
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        raise NoKernel(f"{torch.cuda.get_device_name(device)} is older than the Ampere generation (sm_80)")
    with compiled():
        from worker.engine.cuda.triton_attention import TritonAttention

        attention = TritonAttention(torch.cuda.get_device_properties(device).multi_processor_count)
        shapes = {(shape.num_kv_heads, shape.key_dim, shape.value_dim) for shape in layers}
        differences = [
            difference_to_reference(attention, device, dtype, LayerShape(*shape), num_heads) for shape in sorted(shapes)
        ]
    if not all(difference <= TOLERANCES[dtype] for difference in differences):  # NaN is no small difference
        raise NoKernel(f"its results differ from torch's by {max(differences):.3g}")
    return attention


@contextmanager
def compiled() -> Iterator[None]:
    """The first calls of kernels, which compile them: whatever a compiler raises becomes `NoKernel`."""
    try:
        yield
    # A compiler fails in ways of its own, and no list of them is complete.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        remedy = "Triton needs a C compiler (gcc) and Python's headers (python3-dev)"
        raise NoKernel(f"it cannot be compiled, {_cause(error)}; {remedy}") from error


@torch.inference_mode()
def difference_to_reference(
    attention: PagedAttention,
    device: torch.device,
    dtype: torch.dtype,
    shape: LayerShape,
    num_heads: int,
    block_size: int = PAGE_SIZE,
) -> float:
    """The largest difference of any output of a kernel to SDPA's, relative to it beyond 1; NaN if one is NaN.

    With a window and without.
    """
    layers = [AttentionLayer(0, shape.key_dim**-0.5, window) for window in (None, 24)]
    cases = [(layer, segments) for layer in layers for segments in CASES]
    differences = [
        _difference(attention, layer, segments, device, dtype, shape, num_heads, block_size)
        for layer, segments in cases
    ]
    return float(torch.stack(differences).max())  # NaN wins


def _difference(
    attention: PagedAttention,
    layer: AttentionLayer,
    segments: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
    shape: LayerShape,
    num_heads: int,
    block_size: int,
) -> Tensor:
    width = -(-max(seqlen_k for _, seqlen_k in segments) // block_size)
    generator = torch.Generator().manual_seed(0)
    cache = KVCache({0: shape}, 1 + len(segments) * width, block_size, dtype, device)
    for pool in cache.pools(0):
        pool.copy_(torch.randn(pool.shape, generator=generator))
    num_rows = [rows for rows, _ in segments]
    query = torch.randn(sum(num_rows), num_heads, shape.key_dim, generator=generator).to(device, dtype)
    table = 1 + torch.arange(len(segments) * width).view(len(segments), width).flip(1)
    found = attention(layer, query, cache, _rows_of(segments, table, device))
    expected = [
        _reference(layer, rows, cache, table[index], seqlen_k)
        for index, (rows, (_, seqlen_k)) in enumerate(zip(query.split(num_rows), segments, strict=True))
    ]
    exact = torch.cat(expected)
    return ((found.float() - exact).abs() / exact.abs().clamp(min=1)).max()


def _rows_of(segments: Sequence[tuple[int, int]], table: Tensor, device: torch.device) -> PagedRows:
    num_rows = [rows for rows, _ in segments]
    return PagedRows(
        block_table=table.to(device, torch.int32),
        seqused_k=torch.tensor([seqlen_k for _, seqlen_k in segments], dtype=torch.int32, device=device),
        cu_seqlens_q=F.pad(torch.tensor(num_rows), (1, 0)).cumsum(0).to(device, torch.int32),
        max_seqlen_q=max(num_rows),
        max_seqlen_k=max(seqlen_k for _, seqlen_k in segments),
        num_decoding=num_rows.count(1),
    )


def _reference(layer: AttentionLayer, query: Tensor, cache: KVCache, block_ids: Tensor, seqlen_k: int) -> Tensor:
    """SDPA in fp32 of one segment's rows [rows, heads, dim]."""
    keys, values = cache.pools(layer.index)
    places = torch.arange(seqlen_k)
    slots = (block_ids[places // cache.block_size] * cache.block_size + places % cache.block_size).to(query.device)
    positions = torch.arange(seqlen_k - len(query), seqlen_k)[:, None]
    is_visible = places <= positions
    if layer.window is not None:
        is_visible &= places > positions - layer.window
    return F.scaled_dot_product_attention(
        query.transpose(0, 1).float(),
        keys[slots].transpose(0, 1).float(),
        values[slots].transpose(0, 1).float(),
        attn_mask=is_visible.to(query.device),
        scale=layer.scale,
        enable_gqa=True,
    ).transpose(0, 1)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
