"""Steps that begin before the host knows the last step's tokens give the same answers as steps that wait.

On a CPU nothing is really ahead, but all is done in the order in which a GPU does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models.params import GenerationParams
from tests.conftest import TOY_MODEL
from tests.support.random_models import altered
from worker.engine.choices import Choices
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model.attention import AttentionStep
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.request import Request
from worker.engine.sampling.batch_sampler import ChoicesInFlight, launch_sample_batch, sample_batch

KINDS: list[dict[str, Any]] = [
    {},
    {"strategy": "sample", "n": 3, "top_logprobs": 2},
    {"strategy": "nucleus", "top_p": 0.8, "stop": ["the"]},
    {"strategy": "sample", "temperature": 2.0, "ignore_eos": True},
    {"max_new_tokens": 1},
    {"repetition_penalty": 1.2, "min_new_tokens": 4},
    {"strategy": "sample", "top_k": 30, "min_p": 0.01, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"strategy": "sample", "top_p": 0.9, "repetition_penalty": 1.1},
    {"strategy": "beam", "num_beams": 3, "num_return": 2},
]
#: What the device chooses by itself; of beams the host must know the tokens at once.
PLAIN = KINDS[:-1]


@pytest.fixture(scope="module")
def waiting() -> LoadedModel:
    return altered(load_model(str(TOY_MODEL), "cpu", "float32"), sample_batch=sample_batch)


@pytest.fixture(scope="module")
def ahead(waiting: LoadedModel) -> LoadedModel:
    return altered(waiting, launch_sample_batch=launch_sample_batch)


def engine_of(loaded: LoadedModel, **config: Any) -> Engine:
    return Engine(loaded, EngineConfig(**{"max_num_seqs": 8, "kv_memory": 0.02, **config}))


def requests_of(engine: Engine, kinds: Sequence[dict[str, Any]], count: int = 42) -> list[Request]:
    return [
        Request(
            number,
            engine.encode(f"Story {number % 9} about " + "a hedgehog " * (number % 5)),
            GenerationParams.model_validate(
                {"max_new_tokens": 3 + number, "seed": number, **kinds[number % len(kinds)]}
            ),
        )
        for number in range(count)
    ]


def answers(engine: Engine, kinds: Sequence[dict[str, Any]]) -> dict[int, Any]:
    found = {output.request_id: output for output in engine.generate(requests_of(engine, kinds))}
    assert engine.scheduler.blocks.num_in_use == 0 and not engine.has_work
    return {number: (output.completions, output.hypotheses, output.error) for number, output in found.items()}


@pytest.mark.parametrize("kinds", [PLAIN, KINDS], ids=["plain", "mixed"])
@pytest.mark.parametrize("config", [{}, {"prefill_tokens": 64}, {"max_num_seqs": 3}], ids=str)
def test_the_same_answers(
    waiting: LoadedModel, ahead: LoadedModel, kinds: list[dict[str, Any]], config: dict[str, Any]
) -> None:
    assert answers(engine_of(ahead, **config), kinds) == answers(engine_of(waiting, **config), kinds)


def test_where_steps_have_fixed_sizes(waiting: LoadedModel, ahead: LoadedModel) -> None:
    """Prompts and decoding rows then take turns, and the last tokens wait while a prompt is computed."""
    fixed = [altered(loaded, needs_fixed_sizes=True) for loaded in (ahead, waiting)]
    ahead_of_time, in_time = (answers(engine_of(loaded, prefill_tokens=64), KINDS) for loaded in fixed)
    assert ahead_of_time == in_time


def test_a_step_begins_before_the_last_ones_tokens_are_collected(ahead: LoadedModel) -> None:
    events: list[str] = []

    def decode(step: AttentionStep) -> Tensor:
        events.append("compute")
        return ahead.model.decoder(step)

    class Watched(ChoicesInFlight):
        def collect(self) -> Choices:
            events.append("collect")
            return super().collect()

    def launch(*arguments: Any) -> ChoicesInFlight:
        return Watched(**vars(launch_sample_batch(*arguments)))

    engine = engine_of(altered(ahead, decoder=decode, launch_sample_batch=launch))
    request = Request(0, engine.encode("Story"), GenerationParams(max_new_tokens=4, ignore_eos=True))
    (output,) = engine.generate([request])
    assert len(output.completions[0].token_ids) == 4
    assert events == ["compute", "compute", "collect", "compute", "collect", "compute", "collect", "collect"]


def test_a_sequence_that_ended_is_computed_once_too_often_and_no_more(ahead: LoadedModel) -> None:
    engine = engine_of(ahead)
    prompt = engine.encode("Story")
    (whole,) = engine.generate([Request(0, prompt, GenerationParams(max_new_tokens=8, ignore_eos=True))])
    third = whole.completions[0].token_ids[2]
    before = engine.stats.num_decode_rows
    (cut,) = engine.generate([Request(1, prompt, GenerationParams(max_new_tokens=8, eos_token_ids=[third]))])
    first = whole.completions[0].token_ids.index(third) + 1
    assert cut.completions[0].token_ids == whole.completions[0].token_ids[:first]
    assert engine.stats.num_decode_rows - before == first


def test_a_request_cancelled_while_its_token_is_on_the_device(ahead: LoadedModel, waiting: LoadedModel) -> None:
    expected = answers(engine_of(waiting), PLAIN)
    engine = engine_of(ahead)
    for request in requests_of(engine, PLAIN):
        engine.submit(request)
    found: dict[int, Any] = {}
    cancelled = set()
    for number in range(10_000):
        found |= {o.request_id: (o.completions, o.hypotheses, o.error) for o in engine.step()}
        if number % 3 == 1 and number // 3 < 42 and engine.cancel(number // 3):
            cancelled.add(number // 3)
        if not engine.has_work:
            break
    assert cancelled and set(found) == set(expected) - cancelled
    assert all(found[number] == expected[number] for number in found)
    assert engine.scheduler.blocks.num_in_use == 0


def test_memory_that_runs_out_meanwhile(ahead: LoadedModel, waiting: LoadedModel) -> None:
    """A step in flight is dropped and decoded again; sequences that had finished are kept."""
    steps, due = iter(range(1_000_000)), [10, 40]

    def decode(step: AttentionStep) -> Tensor:
        # A request alone in the batch would fail: nothing smaller could be tried.
        if due and next(steps) >= due[0] and len(engine.scheduler.running) > 1:
            due.pop(0)
            raise torch.OutOfMemoryError("no room")
        return ahead.model.decoder(step)

    engine = engine_of(altered(ahead, decoder=decode))
    assert answers(engine, PLAIN[:4]) == answers(engine_of(waiting), PLAIN[:4])
    assert engine.stats.num_out_of_memory == 2
