"""The weight layouts that gemm.c and gemm_amx.h read, and the large pages that hold them."""

from __future__ import annotations

import pytest
import torch

from worker.engine.cpu.weight_layout import K_STEPS_L1, NR, TILE_DIM, pack_amx, pack_vnni
from worker.engine.model.large_pages import CHUNK_BYTES, LINE_BYTES, PAGE_BYTES, LargePages, large_pages


def test_vnni_layout_of_bf16_holds_pairs_of_inputs() -> None:
    weight = torch.arange(70 * 4).view(70, 4).bfloat16()
    packed = pack_vnni(weight)
    assert packed.shape == (2, 2, NR, 2)
    assert torch.equal(packed[1, 1, 5], weight[69, 2:])
    assert not packed[1, :, 6:].any()


def test_vnni_layout_of_int8_holds_fours_of_inputs() -> None:
    weight = torch.arange(3 * 8, dtype=torch.int8).view(3, 8)
    packed = pack_vnni(weight)
    assert packed.shape == (1, 2, NR, 4)
    assert torch.equal(packed[0, 1, 2], weight[2, 4:])


@pytest.mark.parametrize("num_tiles", [1, K_STEPS_L1, K_STEPS_L1 + 2])
def test_amx_layout_is_in_the_order_of_use(num_tiles: int) -> None:
    """Element by element: L1 blocks of K, columns of tiles, tiles of K, VNNI groups, outputs, inputs of a group."""
    inputs = num_tiles * TILE_DIM * 2
    weight = torch.randperm(NR * inputs).view(NR, inputs).int().view(torch.int16)[:, ::2].contiguous()
    expected = [
        int(weight[column * TILE_DIM + output, (tile * TILE_DIM + group) * 2 + place])
        for start in range(0, num_tiles, K_STEPS_L1)
        for column in range(NR // TILE_DIM)
        for tile in range(start, min(start + K_STEPS_L1, num_tiles))
        for group in range(TILE_DIM)
        for output in range(TILE_DIM)
        for place in range(2)
    ]
    assert pack_amx(weight)[0].tolist() == expected


def test_memory_begins_with_a_page_and_is_zero() -> None:
    found = large_pages(3 * PAGE_BYTES + 5)
    assert found.data_ptr() % PAGE_BYTES == 0
    assert len(found) == 3 * PAGE_BYTES + 5
    assert not found.any()


def test_tensors_lie_side_by_side_from_line_to_line() -> None:
    memory = LargePages()
    first, second = memory.keep(torch.arange(10).bfloat16()), memory.keep(torch.ones(3, 2))
    assert second.data_ptr() - first.data_ptr() == LINE_BYTES
    assert torch.equal(first, torch.arange(10).bfloat16())
    assert torch.equal(second, torch.ones(3, 2))


def test_a_tensor_larger_than_a_chunk_is_kept_too() -> None:
    memory = LargePages()
    small, large = memory.keep(torch.ones(4)), memory.keep(torch.full((CHUNK_BYTES + 1,), 7, dtype=torch.uint8))
    assert torch.equal(small, torch.ones(4))
    assert int(large.min()) == int(large.max()) == 7
