"""The batch sampler against the row sampler: the same nucleus, the same tokens, the same statistics."""

from __future__ import annotations

import random

import pytest
import torch

from models.params import GenerationParams
from worker.engine.sampling.batch_sampler import keep_nucleus, sample_batch
from worker.engine.sampling.nucleus import nucleus
from worker.engine.sampling.row_sampler import sample_rows
from worker.engine.sampling_row import SamplingRow


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95])
def test_the_nucleus_of_all_rows_is_that_of_each(scale: float, top_p: float) -> None:
    """More tokens than are sorted first, and few distinct weights, so that ties run through the cutoff."""
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randint(0, 40, (6, 3000), generator=generator) * scale / 10).exp()
    kept = keep_nucleus(weights, torch.full((6, 1), top_p, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.bool))
    for row in range(6):
        ids, values, count = nucleus(weights[row].numpy(), top_p)
        expected = set(torch.from_numpy(values).nonzero()[:, 0].tolist()) if ids is None else set(ids.tolist())
        assert set(kept[row].nonzero()[:, 0].tolist()) == expected
        assert len(expected) == count


def test_all_rows_at_once_are_sampled_as_a_few_at_a_time() -> None:
    rng = random.Random(0)
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(2)) * 3
    kinds: list[dict[str, object]] = [
        {},
        {"strategy": "sample"},
        {"strategy": "sample", "temperature": 0.001},
        {"strategy": "nucleus", "top_p": 0.7, "top_logprobs": 3},
        {"strategy": "nucleus", "top_p": 0.99, "temperature": 10.0},
        {"strategy": "sample", "top_k": 5},
        {"repetition_penalty": 1.3, "top_logprobs": 1},
        {"strategy": "sample", "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {"7": 30.0}, "min_new_tokens": 5},
    ]
    rows = [
        SamplingRow(GenerationParams.model_validate(kinds[row % len(kinds)]), (1, 2), (3,), (), rng.random())
        for row in range(40)
    ]
    for one, other in zip(sample_rows(logits, rows), sample_rows(logits, rows, sample_batch), strict=True):
        assert (one.token_id, one.rank, one.kept) == (other.token_id, other.rank, other.kept)
        for name in ("logprob", "sampling_logprob", "entropy"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
        assert [token_id for token_id, _ in one.alternatives] == [token_id for token_id, _ in other.alternatives]
