"""A sequence that ends makes place for a waiting one at the next step."""

from __future__ import annotations

import random

from models.params import GenerationParams
from tests.support.random_models import random_pair, random_prompts
from worker.engine.request import Request

NUM_REQUESTS = 2000
MAX_NUM_SEQS = 64


def long_tailed_requests() -> list[Request]:
    """Forced lengths from a log-normal, cut to 4 … 200: most are short, some very long."""
    rng = random.Random(10)
    lengths = [min(200, max(4, int(rng.lognormvariate(3.0, 0.8)))) for _ in range(NUM_REQUESTS)]
    prompts = random_prompts(NUM_REQUESTS, seed=10, longest=30)
    return [
        Request(index, prompt_ids, GenerationParams(max_new_tokens=length, ignore_eos=True, trace="none"))
        for index, (prompt_ids, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def test_the_batch_is_refilled_and_nothing_is_lost() -> None:
    requests = long_tailed_requests()
    engine = random_pair("qwen2").engine(max_num_seqs=MAX_NUM_SEQS, kv_memory=0.2)
    for request in requests:
        engine.submit(request)
    running, outputs = [], []
    while engine.has_work:
        before = engine.stats.num_sequence_steps
        outputs += engine.step()
        running.append(engine.stats.num_sequence_steps - before)
    assert sorted(output.request_id for output in outputs) == list(range(NUM_REQUESTS))
    for output in outputs:
        expected = requests[output.request_id].params.max_new_tokens
        assert [len(done.token_ids) for done in output.completions] == [expected]
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    first_part = running[: int(len(running) * 0.8)]
    mean_running = sum(first_part) / len(first_part)
    assert mean_running >= 0.9 * MAX_NUM_SEQS, mean_running
    # A batch that waits for its longest sequence would need as many steps as the longest of every 64 is long.
    static = sum(
        max(request.params.max_new_tokens for request in requests[start : start + MAX_NUM_SEQS])
        for start in range(0, NUM_REQUESTS, MAX_NUM_SEQS)
    )
    assert len(running) < 0.4 * static
    assert len(running) < 1.25 * num_tokens / MAX_NUM_SEQS
