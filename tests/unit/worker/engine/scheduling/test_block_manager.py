"""KV blocks are shared, copied before they are written to, and always freed."""

from __future__ import annotations

from worker.engine.scheduling.block_manager import BlockManager

SIZE = 4


def blocks(count: int = 20, *, share: bool = True) -> BlockManager:
    return BlockManager(count + 1, SIZE, share_prefixes=share)


def test_block_zero_is_never_handed_out() -> None:
    manager = blocks(3)
    admitted = manager.allocate(manager.prefix_of(range(12)), 3)
    assert admitted is not None
    manager.append(admitted[0], 12)
    assert sorted(admitted[0].block_ids) == [1, 2, 3]


def test_a_request_waits_while_its_worst_case_does_not_fit() -> None:
    manager = blocks(5)
    first = manager.allocate(manager.prefix_of(range(4)), 3)
    assert first is not None
    assert manager.allocate(manager.prefix_of(range(100, 104)), 3) is None  # the first has taken nothing yet, but may
    manager.cancel(first[0].reservation)
    assert manager.allocate(manager.prefix_of(range(100, 104)), 3) is not None


def test_full_blocks_of_a_prefix_are_shared_and_the_last_token_never() -> None:
    manager = blocks()
    prompt = range(8)
    first = manager.allocate(manager.prefix_of(prompt), 3)
    assert first is not None
    manager.append(first[0], 8)
    manager.remember_prefix(manager.prefix_of(prompt), first[0], 8)
    second = manager.allocate(manager.prefix_of(prompt), 3)
    assert second is not None
    assert second[0].block_ids == first[0].block_ids[:1]  # the second block holds the last prompt token
    assert second[1] == SIZE
    longer = manager.allocate(manager.prefix_of(range(9)), 3)
    assert longer is not None and longer[1] == 2 * SIZE


def test_a_prefix_outlives_its_request_until_its_blocks_are_needed() -> None:
    manager = blocks(3)
    first = manager.allocate(manager.prefix_of(range(8)), 2)
    assert first is not None
    manager.append(first[0], 8)
    manager.remember_prefix(manager.prefix_of(range(8)), first[0], 8)
    manager.free(first[0])
    manager.cancel(first[0].reservation)
    assert manager.num_in_use == 0
    again = manager.allocate(manager.prefix_of(range(9)), 3)
    assert again is not None and again[1] == 8
    manager.free(again[0])
    manager.cancel(again[0].reservation)
    other = manager.allocate(manager.prefix_of(range(100, 112)), 3)
    assert other is not None
    manager.append(other[0], 12)  # takes the remembered blocks too
    assert manager.num_in_use == 3
    manager.free(other[0])
    manager.cancel(other[0].reservation)
    evicted = manager.allocate(manager.prefix_of(range(9)), 3)
    assert evicted is not None and evicted[1] == 0


def test_a_fork_copies_only_what_it_writes_to() -> None:
    manager = blocks(share=False)
    first = manager.allocate(manager.prefix_of(range(6)), 4)
    assert first is not None
    manager.append(first[0], 6)
    fork = manager.fork(first[0])
    assert fork.block_ids == first[0].block_ids
    copy = manager.copy_on_write(fork, 1)
    assert copy == (first[0].block_ids[1], fork.block_ids[1])
    assert manager.copy_on_write(first[0], 1) is None  # nobody else has it any more
    assert fork.block_ids[0] == first[0].block_ids[0]
    manager.free(fork)
    manager.free(first[0])
    assert manager.num_in_use == 0


def test_a_remembered_block_is_never_written_to() -> None:
    manager = blocks()
    first = manager.allocate(manager.prefix_of(range(4)), 2)
    assert first is not None
    manager.append(first[0], 4)
    manager.remember_prefix(manager.prefix_of(range(4)), first[0], 4)
    assert manager.copy_on_write(first[0], 0) is not None
