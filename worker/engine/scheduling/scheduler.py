"""Decides the work of each step: who decodes, whose prompt is prefilled, who is admitted. No tensors.

Requests are admitted in order of priority and arrival when their batch rows and their worst case of KV blocks are
free. The scheduler alone allocates, shares, copies and frees blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from time import monotonic

from worker.engine.request import EngineError
from worker.engine.scheduling.admission import capacity_error
from worker.engine.scheduling.batch_indices import BatchIndices
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.prompt_chunks import ChunkRule, PromptGroups
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import PrefillChunk, StepPlan

#: Steps without trouble before a batch that was halved may double again.
STEPS_BEFORE_GROWING = 256


class Scheduler:
    """The waiting and the running groups, and the KV blocks of the running ones.

    With `keep_phases_apart` no step prefills and decodes.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        max_prefill_tokens: int,
        *,
        keep_phases_apart: bool = False,
        chunk_rule: ChunkRule = ChunkRule(),
        prompt_groups: PromptGroups | None = None,
    ) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.batch_indices = BatchIndices(max_num_seqs)
        self._chunk_rule = chunk_rule.of_blocks(blocks.block_size)
        self._max_prefill_tokens = max(max_prefill_tokens // self._chunk_rule.unit, 1) * self._chunk_rule.unit
        self._keep_phases_apart = keep_phases_apart
        self.prompt_groups = prompt_groups or PromptGroups()
        # The limits in force: lower than the above for a while after memory ran out.
        self._sequence_limit, self._prefill_limit = max_num_seqs, self._max_prefill_tokens
        self._steps_since_halved = 0
        self._steps_before_growing = STEPS_BEFORE_GROWING
        self.groups: dict[int, SequenceGroup] = {}  # waiting and running ones, by request id
        self.waiting: deque[SequenceGroup] = deque()
        self.running: list[SequenceGroup] = []
        self._num_sequences = 0  # that the running groups may have
        self._block_clears: list[int] = []  # blocks of failed groups: a masked NaN is NaN still

    @property
    def has_work(self) -> bool:
        return bool(self.groups)

    @property
    def num_sequences(self) -> int:
        """Sequences of the running groups that have not ended."""
        return sum(each.finish_reason is None for group in self.running for each in group.sequences)

    def blocks_needed(self, group: SequenceGroup) -> int:
        """KV blocks that the group needs in the worst case: a prompt once, then each sequence's own tail."""
        sequence = group.sequences[0]
        longest = self.blocks.blocks_for(sequence.num_prompt_tokens + sequence.max_new_tokens)
        if group.max_sequences == 1:
            return longest
        shared = self._blocks_shared(sequence)
        return shared + group.max_sequences * (longest - shared)

    def capacity_error(self, group: SequenceGroup) -> EngineError | None:
        """Divides samples that do not fit side by side into rounds; the error of a group that never fits, else None."""
        if not group.is_beam:
            group.samples_per_round = self._samples_per_round(group)
        return capacity_error(group, self.max_num_seqs, self.blocks_needed(group), self.blocks)

    def _samples_per_round(self, group: SequenceGroup) -> int:
        sequence = group.sequences[0]
        shared = self._blocks_shared(sequence)
        tail = self.blocks.blocks_for(sequence.num_prompt_tokens + sequence.max_new_tokens) - shared
        return max(1, min(self.max_num_seqs, (self.blocks.num_usable - shared) // tail))

    def _blocks_shared(self, sequence: Sequence) -> int:
        """Blocks of the prompt that all sequences of a request have in common."""
        return sequence.num_prompt_tokens // self.blocks.block_size if self.blocks.share_forks else 0

    def enqueue(self, group: SequenceGroup) -> None:
        """Lets a group wait behind those of its priority."""
        group.prefix = self.blocks.prefix_of(group.request.prompt_ids)
        self.groups[group.request.id] = group
        self.blocks.expect(group.prefix)
        position = len(self.waiting)
        while position and self.waiting[position - 1].request.priority < group.request.priority:
            position -= 1
        self.waiting.insert(position, group)

    def _begin_round(self, group: SequenceGroup) -> None:
        """Lets the group's next samples wait before all others of its priority."""
        self._stop(group)
        group.begin_round()
        position = sum(other.request.priority > group.request.priority for other in self.waiting)
        self.waiting.insert(position, group)

    def plan(self) -> StepPlan:
        """Admits what fits, then plans a step, with blocks for all that it writes; empty only where nothing can run."""
        self._grow()
        plan = StepPlan(admitted=self._admit())
        budget = self._prefill_limit
        for group in self.running:
            first = group.sequences[0]
            if first.num_computed >= first.num_prompt_tokens:
                for sequence in group.sequences:
                    if sequence.decodes:
                        plan.decodes.append(sequence)
            elif budget > 0:
                chunk = self._chunk(group, budget)
                plan.prefills.append(chunk)
                budget -= self._chunk_rule.whole_units(chunk.num_tokens)
        if plan.prefills and self._keep_phases_apart:
            plan.decodes = []
        plan.grown = [sequence for sequence in plan.decodes if sequence.num_computed >= sequence.num_writable]
        self.batch_indices.give(plan.grown)  # every sequence grows first of all
        for sequence in plan.grown:
            plan.block_copies += self._append_writable(sequence)
        if self.blocks.states is not None:
            plan.state_copies += [copy for sequence in plan.decodes for copy in self._state_copy(sequence)]
        for chunk in plan.prefills:
            self.blocks.append(chunk.sequence.table, chunk.end)
            plan.state_copies += self._state_copy(chunk.sequence)
            if chunk.is_last:
                self._fork_first(chunk.group)
                self.batch_indices.give(chunk.group.sequences)
        if not plan.is_empty:
            plan.block_clears, self._block_clears = self._block_clears, []
        return plan

    def complete(self, plan: StepPlan) -> None:
        """Notes that the plan is computed; its full prompt blocks are available to other prompts from now on."""
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.prefills:
            for sequence in chunk.group.sequences:
                sequence.num_computed = chunk.end
            self.blocks.remember_state(chunk.group.prefix, chunk.sequence.table, chunk.end)
            self.blocks.remember_prefix(chunk.group.prefix, chunk.sequence.table, chunk.end)
            if chunk.is_last:
                chunk.group.prefilled = chunk.group.prefilled or monotonic()

    def group_of(self, sequence: Sequence) -> SequenceGroup | None:
        """The group of a sequence that decodes; None where the sequence, or its group, has ended."""
        group = self.groups.get(sequence.request.id)
        if group is None or group.error is not None or sequence.finish_reason is not None:
            return None
        return group if group.has(sequence) else None

    def is_live(self, sequence: Sequence) -> bool:
        return self.group_of(sequence) is not None

    def fork_beams(self, group: SequenceGroup, beams: SequenceOf[tuple[Sequence, Sequence]]) -> None:
        """Replaces the group's sequences by (parent, beam) pairs: each beam continues on its parent's blocks."""
        for index, (parent, beam) in enumerate(beams):
            beam.index, beam.table = index, self.blocks.fork(parent.table)
        for sequence in group.sequences:
            self.blocks.free(sequence.table, keep_reserved=True)
            self.batch_indices.take_back(sequence)
        group.sequences = [beam for _, beam in beams] or group.sequences[:1]

    def retire_finished(self, groups: Iterable[SequenceGroup]) -> list[SequenceGroup]:
        """Frees the blocks of sequences that have ended; takes out and returns the groups that have."""
        finished = []
        for group in groups:
            has_failed = group.error is not None
            block_ids = [block for each in group.sequences for block in each.table.block_ids] if has_failed else []
            for sequence in group.sequences:
                if sequence.finish_reason is not None:
                    self.blocks.free(sequence.table)
                    self.batch_indices.take_back(sequence)
            if group.is_finished:
                self.retire(group)
                if group.error is not None:
                    self._block_clears += self.blocks.discard(block_ids)
                finished.append(group)
            elif group.ends_round:
                self._begin_round(group)
        return finished

    def retire(self, group: SequenceGroup) -> None:
        """Takes a group out, waiting or running, and frees its blocks."""
        del self.groups[group.request.id]
        self.blocks.no_longer_expect(group.prefix, has_failed=group.error is not None)
        if group in self.running:
            self._stop(group)
        else:
            self.waiting.remove(group)

    def halve(self) -> SequenceGroup | None:
        """Lets all that runs wait again, first in line, and half as much run at once, after memory ran out.

        A group that ran alone is retired and returned.
        """
        if len(self.running) == 1:
            (alone,) = self.running
            self.retire(alone)
            return alone
        self._sequence_limit = max(1, self._num_sequences // 2)
        unit = self._chunk_rule.unit
        self._prefill_limit = max(unit, self._prefill_limit // (2 * unit) * unit)
        self._steps_since_halved = 0
        self._steps_before_growing *= 2  # doubled, so that requests that start over finish some time
        for group in reversed(list(self.running)):
            self._stop(group)
            group.start_over()
            self.waiting.appendleft(group)
        return None

    def _stop(self, group: SequenceGroup) -> None:
        for sequence in group.sequences:
            sequence.is_dropped = True
            self.blocks.free(sequence.table)
            self.blocks.cancel(sequence.table.reservation)
            self.batch_indices.take_back(sequence)
        self.running.remove(group)
        self._num_sequences -= group.max_sequences

    def _grow(self) -> None:
        """Lets twice as much run after enough steps without trouble, up to the configured limits."""
        self._steps_since_halved += 1
        limits, most = (self._sequence_limit, self._prefill_limit), (self.max_num_seqs, self._max_prefill_tokens)
        if limits != most and self._steps_since_halved >= self._steps_before_growing:
            self._sequence_limit = min(self.max_num_seqs, self._sequence_limit * 2)
            self._prefill_limit = min(self._max_prefill_tokens, self._prefill_limit * 2)
            self._steps_since_halved = 0

    def _admit(self) -> list[SequenceGroup]:
        """Moves waiting groups that fit to the running ones, in order of priority and arrival; returns them.

        A group is passed over while another computes a block of its prefix: it will find it computed.
        """
        if not self.waiting or not self._has_rows_for(self.waiting[0]):
            return []
        if self._only_decodes() and not self.prompt_groups.may_begin(self._num_ready()):
            return []
        to_come = {key for group in self.running for key in self._keys_to_come(group)}
        admitted, passed_over = [], []
        while self.waiting and self._has_rows_for(self.waiting[0]):
            group = self.waiting[0]
            if self.blocks.gains_by_waiting(group.prefix, to_come):
                passed_over.append(self.waiting.popleft())
                continue
            allocated = self.blocks.allocate(group.prefix, self.blocks_needed(group))
            if allocated is None:
                break
            sequence = group.sequences[0]
            sequence.table, sequence.num_computed = allocated
            group.admitted = group.admitted or monotonic()
            self.running.append(self.waiting.popleft())
            self._num_sequences += group.max_sequences
            to_come.update(self._keys_to_come(group))
            admitted.append(group)
        self.waiting.extendleft(reversed(passed_over))
        return admitted

    def _only_decodes(self) -> bool:
        """Whether something runs and no prompt of it is left; the last of them is the last to be computed."""
        return bool(self.running) and self.running[-1].sequences[0].is_prefilled

    def _num_ready(self) -> int:
        """Sequences of the groups, next in line, that have room together; counted no further than a full group."""
        rows, blocks, num_ready = self._sequence_limit - self._num_sequences, self.blocks.num_available, 0
        for group in self.waiting:
            rows -= group.max_sequences
            blocks -= self.blocks_needed(group)
            if rows < 0 or blocks < 0 or num_ready >= self.prompt_groups.size:
                break
            num_ready += group.max_sequences
        return num_ready

    def _has_rows_for(self, group: SequenceGroup) -> bool:
        """Whether its batch rows are free. A group above a limit that was halved runs alone."""
        return self._num_sequences + group.max_sequences <= self._sequence_limit or not self.running

    def _keys_to_come(self, group: SequenceGroup) -> set[bytes]:
        return self.blocks.keys_to_come(group.prefix, group.sequences[0].num_computed)

    def _chunk(self, group: SequenceGroup, budget: int) -> PrefillChunk:
        sequence = group.sequences[0]
        start = sequence.num_computed
        end = self._chunk_rule.end(start, sequence.num_prompt_tokens, budget)
        return PrefillChunk(group, start, min(end, next(self.blocks.snapshot_ends(group.prefix, start), end)))

    def _append_writable(self, sequence: Sequence) -> list[tuple[int, int]]:
        """Gives a decoding sequence a block of its own to write to; returns the copy that this needs, if any."""
        self.blocks.append(sequence.table, sequence.num_computed + 1)
        index = sequence.num_computed // self.blocks.block_size
        copy = self.blocks.copy_on_write(sequence.table, index)
        sequence.num_writable = (index + 1) * self.blocks.block_size
        if copy is None:
            return []
        sequence.num_blocks_sent = min(sequence.num_blocks_sent, index)
        return [copy]

    def _state_copy(self, sequence: Sequence) -> list[tuple[int, int]]:
        """Gives a sequence a recurrent state of its own to write to; returns the copy that this needs, if any."""
        copy = self.blocks.copy_state_on_write(sequence.table)
        return [] if copy is None else [copy]

    def _fork_first(self, group: SequenceGroup) -> None:
        """Makes all samples or beams of the group out of its first sequence; they share its blocks."""
        first = group.sequences[0]
        for index in range(1, group.max_sequences):
            child = first.fork(first.index + index)
            child.table = self.blocks.fork(first.table)
            group.sequences.append(child)
