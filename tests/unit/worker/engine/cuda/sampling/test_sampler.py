"""The GPU's sampler beside the row sampler: the same tokens and kept sets, with every parameter, in any batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.params import GenerationParams
from models.states import Strategy
from tests.unit.worker.engine.cuda.sampling.cases import Case, sample
from worker.engine.choices import Choice
from worker.engine.cuda.sampling.reference import sample_in_torch, uniform_numbers
from worker.engine.sampling.philox import uniforms

VOCAB = 300


def logits_of(seed: int, vocab: int = VOCAB, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> torch.Tensor:
    return (torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def params(strategy: Strategy, **options: Any) -> GenerationParams:
    return GenerationParams(strategy=strategy, **options)


def assert_same(found: Choice, expected: Choice, wants_trace: bool) -> None:
    """Numbers within the rounding of fp32, everything else the same."""
    assert (found.token_id, found.kept) == (expected.token_id, expected.kept)
    assert found.logprob == pytest.approx(expected.logprob, abs=3e-5, nan_ok=True)
    assert found.sampling_logprob == pytest.approx(expected.sampling_logprob, abs=3e-5, nan_ok=True)
    if wants_trace and not math.isnan(expected.logprob):
        assert found.entropy == pytest.approx(expected.entropy, abs=1e-4)
        assert found.rank == expected.rank
    assert [token_id for token_id, _ in found.alternatives] == [token_id for token_id, _ in expected.alternatives]
    values = [logprob for _, logprob in found.alternatives]
    assert values == pytest.approx([logprob for _, logprob in expected.alternatives], abs=3e-5)


SAMPLERS = {"torch": sample_in_torch}

CASES = {
    "greedy": Case(logits_of(0), params(Strategy.GREEDY)),
    "greedy without a trace": Case(logits_of(1), params(Strategy.GREEDY, trace="none")),
    "greedy among equals": Case(torch.tensor([1.0, 2.0] * (VOCAB // 2)), params(Strategy.GREEDY)),
    "sample": Case(logits_of(2), params(Strategy.SAMPLE, temperature=1.3, seed=5, top_logprobs=20), sample_index=3),
    "sample without a trace": Case(logits_of(3), params(Strategy.SAMPLE, temperature=0.7, seed=6, trace="none")),
    "hot": Case(logits_of(4), params(Strategy.SAMPLE, temperature=80.0, seed=2**62 + 12345), token_ids=(4, 5)),
    "cold": Case(logits_of(5), params(Strategy.SAMPLE, temperature=1e-6, seed=7)),
    "top_k": Case(logits_of(6), params(Strategy.SAMPLE, top_k=20, seed=8)),
    "top_k of equals": Case(logits_of(7).round(), params(Strategy.SAMPLE, top_k=5, seed=9)),
    "top_k of more than all": Case(logits_of(8), params(Strategy.SAMPLE, top_k=VOCAB + 5, seed=10)),
    "top_p": Case(logits_of(9), params(Strategy.SAMPLE, top_p=0.8, seed=11)),
    "min_p": Case(logits_of(10), params(Strategy.SAMPLE, min_p=0.02, seed=12)),
    "all cuts": Case(logits_of(11), params(Strategy.SAMPLE, top_k=30, top_p=0.9, min_p=0.01, temperature=2.0, seed=1)),
    "nucleus": Case(logits_of(12), params(Strategy.NUCLEUS, top_p=0.9, temperature=1.5, seed=13)),
    "flat nucleus": Case(logits_of(13, scale=0.3), params(Strategy.NUCLEUS, top_p=0.75, seed=14)),
    "nucleus of equals": Case(torch.zeros(VOCAB), params(Strategy.NUCLEUS, top_p=0.5, seed=15)),
    "nucleus of one": Case(logits_of(14), params(Strategy.NUCLEUS, top_p=1e-6, seed=16)),
    "nucleus with top_k": Case(logits_of(15), params(Strategy.NUCLEUS, top_p=0.7, top_k=9, seed=17)),
    "bias": Case(logits_of(16), params(Strategy.GREEDY, logit_bias={7: 30.0, 250: -4.5, 299: 1.0}, top_logprobs=3)),
    "repetition": Case(
        logits_of(17),
        params(Strategy.SAMPLE, repetition_penalty=1.4, seed=18),
        prompt_ids=tuple(range(0, 200, 3)),
        token_ids=(5, 5, 9),
    ),
    "presence and frequency": Case(
        logits_of(18, scale=1.0),
        params(Strategy.NUCLEUS, top_p=0.6, presence_penalty=1.5, frequency_penalty=0.7, seed=19),
        prompt_ids=(3, 4),
        token_ids=(3, 17, 17, 200, 17),
    ),
    "min_new_tokens": Case(
        logits_of(19) + torch.nn.functional.one_hot(torch.tensor(33), VOCAB) * 50.0,
        params(Strategy.GREEDY, min_new_tokens=4),
        token_ids=(1, 2, 3),
        eos_ids=(33,),
    ),
    "min_new_tokens are there": Case(
        logits_of(19) + torch.nn.functional.one_hot(torch.tensor(33), VOCAB) * 50.0,
        params(Strategy.GREEDY, min_new_tokens=3),
        token_ids=(1, 2, 3),
        eos_ids=(33,),
    ),
    "allowed": Case(logits_of(20), params(Strategy.SAMPLE, seed=20), allowed=(2, 31, 32, 100, 288, 299)),
    "allowed and cut": Case(
        logits_of(21), params(Strategy.SAMPLE, top_k=2, temperature=4.0, seed=21), allowed=(2, 31, 32, 100)
    ),
    "nothing is allowed": Case(logits_of(22), params(Strategy.SAMPLE, seed=22), allowed=()),
    "impossible tokens": Case(
        logits_of(23).masked_fill(torch.arange(VOCAB) > 40, -torch.inf),
        params(Strategy.SAMPLE, top_k=100, seed=23, top_logprobs=60),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_case_alone_and_all_together(name: str) -> None:
    """The row sampler's choices; and the same bits alone as in the batch."""
    cases = list(CASES.values())
    together = sample(SAMPLERS[name], cases)
    for index, case in enumerate(cases):
        assert_same(together.choices[index], case.expected(), case.params.trace != "none")
    for index in range(0, len(cases), 5):
        alone = sample(SAMPLERS[name], [replace(cases[index])])
        assert torch.equal(alone.packed[0, :6], together.packed[index, :6])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_table_goes_on_with_the_token(name: str) -> None:
    cases = [CASES["repetition"], CASES["sample"], CASES["presence and frequency"]]
    sampled = sample(SAMPLERS[name], cases)
    for index, case in enumerate(cases, 1):
        token_id = sampled.choices[index - 1].token_id
        assert sampled.table.last_token_ids[index] == token_id
        assert sampled.table.num_generated[index] == len(case.token_ids) + 1
    counts = [case.token_ids.count(choice.token_id) for case, choice in zip(cases, sampled.choices, strict=True)]
    kept = [
        int(sampled.table.history[index, choice.token_id]) & 0xFFFF for index, choice in enumerate(sampled.choices, 1)
    ]
    assert kept == [counts[0] + 1, 0, counts[2] + 1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_alternatives_among_equals_are_the_first(name: str) -> None:
    case = Case(torch.tensor([1.0, 2.0, 3.0] * (VOCAB // 3)), params(Strategy.GREEDY, top_logprobs=100))
    found = sample(SAMPLERS[name], [case]).choices[0].alternatives
    expected = [*range(2, VOCAB, 3)]
    assert [token_id for token_id, _ in found] == expected


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("strategy", [Strategy.GREEDY, Strategy.SAMPLE, Strategy.NUCLEUS])
def test_nan_is_seen(name: str, value: float, strategy: Strategy) -> None:
    logits = logits_of(30)
    logits[177] = value
    options = {} if strategy is Strategy.GREEDY else {"seed": 1}
    case = Case(logits, params(strategy, **options))
    found = sample(SAMPLERS[name], [case, CASES["sample"]]).choices
    assert found[0].token_id == 0 and found[0].kept == 0 and found[0].is_nan
    assert_same(found[1], CASES["sample"].expected(), True)


def test_the_numbers_are_those_of_philox() -> None:
    seeds, indices, positions = [0, 1, 2**63 - 1, 2**40 + 7], [0, 5, 2, 1], [0, 1, 70_000, 3]
    found = uniform_numbers(torch.tensor(seeds), torch.tensor(indices), torch.tensor(positions, dtype=torch.int32))
    assert found.tolist() == uniforms(seeds, indices, positions).tolist()
