"""Triton's attention in its interpreter, against float64: any shapes, and the same bits alone and in any batch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.unit.worker.engine.cuda.conftest import MovedBytes
from worker.engine.cuda import triton_attention
from worker.engine.cuda.attention_bytes import AttentionBytes
from worker.engine.cuda.paged_attention import difference_to_reference
from worker.engine.cuda.triton_attention import SECTION, TileShape, TritonAttention
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import SCRATCH_BLOCK, PagedRows

CPU = torch.device("cpu")


#: Keys that the longest sequence could have more.
LONGER = 700

ONE_PROGRAM, MANY_PROGRAMS = TritonAttention(1), TritonAttention(1000)


@dataclass(frozen=True)
class Segment:
    """The last `num_rows` of a sequence's `seqlen_k` tokens."""

    seqlen_k: int
    num_rows: int = 1


@dataclass(frozen=True)
class Case:
    """A cache whose unused slots are NaN, a sequence in it for each segment, and their queries."""

    layer: AttentionLayer
    cache: KVCache
    segments: list[Segment]
    tables: list[list[int]]
    queries: list[Tensor]  # [rows, heads, dim] each

    def attend(self, attention: TritonAttention, chosen: list[int]) -> dict[int, Tensor]:
        """The output of each chosen segment; those of one row come first, as in a step."""
        order = sorted(chosen, key=lambda index: self.segments[index].num_rows > 1)
        segments = [self.segments[index] for index in order]
        tables = [self.tables[index] for index in order]
        width = max(map(len, tables))
        rows = PagedRows(
            block_table=torch.tensor(
                [table + [SCRATCH_BLOCK] * (width - len(table)) for table in tables], dtype=torch.int32
            ),
            seqused_k=torch.tensor([segment.seqlen_k for segment in segments], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, *(each.num_rows for each in segments)]).cumsum(0).to(torch.int32),
            max_seqlen_q=max(segment.num_rows for segment in segments),
            max_seqlen_k=max(segment.seqlen_k for segment in segments) + LONGER,  # a graph's is its longest possible
            num_decoding=sum(segment.num_rows == 1 for segment in segments),
        )
        query = torch.cat([self.queries[index] for index in order])
        output = attention(self.layer, query, self.cache, rows)
        return dict(zip(order, output.split([segment.num_rows for segment in segments]), strict=True))

    def exact(self, index: int) -> Tensor:
        """Attention of a segment in float64."""
        segment, layer = self.segments[index], self.layer
        keys, values = (
            pool.view(-1, self.cache.block_size, *pool.shape[1:])[self.tables[index]].flatten(0, 1)[: segment.seqlen_k]
            for pool in self.cache.pools(layer.index)
        )
        query = self.queries[index].double().transpose(0, 1)  # [heads, rows, dim]
        group = query.shape[0] // keys.shape[1]
        keys, values = (each.double().transpose(0, 1).repeat_interleave(group, 0) for each in (keys, values))
        scores = query @ keys.transpose(1, 2) * layer.scale
        if layer.softcap:
            scores = torch.tanh(scores / layer.softcap) * layer.softcap
        places = torch.arange(segment.seqlen_k)
        positions = torch.arange(segment.seqlen_k - segment.num_rows, segment.seqlen_k)[:, None]
        is_hidden = places > positions
        if layer.window is not None:
            is_hidden |= places <= positions - layer.window
        if layer.chunk is not None:
            is_hidden |= places < positions // layer.chunk * layer.chunk
        scores = scores.masked_fill(is_hidden, -math.inf)
        if layer.sinks is not None:
            sinks = layer.sinks.double()[:, None, None].expand(-1, segment.num_rows, 1)
            scores, values = torch.cat([scores, sinks], -1), torch.nn.functional.pad(values, (0, 0, 0, 1))
        return (scores.softmax(-1) @ values).transpose(0, 1)


