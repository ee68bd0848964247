"""Acceptance of sampled tokens without a model: sequences grow and end, and a failure is its request's alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from models.params import GenerationParams
from models.states import FinishReason
from worker.engine.choices import Choice, Choices
from worker.engine.config import ModelLimits
from worker.engine.request import Request
from worker.engine.sampling.beam_search import BeamSearch
from worker.engine.scheduling.acceptor import Acceptor
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.step_plan import Sampled, SampledAlone, SampledTokens, TokensInFlight
from worker.engine.stats import EngineStats

EOS = 2
LIMITS = ModelLimits("toy", 100, 64, (EOS,), has_tokenizer=False, dtype="bfloat16")


def choice(token_id: int, logprob: float = -1.0) -> Choices:
    return Choices.stacked([Choice(token_id, logprob, -1.0, 0.5, 1, 1, [])])


class Prefilled:
    """A scheduler whose requests are prefilled, and the acceptor of their tokens."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(BlockManager(64, 4), 16, 64)
        self.stats = EngineStats()
        self.acceptor = Acceptor(self.scheduler, LIMITS, None, BeamSearch, self.stats)

    def add(self, request_id: int, **params: Any) -> SequenceGroup:
        asked = GenerationParams.model_validate({"max_new_tokens": 3, **params})
        request = Request(request_id, (5, 6, 7), asked)
        group = SequenceGroup(request, [Sequence(request, 0, asked.max_new_tokens)], arrived=0.0)
        self.scheduler.enqueue(group)
        self.scheduler.complete(self.scheduler.plan())
        return group

    def accept(self, *sampled: tuple[Sequence, Any]) -> list[SequenceGroup]:
        return self.acceptor.accept([as_sampled(*each) for each in sampled])


def as_sampled(sequence: Sequence, outcome: Any) -> Sampled:
    if isinstance(outcome, int):
        return TokensInFlight([sequence], [outcome])
    return SampledTokens([sequence], outcome) if isinstance(outcome, Choices) else SampledAlone(sequence, outcome)


def test_a_token_is_added_and_may_end_its_sequence() -> None:
    batch = Prefilled()
    first, second = (batch.add(number).sequences[0] for number in range(2))
    changed = batch.accept((first, choice(9)), (second, choice(EOS)))
    assert [group.request.id for group in changed] == [1]
    assert (first.token_ids, first.finish_reason) == ([9], None)
    assert (second.token_ids, second.finish_reason) == ([EOS], FinishReason.EOS)
    assert batch.stats.num_generated_tokens == 2


def test_a_sequence_that_has_ended_gets_nothing() -> None:
    batch = Prefilled()
    ended, cancelled = batch.add(0).sequences[0], batch.add(1)
    batch.accept((ended, choice(EOS)))
    batch.scheduler.retire(cancelled)
    assert batch.accept((ended, choice(9)), (cancelled.sequences[0], choice(9))) == []
    assert ended.token_ids == [EOS] and cancelled.sequences[0].token_ids == []


def test_the_token_of_a_failed_sample_is_in_flight_no_longer() -> None:
    """The step that computes beside it still samples its row."""
    batch = Prefilled()
    samples = batch.add(0, strategy="sample", n=3).sequences
    batch.accept(*[(sample, number) for number, sample in enumerate(samples)])
    batch.accept(*[(sample, choice(9, math.nan)) for sample in samples])
    assert [sample.in_flight_index for sample in samples] == [None, None, None]


def test_a_token_in_flight_is_counted_once_it_is_collected() -> None:
    batch = Prefilled()
    (sequence,) = batch.add(0).sequences
    assert batch.accept((sequence, 3)) == []
    assert (sequence.in_flight_index, sequence.num_generated, batch.stats.num_generated_tokens) == (3, 1, 0)
    batch.accept((sequence, choice(9)))
    assert (sequence.in_flight_index, sequence.num_generated, batch.stats.num_generated_tokens) == (None, 1, 1)


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (choice(9, math.nan), "the model gave NaN at token 2 (dtype bfloat16)"),
        (ValueError("no"), "token 2 of the answer cannot be sampled: ValueError: no"),
    ],
)
def test_a_failing_sample_fails_its_request_at_its_own_token(failing: int, outcome: Any, message: str) -> None:
    """Whether the samples beside it have had their tokens already or not."""
    batch = Prefilled()
    group, neighbor = batch.add(0, strategy="sample", n=3), batch.add(1)
    samples = group.sequences
    batch.accept(*[(sample, choice(9)) for sample in samples])
    outcomes = [outcome if number == failing else choice(8) for number in range(3)]
    batch.accept(*zip(samples, outcomes, strict=True), (neighbor.sequences[0], choice(8)))
    assert group.error is not None and str(group.error).startswith(message)
    assert neighbor.error is None and neighbor.sequences[0].token_ids == [8]
    assert batch.scheduler.retire_finished([group]) == [group]
