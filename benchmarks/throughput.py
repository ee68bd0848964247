"""Useful tokens per second on a long-tailed file: ours, `generate`, and the bare matmuls as the bound.

    python -m benchmarks.throughput --requests 64 --rounds 3 --contenders ours,static,bound

Every contender gets the same requests, in turn, within one process; ratios are of medians over the rounds.
`static` is `generate` with the whole file in batches of `--static-batch`; `one` is `generate` one at a time;
`continuous` is Transformers' continuous batching. The bound is *shaped*: the packed matmuls of exactly the rows
of each of our steps, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.phases import Bound, Step, decode
from benchmarks.support.timing import alternate, print_rate, timed
from benchmarks.support.workload import engine_for, long_tailed, qwen2_half_billion
from models.states import Quantization
from worker.engine.engine import Engine
from worker.engine.request import Request


class Transformers:
    """Transformers' own ways of decoding, on a plain model. Each method decodes all `requests`."""

    def __init__(self, model: Any, static_batch: int) -> None:
        self.model = model
        self.static_batch = static_batch
        self.requests: Sequence[Request] = []

    def static(self) -> None:
        """`generate` in batches; each waits for its longest sequence."""
        for start in range(0, len(self.requests), self.static_batch):
            self._generate(self.requests[start : start + self.static_batch])

    def one(self) -> None:
        """`generate`, one at a time."""
        for request in self.requests:
            self._generate([request])

    def continuous(self) -> None:
        """Continuous batching."""
        from transformers import GenerationConfig

        longest = max(request.params.max_new_tokens for request in self.requests)
        config = GenerationConfig(max_new_tokens=longest, eos_token_id=-1, pad_token_id=0, do_sample=False)
        with self.model.continuous_batching_context_manager(generation_config=config) as manager:
            for number, request in enumerate(self.requests):
                manager.add_request(list(request.prompt_ids), str(number), max_new_tokens=request.params.max_new_tokens)
            num_left = len(self.requests)
            while num_left:
                result = manager.get_result(timeout=600)
                if result is None:  # its thread has died, or stands still: no later call gives more
                    raise RuntimeError("Transformers' continuous batching gave no result")
                num_left -= bool(result.is_finished())

    def _generate(self, requests: Sequence[Request]) -> None:
        longest_prompt = max(len(request.prompt_ids) for request in requests)
        padded = [[0] * (longest_prompt - len(r.prompt_ids)) + list(r.prompt_ids) for r in requests]
        mask = [[0] * (longest_prompt - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests]
        self.model.generate(
            torch.tensor(padded, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            max_new_tokens=max(request.params.max_new_tokens for request in requests),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )


class Contenders:
    """Decodes all requests by the name of a contender; each model is made once, when it is first needed."""

    def __init__(
        self,
        dtype: torch.dtype,
        requests: Sequence[Request],
        max_num_seqs: int,
        static_batch: int,
        quantize: Quantization = "none",
    ) -> None:
        self.requests = requests
        self.engine = engine_for(dtype, quantize=quantize, max_num_seqs=max_num_seqs)
        self.steps: list[Step] = []
        self._bound: Bound | None = None
        self._dtype = dtype
        self._static_batch = static_batch
        self._peer: Transformers | None = None

    def run(self, name: str) -> None:
        if name == "ours":
            self.steps = decode(Engine(self.engine.loaded, self.engine.config), self.requests)
        elif name == "bound":
            self._bound = self._bound or Bound(self._dtype)
            for step in self.steps:  # of the last run of ours
                self._bound.matmuls(step)
        else:
            getattr(self.peer, name)()

    @property
    def peer(self) -> Transformers:
        if self._peer is None:
            self._peer = Transformers(qwen2_half_billion(self._dtype), self._static_batch)
        self._peer.requests = self.requests
        return self._peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--static-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--contenders", default="ours,bound,static")
    given = parser.parse_args()
    requests = long_tailed(given.requests)
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    contenders = Contenders(getattr(torch, given.dtype), requests, given.max_num_seqs, given.static_batch)
    names = given.contenders.split(",")
    variants = {name: partial(timed, partial(contenders.run, name)) for name in names}
    seconds = alternate(variants, given.rounds, print_rate(num_tokens, width=10))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{len(requests)} requests, {num_tokens} tokens, {given.dtype}, at most {given.max_num_seqs} running")
    for name in names:
        ratio = medians[name] / medians["ours"]
        print(f"{name:10} {num_tokens / medians[name]:8.1f} tokens/s   ours is {ratio:.2f} x as fast")
    print(json.dumps({"tokens": num_tokens, "dtype": given.dtype, "seconds": seconds}))


if __name__ == "__main__":
    main()
