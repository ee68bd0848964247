"""Scheduling without a model: who is admitted, which blocks a step gets, and what happens when memory runs out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.request import Request
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.prompt_chunks import ChunkRule, PromptGroups
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import StepPlan

SIZE = 4


def scheduler(num_blocks: int = 64, max_num_seqs: int = 8, max_prefill_tokens: int = 16, **options: Any) -> Scheduler:
    return Scheduler(BlockManager(num_blocks + 1, SIZE), max_num_seqs, max_prefill_tokens, **options)


def enqueue(to: Scheduler, request_id: int, prompt: int = 6, *, priority: int = 5, **params: Any) -> SequenceGroup:
    """A request whose prompt shares nothing with those of other ids."""
    prompt_ids = tuple(range(1000 * request_id, 1000 * request_id + prompt))
    asked = GenerationParams.model_validate({"max_new_tokens": 4, **params})
    request = Request(request_id, prompt_ids, asked, priority)
    group = SequenceGroup(request, [Sequence(request, 0, asked.max_new_tokens)], arrived=0.0)
    to.enqueue(group)
    return group


def run(scheduling: Scheduler) -> StepPlan:
    """One step whose tokens are all the same."""
    plan = scheduling.plan()
    scheduling.complete(plan)
    for sequence in plan.decodes:
        sequence.token_ids.append(7)
    for chunk in plan.prefills:
        for sequence in chunk.group.sequences if chunk.is_last else ():
            sequence.token_ids.append(7)
    return plan


def test_the_urgent_are_admitted_first_and_told_of_once() -> None:
    scheduling = scheduler(max_num_seqs=2)
    for request_id, priority in enumerate([5, 5, 9]):
        enqueue(scheduling, request_id, priority=priority)
    assert [group.request.id for group in run(scheduling).admitted] == [2, 0]
    assert run(scheduling).admitted == []
    scheduling.retire(scheduling.groups[2])
    assert [group.request.id for group in run(scheduling).admitted] == [1]


def test_a_plan_has_blocks_for_all_that_it_writes() -> None:
    scheduling = scheduler()
    (sequence,) = enqueue(scheduling, 0, prompt=6).sequences
    for num_tokens in (6, 7, 8, 9):
        run(scheduling)
        assert len(sequence.table.block_ids) == scheduling.blocks.blocks_for(num_tokens)
        assert sequence.num_computed == num_tokens


def test_prompts_are_cut_at_borders_of_blocks() -> None:
    scheduling = scheduler(max_prefill_tokens=10)
    enqueue(scheduling, 0, prompt=21)
    chunks = [chunk for _ in range(3) for chunk in run(scheduling).prefills]
    assert [(chunk.start, chunk.end, chunk.is_last) for chunk in chunks] == [
        (0, 8, False), (8, 16, False), (16, 21, True),
    ]  # fmt: skip


def test_prompts_without_borders_fill_a_step_to_its_last_token() -> None:
    scheduling = scheduler(max_prefill_tokens=10, chunk_rule=ChunkRule(in_blocks=False))
    for request_id in range(4):
        enqueue(scheduling, request_id, prompt=7)
    steps = [[(chunk.start, chunk.end) for chunk in run(scheduling).prefills] for _ in range(3)]
    assert steps == [[(0, 7), (0, 3)], [(3, 7), (0, 6)], [(6, 7), (0, 7)]]


def test_prompts_begin_in_groups_while_others_decode() -> None:
    """Five that wait for four rows begin together, a pair after three steps, and all at once beside a prompt."""
    scheduling = scheduler(1000, max_prefill_tokens=64, prompt_groups=PromptGroups(4, 3))
    for request_id in range(9):
        enqueue(scheduling, request_id, max_new_tokens=90)
    admitted = [[group.request.id for group in run(scheduling).admitted] for _ in range(4)]
    assert admitted == [list(range(8)), [], [], []]
    retired = [(0,), (1,), (2, 3), (), (4, 5), (), (), (), ()]
    found = []
    for number, request_ids in enumerate(retired):
        enqueue(scheduling, 100 + number, max_new_tokens=90)
        for request_id in request_ids:
            scheduling.retire(scheduling.groups[request_id])
        found.append([group.request.id for group in run(scheduling).admitted])
    assert found == [[], [], [8, 100, 101, 102], [], [], [], [], [103, 104], []]


#: Of each step: the samples of a new request, none or one to three, its prompt's tokens, and a group that ends.
STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(0, 9)), min_size=5, max_size=40)


@settings(max_examples=40)
@given(STEPS, st.integers(1, 5), st.integers(0, 5), st.integers(100, 300))
def test_a_prompt_that_has_room_is_held_back_for_so_many_steps_and_no_more(
    steps: list[tuple[int, int, int]], size: int, most: int, num_blocks: int
) -> None:
    """And in no step that has prompts anyway, or nothing else to do."""
    scheduling, num_held = scheduler(num_blocks, prompt_groups=PromptGroups(size, most)), 0
    for number, (samples, prompt, ended) in enumerate(steps):
        if samples:
            enqueue(scheduling, number, prompt, strategy="sample", n=samples, max_new_tokens=80)
        for group in scheduling.running[ended:][:1]:
            scheduling.retire(group)
        has_room = scheduling.waiting and scheduling.blocks_needed(scheduling.waiting[0]) <= min(
            scheduling.blocks.num_available,
            num_blocks * (sum(each.max_sequences for each in [*scheduling.running, scheduling.waiting[0]]) <= 8),
        )
        only_decodes = scheduling.running and all(each.sequences[0].is_prefilled for each in scheduling.running)
        plan = run(scheduling)
        is_held = has_room and not plan.admitted
        num_held = num_held + 1 if is_held else 0
        assert num_held <= most
        assert not is_held or (only_decodes and not plan.prefills)


def test_samples_share_the_prompt_and_copy_the_block_they_write_to() -> None:
    scheduling = scheduler()
    group = enqueue(scheduling, 0, prompt=6, strategy="sample", n=3)
    assert group.prefilled is None
    run(scheduling)
    assert group.prefilled is not None
    assert [sequence.index for sequence in group.sequences] == [0, 1, 2]
    assert len({tuple(sequence.table.block_ids) for sequence in group.sequences}) == 1
    last = group.sequences[0].table.block_ids[1]
    plan = run(scheduling)
    assert [source for source, _ in plan.block_copies] == [last, last]  # the last one to write keeps the block
    assert len({sequence.table.block_ids[1] for sequence in group.sequences}) == 3
    assert len({sequence.table.block_ids[0] for sequence in group.sequences}) == 1


def test_beams_continue_on_the_blocks_of_their_parents() -> None:
    scheduling = scheduler()
    group = enqueue(scheduling, 0, prompt=6, strategy="beam", num_beams=2)
    run(scheduling)
    run(scheduling)
    first, second = group.sequences
    kept = list(second.table.block_ids)
    scheduling.fork_beams(group, [(second, second.fork(0)), (second, second.fork(0))])
    assert [beam.index for beam in group.sequences] == [0, 1]
    assert [beam.table.block_ids for beam in group.sequences] == [kept, kept]
    assert first.table.block_ids == []
    scheduling.retire(group)
    assert scheduling.blocks.num_available == scheduling.blocks.num_usable


def test_a_sequence_that_ended_frees_its_blocks_before_its_group() -> None:
    scheduling = scheduler()
    group = enqueue(scheduling, 0, prompt=6, strategy="sample", n=2)
    run(scheduling)
    run(scheduling)
    before = scheduling.blocks.num_in_use
    group.sequences[0].finish_reason = FinishReason.EOS
    assert scheduling.retire_finished([group]) == []
    assert scheduling.blocks.num_in_use < before
    assert run(scheduling).decodes == [group.sequences[1]]
    group.sequences[1].finish_reason = FinishReason.EOS
    assert scheduling.retire_finished([group]) == [group]
    assert scheduling.blocks.num_in_use == 0 and not scheduling.has_work


def test_a_sequence_whose_last_token_is_in_flight_is_not_decoded() -> None:
    scheduling = scheduler()
    (sequence,) = enqueue(scheduling, 0, max_new_tokens=2).sequences
    run(scheduling)
    scheduling.complete(scheduling.plan())
    sequence.in_flight_index = 0
    assert scheduling.plan().is_empty


def test_phases_kept_apart_prefill_first() -> None:
    scheduling = scheduler(keep_phases_apart=True)
    enqueue(scheduling, 0)
    run(scheduling)
    enqueue(scheduling, 1)
    plan = run(scheduling)
    assert len(plan.prefills) == 1 and plan.decodes == []
    assert len(run(scheduling).decodes) == 2


def test_a_halved_batch_starts_over_and_grows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.scheduling.scheduler.STEPS_BEFORE_GROWING", 1)
    scheduling = scheduler(max_num_seqs=4, max_prefill_tokens=64)
    groups = [enqueue(scheduling, request_id, max_new_tokens=50) for request_id in range(4)]
    run(scheduling)
    assert scheduling.halve() is None
    assert scheduling.running == [] and list(scheduling.waiting) == groups
    assert all(not group.sequences[0].token_ids for group in groups)
    assert scheduling.blocks.num_available == scheduling.blocks.num_usable
    admitted = [group.request.id for _ in range(3) for group in run(scheduling).admitted]
    assert admitted == [0, 1, 2, 3]  # two at once, the others when the limit has grown


def test_prompts_grow_back_to_their_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks of prompts are one after a halving, which doubles twice; two sequences double once."""
    monkeypatch.setattr("worker.engine.scheduling.scheduler.STEPS_BEFORE_GROWING", 1)
    scheduling = scheduler(max_num_seqs=2, max_prefill_tokens=3 * SIZE)
    for request_id in range(2):
        enqueue(scheduling, request_id)
    run(scheduling)
    assert scheduling.halve() is None
    for group in list(scheduling.waiting):
        scheduling.retire(group)
    for _ in range(8):
        run(scheduling)
    enqueue(scheduling, 3, prompt=20)
    assert [chunk.num_tokens for chunk in run(scheduling).prefills] == [3 * SIZE]


