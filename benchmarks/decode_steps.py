"""A decode step with a number of sequences running, alternately with the bare packed matmuls of the same rows.

    python -m benchmarks.decode_steps --running 2 8 16 32 64 --picture docs/pictures/decode.svg

Prints the median of both and the share of the step that the matmuls take.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.phases import Bound, Step
from benchmarks.support.pictures import DecodeStep, draw_decode
from benchmarks.support.timing import timed
from benchmarks.support.workload import engine_for
from models.params import GenerationParams
from worker.engine.engine import Engine
from worker.engine.request import Request


def decoding_engine(base: Engine, num_sequences: int, num_steps: int) -> Engine:
    """An engine whose prompts are prefilled, with tokens left for `num_steps`."""
    engine = Engine(base.loaded, base.config)
    rng = random.Random(0)
    params = GenerationParams(max_new_tokens=num_steps + 10, ignore_eos=True, trace="none")
    for number in range(num_sequences):
        engine.submit(Request(number, tuple(rng.choices(range(10, 150_000), k=rng.randint(16, 64))), params))
    for _ in range(2):
        engine.step()
    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[2, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    measured = []
    base, bound = engine_for(torch.bfloat16), Bound(torch.bfloat16)
    for count in given.running:
        engine = decoding_engine(base, count, given.steps)
        matmuls = partial(bound.matmuls, Step(count, count, 0.0))
        pairs = [(1000 * timed(engine.step), 1000 * timed(matmuls)) for _ in range(given.steps)]
        ours, least = (median(column) for column in zip(*pairs, strict=True))
        measured.append(DecodeStep(count, ours, least))
        print(f"{count:3} running: step {ours:6.1f} ms, matmuls {least:6.1f} ms: {least / ours:.0%}", flush=True)
    print(json.dumps([asdict(step) for step in measured]))
    if given.picture is not None:
        draw_decode(measured, given.picture)


if __name__ == "__main__":
    main()
