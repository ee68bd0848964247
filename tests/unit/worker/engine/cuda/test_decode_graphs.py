"""The parts of the GPU's path that need no GPU: buckets, padding and memory arithmetic."""

from __future__ import annotations

import pytest

from worker.engine.cuda.decode_graphs import bucket_for, graph_buckets


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
