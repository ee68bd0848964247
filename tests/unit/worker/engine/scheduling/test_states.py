"""Recurrent states are shared, copied before they are written to, and freed; prompts are divided where allowed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.choices import Choice
from worker.engine.kv_memory import MAX_SNAPSHOTS
from worker.engine.request import NaNLogits, Request
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.prompt_chunks import ChunkRule
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.state_manager import StateManager
from worker.engine.scheduling.state_snapshots import StateSnapshots
from worker.engine.scheduling.step_plan import StepPlan

#: New tokens of a sequence.
MOST = 8


@given(
    num_prompt_tokens=st.integers(1, 3000),
    budget_units=st.integers(1, 9),
    unit=st.sampled_from([1, 16, 64, 96]),
    block_size=st.sampled_from([4, 16, 64]),
    min_last=st.integers(1, 2),
)
def test_chunks_end_where_the_layers_allow(
    num_prompt_tokens: int, budget_units: int, unit: int, block_size: int, min_last: int
) -> None:
    rule = ChunkRule(unit, min_last=min_last).of_blocks(block_size)
    budget = budget_units * rule.unit
    ends, start = [], 0
    while start < num_prompt_tokens:
        end = rule.end(start, num_prompt_tokens, budget)
        assert start < end <= start + budget + min_last - 1
        ends.append(end)
        start = end
    assert all(end % unit == 0 and end % block_size == 0 for end in ends[:-1])
    assert ends[-1] == num_prompt_tokens
    assert len(ends) == 1 or ends[-1] - ends[-2] >= min_last


def test_a_layer_that_forgets_takes_prompts_whole() -> None:
    assert ChunkRule(64, splits=False).end(0, 1000, 64) == 1000


RULE = ChunkRule(8, min_last=2)
BLOCK_SIZE = 4


def scheduler_with_states(num_seqs: int, num_snapshots: int = 0, num_blocks: int = 400) -> Scheduler:
    states = StateManager(num_seqs + num_snapshots)
    snapshots = StateSnapshots(states, num_snapshots, RULE, BLOCK_SIZE) if num_snapshots else None
    blocks = BlockManager(num_blocks, BLOCK_SIZE, states=states, snapshots=snapshots)
    return Scheduler(blocks, num_seqs, 16, chunk_rule=RULE)


class Contents:
    """Stands in for the device: a state holds the tokens that it has seen, a block those at its places."""

    def __init__(self, num_states: int, num_blocks: int = 400) -> None:
        self.states: list[tuple[int, ...]] = [(-1,)] * num_states
        self.blocks = [[-1] * BLOCK_SIZE for _ in range(num_blocks)]
        self.num_prefilled = 0

    def run(self, plan: StepPlan) -> None:
        self.num_prefilled += plan.num_prefill_tokens
        for source, target in plan.block_copies:
            self.blocks[target] = list(self.blocks[source])
        sources = [self.states[source] for source, _ in plan.state_copies]
        assert len({target for _, target in plan.state_copies}) == len(sources)
        for (_, target), content in zip(plan.state_copies, sources, strict=True):
            self.states[target] = content
        written: list[int] = []
        for sequence in plan.decodes:
            self._write(sequence, sequence.num_tokens - 1, sequence.num_tokens, written)
        for chunk in plan.prefills:
            self._write(chunk.sequence, chunk.start, chunk.end, written)
        assert len(set(written)) == len(written), "two sequences write to one state"

    def _write(self, sequence: Sequence, start: int, end: int, written: list[int]) -> None:
        index = sequence.table.state_index
        assert index is not None
        before = () if start == 0 else self.states[index]
        tokens = [*sequence.request.prompt_ids, *sequence.token_ids]
        assert before == tuple(tokens[:start]), "a sequence found another one's state"
        self.states[index] = tuple(tokens[:end])
        written.append(index)
        for position in range(start, end):
            self.blocks[sequence.table.block_ids[position // BLOCK_SIZE]][position % BLOCK_SIZE] = tokens[position]
        found = [token for block in sequence.table.block_ids for token in self.blocks[block]]
        assert found[:end] == tokens[:end], "a sequence found another one's keys"


def choice(token_id: int) -> Choice:
    return Choice(token_id, -1.0, -1.0, 1.0, 1, 1, [])


@given(seed=st.integers(0, 2**32))
def test_each_sequence_finds_the_state_of_its_own_tokens(seed: int) -> None:
    """Samples, beams that fork at random, cancellations and refills."""
    rng = random.Random(seed)
    num_seqs = rng.choice([4, 5, 9])
    scheduler, contents = scheduler_with_states(num_seqs), Contents(num_seqs)
    for index in range(8):
        width = rng.randint(1, 4)
        kind: dict[str, Any] = {"strategy": "beam", "num_beams": width} if index % 2 else {"n": width}
        if not index % 2 and width > 1:
            kind["strategy"] = "sample"
        prompt_ids = tuple(rng.choices(range(50), k=rng.randint(1, 40)))
        request = Request(index, prompt_ids, GenerationParams(max_new_tokens=MOST, **kind))
        scheduler.enqueue(SequenceGroup(request, [Sequence(request, 0, MOST)], arrived=0.0))
    for _ in range(1000):
        if not scheduler.has_work:
            break
        plan = scheduler.plan()
        contents.run(plan)
        scheduler.complete(plan)
        advance(scheduler, plan, rng)
    assert not scheduler.has_work
    assert scheduler.blocks.num_states_in_use == 0
    assert scheduler.blocks.num_in_use == 0


def group_of(index: int, prompt_ids: Iterable[int], **params: Any) -> SequenceGroup:
    request = Request(index, tuple(prompt_ids), GenerationParams(max_new_tokens=MOST, **params))
    return SequenceGroup(request, [Sequence(request, 0, MOST)], arrived=0.0)


@given(seed=st.integers(0, 2**32))
def test_prompts_that_begin_alike_find_the_state_behind_their_common_part(seed: int) -> None:
    """A tree of prompts that come in several waves, with too few states to keep, failures and memory that runs out."""
    rng = random.Random(seed)
    num_seqs, num_snapshots, num_blocks = rng.choice([4, 7]), rng.choice([1, 2, 16]), rng.choice([40, 400])
    scheduler = scheduler_with_states(num_seqs, num_snapshots, num_blocks)
    contents = Contents(num_seqs + num_snapshots, num_blocks)
    stems = [tuple(rng.choices(range(50), k=rng.choice([7, 8, 9, 16, 17, 24]))) for _ in range(3)]
    coming = [
        group_of(index, sum(rng.choices(stems, k=rng.randint(1, 3)), ()), strategy="sample", n=rng.randint(1, 4))
        for index in range(14)
    ]
    for _ in range(1000):
        if not scheduler.has_work and not coming:
            break
        while coming and rng.random() < 0.5:
            scheduler.enqueue(coming.pop())
        plan = scheduler.plan()
        if len(scheduler.running) > 1 and rng.random() < 0.05:
            scheduler.halve()  # before the plan's work is noted as done
            continue
        contents.run(plan)
        scheduler.complete(plan)
        if scheduler.running and rng.random() < 0.1:
            group = rng.choice(scheduler.running)
            group.error = NaNLogits("NaN")
            scheduler.retire_finished([group])
        advance(scheduler, plan, rng)
    assert not scheduler.has_work and not coming
    assert scheduler.blocks.num_states_in_use == 0 and scheduler.blocks.num_in_use == 0
    assert scheduler.blocks.snapshots is not None and scheduler.blocks.snapshots.num_kept <= num_snapshots
    assert not scheduler.blocks.snapshots._num_prompts


@pytest.mark.parametrize("num_at_once", [1, 20])
def test_a_common_beginning_is_computed_once_where_it_is_known(num_at_once: int) -> None:
    """All prompts waiting: once. One after the other: by the first, and by the second that is seen to share it."""
    scheduler, contents = scheduler_with_states(4, 16), Contents(20)
    stem = tuple(range(24))
    for index in range(20):
        scheduler.enqueue(group_of(index, [*stem, *(50 + index,) * 6]))
        while scheduler.has_work and (index == 19 or num_at_once == 1):
            plan = scheduler.plan()
            contents.run(plan)
            scheduler.complete(plan)
            advance(scheduler, plan, random.Random(index))
    assert contents.num_prefilled == 20 * 6 + (2 if num_at_once == 1 else 1) * len(stem)


def tree_of_prompts(seed: int, systems: int, jobs: int) -> list[tuple[int, ...]]:
    """Questions behind some system prompts, half of them behind one of two lists of examples too."""
    rng = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(1000), k=rng.randint(low, high)))

    stems = [(some(70, 330), (some(60, 130), some(60, 130))) for _ in range(systems)]
    chosen = [rng.choice(stems) for _ in range(jobs)]
    return [system + rng.choice(((), *examples[:1], *examples[1:])) + some(5, 40) for system, examples in chosen]


def num_prefilled(prompts: list[tuple[int, ...]], wave: int, *, is_hybrid: bool) -> int:
    """Prompt tokens computed where `wave` prompts come every five steps; blocks of 64 tokens, 16 sequences."""
    rule = ChunkRule(64, min_last=2) if is_hybrid else ChunkRule()
    states = StateManager(16 + MAX_SNAPSHOTS) if is_hybrid else None
    snapshots = StateSnapshots(states, MAX_SNAPSHOTS, rule, 64) if states is not None else None
    scheduler = Scheduler(BlockManager(4000, 64, states=states, snapshots=snapshots), 16, 512, chunk_rule=rule)
    coming, count = [group_of(*each) for each in enumerate(prompts)], 0
    for step in range(10_000):
        if not step % 5:
            for group in coming[:wave]:
                scheduler.enqueue(group)
            del coming[:wave]
        plan = scheduler.plan()
        count += plan.num_prefill_tokens
        scheduler.complete(plan)
        advance(scheduler, plan, random.Random(step))
        if not coming and not scheduler.has_work:
            break
    return count


@pytest.mark.parametrize(("wave", "most"), [(10_000, 1.0), (8, 1.35), (1, 1.4)])
@pytest.mark.parametrize(("systems", "jobs"), [(4, 49), (12, 200)])
def test_prompt_tokens_computed_beside_those_of_plain_attention(
    systems: int, jobs: int, wave: int, most: float
) -> None:
    """With all prompts waiting as many; where they come one by one the second of each kind computes it once more."""
    prompts = tree_of_prompts(systems, systems, jobs)
    plain, hybrid = (num_prefilled(prompts, wave, is_hybrid=is_hybrid) for is_hybrid in (False, True))
    assert hybrid <= most * plain, (hybrid / plain, plain, sum(map(len, prompts)))
    assert plain < 0.5 * sum(map(len, prompts))


def advance(scheduler: Scheduler, plan: StepPlan, rng: random.Random) -> None:
    """Gives each sequence of the plan a token; some groups end, some are cancelled, beams fork."""
    sampled = list(plan.decodes)
    sampled += [sequence for chunk in plan.prefills if chunk.is_last for sequence in chunk.group.sequences]
    for group in list({id(g): g for s in sampled if (g := scheduler.group_of(s)) is not None}.values()):
        if rng.random() < 0.15 or (group.is_beam and len(group.sequences[0].token_ids) == MOST):
            scheduler.retire(group)
        elif group.is_beam:
            parents = rng.choices(group.sequences, k=len(group.sequences))
            beams = [(parent, parent.fork(parent.index)) for parent in parents]
            for _, beam in beams:
                beam.append(choice(rng.randrange(50)))
            scheduler.fork_beams(group, beams)
        else:
            for sequence in group.sequences:
                if sequence.finish_reason is None:
                    sequence.append(choice(rng.randrange(50)))
                    is_last = len(sequence.token_ids) == MOST or rng.random() < 0.1
                    sequence.finish_reason = FinishReason.LENGTH if is_last else None
            scheduler.retire_finished([group])
