"""Attention in C against exact attention, and batch-invariance: a row's bits in any batch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.support.kernels import the_library
from worker.engine.cpu.attention import CpuAttention, cpu_attention, fits_tiles
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows

pytestmark = pytest.mark.usefixtures("two_threads")

CPU = torch.device("cpu")
NUM_BLOCKS = 120
NAMES = ["paged_attention_f32", "paged_attention_bf16", "varlen_attention_amx"]


@dataclass(frozen=True)
class QueryChunk:
    """The last `num_rows` of a sequence's `seqlen_k` tokens."""

    blocks: list[int]
    seqlen_k: int
    num_rows: int = 1
    seed: int = 0  # of its queries


@dataclass
class Kernel:
    attention: CpuAttention
    dtype: torch.dtype

    def attend(self, cache: KVCache, chunks: list[QueryChunk], num_heads: int, window: int | None = None) -> Tensor:
        """[rows, heads, value_dim]; a kernel of single rows gets each row as a chunk."""
        if not self.attention.covers_prefill:
            chunks = [each for chunk in chunks for each in rows_of(chunk)]
        return self.attention(
            AttentionLayer(0, 0.2, window), self.queries(cache, chunks, num_heads), cache, paged(chunks)
        )

    def queries(self, cache: KVCache, chunks: list[QueryChunk], num_heads: int) -> Tensor:
        """[rows, heads, dim], each from its chunk's seed and its position."""
        dim = cache.pools(0)[0].shape[2]
        return torch.stack([
            torch.randn(num_heads, dim, generator=torch.Generator().manual_seed(chunk.seed * 10_000 + position))
            for chunk in chunks
            for position in range(chunk.seqlen_k - chunk.num_rows, chunk.seqlen_k)
        ]).to(self.dtype)  # fmt: skip


def rows_of(chunk: QueryChunk) -> list[QueryChunk]:
    return [
        QueryChunk(chunk.blocks, end, 1, chunk.seed)
        for end in range(chunk.seqlen_k - chunk.num_rows + 1, chunk.seqlen_k + 1)
    ]


def paged(chunks: list[QueryChunk]) -> PagedRows:
    width = max(len(chunk.blocks) for chunk in chunks)
    cu_seqlens_q = [sum(chunk.num_rows for chunk in chunks[:index]) for index in range(len(chunks) + 1)]
    return PagedRows(
        block_table=torch.tensor(
            [chunk.blocks + [0] * (width - len(chunk.blocks)) for chunk in chunks], dtype=torch.int32
        ),
        seqused_k=torch.tensor([chunk.seqlen_k for chunk in chunks], dtype=torch.int32),
        cu_seqlens_q=torch.tensor(cu_seqlens_q, dtype=torch.int32),
        max_seqlen_q=max(chunk.num_rows for chunk in chunks),
        max_seqlen_k=max(chunk.seqlen_k for chunk in chunks),
        num_decoding=0,
    )


