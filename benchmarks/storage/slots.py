"""Are slots refilled? 2,000 long-tailed requests on the toy model, and how many sequences ran at each step.

    python -m benchmarks.storage.slots

Prints the mean over the first 80 % of the steps, beside the number of slots, and the steps that batches
waiting for their longest sequence would have needed.
"""

from __future__ import annotations

import argparse
import random

from benchmarks.support.workload import TOY_MODEL
from models.params import GenerationParams
from worker.engine.engine import Engine
from worker.engine.request import Request


def requests_of(engine: Engine, count: int) -> list[Request]:
    rng = random.Random(0)
    requests = []
    for index in range(count):
        length = min(400, max(4, round(rng.lognormvariate(3.2, 0.9))))
        params = GenerationParams(max_new_tokens=length, ignore_eos=True, trace="none")
        requests.append(Request(index, engine.encode(f"Story number {index}"), params))
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=64)
    given = parser.parse_args()
    engine = Engine.load(str(TOY_MODEL), max_num_seqs=given.slots, kv_memory=0.5)
    requests = requests_of(engine, given.requests)
    for request in requests:
        engine.submit(request)
    running, finished = [], []
    while engine.has_work:
        before = engine.stats.num_sequence_steps
        finished += [output.request_id for output in engine.step()]
        running.append(engine.stats.num_sequence_steps - before)
    assert sorted(finished) == list(range(given.requests)), "a request is missing or came twice"
    first = running[: int(0.8 * len(running))]
    lengths = [request.params.max_new_tokens for request in requests]
    static = sum(max(lengths[start : start + given.slots]) for start in range(0, len(lengths), given.slots))
    print(f"{given.requests} requests, {sum(lengths)} tokens, each finished once")
    print(f"mean running, first 80 % of the steps: {sum(first) / len(first):.1f} of {given.slots} slots")
    print(f"steps: {len(running)}; static batches of {given.slots} would take {static}")


if __name__ == "__main__":
    main()
