"""Attention in torch alone: a tile has the same bits alone and beside others, whichever thread it falls to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worker.engine.model.attention import AttentionLayer, _attend_tiles
from worker.engine.model.step_batch import AttentionTiles

NUM_TILES, HEAD_SIZE = 5, 64


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tiles_of(last_keys: torch.Tensor, keys_per_tile: int) -> AttentionTiles:
    """Tiles [num_tiles, queries] by the last key that each query sees."""
    rows = torch.arange(last_keys.numel()).view(last_keys.shape)
    return AttentionTiles(rows, None, rows.view(-1), torch.zeros(0), keys_per_tile, last_keys, False, 0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("group", range(1, 9))
def test_a_tile_has_the_same_bits_beside_others(group: int, num_kv_heads: int, has_sinks: bool) -> None:
    torch.manual_seed(group)
    num_heads, keys_per_tile = group * num_kv_heads, 48
    layer = AttentionLayer(0, HEAD_SIZE**-0.5, sinks=torch.randn(num_heads) if has_sinks else None)
    queries = torch.randn(NUM_TILES, 1, num_heads, HEAD_SIZE)
    keys, values = torch.randn(2, NUM_TILES, num_kv_heads, keys_per_tile, HEAD_SIZE)
    last_keys = torch.randint(keys_per_tile, (NUM_TILES, 1))
    together = _attend_tiles(layer, queries, keys, values, tiles_of(last_keys, keys_per_tile))
    assert together.shape == queries.shape
    for first in range(NUM_TILES):
        for count in (1, 2):
            part = slice(first, first + count)
            alone = _attend_tiles(
                layer, queries[part], keys[part], values[part], tiles_of(last_keys[part], keys_per_tile)
            )
            assert torch.equal(alone, together[part]), (first, count)
    seen = torch.arange(keys_per_tile) <= last_keys[:, :, None]
    scores = torch.einsum("tqhd,thkd->thqk", queries, keys.repeat_interleave(group, 1)) * layer.scale
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    if layer.sinks is not None:
        scores = torch.cat([scores, layer.sinks.view(1, -1, 1, 1).expand(NUM_TILES, -1, 1, 1)], dim=-1)
    weights = scores.softmax(-1)[..., :keys_per_tile]
    wanted = torch.einsum("thqk,thkd->tqhd", weights, values.repeat_interleave(group, 1))
    assert torch.allclose(together, wanted, atol=1e-5)
