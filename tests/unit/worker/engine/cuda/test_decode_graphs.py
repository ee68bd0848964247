"""The parts of the GPU's path that need no GPU: buckets, padding and memory arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from worker.engine.cuda.decode_graphs import bucket_for, fill, graph_buckets, static_batch, static_states
from worker.engine.model.recurrent.state_pool import StateLayout, StatePool

CPU = torch.device("cpu")


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


def test_padding_rows_have_the_state_of_no_sequence() -> None:
    pool = StatePool(StateLayout(), 9)
    static = replace(static_batch(8, 64, 16, CPU), states=static_states(8, CPU))
    for indices in ([0, 1, 2, 3, 4, 5, 6, 7], [5, 8, 2]):
        batch = replace(static_batch(len(indices), 64, 16, CPU), states=static_states(len(indices), CPU))
        assert static.states is not None and batch.states is not None
        batch.states.decoding.copy_(torch.tensor(indices))
        fill(static, batch, pool)
        assert static.states.decoding.tolist() == indices + [pool.scratch] * (8 - len(indices))
