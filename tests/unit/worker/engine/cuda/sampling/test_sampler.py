"""The GPU's sampler beside the row sampler: the same tokens and kept sets, with every parameter, in any batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from tests.unit.worker.engine.cuda.conftest import MovedBytes
from tests.unit.worker.engine.cuda.sampling.cases import Case, Sampler, sample
from worker.engine.choices import Choice
from worker.engine.cuda.sampling import cuts
from worker.engine.cuda.sampling.output import SamplerOutput
from worker.engine.cuda.sampling.reference import sample_in_torch, uniform_numbers
from worker.engine.cuda.sampling.sampler import SampledKinds, TritonSampler
from worker.engine.cuda.sampling.table import SamplingTable
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


def in_triton(block: int, capacity: int) -> Sampler:
    """The kernels, in Triton's interpreter, with blocks so small that a row has several."""

    def sampler(logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput) -> None:
        kernels = TritonSampler(len(logits), logits.shape[1], logits.device, block, capacity)
        for memory in vars(kernels).values():
            if isinstance(memory, Tensor):
                memory.fill_(torch.nan if memory.is_floating_point() else -(2**31))
        with np.errstate(all="ignore"):  # as on a GPU
            kernels(logits, batch_index, table, output)

    return sampler


#: With room for few candidates most cuts look at whole rows.
SAMPLERS = {"torch": sample_in_torch, "triton": in_triton(128, 512), "triton, whole rows": in_triton(256, 16)}

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
        params(Strategy.SAMPLE, top_k=100, seed=23, top_logprobs=45),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_case_alone_and_all_together(name: str) -> None:
    """The row sampler's choices; and the same bits alone as in the batch."""
    cases = list(CASES.values())
    if name == "triton, whole rows":  # alternatives always fit the room that there really is
        cases = [replace(case, params=case.params.model_copy(update={"top_logprobs": 0})) for case in cases[7:18]]
    together = sample(SAMPLERS[name], cases)
    for index, case in enumerate(cases):
        assert_same(together.choices[index], case.expected(), case.params.trace != "none")
    for index in range(2, len(cases), 9):
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


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_alternatives_among_equals_are_the_first(name: str) -> None:
    case = Case(torch.tensor([1.0, 2.0, 3.0] * (VOCAB // 3)), params(Strategy.GREEDY, top_logprobs=100))
    found = sample(SAMPLERS[name], [case]).choices[0].alternatives
    expected = [*range(2, VOCAB, 3)]
    assert [token_id for token_id, _ in found] == expected


def test_a_limit_of_nothing_keeps_a_token_where_none_is_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with 110,000 equal tokens, of which each is less probable than a candidate."""
    monkeypatch.setattr(cuts, "MIN_PROBABILITY", tl.constexpr(0.02))
    case = Case(torch.zeros(VOCAB), params(Strategy.SAMPLE, top_p=1e-7, seed=3))
    assert_same(sample(SAMPLERS["triton"], [case]).choices[0], case.expected(), True)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("strategy", [Strategy.GREEDY, Strategy.SAMPLE, Strategy.NUCLEUS])
def test_nan_is_seen(name: str, value: float, strategy: Strategy) -> None:
    logits = logits_of(30)
    logits[177] = value
    options = {} if strategy is Strategy.GREEDY else {"seed": 1}
    case = Case(logits, params(strategy, **options))
    found = sample(SAMPLERS[name], [case, CASES["hot"]]).choices
    assert found[0].token_id == 0 and found[0].kept == 0 and found[0].is_nan
    assert_same(found[1], CASES["hot"].expected(), True)


def test_the_numbers_are_those_of_philox() -> None:
    seeds, indices, positions = [0, 1, 2**63 - 1, 2**40 + 7], [0, 5, 2, 1], [0, 1, 70_000, 3]
    found = uniform_numbers(torch.tensor(seeds), torch.tensor(indices), torch.tensor(positions, dtype=torch.int32))
    assert found.tolist() == uniforms(seeds, indices, positions).tolist()


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    """Any parameters on logits with many equals, and no probabilities that are within rounding of a limit."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    logits = logits_of(draw(st.integers(0, 10**6)), 150, dtype, draw(st.sampled_from([0.2, 2.0, 6.0])))
    is_nucleus = draw(st.booleans())
    limits = st.sampled_from([1.0, 0.9137, 0.6113, 0.0317])
    options: dict[str, Any] = {
        "top_p": draw(limits),
        "top_k": draw(st.none() | st.integers(1, 160)),
        "temperature": draw(st.sampled_from([0.3, 1.0, 7.0])),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3])),
        "presence_penalty": draw(st.sampled_from([0.0, 0.4])),
        "frequency_penalty": draw(st.sampled_from([0.0, -0.3])),
        "logit_bias": draw(st.dictionaries(st.integers(0, 149), st.floats(-5, 5), max_size=3)),
        "min_new_tokens": draw(st.integers(0, 4)),
    }
    if not is_nucleus:
        options["min_p"] = draw(st.none() | st.sampled_from([0.0113, 0.3]))
    tokens = st.lists(st.integers(0, 149), max_size=6).map(tuple)
    return Case(
        logits,
        params(Strategy.NUCLEUS if is_nucleus else Strategy.SAMPLE, **options),
        prompt_ids=(1, *draw(tokens)),
        token_ids=draw(tokens),
        eos_ids=(7, 149),
        sample_index=draw(st.integers(0, 50)),
        allowed=draw(st.none() | st.sets(st.integers(0, 149), min_size=1).map(lambda ids: tuple(sorted(ids)))),
    )


