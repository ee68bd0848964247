"""Every parameter in every sampler: the sets Transformers keeps, the distributions it draws from, the same bits alone.

The samplers are the row sampler, the batch sampler of torch, and the one in C.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.params import GenerationParams
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission, read_lines
from producer.prompts.openai_lines import native_line
from producer.prompts.validation import check
from tests.support.distributions import LEVEL, VOCAB, p_value, some_logits
from tests.support.kernels import kernels_of
from worker.engine.choices import Choice
from worker.engine.sampling.batch_sampler import SampleBatch, sample_batch
from worker.engine.sampling.logits_processors import apply_history_processors
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import sample_rows
from worker.engine.sampling_row import SamplingRow

NO_HISTORY: Any = torch.empty((1, 0), dtype=torch.long)
SAMPLERS = ("rows", "batched", "kernels")
EACH_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)


def sampler_named(name: str) -> SampleBatch | None:
    if name == "kernels":
        return kernels_of(torch.float32).sample
    return sample_batch if name == "batched" else None


def sampled(sampler: str, logits: Tensor, rows: list[SamplingRow]) -> list[Choice]:
    return sample_rows(logits, rows, sampler_named(sampler))


def drawing(params: GenerationParams, number: float) -> SamplingRow:
    return SamplingRow(params, (), (), (), number)


def transformers_own(logits: Tensor, params: GenerationParams) -> Tensor:
    """The scores [1, vocab] that `generate` draws from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k is not None:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p is not None:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores: Tensor = warpers(NO_HISTORY, logits)
    return scores


def is_near_a_limit(logits: Tensor, params: GenerationParams) -> bool:
    """Whether rounding decides which token crosses `top_p`, or which is below `min_p`."""
    scores = TemperatureLogitsWarper(params.temperature)(NO_HISTORY, logits.double())
    if params.top_k is not None:
        scores = TopKLogitsWarper(params.top_k)(NO_HISTORY, scores)
    probabilities = scores.softmax(-1)[0].sort(descending=True).values
    to_top_p = (probabilities.cumsum(0) - params.top_p).abs().min() if params.top_p < 1 else 1.0
    to_min_p = (probabilities / probabilities[0] - params.min_p).abs().min() if params.min_p else 1.0
    return min(float(to_top_p), float(to_min_p)) < 1e-5


PARAMETERS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.1, 0.7, 1.0, 3.0])},
    optional={
        "top_k": st.sampled_from([1, 2, 5, 39, 200, 5000]),
        "top_p": st.sampled_from([0.01, 0.15, 0.5, 0.9, 0.999]),
        "min_p": st.sampled_from([0.001, 0.05, 0.5, 1.0]),
    },
)