def test_a_group_that_runs_out_of_memory_alone_is_taken_out() -> None:
    scheduling = scheduler()
    group = enqueue(scheduling, 0)
    run(scheduling)
    assert scheduling.halve() is group
    assert not scheduling.has_work and scheduling.blocks.num_in_use == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=5, max_size=40))
def test_running_sequences_have_rows_of_their_own(actions: list[tuple[int, int]]) -> None:
    """From 1 to the number of sequences, whatever begins, forks, ends, is dropped or starts over meanwhile."""
    kinds: list[dict[str, Any]] = [{}, {"strategy": "sample", "n": 3}, {"strategy": "beam"}]
    scheduling = scheduler(num_blocks=1000, max_num_seqs=6)
    for number, (action, choice) in enumerate(actions):
        running = scheduling.running[choice % len(scheduling.running) :][:1] if scheduling.running else []
        if action <= 1:
            enqueue(scheduling, number, prompt=1 + choice, max_new_tokens=50, **kinds[choice % 3])
        elif action == 2 and len(scheduling.running) > 1:
            scheduling.halve()
        for group in running:
            if action == 3:
                scheduling.retire(group)
            elif action == 4:
                group.sequences[choice % len(group.sequences)].finish_reason = FinishReason.EOS
                scheduling.retire_finished([group])
            elif action == 5 and group.is_beam and group.sequences[0].is_prefilled:
                parent = group.sequences[choice % len(group.sequences)]
                scheduling.fork_beams(group, [(parent, parent.fork(index)) for index in range(len(group.sequences))])
        plan = run(scheduling)
        sampled = [*plan.decodes, *(each for chunk in plan.prefills if chunk.is_last for each in chunk.group.sequences)]
        assert all(sequence.batch_index is not None for sequence in sampled)
        held = [each.batch_index for group in scheduling.running for each in group.sequences]
        given_out = sorted(index for index in held if index is not None)
        assert given_out == sorted(set(given_out)) and set(given_out) <= set(range(1, 7))
        assert len(given_out) + scheduling.batch_indices.num_free == 6


def test_a_block_that_is_copied_on_write_must_be_sent_again() -> None:
    """Whenever a backend sends a table's blocks, it has those that the plan writes to."""
    scheduling = scheduler()
    group = enqueue(scheduling, 0, prompt=6, strategy="sample", n=2)
    run(scheduling)
    for sequence in group.sequences:
        sequence.num_blocks_sent = len(sequence.table.block_ids)
    before = [list(sequence.table.block_ids) for sequence in group.sequences]
    assert len(scheduling.plan().block_copies) == 1
    for sequence, block_ids in zip(group.sequences, before, strict=True):
        is_same = sequence.table.block_ids == block_ids
        assert sequence.num_blocks_sent == (2 if is_same else 1)
    assert [list(sequence.table.block_ids) for sequence in group.sequences] != before
