"""A job gives the same tokens and the same stored numbers, bit for bit, whatever it is decoded with."""

from __future__ import annotations

import random
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch

from models.params import GenerationParams
from models.states import Strategy
from tests.support.random_models import ARCHITECTURES, random_pair, random_prompts
from worker.engine.request import Request, RequestOutput

pytestmark = pytest.mark.usefixtures("two_threads")

NUM_JOBS = 64
EOS = tuple(range(20, 24))


def params_of(index: int) -> GenerationParams:
    """All strategies and parameters in turn."""
    common: dict[str, Any] = {"max_new_tokens": 5 + index % 23, "eos_token_ids": EOS, "seed": index, "top_logprobs": 2}
    kinds: list[dict[str, Any]] = [
        {"strategy": Strategy.GREEDY},
        {"strategy": Strategy.SAMPLE, "temperature": 1.3},
        {"strategy": Strategy.SAMPLE, "top_k": 7, "min_p": 0.01},
        {"strategy": Strategy.NUCLEUS, "top_p": 0.8},
        {"strategy": Strategy.BEAM, "num_beams": 4, "num_return": 2},
        {"strategy": Strategy.SAMPLE, "n": 3},
        {"strategy": Strategy.GREEDY, "repetition_penalty": 1.4, "min_new_tokens": 4},
        {"strategy": Strategy.NUCLEUS, "top_p": 0.5, "temperature": 2.0, "frequency_penalty": 0.5, "n": 2},
    ]
    return GenerationParams(**common, **kinds[index % len(kinds)])


def mixed_requests() -> list[Request]:
    """Prompts of many lengths; some begin alike, so that prefix sharing has something to share."""
    prompts = random_prompts(NUM_JOBS, seed=5, longest=90)
    opening = random_prompts(1, seed=6, longest=1)[0] * 40
    return [
        Request(index, (opening + prompt_ids)[:100] if index % 3 == 0 else prompt_ids, params_of(index))
        for index, prompt_ids in enumerate(prompts)
    ]


def content(output: RequestOutput) -> dict[str, Any]:
    """Everything but the times."""
    return {each.name: getattr(output, each.name) for each in fields(output) if not each.name.endswith("_seconds")}


def decode(pair_of: tuple[str, torch.dtype], requests: list[Request], **config: Any) -> dict[int, dict[str, Any]]:
    engine = random_pair(*pair_of).engine(**config)
    return {output.request_id: content(output) for output in engine.generate(requests)}


@cache
def decoded_together(architecture: str, dtype: torch.dtype) -> dict[int, dict[str, Any]]:
    return decode((architecture, dtype), mixed_requests(), max_num_seqs=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.long)])
def test_together_as_alone(architecture: str, dtype: torch.dtype, half: int) -> None:
    """All jobs together, one half of them alone; the other half in `make faults`."""
    together = decoded_together(architecture, dtype)
    engine = random_pair(architecture, dtype).engine(max_num_seqs=8, share_prefixes=False)
    for request in mixed_requests()[half::2]:
        (alone,) = engine.generate([request])
        assert content(alone) == together[request.id], request.params


@pytest.mark.parametrize(
    "config",
    [
        {"max_num_seqs": 8},
        {"max_num_seqs": 64, "prefill_tokens": 16},
        {"max_num_seqs": 33, "prefill_tokens": 48, "share_prefixes": False},
        {"max_num_seqs": 16, "kv_memory": 0.002},
    ],
    ids=["few slots", "short chunks", "no sharing", "little memory"],
)
@pytest.mark.parametrize("pair_of", [("qwen2", torch.float32), ("mistral-wide", torch.bfloat16)], ids=["fp32", "bf16"])
def test_another_order_and_another_schedule_change_nothing(
    pair_of: tuple[str, torch.dtype], config: dict[str, Any]
) -> None:
    shuffled = mixed_requests()
    random.Random(7).shuffle(shuffled)
    assert decode(pair_of, shuffled, **config) == decoded_together(*pair_of)


def test_a_retry_gives_the_same() -> None:
    requests = mixed_requests()
    engine = random_pair("qwen2").engine(max_num_seqs=32)
    expected = {output.request_id: content(output) for output in engine.generate(requests)}
    for request in requests:
        engine.submit(request)
    finished = [output.request_id for _ in range(12) for output in engine.step()]
    interrupted = [request for request in requests if engine.cancel(request.id)]
    assert interrupted and len(interrupted) + len(finished) == NUM_JOBS
    again = {output.request_id: content(output) for output in engine.generate(interrupted)}
    assert again == {request.id: expected[request.id] for request in interrupted}


def test_jobs_that_differ_in_seed_differ() -> None:
    params = [GenerationParams(strategy=Strategy.SAMPLE, seed=seed, max_new_tokens=12) for seed in range(20)]
    engine = random_pair("qwen2").engine(max_num_seqs=20)
    outputs = engine.generate(Request(index, (5, 6, 7), each) for index, each in enumerate(params))
    assert len({output.completions[0].token_ids for output in outputs}) == 20


def test_samples_of_a_job_are_the_draws_of_its_sample_index() -> None:
    def sampled(n: int) -> list[tuple[int, ...]]:
        params = GenerationParams(strategy=Strategy.SAMPLE, seed=3, n=n, max_new_tokens=10)
        (output,) = random_pair("qwen2").engine().generate([Request(0, (5, 6, 7), params)])
        return [done.token_ids for done in output.completions]

    assert sampled(2) == sampled(5)[:2]
    assert len(set(sampled(5))) == 5
