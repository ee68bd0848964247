"""Decides what the next step computes: who decodes, whose prompt is prefilled, who is let in. No tensors.

Sequences are admitted in order of priority and arrival when a row and their worst case of KV room are free; a
sequence that ends frees both at the next step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic

from worker.engine.scheduling.block_manager import KVBlocks
from worker.engine.scheduling.sequence import Sequence, SequenceGroup

#: Steps without trouble before a batch that was halved may double again.
STEPS_BEFORE_GROWING = 256


@dataclass(frozen=True)
class PrefillChunk:
    """Prompt tokens `start` … `end` of a sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == self.sequence.num_prompt_tokens


@dataclass
class StepPlan:
    """One step: sequences that decode a token, and prompt chunks that are prefilled beside them."""

    decodes: list[Sequence] = field(default_factory=list)
    prefills: list[PrefillChunk] = field(default_factory=list)


class Scheduler:
    """Holds the waiting and the running groups. `prefill_tile` keeps chunk borders where attention tiles end."""

    def __init__(
        self,
        blocks: KVBlocks,
        max_num_seqs: int,
        max_prefill_tokens: int,
        prefill_tile: int,
        *,
        keep_phases_apart: bool = False,
    ) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self._max_prefill_tokens = max(max_prefill_tokens // prefill_tile, 1) * prefill_tile
        self._prefill_tile = prefill_tile
        self._keep_phases_apart = keep_phases_apart
        # What is in force: less than the above for a while after memory ran out.
        self._row_limit, self._prefill_limit = max_num_seqs, self._max_prefill_tokens
        self._steps_since_halved = 0
        self._steps_before_growing = STEPS_BEFORE_GROWING
        self.waiting: deque[SequenceGroup] = deque()
        self.running: list[SequenceGroup] = []
        self._num_rows = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def blocks_needed(self, group: SequenceGroup) -> int:
        """KV blocks that the group needs in the worst case: a prompt once, then each row's own tail."""
        sequence = group.sequences[0]
        total = self.blocks.blocks_for(sequence.num_prompt_tokens + sequence.max_new_tokens)
        if group.num_rows == 1:
            return total
        shared = sequence.num_prompt_tokens // self.blocks.block_size
        return shared + group.num_rows * (total - shared)

    def enqueue(self, group: SequenceGroup) -> None:
        """Lets a group wait behind those of its priority."""
        place = len(self.waiting)
        while place and self.waiting[place - 1].request.priority < group.request.priority:
            place -= 1
        self.waiting.insert(place, group)

    def halve(self) -> None:
        """After memory ran out: all that runs waits again, first in line, and half as much runs at once."""
        self._row_limit = max(1, self._num_rows // 2)
        self._prefill_limit = max(self._prefill_tile, self._prefill_limit // 2)
        self._steps_since_halved = 0
        self._steps_before_growing *= 2  # each time later: what starts over must come to its end once
        for group in reversed(list(self.running)):
            self._free(group)
            group.start_over()
            self.waiting.appendleft(group)

    def plan(self) -> StepPlan:
        """Admits what fits, then lists this step's work; empty only where nothing can run."""
        self._grow()
        self.admit()
        plan = StepPlan()
        budget = self._prefill_limit
        for group in self.running:
            if group.sequences[0].is_prefilled:
                plan.decodes += [s for s in group.sequences if s.finish_reason is None and not s.ends_with_pending]
            elif budget > 0:
                chunk = self._chunk(group.sequences[0], budget)
                plan.prefills.append(chunk)
                budget -= self._round_up(chunk.end - chunk.start)
        if plan.prefills and self._keep_phases_apart:
            plan.decodes = []
        return plan

    def retire(self, group: SequenceGroup) -> None:
        """Takes a group out, whatever state it is in, and frees its rows and its room."""
        if group in self.running:
            self._free(group)
        else:
            self.waiting.remove(group)

    def _free(self, group: SequenceGroup) -> None:
        for sequence in group.sequences:
            self.blocks.free(sequence.table)
            self.blocks.cancel(sequence.table.reservation)
        self.running.remove(group)
        self._num_rows -= group.num_rows

    def _grow(self) -> None:
        """After enough steps without trouble, twice as much may run again, up to what was configured."""
        self._steps_since_halved += 1
        if self._steps_since_halved >= self._steps_before_growing and self._row_limit < self.max_num_seqs:
            self._row_limit = min(self.max_num_seqs, self._row_limit * 2)
            self._prefill_limit = min(self._max_prefill_tokens, self._prefill_limit * 2)
            self._steps_since_halved = 0

    def admit(self) -> list[SequenceGroup]:
        """Lets in, in order of priority and arrival, what has room; returns those groups.

        One whose prefix another is just computing is passed over: it will find it computed.
        """
        being_computed = {key for group in self.running for key in self._uncomputed_keys(group)}
        admitted, passed_over = [], []
        while self.waiting and self._has_rows_for(self.waiting[0]):
            group = self.waiting[0]
            if self.blocks.first_missing(group.prefix) in being_computed:
                passed_over.append(self.waiting.popleft())
                continue
            room = self.blocks.admit(group.prefix, self.blocks_needed(group))
            if room is None:
                break
            sequence = group.sequences[0]
            sequence.table, sequence.num_computed = room
            group.admitted = monotonic()
            self.running.append(self.waiting.popleft())
            self._num_rows += group.num_rows
            being_computed.update(self._uncomputed_keys(group))
            admitted.append(group)
        self.waiting.extendleft(reversed(passed_over))
        return admitted

    def _has_rows_for(self, group: SequenceGroup) -> bool:
        """Whether its rows are free. One that needs more than the limit of a bad moment runs alone."""
        return self._num_rows + group.num_rows <= self._row_limit or not self.running

    def _uncomputed_keys(self, group: SequenceGroup) -> tuple[bytes, ...]:
        """The group's prefix blocks that its prefill has still to compute."""
        return group.prefix.keys[group.sequences[0].num_computed // self.blocks.block_size :]

    def _chunk(self, sequence: Sequence, budget: int) -> PrefillChunk:
        start = sequence.num_computed
        end = min(sequence.num_prompt_tokens, start + budget)
        if end < sequence.num_prompt_tokens:
            end -= end % self._prefill_tile
        return PrefillChunk(sequence, start, end)

    def _round_up(self, num_tokens: int) -> int:
        return -(-num_tokens // self._prefill_tile) * self._prefill_tile
