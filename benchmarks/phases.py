"""The engine's steps beside the bare matmuls of the same rows, by number of running sequences.

    python -m benchmarks.phases --requests 64

Other requests are decoded first, as in a worker that has been running for a while: its KV cache has its memory. The
bound of a step is the best of three runs of its matmuls, with weights that oneDNN packed. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.support.timing import timed
from benchmarks.support.workload import engine_for, long_tailed, qwen2_half_billion_config
from worker.engine.cpu.onednn_linear import OneDnnLinear
from worker.engine.engine import Engine
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.request import Request

SIZES = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Step:
    """One step of the engine, measured."""

    num_rows: int  # prompt tokens and decoding sequences
    num_tokens: int  # generated
    seconds: float

    @property
    def phase(self) -> str:
        if self.num_rows > self.num_tokens:
            return "prefill"
        return f"up to {next(size for size in SIZES if self.num_tokens <= size)} running"


class Bound:
    """The bare matmuls of a step, seven per layer and the head's, with packed random weights; and their time."""

    def __init__(self, dtype: torch.dtype) -> None:
        config = qwen2_half_billion_config()
        width = config.hidden_size
        assert config.num_key_value_heads is not None
        kv_width = width // config.num_attention_heads * config.num_key_value_heads
        shapes = [
            (width, width), (width, kv_width), (width, kv_width), (width, width),
            (width, config.intermediate_size), (width, config.intermediate_size), (config.intermediate_size, width),
        ]  # fmt: skip
        self._linears = [_random_linear(*shape, dtype) for _ in range(config.num_hidden_layers) for shape in shapes]
        self._head = _random_linear(width, config.vocab_size, dtype)
        self._dtype = dtype
        self._seconds: dict[tuple[int, int], float] = {}
        self._inputs: dict[tuple[int, int], torch.Tensor] = {}

    def seconds(self, step: Step) -> float:
        """The best of three; steps of one shape share it."""
        shape = (step.num_rows, step.num_tokens)
        if shape not in self._seconds:
            self._seconds[shape] = min(timed(partial(self.matmuls, step)) for _ in range(3))
        return self._seconds[shape]

    @torch.inference_mode()
    def matmuls(self, step: Step) -> None:
        """Computes the matmuls of one step."""
        num_rows, num_logits = max(MIN_ROWS, step.num_rows), max(MIN_ROWS, step.num_tokens)
        for linear in self._linears:
            linear(self._input(num_rows, linear.in_features))
        self._head(self._input(num_logits, self._head.in_features))

    def _input(self, num_rows: int, width: int) -> torch.Tensor:
        if (num_rows, width) not in self._inputs:
            self._inputs[num_rows, width] = torch.randn(num_rows, width).to(self._dtype)
        return self._inputs[num_rows, width]


def _random_linear(inputs: int, outputs: int, dtype: torch.dtype) -> OneDnnLinear:
    return OneDnnLinear([torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)])


def decode(engine: Engine, requests: Sequence[Request]) -> list[Step]:
    """Decodes all requests; returns each step."""
    for request in requests:
        engine.submit(request)
    steps = []
    while engine.has_work:
        num_rows = engine.stats.num_prefill_tokens + engine.stats.num_decode_rows
        num_tokens = engine.stats.num_generated_tokens
        seconds = timed(engine.step)
        num_rows = engine.stats.num_prefill_tokens + engine.stats.num_decode_rows - num_rows
        steps.append(Step(num_rows, engine.stats.num_generated_tokens - num_tokens, seconds))
    return steps


def report(steps: Sequence[Step], bound: Bound) -> None:
    """Prints each phase's seconds beside its bound, and their sums."""
    phases: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        phases[step.phase].append(step)
    seconds: dict[str, dict[str, float]] = {}
    print(f"{'phase':18} {'steps':>6} {'tokens':>7} {'ours':>8} {'bound':>8} {'of bound':>9}")
    for name, members in [*phases.items(), ("all", steps)]:
        ours, least = sum(step.seconds for step in members), sum(bound.seconds(step) for step in members)
        num_tokens = sum(step.num_tokens for step in members)
        print(f"{name:18} {len(members):6} {num_tokens:7} {ours:7.2f}s {least:7.2f}s {least / ours:8.0%}")
        seconds[name] = {"ours": ours, "bound": least}
    print(json.dumps({"seconds": seconds}))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    engine = engine_for(dtype, max_num_seqs=given.max_num_seqs, prefill_tokens=given.prefill_tokens)
    decode(engine, long_tailed(given.requests, seed=1))
    report(decode(engine, long_tailed(given.requests)), Bound(dtype))


if __name__ == "__main__":
    main()