@settings(max_examples=8, derandomize=True)
@given(drawn_cases())
def test_any_parameters(case: Case) -> None:
    for sampler in SAMPLERS.values():
        assert_same(sample(sampler, [case]).choices[0], case.expected(), True)


def test_kernels_that_no_row_needs_may_be_left_out() -> None:
    case = CASES["sample without a trace"]

    def few(logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput) -> None:
        kernels = TritonSampler(len(logits), logits.shape[1], logits.device, 64)
        with np.errstate(all="ignore"):
            kernels(logits, batch_index, table, output, SampledKinds(has_cuts=False, has_traces=False))

    assert torch.equal(sample(few, [case]).packed, sample(SAMPLERS["triton"], [case]).packed)


@pytest.mark.parametrize(
    ("strategy", "trace", "budget"),
    [(Strategy.GREEDY, "tokens", 1.1), (Strategy.SAMPLE, "tokens", 2.1), (Strategy.NUCLEUS, "tokens", 4.0)],
)
def test_kernels_move_the_bytes_that_they_say(
    strategy: Strategy, trace: str, budget: float, moved_bytes: MovedBytes
) -> None:
    """At most those that are declared; and at full size those are few beside the logits of a row."""
    vocab, drawing = 5000, {} if strategy is Strategy.GREEDY else {"seed": 3}
    case = Case(logits_of(40, vocab, torch.bfloat16, 4.0), params(strategy, trace=trace, **drawing))
    kinds = SampledKinds(has_cuts=strategy is Strategy.NUCLEUS)
    draws = strategy is not Strategy.GREEDY

    def sampler(logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput) -> None:
        kernels = TritonSampler(1, vocab, logits.device)
        with np.errstate(all="ignore"):
            kernels(logits[:1], batch_index[:1], table, output, kinds)
        most = kernels.most_bytes(1, vocab, logits.itemsize, draws=draws, kinds=kinds)
        assert moved_bytes.count <= most
        if not kinds.has_cuts:
            assert moved_bytes.count >= 0.9 * most - (draws and vocab * logits.itemsize)

    sample(sampler, [case])
    full = TritonSampler(1, 151936, torch.device("meta"))
    assert full.most_bytes(1, 151936, 2, draws=draws, kinds=kinds) <= budget * 151936 * 2
