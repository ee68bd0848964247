"""Ablations: the engine with all of its large optimizations and with one of them taken away, alternately.

    python -m benchmarks.ablations --requests 128 --rounds 3

`plain matmuls` uses `F.linear`, which reorders the weights at every call; `oneDNN's matmuls` uses weights that oneDNN
packed once; `one prompt a step` prefills prompts one by one; `static batches` admits nobody until the longest sequence
of a batch has ended. Prints the median of the rounds and how many times as long each takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from benchmarks.support.timing import alternate, print_rate, timed
from benchmarks.support.workload import engine_for, long_tailed, qwen2_half_billion
from worker.engine.cpu.kernels import cpu_kernels
from worker.engine.cpu.onednn_linear import OneDnnLinear
from worker.engine.engine import Engine
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.linear import MakeLinear, PlainLinear
from worker.engine.model.row_operations import PlainRowOperations
from worker.engine.request import Request

BASELINE = "all of them"
MAX_NUM_SEQS = 64
LONGEST_PROMPT = 64


def with_linear(base: Engine, make_linear: MakeLinear) -> Engine:
    """The same engine with another kind of linear layer in its decoder."""
    dtype = base.loaded.model.dtype
    decoder = FusedDecoder(qwen2_half_billion(dtype), make_linear, cpu_kernels(dtype) or PlainRowOperations())
    return Engine(replace(base.loaded, model=replace(base.loaded.model, decoder=decoder)), base.config)


def decode(base: Engine, requests: Sequence[Request], *, prefill_tokens: int | None = None) -> None:
    """Decodes all requests with a fresh engine."""
    engine = Engine(
        base.loaded, base.config.model_copy(update={"prefill_tokens": prefill_tokens or base.config.prefill_tokens})
    )
    for _ in engine.generate(requests):
        pass


def decode_static(base: Engine, requests: Sequence[Request]) -> None:
    """Decodes batch after batch; each waits for its longest sequence."""
    for start in range(0, len(requests), MAX_NUM_SEQS):
        decode(base, requests[start : start + MAX_NUM_SEQS])


def ablations_of(base: Engine, requests: Sequence[Request]) -> dict[str, Callable[[], None]]:
    """The baseline, and each ablation by its name."""
    plain, packed = with_linear(base, PlainLinear), with_linear(base, OneDnnLinear)
    return {
        BASELINE: lambda: decode(base, requests),
        "plain matmuls": lambda: decode(plain, requests),
        "oneDNN's matmuls": lambda: decode(packed, requests),
        "one prompt a step": lambda: decode(base, requests, prefill_tokens=LONGEST_PROMPT),
        "static batches": lambda: decode_static(base, requests),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    given = parser.parse_args()
    base = engine_for(getattr(torch, given.dtype), max_num_seqs=MAX_NUM_SEQS)
    requests = long_tailed(given.requests)
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    variants = {name: partial(timed, action) for name, action in ablations_of(base, requests).items()}
    seconds = alternate(variants, given.rounds, print_rate(num_tokens))
    best = median(seconds[BASELINE])
    print(f"\n{len(requests)} requests, {num_tokens} tokens, {given.dtype}, at most {MAX_NUM_SEQS} running")
    for name, values in seconds.items():
        print(f"{name:18} {num_tokens / median(values):8.1f} tokens/s   {median(values) / best:.2f} x the time")
    print(json.dumps({"tokens": num_tokens, "dtype": given.dtype, "seconds": seconds}))


if __name__ == "__main__":
    main()