def make_case(
    segments: list[Segment], shape: LayerShape, group: int, block_size: int, dtype: torch.dtype, layer: AttentionLayer
) -> Case:
    generator = torch.Generator().manual_seed(len(segments))
    num_blocks = [-(-segment.seqlen_k // block_size) for segment in segments]
    cache = KVCache({layer.index: shape}, 1 + sum(num_blocks), block_size, dtype, CPU)
    free = random.Random(0).sample(range(1, 1 + sum(num_blocks)), sum(num_blocks))
    tables = [[free.pop() for _ in range(count)] for count in num_blocks]
    for pool in cache.pools(layer.index):
        pool.fill_(math.nan)
        for segment, table in zip(segments, tables, strict=True):
            for place in range(segment.seqlen_k):
                slot = table[place // block_size] * block_size + place % block_size
                pool[slot] = torch.randn(pool.shape[1:], generator=generator).to(dtype)
    queries = [
        torch.randn(segment.num_rows, shape.num_kv_heads * group, shape.key_dim, generator=generator).to(dtype)
        for segment in segments
    ]
    return Case(layer, cache, segments, tables, queries)


SEGMENTS = [Segment(1), Segment(67), Segment(SECTION), Segment(2 * SECTION + 9), Segment(5, 5), Segment(90, 13)]
PLAIN = AttentionLayer(3, 0.3)
CASES = {
    "qwen2": (LayerShape(2, 64, 64), 7, 64, torch.float32, PLAIN),
    "one head, odd dims": (LayerShape(1, 24, 40), 1, 16, torch.float32, PLAIN),
    "window": (LayerShape(2, 32, 32), 2, 16, torch.float32, replace(PLAIN, window=50)),
    "chunks": (LayerShape(1, 32, 32), 2, 16, torch.float32, replace(PLAIN, chunk=40)),
    "softcap": (LayerShape(1, 32, 32), 4, 32, torch.float32, replace(PLAIN, softcap=5.0)),
    "sinks": (LayerShape(2, 16, 32), 3, 16, torch.float32, replace(PLAIN, window=50, sinks=torch.linspace(-3, 9, 6))),
    "wide": (LayerShape(1, 512, 512), 2, 48, torch.float32, replace(PLAIN, scale=0.05)),
    "many heads": (LayerShape(1, 16, 16), 24, 64, torch.float32, PLAIN),
    "bf16": (LayerShape(2, 64, 32), 3, 64, torch.bfloat16, PLAIN),
    "fp16": (LayerShape(1, 32, 64), 2, 16, torch.float16, replace(PLAIN, window=50, softcap=9.0)),
}
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("name", CASES)
def test_any_layer_in_any_batch(name: str, moved_bytes: MovedBytes) -> None:
    """Close to float64, and each segment's bits are those it has alone, with its sections in one program or in many.

    The kernels move the bytes that they say.
    """
    shape, group, block_size, dtype, layer = CASES[name]
    case = make_case(SEGMENTS, shape, group, block_size, dtype, layer)

    def attended(num_processors: int, chosen: list[int]) -> dict[int, Tensor]:
        moved_bytes.count = 0
        found = case.attend(TritonAttention(num_processors), chosen)
        declared = AttentionBytes(layer, shape, shape.num_kv_heads * group, dtype.itemsize, num_processors)
        segments = [(SEGMENTS[index].num_rows, SEGMENTS[index].seqlen_k) for index in chosen]
        assert moved_bytes.count == declared.of(segments, max(keys for _, keys in segments) + LONGER)
        return found

    together = attended(1, list(range(len(SEGMENTS))))
    for index, output in together.items():
        assert output.dtype is dtype
        assert (output.double() - case.exact(index)).abs().max() < TOLERANCES[dtype]
        assert torch.equal(attended(1000, [index])[index], output)
    some = attended(1000, [5, 3, 1])
    assert all(torch.equal(output, together[index]) for index, output in some.items())


def test_a_prompt_in_chunks_has_the_bits_of_the_whole() -> None:
    """Sections lie at fixed places, so that the rows of a chunk add up in the same order."""
    whole = make_case([Segment(290, 290)], LayerShape(1, 16, 16), 1, 16, torch.float32, PLAIN)
    expected = whole.attend(ONE_PROGRAM, [0])[0]
    for start, end in ((0, 224), (224, 288), (288, 290)):
        chunk = replace(whole, segments=[Segment(end, end - start)], queries=[whole.queries[0][start:end]])
        assert torch.equal(chunk.attend(ONE_PROGRAM, [0])[0], expected[start:end])


def test_nan_is_not_hidden() -> None:
    case = make_case([Segment(70), Segment(20, 8)], LayerShape(1, 16, 16), 2, 16, torch.float32, PLAIN)
    case.cache.pools(PLAIN.index)[0][case.tables[0][1] * 16 + 3, 0, 5] = math.nan
    for attention in (ONE_PROGRAM, MANY_PROGRAMS):
        found = case.attend(attention, [0, 1])
        assert found[0].isnan().all() and found[1].isfinite().all()


def test_partial_results_that_would_take_too_much_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case([Segment(2 * SECTION)], LayerShape(1, 16, 16), 2, 16, torch.float32, PLAIN)
    expected = case.attend(MANY_PROGRAMS, [0])[0]
    monkeypatch.setattr(triton_attention, "MAX_PARTIAL_BYTES", 0)
    monkeypatch.delattr(triton_attention, "attend_split")
    assert torch.equal(case.attend(MANY_PROGRAMS, [0])[0], expected)


@pytest.mark.parametrize("dim", [16, 24, 64, 96, 128, 256, 512])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("group", [1, 7, 16, 71])
def test_tiles_fit_small_cards(dim: int, itemsize: int, group: int) -> None:
    """Two stages of keys and values in 99 KiB of shared memory (sm_86, 89, 120); matmuls need 16 of each size."""
    for wanted in (16, 64):
        tile = TileShape.of(dim, dim, itemsize, group, wanted)
        assert tile.rows >= max(16, group) and tile.keys >= 16 and tile.dim >= dim
        assert SECTION % tile.keys == 0
        assert 2 * tile.keys * (tile.dim + tile.value_dim) * itemsize <= (128 if dim * itemsize > 1024 else 96) * 2**10


def test_the_check_at_the_start_passes() -> None:
    assert difference_to_reference(MANY_PROGRAMS, CPU, torch.float32, LayerShape(1, 16, 16), 2) < 1e-5