@pytest.fixture(scope="module", params=NAMES)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every attention kernel that this processor has, not only the fastest."""
    library = the_library()
    if request.param == "varlen_attention_amx" and not library.request_amx():
        pytest.skip("this processor has no AMX")
    dtype = torch.float32 if request.param.endswith("f32") else torch.bfloat16
    return Kernel(CpuAttention(library, request.param), dtype)


def filled_cache(kernel: Kernel, shape: LayerShape, block_size: int) -> KVCache:
    torch.manual_seed(3)
    cache = KVCache({0: shape}, NUM_BLOCKS, block_size, kernel.dtype, CPU)
    for pool in cache.pools(0):
        pool.copy_(torch.randn(pool.shape))
    return cache


def exact(cache: KVCache, queries: Tensor, chunks: list[QueryChunk], window: int | None = None) -> Tensor:
    """The definition, in fp64."""
    keys, values = (pool.double() for pool in cache.pools(0))
    outputs = []
    rows = [each for chunk in chunks for each in rows_of(chunk)]
    for query, row in zip(queries.double(), rows, strict=True):
        first = 0 if window is None else max(0, row.seqlen_k - window)
        positions = range(first, row.seqlen_k)
        slots = [row.blocks[p // cache.block_size] * cache.block_size + p % cache.block_size for p in positions]
        group = len(query) // keys.shape[1]
        row_keys, row_values = (pool[slots].repeat_interleave(group, 1) for pool in (keys, values))
        probs = torch.softmax(torch.einsum("hd,khd->hk", query, row_keys) * 0.2, dim=1)
        outputs.append(torch.einsum("hk,khd->hd", probs, row_values))
    return torch.stack(outputs)


def some_chunks(cache: KVCache, lengths: list[tuple[int, int]], num_shared: int = 0) -> list[QueryChunk]:
    """Chunks of (keys, rows) that share their first `num_shared` blocks."""
    free = random.Random(1).sample(range(1, NUM_BLOCKS), NUM_BLOCKS - 1)
    shared = [free.pop() for _ in range(num_shared)]
    chunks = []
    for seed, (seqlen_k, num_rows) in enumerate(lengths):
        num_blocks = -(-seqlen_k // cache.block_size)
        own = [free.pop() for _ in range(max(0, num_blocks - num_shared))]
        chunks.append(QueryChunk((shared + own)[:num_blocks], seqlen_k, num_rows, seed))
    return chunks


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "dim", "value_dim"),
    [(14, 2, 64, 64), (8, 8, 32, 32), (12, 3, 128, 96), (16, 1, 64, 160), (10, 2, 96, 32)],
)
@pytest.mark.parametrize("block_size", [64, 16, 7])
@pytest.mark.parametrize("window", [None, 20])
def test_against_exact_attention(
    kernel: Kernel, num_heads: int, num_kv_heads: int, dim: int, value_dim: int, block_size: int, window: int | None
) -> None:
    cache = filled_cache(kernel, LayerShape(num_kv_heads, dim, value_dim), block_size)
    lengths = [(1, 1), (2, 2), (17, 1), (33, 5), (128, 1), (129, 9), (150, 1), (64, 64), (40, 3)]
    chunks = some_chunks(cache, lengths, num_shared=2)
    found = kernel.attend(cache, chunks, num_heads, window)
    expected = exact(cache, kernel.queries(cache, chunks, num_heads), chunks, window)
    tolerance = 2**-8 if kernel.dtype is torch.bfloat16 else 1e-5  # one rounding
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-4)


def test_a_row_has_the_same_bits_in_any_batch(kernel: Kernel) -> None:
    """Alone, among rows with the same or other blocks, or with the keys of a longer prompt after its own."""
    cache = filled_cache(kernel, LayerShape(2, 64, 64), 64)
    chunks = some_chunks(cache, [(300, 1), (260, 30), (129, 1), (130, 1), (300, 4), (17, 17), (256, 1)], num_shared=2)
    alone = {
        (row.seed, row.seqlen_k): kernel.attend(cache, [row], 14)[0] for chunk in chunks for row in rows_of(chunk)
    }  # fmt: skip
    for order in range(8):
        shuffled = random.Random(order).sample(chunks, len(chunks))
        if order % 2:
            shuffled = [row for chunk in shuffled for row in rows_of(chunk)]
        together = kernel.attend(cache, shuffled, 14)
        rows = [row for chunk in shuffled for row in rows_of(chunk)]
        for row, found in zip(rows, together, strict=True):
            assert torch.equal(found, alone[row.seed, row.seqlen_k]), (order, row)


def test_many_rows_that_share_their_keys_have_the_bits_of_each(kernel: Kernel) -> None:
    """So many that a thread takes several packs, which share their values."""
    cache = filled_cache(kernel, LayerShape(2, 64, 64), 16)
    chunks = some_chunks(cache, [(170 + index % 5, 1 + index % 3) for index in range(60)], num_shared=10)
    together = kernel.attend(cache, chunks, 14)
    rows = [row for chunk in chunks for row in rows_of(chunk)]
    for row, found in zip(rows, together, strict=True):
        assert torch.equal(found, kernel.attend(cache, [row], 14)[0])


def test_nan_stays_with_its_sequence(kernel: Kernel) -> None:
    """Neither another sequence's NaN reaches a row, nor one that an earlier owner of a block left after its keys."""
    cache = filled_cache(kernel, LayerShape(2, 64, 64), 64)
    chunks = some_chunks(cache, [(90, 1), (90, 1), (33, 1), (200, 70)])
    before = kernel.attend(cache, chunks, 14)
    for pool in cache.pools(0):
        slots = [chunks[1].blocks[0] * 64 + 3, chunks[0].blocks[1] * 64 + 26, chunks[2].blocks[0] * 64 + 33]
        pool[slots] = float("nan")
    after = kernel.attend(cache, chunks, 14)
    assert after[1].isnan().all()
    others = [0, *range(2, len(before))]
    assert torch.equal(after[others], before[others])


def test_scores_far_apart(kernel: Kernel) -> None:
    """One key takes all of the mass, and a later chunk raises the maximum a lot."""
    cache = filled_cache(kernel, LayerShape(1, 32, 32), 64)
    (chunk,) = some_chunks(cache, [(400, 1)])
    keys, values = cache.pools(0)
    query = kernel.queries(cache, [chunk], 1)[0, 0]
    for position, factor in ((3, 20), (170, 300), (399, 100)):
        keys[chunk.blocks[position // 64] * 64 + position % 64, 0] = query * factor
    winner = values[chunk.blocks[170 // 64] * 64 + 170 % 64, 0]
    assert torch.equal(kernel.attend(cache, [chunk], 1)[0, 0], winner)


def test_which_layers_fit_tiles() -> None:
    assert fits_tiles(LayerShape(2, 64, 64), 14)
    assert fits_tiles(LayerShape(1, 64, 32), 16)
    assert not fits_tiles(LayerShape(1, 64, 64), 17)
    assert not fits_tiles(LayerShape(2, 16, 64), 4)
    assert not fits_tiles(LayerShape(2, 64, 80), 4)


def test_only_floating_point_models_have_a_kernel() -> None:
    the_library()
    shapes = [LayerShape(2, 64, 64)]
    assert cpu_attention(torch.float16, shapes, 4) is None
    rows = cpu_attention(torch.float32, shapes, 4)
    assert rows is not None and not rows.covers_prefill
    small = cpu_attention(torch.bfloat16, [LayerShape(2, 16, 16)], 4)
    assert small is not None and not small.covers_prefill