@EACH_SAMPLER
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.sampled_from([7, VOCAB, 3000]),
    levels=st.sampled_from([3, 50, 10**6]),
    given_params=PARAMETERS,
)
def test_kept_sets_are_those_of_transformers_warpers(
    sampler: str, seed: int, vocab: int, levels: int, given_params: dict[str, Any]
) -> None:
    """Few distinct logits make ties; among those that `top_p` parts, Transformers leaves open which are kept."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (1, vocab), generator=generator) * (8.0 / levels)
    params = GenerationParams.model_validate({"strategy": "sample", "trace": "none", **given_params})
    assume(not is_near_a_limit(logits, params))
    expected = transformers_own(logits, params)
    kept_scores = expected[0][expected[0] > -math.inf]
    numbers = np.linspace(0, 1, 64, endpoint=False).tolist()
    choices = sampled(sampler, logits.expand(64, -1), [drawing(params, number) for number in numbers])
    assert {choice.kept for choice in choices} == {len(kept_scores)}
    parts_ties = params.top_p < 1
    exact = torch.log_softmax(kept_scores.double(), -1)
    for choice in choices:
        score = logits[0, choice.token_id] / params.temperature
        assert parts_ties or expected[0, choice.token_id] > -math.inf
        place = int((kept_scores - score).abs().argmin())
        assert kept_scores[place] == score
        assert choice.sampling_logprob == pytest.approx(float(exact[place]), abs=2e-5)


@EACH_SAMPLER
def test_draws_follow_the_cut_distribution(sampler: str) -> None:
    logits = some_logits(21)
    params = GenerationParams.model_validate(
        {"strategy": "sample", "temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.03, "trace": "none"}
    )
    token_ids: list[int] = []
    for start in range(0, 40_000, 1000):
        numbers = uniforms([5] * 1000, [0] * 1000, range(start, start + 1000)).tolist()
        choices = sampled(sampler, logits.expand(1000, -1), [drawing(params, number) for number in numbers])
        token_ids += [choice.token_id for choice in choices]
    expected = transformers_own(logits, params)[0].double().softmax(-1).numpy()
    assert 0 < np.count_nonzero(expected) < 20
    assert p_value(token_ids, expected) > LEVEL
    wrong = params.model_copy(update={"top_p": 0.99, "min_p": None})
    assert p_value(token_ids, transformers_own(logits, wrong)[0].double().softmax(-1).numpy()) < LEVEL


@EACH_SAMPLER
def test_nucleus_cuts_top_k_first_and_leaves_the_crossing_token_out(sampler: str) -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    cases: list[tuple[dict[str, Any], int]] = [
        ({"strategy": "nucleus", "top_p": 0.75}, 2),
        ({"strategy": "nucleus", "top_p": 0.75, "top_k": 3}, 1),  # 0.4 / 0.9 + 0.3 / 0.9 exceeds 0.75
        ({"strategy": "nucleus", "top_k": 3}, 3),
        ({"strategy": "sample", "top_p": 0.75}, 3),
        ({"strategy": "sample", "top_p": 0.75, "top_k": 3}, 2),
    ]
    rows = [drawing(GenerationParams.model_validate(params), 0.5) for params, _ in cases]
    choices = sampled(sampler, logits.expand(len(cases), -1), rows)
    assert [choice.kept for choice in choices] == [kept for _, kept in cases]


@EACH_SAMPLER
@pytest.mark.parametrize("vocab", [1, 2, 3, VOCAB])
@pytest.mark.parametrize("top_p", [1e-12, 1 - 5e-7, 1 - 1e-12])
def test_a_nucleus_at_the_ends_of_its_range(sampler: str, vocab: int, top_p: float) -> None:
    """Just below 1 it is every token that has a probability, just above 0 the first one."""
    params = GenerationParams.model_validate({"strategy": "nucleus", "top_p": top_p})
    logits = torch.linspace(0, 1, vocab)[None].clone()
    logits[:, VOCAB // 2 :] = -math.inf
    rows = [drawing(params, number / 8) for number in range(8)]
    choices = sampled(sampler, logits.expand(8, -1), rows)
    assert {choice.kept for choice in choices} == {1 if top_p < 0.1 else int((logits > -math.inf).sum())}
    assert all(logits[0, choice.token_id] > -math.inf for choice in choices)


EDITS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "presence_penalty": 1.5, "frequency_penalty": -0.5},
    {"frequency_penalty": 0.75},
    {"logit_bias": {3: 4.0, 9: -100.0, 30: 1.5}},
    {"min_new_tokens": 9},
    {"logit_bias": {5: 3.0}, "repetition_penalty": 1.9, "presence_penalty": 0.5, "min_new_tokens": 6},
]
PROMPT, ANSWER, ENDS = (3, 5, 5, 9, 38), (5, 7, 7, 7, 30), (9, 30)


@EACH_SAMPLER
@pytest.mark.parametrize("edits", EDITS, ids=str)
@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_edits_are_transformers_own(sampler: str, edits: dict[str, Any], strategy: str) -> None:
    """Statistics stay those of the model's own distribution; the draw is from the edited one."""
    params = GenerationParams.model_validate({"strategy": strategy, **edits})
    logits = some_logits(22, rows=8)
    rows = [SamplingRow(params, PROMPT, ANSWER, ENDS, number / 8) for number in range(8)]
    for choice, row in zip(sampled(sampler, logits, rows), logits, strict=True):
        edited = apply_history_processors(row[None], params, PROMPT, ANSWER, ENDS)[0]
        raw = torch.log_softmax(row.double(), -1)
        assert choice.logprob == pytest.approx(float(raw[choice.token_id]), abs=1e-5)
        assert choice.rank == int((row > row[choice.token_id]).sum()) + 1
        if strategy == "greedy":
            assert (choice.token_id, choice.sampling_logprob) == (int(edited.argmax()), 0.0)
        else:
            exact = torch.log_softmax(edited.double(), -1)
            assert choice.sampling_logprob == pytest.approx(float(exact[choice.token_id]), abs=1e-5)


@EACH_SAMPLER
def test_only_allowed_tokens_come(sampler: str) -> None:
    allowed_ids = [0, 31, 32, 39]
    words = [sum(1 << (token_id % 32) for token_id in allowed_ids if token_id // 32 == word) for word in range(2)]
    allowed = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32))
    logits = some_logits(23, rows=40)
    for params in (GenerationParams(), GenerationParams.model_validate({"strategy": "sample", "temperature": 50.0})):
        rows = [SamplingRow(params, (), (), (), number / 40, allowed=allowed) for number in range(40)]
        found = {choice.token_id for choice in sampled(sampler, logits, rows)}
        assert found == set(allowed_ids)


