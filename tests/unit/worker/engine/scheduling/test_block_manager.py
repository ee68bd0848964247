"""KV blocks are shared, copied before they are written to, and always freed."""

from __future__ import annotations

from worker.engine.scheduling.block_manager import BlockManager

SIZE = 4


def blocks(count: int = 20, *, share: bool = True) -> BlockManager:
    return BlockManager(count + 1, SIZE, share_prefixes=share)


def test_block_zero_is_never_handed_out() -> None:
    room = blocks(3)
    admitted = room.allocate(room.prefix_of(range(12)), 3)
    assert admitted is not None
    room.append(admitted[0], 12)
    assert sorted(admitted[0].block_ids) == [1, 2, 3]


def test_a_request_waits_while_its_worst_case_does_not_fit() -> None:
    room = blocks(5)
    first = room.allocate(room.prefix_of(range(4)), 3)
    assert first is not None
    assert room.allocate(room.prefix_of(range(100, 104)), 3) is None  # the first has taken nothing yet, but may
    room.cancel(first[0].reservation)
    assert room.allocate(room.prefix_of(range(100, 104)), 3) is not None


def test_full_blocks_of_a_prefix_are_shared_and_the_last_token_never() -> None:
    room = blocks()
    prompt = range(8)
    first = room.allocate(room.prefix_of(prompt), 3)
    assert first is not None
    room.append(first[0], 8)
    room.remember_prefix(room.prefix_of(prompt), first[0], 8)
    second = room.allocate(room.prefix_of(prompt), 3)
    assert second is not None
    assert second[0].block_ids == first[0].block_ids[:1]  # the second block holds the last prompt token
    assert second[1] == SIZE
    longer = room.allocate(room.prefix_of(range(9)), 3)
    assert longer is not None and longer[1] == 2 * SIZE


def test_a_prefix_outlives_its_request_until_the_room_is_needed() -> None:
    room = blocks(3)
    first = room.allocate(room.prefix_of(range(8)), 2)
    assert first is not None
    room.append(first[0], 8)
    room.remember_prefix(room.prefix_of(range(8)), first[0], 8)
    room.free(first[0])
    room.cancel(first[0].reservation)
    assert room.num_in_use == 0
    again = room.allocate(room.prefix_of(range(9)), 3)
    assert again is not None and again[1] == 8
    room.free(again[0])
    room.cancel(again[0].reservation)
    other = room.allocate(room.prefix_of(range(100, 112)), 3)
    assert other is not None
    room.append(other[0], 12)  # takes the remembered blocks too
    assert room.num_in_use == 3
    room.free(other[0])
    room.cancel(other[0].reservation)
    forgotten = room.allocate(room.prefix_of(range(9)), 3)
    assert forgotten is not None and forgotten[1] == 0


def test_a_fork_copies_only_what_it_writes_to() -> None:
    room = blocks(share=False)
    first = room.allocate(room.prefix_of(range(6)), 4)
    assert first is not None
    room.append(first[0], 6)
    fork = room.fork(first[0])
    assert fork.block_ids == first[0].block_ids
    copy = room.copy_on_write(fork, 1)
    assert copy == (first[0].block_ids[1], fork.block_ids[1])
    assert room.copy_on_write(first[0], 1) is None  # nobody else has it any more
    assert fork.block_ids[0] == first[0].block_ids[0]
    room.free(fork)
    room.free(first[0])
    assert room.num_in_use == 0


def test_a_remembered_block_is_never_written_to() -> None:
    room = blocks()
    first = room.allocate(room.prefix_of(range(4)), 2)
    assert first is not None
    room.append(first[0], 4)
    room.remember_prefix(room.prefix_of(range(4)), first[0], 4)
    assert room.copy_on_write(first[0], 0) is not None
