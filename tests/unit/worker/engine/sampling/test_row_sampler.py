"""Draws follow the distribution they should, and the trace says what was known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
)

from models.params import GenerationParams
from models.states import Strategy
from tests.support.kernels import kernels_of
from worker.engine.sampling.batch_sampler import ChooseBatch, choose_batch
from worker.engine.sampling.choices import Choice
from worker.engine.sampling.draw import draw_from_all
from worker.engine.sampling.logits_processors import apply_history_processors, apply_sampling_filters
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import SamplingRow, argmax, choose_tokens

NUM_DRAWS = 100_000
#: A correct sampler fails the check once in so many seeds; the seeds are fixed.
LEVEL = 1e-3
VOCAB = 40
TEMPERATURES = (0.001, 0.1, 0.5, 1.0, 10.0)


def some_logits(seed: int = 0, rows: int = 1, vocab: int = VOCAB) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


class Choose:
    """Choices by one of the samplers."""

    def __init__(self, choose_batch: ChooseBatch | None) -> None:
        self._choose_batch = choose_batch

    def __call__(self, logits: Tensor, params: GenerationParams, numbers: list[float] | None = None) -> list[Choice]:
        numbers = [0.5] * len(logits) if numbers is None else numbers
        rows = [SamplingRow(params, (), (), (), number) for number in numbers]
        return choose_tokens(logits, rows, self._choose_batch)


@pytest.fixture(params=["rows", "batched", "kernels"])
def choose(request: pytest.FixtureRequest) -> Choose:
    """Each test is for all samplers: a few rows at a time, all on the device, and in C."""
    if request.param == "kernels":
        return Choose(kernels_of(torch.float32).sample)
    return Choose(choose_batch if request.param == "batched" else None)


def p_value(token_ids: list[int], probabilities: np.ndarray) -> float:
    """Of the chi-square test; tokens that are rarely expected are taken together."""
    counts = np.bincount(token_ids, minlength=len(probabilities)).astype(float)
    expected = probabilities * len(token_ids)
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        counts, expected = counts[:-1], expected[:-1]
    return float(stats.chisquare(counts, expected).pvalue)


def draw_many(draw: Callable[[float], int]) -> list[int]:
    numbers = uniforms([11] * NUM_DRAWS, [0] * NUM_DRAWS, range(NUM_DRAWS))
    return [draw(float(number)) for number in numbers]


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    return np.asarray(torch.softmax(logits.double() / temperature, -1).numpy())


def chosen_ids(choose: Choose, logits: Tensor, params: GenerationParams) -> list[int]:
    """Draws through the whole sampler, many rows of the same logits at a time."""
    numbers = uniforms([11] * NUM_DRAWS, [0] * NUM_DRAWS, range(NUM_DRAWS)).tolist()
    size = 1000
    token_ids = []
    for start in range(0, NUM_DRAWS, size):
        choices = choose(logits.expand(size, -1), params, numbers[start : start + size])
        token_ids += [choice.token_id for choice in choices]
    return token_ids


def test_sampling_follows_the_softmax(choose: Choose) -> None:
    logits = some_logits()[0]
    params = GenerationParams(strategy=Strategy.SAMPLE, temperature=0.7, trace="none")
    token_ids = chosen_ids(choose, logits[None], params)
    assert p_value(token_ids, softmax(logits, 0.7)) > LEVEL
    # The check would notice a temperature that is off by three percent.
    assert p_value(token_ids, softmax(logits, 0.7 * 1.03)) < LEVEL


def test_nucleus_sampling_follows_the_renormalised_nucleus(choose: Choose) -> None:
    logits = some_logits(1)[0]
    token_ids = chosen_ids(choose, logits[None], GenerationParams(strategy=Strategy.NUCLEUS, top_p=0.8, trace="none"))
    probabilities = softmax(logits)
    order = np.argsort(-probabilities)
    kept = order[np.cumsum(probabilities[order]) <= 0.8]
    truncated = np.zeros(VOCAB)
    truncated[kept] = probabilities[kept] / probabilities[kept].sum()
    assert p_value(token_ids, truncated) > LEVEL
    # A sampler that also keeps the token that crosses top_p, as Transformers' does, is told apart.
    crossing = np.zeros(VOCAB)
    kept = order[: len(kept) + 1]
    crossing[kept] = probabilities[kept] / probabilities[kept].sum()
    assert p_value(token_ids, crossing) < LEVEL


def test_the_check_rejects_a_wrong_sampler() -> None:
    exact = softmax(some_logits(2)[0])
    weights = exact.astype(np.float32)

    def squared(number: float) -> int:  # its numbers are not uniform
        return draw_from_all(weights, number**1.05).token_id

    def right(number: float) -> int:
        return draw_from_all(weights, number).token_id

    assert p_value(draw_many(right), exact) > LEVEL
    assert p_value(draw_many(squared), exact) < LEVEL


def test_a_draw_of_many_blocks_inverts_the_cumulative_sum() -> None:
    weights = softmax(some_logits(3, vocab=1000)[0]).astype(np.float32)
    cumulative = weights.cumsum(dtype=np.float64) / weights.sum(dtype=np.float64)
    for number in np.linspace(0, 1, 997, endpoint=False).tolist():
        expected = int(np.searchsorted(cumulative, number, side="right"))
        # At a border the two ways of adding up may round apart.
        if min(abs(float(cumulative[expected]) - number), abs(float(cumulative[expected - 1]) - number)) > 1e-7:
            assert draw_from_all(weights, number).token_id == expected


def test_a_token_without_probability_is_never_drawn() -> None:
    weights = np.zeros(600, dtype=np.float32)
    weights[300] = 1e-30
    for number in (0.0, 0.5, math.nextafter(1, 0)):
        assert draw_from_all(weights, number).token_id == 300


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("strategy", [Strategy.SAMPLE, Strategy.NUCLEUS])
def test_no_temperature_gives_nan(choose: Choose, strategy: Strategy, temperature: float) -> None:
    logits = some_logits(4, rows=4) * 20
    logits[0, 5] = -math.inf
    for dtype in (torch.float32, torch.bfloat16):
        for choice in choose(logits.to(dtype), GenerationParams(strategy=strategy, temperature=temperature)):
            assert all(map(math.isfinite, (choice.logprob, choice.sampling_logprob, choice.entropy)))


def test_a_cold_draw_is_greedy_and_a_hot_one_nearly_uniform(choose: Choose) -> None:
    logits = some_logits(5)
    cold = choose(logits, GenerationParams(strategy=Strategy.SAMPLE, temperature=0.001))[0]
    assert cold.token_id == int(logits.argmax())
    hot = choose(logits, GenerationParams(strategy=Strategy.SAMPLE, temperature=1e6))[0]
    assert hot.sampling_logprob == pytest.approx(-math.log(VOCAB), abs=1e-4)


def test_greedy_takes_the_lowest_id_among_ties(choose: Choose) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, [7, 30]] = 2.0
    assert [choice.token_id for choice in choose(logits, GenerationParams())] == [7, 7, 7]


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0, -50.0])
def test_the_argmax_of_bf16_is_that_of_the_numbers(shift: float) -> None:
    """Also where the largest is zero or negative, and among ties, which bf16 has many of."""
    logits = (some_logits(16, rows=50, vocab=3000) + shift).bfloat16()
    logits[0] = -logits[0].abs()
    logits[1, 100:200] = -math.inf
    expected = [row.tolist().index(max(row.tolist())) for row in logits]
    assert argmax(logits) == expected


def test_the_trace_columns_are_what_they_say(choose: Choose) -> None:
    logits = some_logits(6, rows=5)
    params = GenerationParams(strategy=Strategy.SAMPLE, temperature=2.0, top_logprobs=4)
    for row, choice in enumerate(choose(logits, params, [0.05, 0.3, 0.5, 0.7, 0.95])):
        exact = torch.log_softmax(logits[row].double(), -1)
        drawn_from = torch.log_softmax(logits[row].double() / 2.0, -1)
        assert choice.logprob == pytest.approx(float(exact[choice.token_id]), abs=1e-5)
        assert choice.sampling_logprob == pytest.approx(float(drawn_from[choice.token_id]), abs=1e-5)
        assert choice.entropy == pytest.approx(float(-(exact.exp() * exact).sum()), abs=1e-5)
        assert choice.rank == int((exact > exact[choice.token_id]).sum()) + 1
        assert choice.kept == VOCAB
        best = exact.topk(4)
        assert [token_id for token_id, _ in choice.alternatives] == best.indices.tolist()
        assert [logprob for _, logprob in choice.alternatives] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_kept_counts_what_could_have_been_drawn(choose: Choose) -> None:
    logits = some_logits(7, rows=2)
    (choice, _) = choose(logits, GenerationParams(strategy=Strategy.SAMPLE, top_k=5))
    assert choice.kept == 5
    (choice, _) = choose(logits, GenerationParams())
    assert (choice.kept, choice.sampling_logprob) == (1, 0.0)


def test_a_row_gives_the_same_bits_whatever_stands_beside_it(choose: Choose) -> None:
    logits = some_logits(8, rows=70, vocab=20_000)
    params = GenerationParams(strategy=Strategy.NUCLEUS, top_p=0.9, top_logprobs=3)
    numbers = np.linspace(0, 1, 70, endpoint=False).tolist()
    together = choose(logits, params, numbers)
    for row in (0, 1, 33, 69):
        assert choose(logits[row : row + 1], params, numbers[row : row + 1]) == [together[row]]


# Processors, value by value. Histories differ per row, as they do in a batch.

PROMPT, ANSWER = (3, 5, 5, 9), (5, 7, 7, 7, 30)
HISTORY = torch.LongTensor([[*PROMPT, *ANSWER]])


def processed(logits: Tensor, eos_ids: tuple[int, ...] = (), **params: Any) -> Tensor:
    return apply_history_processors(logits, GenerationParams(**params), PROMPT, ANSWER, eos_ids)


def test_repetition_penalty_is_transformers_own() -> None:
    logits = some_logits(9)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(HISTORY, logits.clone())
    assert torch.equal(processed(logits, repetition_penalty=1.3), expected)
    # By hand: divided where positive, multiplied where negative, over prompt and answer.
    for token_id in range(VOCAB):
        value = float(logits[0, token_id])
        changed = (value / 1.3 if value > 0 else value * 1.3) if token_id in (*PROMPT, *ANSWER) else value
        assert float(expected[0, token_id]) == pytest.approx(changed, rel=1e-6)


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = some_logits(10)
    changed = processed(logits, presence_penalty=0.5, frequency_penalty=0.25)
    for token_id in range(VOCAB):
        count = ANSWER.count(token_id)
        expected = float(logits[0, token_id]) - (0.5 + 0.25 * count if count else 0.0)
        assert float(changed[0, token_id]) == pytest.approx(expected, abs=1e-6)


def test_logit_bias_is_transformers_own() -> None:
    logits = some_logits(11)
    expected = SequenceBiasLogitsProcessor([[[3], 2.5], [[7], -100.0]])(HISTORY, logits.clone())
    assert torch.equal(processed(logits, logit_bias={3: 2.5, 7: -100.0}), expected)


def test_no_end_token_before_the_minimum_length() -> None:
    logits = some_logits(12)
    early = processed(logits, eos_ids=(4, 6), min_new_tokens=6)
    assert torch.isneginf(early[0, [4, 6]]).all()
    rest = [token_id for token_id in range(VOCAB) if token_id not in (4, 6)]
    assert torch.equal(early[0, rest], logits[0, rest])
    assert torch.equal(processed(logits, eos_ids=(4, 6), min_new_tokens=5), logits)


@pytest.mark.parametrize("top_k", [1, 5, VOCAB, VOCAB + 10])
def test_top_k_is_transformers_own(top_k: int) -> None:
    logits = some_logits(13)
    params = GenerationParams(strategy=Strategy.SAMPLE, top_k=top_k)
    assert torch.equal(apply_sampling_filters(logits, params), TopKLogitsWarper(top_k)(HISTORY, logits))


@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
def test_min_p_is_transformers_own(min_p: float) -> None:
    logits = some_logits(14)
    params = GenerationParams(strategy=Strategy.SAMPLE, min_p=min_p)
    assert torch.equal(apply_sampling_filters(logits, params), MinPLogitsWarper(min_p)(HISTORY, logits))


def test_processors_leave_the_models_logits_as_they_were() -> None:
    logits = some_logits(15)
    before = logits.clone()
    processed(logits, eos_ids=(1,), repetition_penalty=1.5, presence_penalty=1.0, logit_bias={1: 1.0}, min_new_tokens=9)
    assert torch.equal(logits, before)