@EACH_SAMPLER
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf], ids=str)
@pytest.mark.parametrize("strategy", ["greedy", "sample", "nucleus"])
def test_not_a_number_is_seen_and_neighbors_keep_their_bits(sampler: str, bad: float, strategy: str) -> None:
    params = GenerationParams.model_validate(
        {"strategy": strategy, "top_logprobs": 3, **({} if strategy == "greedy" else {"top_p": 0.9})}
    )
    logits = some_logits(24, rows=4, vocab=600)
    rows = [drawing(params, 0.3) for _ in range(4)]
    before = sampled(sampler, logits, rows)
    logits[1, 311] = bad
    logits[2] = -math.inf
    after = sampled(sampler, logits, rows)
    assert [choice.is_nan for choice in after] == [False, True, True, False]
    assert (after[0], after[3]) == (before[0], before[3])


@EACH_SAMPLER
def test_nothing_is_drawn_where_every_token_is_banned(sampler: str) -> None:
    params = GenerationParams.model_validate({"logit_bias": {"2": 1.0}, "min_new_tokens": 1})
    for strategy in ("greedy", "sample"):
        given = params.model_copy(update={"strategy": strategy})
        rows = [SamplingRow(given, (), (), tuple(range(VOCAB)), 0.5)] * 2
        assert all(choice.is_nan for choice in sampled(sampler, some_logits(25, rows=2), rows))


@EACH_SAMPLER
def test_a_row_gives_the_same_bits_alone_and_among_others(sampler: str) -> None:
    kinds: list[dict[str, Any]] = [
        {"strategy": "sample", "top_k": 50, "top_p": 0.9},
        {"strategy": "sample", "top_p": 0.7, "repetition_penalty": 1.2},
        {"strategy": "sample", "min_p": 0.05, "frequency_penalty": 0.5, "temperature": 1.7},
        {"strategy": "nucleus", "top_p": 0.9, "top_k": 400},
        {"strategy": "greedy", "presence_penalty": 1.0, "top_logprobs": 2},
        {"strategy": "sample"},
    ]
    logits = some_logits(26, rows=18, vocab=5000).bfloat16().float()
    rows = [
        SamplingRow(GenerationParams.model_validate(kinds[row % 6]), (row, 7), (9, row, row), (1,), row / 18)
        for row in range(18)
    ]
    together = sampled(sampler, logits, rows)
    for row in range(12):
        assert sampled(sampler, logits[row : row + 1], rows[row : row + 1]) == [together[row]]


# ---- the command line and the lines


def points(values: dict[str, list[Any]], **line: Any) -> list[dict[str, Any]]:
    return [params for params, _ in Grid(values).points(line)]


def test_in_a_grid_with_nucleus_top_p_and_top_k_are_its_own() -> None:
    both: dict[str, list[Any]] = {"strategy": ["sample", "nucleus"], "top_p": [0.9], "top_k": [5]}
    assert points(both) == [{"strategy": "sample"}, {"strategy": "nucleus", "top_p": 0.9, "top_k": 5}]
    assert points({**both, "strategy": ["sample"]}) == [{"strategy": "sample", "top_p": 0.9, "top_k": 5}]
    own = points({**both, "strategy": ["nucleus"]}, strategy="sample", top_p=0.5)
    assert own == [{"strategy": "sample", "top_p": 0.5}]


@pytest.mark.parametrize(("lines", "taken"), [(["sample"], True), (["sample", "nucleus"], False)])
def test_lines_with_nucleus_count_as_a_grid_with_it(lines: list[str], taken: bool, tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "x", "strategy": "{strategy}"}}\n' for strategy in lines), encoding="utf-8")
    submission = Submission(path=path, model="m", grid=Grid({"top_p": [0.5]}))
    report = check(submission)
    drafts = [draft for line in read_lines(submission, report.duplicate_hashes, {}) for draft in line.drafts]
    assert ("top_p" in drafts[0].params.stored) is taken


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({}, {}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3}, {"strategy": "greedy"}),
        ({"temperature": 0.0}, {"strategy": "greedy"}),
        ({"top_p": 0.9}, {"strategy": "sample", "top_p": 0.9}),
        ({"temperature": 0.7, "top_p": 1}, {"strategy": "sample", "temperature": 0.7}),
        ({"top_k": 20, "min_p": 0.05}, {"strategy": "sample", "top_k": 20, "min_p": 0.05}),
        ({"top_k": -1, "min_p": 0.0, "top_p": 1.0}, {"strategy": "sample"}),
        ({"temperature": True}, {"strategy": "sample", "temperature": True}),  # refused later, by its value
    ],
)
def test_lines_of_openai_and_vllm_become_sample(body: dict[str, Any], params: dict[str, Any]) -> None:
    record = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x", **body}}
    line = native_line(record)
    assert {name: line[name] for name in line.keys() & {"strategy", "temperature", "top_p", "top_k", "min_p"}} == params
