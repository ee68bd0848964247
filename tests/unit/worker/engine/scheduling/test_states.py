"""Recurrent states are shared, copied before they are written to, and freed; prompts are divided where allowed."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.choices import Choice
from worker.engine.request import Request
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.prompt_chunks import ChunkRule
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.state_manager import StateManager
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


def scheduler_with_states(num_seqs: int) -> Scheduler:
    blocks = BlockManager(400, 4, states=StateManager(num_seqs))
    return Scheduler(blocks, num_seqs, 16, chunk_rule=ChunkRule(8, min_last=2))


class Contents:
    """Stands in for the device: a state holds the tokens that it has seen."""

    def __init__(self, num_states: int) -> None:
        self.states: list[tuple[int, ...]] = [(-1,)] * num_states

    def run(self, plan: StepPlan) -> None:
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
    assert scheduler.blocks.states is not None and scheduler.blocks.states.num_in_use == 0
    assert scheduler.blocks.num_in_use == 0


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
