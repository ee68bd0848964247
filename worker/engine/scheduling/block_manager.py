"""The blocks of the KV cache: free, shared or reserved. Counts and ids only; knows no tensors and no requests.

A block holds `block_size` tokens. Full blocks of a prompt are remembered by their content and shared with
later prompts that begin alike; beams share blocks too and copy one before they write to it. A request's
worst case is reserved when it is admitted, so a running sequence always gets its next block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heapify, heappop, heappush

import numpy as np

from worker.engine.scheduling.state_manager import StateManager
from worker.engine.scheduling.state_snapshots import StateSnapshots


@dataclass
class Reservation:
    """Blocks that a request may still take; all its sequences draw on it."""

    num_blocks: int = 0


@dataclass(frozen=True)
class Prefix:
    """A prompt's full blocks, each by a key: a hash of its content and of everything before it."""

    keys: tuple[bytes, ...] = ()
    num_usable: int = 0  # the block with the last token is recomputed: its logits are needed
    num_tokens: int = 0  # of the prompt


@dataclass
class BlockTable:
    """The blocks of one sequence, in order."""

    block_ids: list[int] = field(default_factory=list)
    reservation: Reservation = field(default_factory=Reservation)
    state_index: int | None = None  # of the recurrent state, in models that keep one


class BlockManager:
    """Hands out block ids, except block 0: padding rows write there.

    With `states` each table has a recurrent state beside its blocks, shared and copied as they are. Prefixes are
    shared then as far as `snapshots` has the state that belongs behind their blocks. Without `share_forks` each
    sequence of a request reserves its whole length, as if it had its own copy.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        share_prefixes: bool = True,
        share_forks: bool = True,
        states: StateManager | None = None,
        snapshots: StateSnapshots | None = None,
    ) -> None:
        self.share_forks = share_forks
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.states = states
        self.snapshots = snapshots
        self._share_prefixes = share_prefixes and (states is None or snapshots is not None)
        self._free = list(range(1, num_blocks))  # a heap: low ids first keeps the used part compact
        heapify(self._free)
        self._num_references = [0] * num_blocks
        self._block_of_prefix: dict[bytes, int] = {}
        self._prefix_of_block: dict[int, bytes] = {}
        self._unreferenced: OrderedDict[int, None] = OrderedDict()  # remembered and unused, oldest first
        self._num_reserved = 0
        self.num_prefix_queries = 0  # prompt tokens in full blocks that were looked up since the start
        self.num_prefix_hits = 0  # those of them that were found

    @property
    def num_usable(self) -> int:
        """All blocks that sequences can have together."""
        return self.num_blocks - 1

    @property
    def num_available(self) -> int:
        """Blocks that are neither used nor reserved."""
        return len(self._free) + len(self._unreferenced) - self._num_reserved

    @property
    def num_in_use(self) -> int:
        return self.num_usable - len(self._free) - len(self._unreferenced)

    @property
    def num_states_in_use(self) -> int:
        """Recurrent states of sequences; one that is also kept for others counts once no sequence has it."""
        num_kept = 0 if self.snapshots is None else self.snapshots.num_kept
        return 0 if self.states is None else self.states.num_in_use - num_kept

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def prefix_of(self, prompt_ids: Sequence[int]) -> Prefix:
        """The keys of the prompt's full blocks; empty where sharing is off."""
        if not self._share_prefixes:
            return Prefix()
        keys, key = [], b""
        for start in range(0, len(prompt_ids) - self.block_size + 1, self.block_size):
            block_ids = np.asarray(prompt_ids[start : start + self.block_size], dtype=np.int64)
            key = blake2b(key + block_ids.tobytes(), digest_size=16).digest()
            keys.append(key)
        return Prefix(tuple(keys), (len(prompt_ids) - 1) // self.block_size, len(prompt_ids))

    def keys_to_come(self, prefix: Prefix, num_computed: int) -> set[bytes]:
        """The blocks of a running prompt behind which others will find something: those that are still to be computed.

        In models with recurrent states those after which its state will be kept.
        """
        if self.snapshots is None:
            return set(prefix.keys[num_computed // self.block_size :])
        return {prefix.keys[end // self.block_size - 1] for end in self.snapshot_ends(prefix, num_computed)}

    def snapshot_ends(self, prefix: Prefix, start: int) -> Iterator[int]:
        """The tokens of a prompt, more than `start`, after which its state is to be kept."""
        if self.snapshots is None:
            return iter(())
        return self.snapshots.wanted(prefix.keys, prefix.num_tokens, start, self._block_of_prefix)

    def gains_by_waiting(self, prefix: Prefix, keys_to_come: set[bytes]) -> bool:
        """Whether a prompt would find more computed once these are: its next block, or a state further on."""
        usable = prefix.keys[: prefix.num_usable]
        if keys_to_come.isdisjoint(usable):
            return False
        if self.snapshots is None:
            return next((key for key in usable if key not in self._block_of_prefix), None) in keys_to_come
        return not keys_to_come.isdisjoint(usable[len(self._shared_blocks(prefix)) :])

    def allocate(self, prefix: Prefix, num_blocks_needed: int) -> tuple[BlockTable, int] | None:
        """A table that begins with the blocks of the prefix, and the number of tokens they cover.

        Reserves `num_blocks_needed`, the request's worst case. None where it does not fit now.
        """
        shared = self._shared_blocks(prefix)
        num_reused = sum(block in self._unreferenced for block in shared)  # they are no longer available either
        if num_blocks_needed - len(shared) + num_reused > self.num_available:
            return None
        for block in shared:
            self._reference(block)
        if self.states is None:
            state_index = None
        elif shared and self.snapshots is not None:
            state_index = self.snapshots.use(prefix.keys[len(shared) - 1])
        else:
            state_index = self.states.allocate()
        self.num_prefix_queries += prefix.num_usable * self.block_size if prefix.keys else 0
        self.num_prefix_hits += len(shared) * self.block_size
        reservation = Reservation(num_blocks_needed - len(shared))
        self._num_reserved += reservation.num_blocks
        return BlockTable(list(shared), reservation, state_index), len(shared) * self.block_size

    def append(self, table: BlockTable, num_tokens: int) -> None:
        """Appends blocks until the table holds `num_tokens`."""
        while len(table.block_ids) < self.blocks_for(num_tokens):
            table.block_ids.append(self._take(table))

    def fork(self, table: BlockTable) -> BlockTable:
        """A second table with the same blocks and the same reservation."""
        for block in table.block_ids:
            self._reference(block)
        if table.state_index is not None:
            assert self.states is not None
            self.states.reference(table.state_index)
        return BlockTable(list(table.block_ids), table.reservation, table.state_index)

    def copy_on_write(self, table: BlockTable, index: int) -> tuple[int, int] | None:
        """Replaces a shared block by one of the table's own; returns (from, to) where its content must be copied."""
        old = table.block_ids[index]
        if self._num_references[old] == 1 and old not in self._prefix_of_block:
            return None
        new = self._take(table)
        table.block_ids[index] = new
        self._release(old)
        return old, new

    def copy_state_on_write(self, table: BlockTable) -> tuple[int, int] | None:
        """Replaces a shared state by one of the table's own; returns (from, to) where its content must be copied."""
        if self.states is None or table.state_index is None or not self.states.is_shared(table.state_index):
            return None
        old, table.state_index = table.state_index, self.states.allocate()
        self.states.release(old)
        return old, table.state_index

    def remember_prefix(self, prefix: Prefix, table: BlockTable, num_computed: int) -> None:
        """Makes the prompt's full, computed blocks available to later prompts."""
        for index, key in enumerate(prefix.keys[: num_computed // self.block_size]):
            block = table.block_ids[index]
            if key not in self._block_of_prefix and block not in self._prefix_of_block:
                self._block_of_prefix[key] = block
                self._prefix_of_block[block] = key

    def remember_state(self, prefix: Prefix, table: BlockTable, num_computed: int) -> None:
        """Keeps the state behind the computed part of a prompt, where others will go on from it.

        Called before `remember_prefix`, which makes the prompt one of the others.
        """
        if next(self.snapshot_ends(prefix, num_computed - 1), None) == num_computed:
            assert self.snapshots is not None and table.state_index is not None
            self.snapshots.keep(prefix.keys[num_computed // self.block_size - 1], table.state_index)

    def expect(self, prefix: Prefix) -> None:
        """Counts a prompt that waits or runs among those that may begin like another."""
        if self.snapshots is not None:
            self.snapshots.expect(prefix.keys)

    def no_longer_expect(self, prefix: Prefix, *, has_failed: bool) -> None:
        """The prompt has ended; the states behind the blocks of one that failed are dropped."""
        if self.snapshots is not None:
            self.snapshots.no_longer_expect(prefix.keys)
            for key in prefix.keys if has_failed else ():
                self.snapshots.drop(key)

    def free(self, table: BlockTable, *, keep_reserved: bool = False) -> None:
        """Frees the table's blocks; with `keep_reserved` they stay reserved for the same request."""
        for block in table.block_ids:
            is_free = self._release(block)
            if is_free and keep_reserved:
                table.reservation.num_blocks += 1
                self._num_reserved += 1
        table.block_ids = []
        if table.state_index is not None:
            assert self.states is not None
            self.states.release(table.state_index)
            table.state_index = None

    def discard(self, block_ids: Iterable[int]) -> list[int]:
        """Drops the content of the blocks that nobody uses from the prefixes; returns these blocks."""
        unused = sorted(block for block in set(block_ids) if not self._num_references[block])
        for block in unused:
            if block in self._unreferenced:
                del self._unreferenced[block]
                self._drop_prefix(block)
                heappush(self._free, block)
        return unused

    def cancel(self, reservation: Reservation) -> None:
        """Frees what a request reserved and did not take."""
        self._num_reserved -= reservation.num_blocks
        reservation.num_blocks = 0

    def _shared_blocks(self, prefix: Prefix) -> list[int]:
        blocks = []
        for key in prefix.keys[: prefix.num_usable]:
            block = self._block_of_prefix.get(key)
            if block is None:
                break
            blocks.append(block)
        if self.snapshots is not None:
            return blocks[: self.snapshots.longest(prefix.keys, prefix.num_tokens, len(blocks))]
        return blocks

    def _drop_prefix(self, block: int) -> None:
        """Drops a block, and the state behind it, from the remembered prefixes."""
        key = self._prefix_of_block.pop(block)
        del self._block_of_prefix[key]
        if self.snapshots is not None:
            self.snapshots.drop(key)

    def _take(self, table: BlockTable) -> int:
        """A free block from the table's reservation; evicts the oldest unused prefix where none is free."""
        assert table.reservation.num_blocks > 0, "a sequence asked for more blocks than its request reserved"
        table.reservation.num_blocks -= 1
        self._num_reserved -= 1
        if self._free:
            block = heappop(self._free)
        else:
            block, _ = self._unreferenced.popitem(last=False)
            self._drop_prefix(block)
        self._num_references[block] = 1
        return block

    def _reference(self, block: int) -> None:
        self._unreferenced.pop(block, None)
        self._num_references[block] += 1

    def _release(self, block: int) -> bool:
        """Drops one reference; true where it was the last."""
        self._num_references[block] -= 1
        if self._num_references[block]:
            return False
        if block in self._prefix_of_block:
            self._unreferenced[block] = None
        else:
            heappush(self._free, block)
        return True
