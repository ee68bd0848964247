"""Every sampler: tokens follow the distribution they should, and their statistics are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from tests.support.distributions import LEVEL, VOCAB, p_value, softmax, some_logits
from tests.support.kernels import kernels_of
from worker.engine.choices import Choice
from worker.engine.sampling.batch_sampler import SampleBatch, sample_batch
from worker.engine.sampling.philox import uniforms
from worker.engine.sampling.row_sampler import argmax, sample_rows
from worker.engine.sampling_row import SamplingRow

NUM_DRAWS = 60_000
TEMPERATURES = (0.001, 0.1, 0.5, 1.0, 10.0)


class Sample:
    """Samples logits [rows, vocab] with one of the samplers."""

    def __init__(self, sample_batch: SampleBatch | None) -> None:
        self._sample_batch = sample_batch

    def __call__(self, logits: Tensor, params: GenerationParams, numbers: list[float] | None = None) -> list[Choice]:
        numbers = [0.5] * len(logits) if numbers is None else numbers
        return self.rows(logits, [SamplingRow(params, (), (), (), number) for number in numbers])

    def rows(self, logits: Tensor, rows: list[SamplingRow]) -> list[Choice]:
        return sample_rows(logits, rows, self._sample_batch)


@pytest.fixture(params=["rows", "batched", "kernels"])
def sample(request: pytest.FixtureRequest) -> Sample:
    """Every sampler in turn: a few rows at a time, all rows on the device, and in C."""
    if request.param == "kernels":
        return Sample(kernels_of(torch.float32).sample)
    return Sample(sample_batch if request.param == "batched" else None)


def sampled_ids(sample: Sample, logits: Tensor, params: GenerationParams) -> list[int]:
    """Draws with the whole sampler, from many rows of the same logits at a time."""
    numbers = uniforms([11] * NUM_DRAWS, [0] * NUM_DRAWS, range(NUM_DRAWS)).tolist()
    size = 1000
    token_ids = []
    for start in range(0, NUM_DRAWS, size):
        choices = sample(logits.expand(size, -1), params, numbers[start : start + size])
        token_ids += [choice.token_id for choice in choices]
    return token_ids


@pytest.mark.parametrize("top_p", [1e-30, 1e-7])
def test_a_limit_of_nothing_keeps_the_first_of_many_equal_tokens(sample: Sample, top_p: float) -> None:
    """Each of them is less probable than what the samplers look at first."""
    (choice,) = sample(torch.zeros(1, 100_001), GenerationParams(strategy=Strategy.SAMPLE, top_p=top_p), [0.9])
    assert (choice.token_id, choice.kept, choice.sampling_logprob) == (0, 1, 0.0)


def test_sampling_follows_the_softmax(sample: Sample) -> None:
    logits = some_logits()[0]
    params = GenerationParams(strategy=Strategy.SAMPLE, temperature=0.7, trace="none")
    token_ids = sampled_ids(sample, logits[None], params)
    assert p_value(token_ids, softmax(logits, 0.7)) > LEVEL
    # The check would notice a temperature that is off by three percent.
    assert p_value(token_ids, softmax(logits, 0.7 * 1.03)) < LEVEL


def test_nucleus_sampling_follows_the_renormalized_nucleus(sample: Sample) -> None:
    logits = some_logits(1)[0]
    token_ids = sampled_ids(sample, logits[None], GenerationParams(strategy=Strategy.NUCLEUS, top_p=0.8, trace="none"))
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


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("strategy", [Strategy.SAMPLE, Strategy.NUCLEUS])
def test_every_temperature_gives_finite_statistics(sample: Sample, strategy: Strategy, temperature: float) -> None:
    logits = some_logits(4, rows=4) * 20
    logits[0, 5] = -math.inf
    for dtype in (torch.float32, torch.bfloat16):
        for choice in sample(logits.to(dtype), GenerationParams(strategy=strategy, temperature=temperature)):
            assert all(map(math.isfinite, (choice.logprob, choice.sampling_logprob, choice.entropy)))


def test_a_cold_draw_is_greedy_and_a_hot_one_nearly_uniform(sample: Sample) -> None:
    logits = some_logits(5)
    cold = sample(logits, GenerationParams(strategy=Strategy.SAMPLE, temperature=0.001))[0]
    assert cold.token_id == int(logits.argmax())
    hot = sample(logits, GenerationParams(strategy=Strategy.SAMPLE, temperature=1e6))[0]
    assert hot.sampling_logprob == pytest.approx(-math.log(VOCAB), abs=1e-4)


def test_greedy_takes_the_lowest_id_among_ties(sample: Sample) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, [7, 30]] = 2.0
    assert [choice.token_id for choice in sample(logits, GenerationParams())] == [7, 7, 7]


def test_greedy_after_edits_takes_the_largest_score_however_near_the_next_is(sample: Sample) -> None:
    """Scores this near have the same weight in fp32."""
    logits = torch.zeros(2, VOCAB)
    logits[:, 7] = 0.2
    logits[:, 30] = torch.nextafter(logits[0, 7], torch.tensor(1.0))
    choices = sample(logits, GenerationParams(logit_bias={3: -1.0}))
    assert [choice.token_id for choice in choices] == [30, 30]


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0, -50.0])
def test_argmax_of_bf16_is_that_of_its_values(shift: float) -> None:
    """Also where the largest value is zero or negative, and among ties, of which bf16 has many."""
    logits = (some_logits(16, rows=50, vocab=3000) + shift).bfloat16()
    logits[0] = -logits[0].abs()
    logits[1, 100:200] = -math.inf
    expected = [row.tolist().index(max(row.tolist())) for row in logits]
    assert argmax(logits) == expected


def test_statistics_agree_with_a_softmax_in_float64(sample: Sample) -> None:
    logits = some_logits(6, rows=5)
    params = GenerationParams(strategy=Strategy.SAMPLE, temperature=2.0, top_logprobs=4)
    for row, choice in enumerate(sample(logits, params, [0.05, 0.3, 0.5, 0.7, 0.95])):
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


def test_kept_counts_the_tokens_that_could_have_been_drawn(sample: Sample) -> None:
    logits = some_logits(7, rows=2)
    (choice, _) = sample(logits, GenerationParams(strategy=Strategy.SAMPLE, top_k=5))
    assert choice.kept == 5
    (choice, _) = sample(logits, GenerationParams())
    assert (choice.kept, choice.sampling_logprob) == (1, 0.0)


def test_a_row_gives_the_same_bits_alone_and_among_others(sample: Sample) -> None:
    logits = some_logits(8, rows=70, vocab=20_000)
    params = GenerationParams(strategy=Strategy.NUCLEUS, top_p=0.9, top_logprobs=3)
    numbers = np.linspace(0, 1, 70, endpoint=False).tolist()
    together = sample(logits, params, numbers)
    for row in (0, 1, 33, 69):
        assert sample(logits[row : row + 1], params, numbers[row : row + 1]) == [together[row]]


def test_alternatives_among_equals_are_the_first_ones(sample: Sample) -> None:
    """The rows beside may ask for more or fewer."""
    logits = torch.randint(3, (6, 199), generator=torch.Generator().manual_seed(4)).float()
    counts = (2, 20, 0, 1, 5, 20)
    rows = [SamplingRow(GenerationParams(top_logprobs=count), (), (), (), 0.5) for count in counts]
    for row, count, choice in zip(logits.tolist(), counts, sample.rows(logits, rows), strict=True):
        expected = sorted((-logit, token_id) for token_id, logit in enumerate(row))[:count]
        assert [token_id for token_id, _ in choice.alternatives] == [token_id for _, token_id in expected]
        assert choice.token_id == row.index(max(row))


def test_alternatives_are_the_same_beside_a_row_that_asks_for_more(sample: Sample) -> None:
    """Logits this close differ, and their logprobs round to the same."""
    logits = 1e-3 + 1e-9 * torch.randperm(2000, generator=torch.Generator().manual_seed(1)).float().expand(2, -1)
    few, many = (SamplingRow(GenerationParams(top_logprobs=count), (), (), (), 0.5) for count in (3, 50))
    together, _ = sample.rows(logits, [few, many])
    (alone,) = sample.rows(logits[:1], [few])
    assert together.alternatives == alone.alternatives
