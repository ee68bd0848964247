"""The fullness of the batch: 2,000 long-tailed requests on the toy model, with the sequences counted at each step.

    python -m benchmarks.occupancy

Prints the mean over the first 80 % of the steps beside `--max-num-seqs`, and the steps that static batches, which
wait for their longest sequence, would take.
"""

from __future__ import annotations

import argparse
import random

from benchmarks.support.workload import TOY_MODEL
from models.params import GenerationParams
from worker.engine.engine import Engine
from worker.engine.request import Request


def requests_of(engine: Engine, count: int) -> list[Request]:
    """Requests for the toy model; forced output lengths from a log-normal cut to 4 … 400."""
    rng = random.Random(0)
    requests = []
    for index in range(count):
        length = min(400, max(4, round(rng.lognormvariate(3.2, 0.9))))
        params = GenerationParams(max_new_tokens=length, ignore_eos=True, trace="none")
        requests.append(Request(index, engine.encode(f"Story number {index}"), params))
    return requests


def sequences_per_step(engine: Engine, requests: list[Request]) -> list[int]:
    """Decodes all requests; returns how many sequences took part in each step."""
    for request in requests:
        engine.submit(request)
    running, finished = [], []
    while engine.has_work:
        before = engine.stats.num_sequence_steps
        finished += [output.request_id for output in engine.step()]
        running.append(engine.stats.num_sequence_steps - before)
    assert sorted(finished) == list(range(len(requests))), "a request is missing or came twice"
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    given = parser.parse_args()
    engine = Engine.load(str(TOY_MODEL), max_num_seqs=given.max_num_seqs, kv_memory=0.5)
    requests = requests_of(engine, given.requests)
    running = sequences_per_step(engine, requests)
    first = running[: int(0.8 * len(running))]
    lengths = [request.params.max_new_tokens for request in requests]
    batch = given.max_num_seqs
    static = sum(max(lengths[start : start + batch]) for start in range(0, len(lengths), batch))
    print(f"{given.requests} requests, {sum(lengths)} tokens, each finished once")
    print(f"mean running, first 80 % of the steps: {sum(first) / len(first):.1f} of {batch}")
    print(f"steps: {len(running)}; static batches of {batch} would take {static}")


if __name__ == "__main__":
    main()
