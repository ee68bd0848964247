"""Memory that runs out: the batch is halved, the answers stay the same, and a job that is too large fails alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.params import GenerationParams
from tests.conftest import TOY_MODEL
from worker.engine.backend import Backend
from worker.engine.engine import Engine
from worker.engine.request import Request
from worker.engine.scheduling.step_plan import StepPlan

GREEDY = GenerationParams(max_new_tokens=20, ignore_eos=True)
SAMPLED = GenerationParams.model_validate(
    {"strategy": "sample", "max_new_tokens": 20, "ignore_eos": True, "seed": 3, "n": 2}
)
BEAMS = GenerationParams.model_validate({"strategy": "beam", "max_new_tokens": 20, "num_beams": 3})


def load() -> Engine:
    return Engine.load(str(TOY_MODEL), max_num_seqs=32)


def requests_for(engine: Engine) -> list[Request]:
    params = [GREEDY, SAMPLED, BEAMS]
    return [Request(n, engine.encode(f"Story {n}"), params[n % 3]) for n in range(24)]


def answers(engine: Engine) -> dict[int, Any]:
    return {output.request_id: output.completions for output in engine.generate(requests_for(engine))}


@pytest.fixture
def limit_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Makes memory run out whenever more sequences than that are in a step; returns what went through."""

    def limit(most: int) -> list[int]:
        healthy, seen = Backend.launch, []

        def launch(self: Backend, plan: StepPlan, *arguments: Any) -> Any:
            rows = len(plan.decodes) + len(plan.prefills)
            if rows > most:
                raise torch.OutOfMemoryError("no room for so many")
            seen.append(rows)
            return healthy(self, plan, *arguments)

        monkeypatch.setattr(Backend, "launch", launch)
        return seen

    return limit


@pytest.mark.parametrize("most", [17, 4])
def test_a_smaller_batch_gives_the_same_answers(limit_rows: Callable[[int], list[int]], most: int) -> None:
    expected = answers(load())
    seen = limit_rows(most)
    engine = load()
    assert answers(engine) == expected
    assert engine.stats.num_out_of_memory > 0
    assert max(seen) <= most
    assert engine.scheduler.blocks.num_in_use == 0


def test_the_batch_grows_again(limit_rows: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.scheduling.scheduler.STEPS_BEFORE_GROWING", 2)
    seen = limit_rows(10)
    engine = load()
    greedy = [Request(n, engine.encode("x"), GREEDY) for n in range(40)]
    assert len(list(engine.generate(greedy))) == 40
    assert 8 in seen  # halved from 32 to 16 and 8
    assert engine.stats.num_out_of_memory > 2  # it tried more again, each time after a longer while


def test_a_job_that_is_too_large_fails_alone(limit_rows: Callable[[int], list[int]]) -> None:
    expected = answers(load())
    limit_rows(5)
    engine = load()
    large = GenerationParams.model_validate({"strategy": "beam", "max_new_tokens": 20, "num_beams": 8})
    outputs = {o.request_id: o for o in engine.generate([*requests_for(engine), Request(99, (5, 6), large)])}
    assert type(outputs[99].error).__name__ == "OutOfMemory"
    assert {index: output.completions for index, output in outputs.items() if index != 99} == expected
    assert engine.scheduler.blocks.num_in_use == 0


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(self: Backend, plan: StepPlan, *arguments: Any) -> Any:  # noqa: ARG001
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Backend, "launch", launch)
    with pytest.raises(RuntimeError, match="shapes"):
        list(load().generate([Request(0, (5, 6), GREEDY)]))


def test_the_urgent_go_first() -> None:
    engine = Engine.load(str(TOY_MODEL), max_num_seqs=1)
    requests = [Request(n, engine.encode("x"), GREEDY, priority) for n, priority in enumerate([5, 5, 1, 9, 9])]
    assert [output.request_id for output in engine.generate(requests)] == [3, 4, 0, 1, 2]
