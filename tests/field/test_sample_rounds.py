"""More samples than a worker decodes side by side: they run in rounds and give the same bits."""

from __future__ import annotations

import pytest

from models.params import GenerationParams
from models.states import Strategy
from tests.support.random_models import random_pair, random_prompts
from worker.engine.engine import Engine
from worker.engine.request import CapacityExceeded, Request, RequestOutput

PROMPTS = random_prompts(4, seed=3, longest=40)
SAMPLED = GenerationParams(strategy=Strategy.SAMPLE, n=11, max_new_tokens=12, top_logprobs=2, temperature=1.3, seed=5)


def requests() -> list[Request]:
    """One with many samples, with neighbors of every kind that end at other steps."""
    neighbors = [
        GenerationParams(max_new_tokens=9),
        GenerationParams(strategy=Strategy.BEAM, num_beams=2, max_new_tokens=7),
        GenerationParams(strategy=Strategy.SAMPLE, n=2, max_new_tokens=20, seed=1),
    ]
    return [
        Request(number, ids, params)
        for number, (ids, params) in enumerate(zip(PROMPTS, [SAMPLED, *neighbors], strict=True))
    ]


def answers(engine: Engine) -> dict[int, RequestOutput]:
    outputs = {output.request_id: output for output in engine.generate(requests())}
    assert engine.scheduler.blocks.num_in_use == 0 and not engine.scheduler.running
    return outputs


@pytest.mark.parametrize("architecture", ["qwen2", "mistral-window"])
@pytest.mark.parametrize("max_num_seqs", [2, 3, 4, 10])
def test_rounds_give_the_bits_of_a_larger_worker(architecture: str, max_num_seqs: int) -> None:
    pair = random_pair(architecture)
    at_once, in_rounds = answers(pair.engine(max_num_seqs=32)), answers(pair.engine(max_num_seqs=max_num_seqs))
    for number, expected in at_once.items():
        assert expected.error is None and in_rounds[number].error is None
        assert in_rounds[number].completions == expected.completions
    assert [completion.sample_index for completion in in_rounds[0].completions] == list(range(11))
    times = in_rounds[0]
    assert min(times.waiting_seconds, times.prefill_seconds, times.decode_seconds) >= 0


def test_samples_that_the_kv_cache_does_not_hold_side_by_side_run_in_rounds() -> None:
    pair = random_pair("qwen2")
    small = pair.engine(kv_memory=0.0001, max_num_seqs=32)
    request = Request(0, PROMPTS[0], SAMPLED.model_copy(update={"n": 64, "max_new_tokens": 60}))
    (expected,) = pair.engine(max_num_seqs=64).generate([request])
    assert small.scheduler.blocks.num_usable * 16 < 64 * 60
    (found,) = small.generate([request])
    assert found.error is None and found.completions == expected.completions


def test_a_round_that_starts_over_keeps_the_earlier_ones() -> None:
    engine = random_pair("qwen2").engine(max_num_seqs=4)
    outputs = []
    for request in requests():
        engine.submit(request)
    while not engine.scheduler.groups[0].ended:
        outputs += engine.step()
    outputs += engine.step()
    engine._in_flight = None
    if len(engine.scheduler.running) > 1:
        engine.scheduler.halve()  # as after memory ran out
    while engine.has_work:
        outputs += engine.step()
    (found,) = [output for output in outputs if output.request_id == 0]
    assert found.completions == answers(random_pair("qwen2").engine(max_num_seqs=32))[0].completions


def test_a_higher_priority_goes_between_two_rounds() -> None:
    engine = random_pair("qwen2").engine(max_num_seqs=2)
    engine.submit(Request(0, PROMPTS[0], SAMPLED.model_copy(update={"n": 10}), priority=5))
    engine.step()
    engine.submit(Request(1, PROMPTS[1], GenerationParams(max_new_tokens=2), priority=9))
    engine.submit(Request(2, PROMPTS[2], GenerationParams(max_new_tokens=2), priority=5))
    order = []
    while engine.has_work:
        order += [output.request_id for output in engine.step()]
    assert order == [1, 0, 2]


def test_beams_need_each_other_and_stay_refused() -> None:
    engine = random_pair("qwen2").engine(max_num_seqs=4)
    params = GenerationParams(strategy=Strategy.BEAM, num_beams=5)
    (output,) = engine.generate([Request(0, PROMPTS[0], params)])
    assert isinstance(output.error, CapacityExceeded) and "--max-num-seqs" in str(output.error)
