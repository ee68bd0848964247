"""The parts of the GPU's path that need no GPU: buckets, padding, memory arithmetic, the batched sampler."""

from __future__ import annotations

import random

import pytest
import torch

from models.params import GenerationParams
from worker.engine.cuda.decode_graphs import bucket_for, graph_buckets
from worker.engine.cuda.memory import left_for_cache
from worker.engine.sampling.batch_sampler import choose_batch, keep_nucleus
from worker.engine.sampling.nucleus import nucleus
from worker.engine.sampling.row_sampler import SamplingRow, choose_tokens


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 16, 17, 64, 100, 128, 129, 1000])
def test_every_size_has_a_bucket_that_is_not_much_larger(max_num_seqs: int) -> None:
    buckets = graph_buckets(max_num_seqs)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == max(max_num_seqs, 2)
    for size in range(1, max_num_seqs + 1):
        bucket = bucket_for(size, buckets)
        assert bucket is not None
        assert size <= bucket <= max(2, 2 * size, size + 64)
    assert bucket_for(buckets[-1] + 1, buckets) is None


def test_the_cache_gets_what_weights_and_a_step_leave_of_its_share() -> None:
    assert left_for_cache(total=80, free=70, utilization=0.9, step=5) == 72 - 10 - 5
    assert left_for_cache(total=80, free=10, utilization=0.5, step=5) == 0


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95])
def test_the_batched_nucleus_is_the_one_of_the_rule(scale: float, top_p: float) -> None:
    """More tokens than are sorted first; few distinct weights, so that ties run through the cut."""
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randint(0, 40, (6, 3000), generator=generator) * scale / 10).exp()
    kept = keep_nucleus(weights, torch.full((6, 1), top_p, dtype=torch.float64))
    for row in range(6):
        ids, values, count = nucleus(weights[row].numpy(), top_p)
        expected = set(torch.from_numpy(values).nonzero()[:, 0].tolist()) if ids is None else set(ids.tolist())
        assert set(kept[row].nonzero()[:, 0].tolist()) == expected
        assert len(expected) == count


def test_all_rows_at_once_are_chosen_as_they_are_one_by_one() -> None:
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
    ]
    rows = [
        SamplingRow(GenerationParams.model_validate(kinds[row % len(kinds)]), (1, 2), (3,), (), rng.random())
        for row in range(40)
    ]
    for one, other in zip(choose_tokens(logits, rows), choose_tokens(logits, rows, choose_batch), strict=True):
        assert (one.token_id, one.rank, one.kept) == (other.token_id, other.rank, other.kept)
        for name in ("logprob", "sampling_logprob", "entropy"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
        assert [token_id for token_id, _ in one.alternatives] == [token_id for token_id, _ in other.alternatives]
