"""One command for a GPU: all that is claimed of it, printed. Needs torch, transformers, pydantic and this repository.

    python -m benchmarks.gpu --requests 256 1024

Qwen2-0.5B's shape with random weights in bf16; prompts of 100 to 1,024 ids, as many forced output ids. Prints useful
tokens/s of ours, of `generate` in static batches, of Transformers' continuous batching, and the roofline bound: for
each of our steps the larger of its bytes at the measured bandwidth and its products at the measured rate. Then
decode steps recorded against eager, steps that wait for their tokens, nucleus against greedy, whether the toy model's
greedy answers in fp32 are those of the CPU, and whether `--deterministic` keeps its promise. `--device cpu --tiny`
tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import reproducibility
from benchmarks.support.workload import TOY_MODEL, qwen2_half_billion
from benchmarks.throughput import Transformers
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, load_model, prepare_model
from worker.engine.request import Request

VOCAB = 150_000


@dataclass(frozen=True)
class Step:
    rows: int
    keys: int  # read from the cache by all rows


def long_requests(count: int, longest: int, **params: Any) -> list[Request]:
    rng = random.Random(0)
    shortest = max(2, longest // 10)
    return [
        Request(
            number,
            tuple(rng.choices(range(10, VOCAB), k=rng.randint(shortest, longest))),
            GenerationParams(
                max_new_tokens=rng.randint(shortest, longest), ignore_eos=True, trace="none", seed=number, **params
            ),
        )
        for number in range(count)
    ]


class Roofline:
    """What a device can do at best, measured: bytes/s of a copy, multiply-adds/s of a square bf16 product."""

    def __init__(self, loaded: LoadedModel, num_parameters: int) -> None:
        self.device = loaded.device
        self._bytes_per_key = sum(shape.num_elements for shape in loaded.layers.values()) * loaded.dtype.itemsize
        self._num_parameters = num_parameters
        self._weight_bytes = num_parameters * loaded.dtype.itemsize
        size = 8192 if self.device.type == "cuda" else 1024
        source = torch.empty(size * size * 8, dtype=torch.uint8, device=self.device)
        self.bandwidth = 2 * source.numel() / self._best(source.clone)
        square = torch.randn(size, size, device=self.device).to(loaded.dtype)
        self.rate = size**3 / self._best(lambda: square @ square)

    def seconds(self, step: Step) -> float:
        moved = self._weight_bytes + step.keys * self._bytes_per_key
        return max(moved / self.bandwidth, step.rows * self._num_parameters / self.rate)

    def _best(self, action: Callable[[], Any]) -> float:
        return min(timed(action, self.device) for _ in range(5))


def timed(action: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode(loaded: LoadedModel, requests: Sequence[Request], **config: Any) -> list[Step]:
    """Decodes all with a fresh engine; its steps."""
    engine = Engine(loaded, EngineConfig(**config))
    steps = []
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        stats = engine.stats
        rows = stats.num_prefill_tokens + stats.num_decode_rows
        keys = engine.scheduler.blocks.num_in_use * engine.scheduler.blocks.block_size
        engine.step()
        steps.append(Step(stats.num_prefill_tokens + stats.num_decode_rows - rows, keys))
    return steps


def compare(loaded: LoadedModel, peer: Transformers, roofline: Roofline, requests: list[Request], slots: int) -> None:
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    peer.requests = requests
    steps: list[Step] = []

    def ours() -> None:
        steps[:] = decode(loaded, requests, max_num_seqs=slots)

    seconds: dict[str, list[float]] = {"ours": [], "continuous": [], "static": []}
    for _ in range(3):
        seconds["ours"].append(timed(ours, loaded.device))
        seconds["continuous"].append(timed(peer.continuous, loaded.device))
    seconds["static"].append(timed(peer.static, loaded.device))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bound = sum(roofline.seconds(step) for step in steps)
    print(f"\n{len(requests)} requests, {num_tokens} tokens, {slots} slots")
    for name, value in (*medians.items(), ("bound", bound)):
        print(f"{name:12} {num_tokens / value:10,.0f} tokens/s   ours is {value / medians['ours']:.2f} x as fast")
    print(json.dumps({"requests": len(requests), "tokens": num_tokens, "seconds": seconds, "bound": bound}))


def compare_ways(loaded: LoadedModel, count: int, longest: int, slots: int) -> None:
    """Greedy against eager steps, steps that wait for their tokens, and nucleus: alternately, on the same lengths."""
    greedy = long_requests(count, longest)
    nucleus = long_requests(count, longest, strategy="nucleus", top_p=0.9)
    ways: dict[str, Callable[[], Any]] = {
        "greedy": lambda: decode(loaded, greedy, max_num_seqs=slots),
        "greedy, eager": lambda: decode(loaded, greedy, max_num_seqs=slots, use_graphs=False),
        "greedy, waiting": lambda: decode(replace(loaded, launch_batch=None), greedy, max_num_seqs=slots),
        "nucleus 0.9": lambda: decode(loaded, nucleus, max_num_seqs=slots),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            seconds[name].append(timed(way, loaded.device))
    fastest = statistics.median(seconds["greedy"])
    print()
    for name, values in seconds.items():
        print(f"{name:14} {statistics.median(values) / fastest:6.3f} x the time of greedy")


def compare_with_cpu(device: torch.device) -> None:
    """Greedy answers of the toy model in fp32, there and here."""
    found = []
    for place in (str(device), "cpu"):
        engine = Engine(load_model(str(TOY_MODEL), place, "float32"), EngineConfig(max_num_seqs=16, kv_memory=0.2))
        prompts = [f"Once upon a time, number {number}" for number in range(100)]
        requests = [
            Request(n, engine.encode(text), GenerationParams(max_new_tokens=60)) for n, text in enumerate(prompts)
        ]
        found.append({done.request_id: done.completions[0].token_ids for done in engine.generate(requests)})
    differing = sum(found[0][number] != found[1][number] for number in found[0])
    print(f"\ntoy model, greedy, fp32: {differing} of {len(found[0])} answers differ from the CPU's")


def check_reproducibility(make_model: Callable[[], Any], device: torch.device, count: int, num_tokens: int) -> None:
    """With `--deterministic`: sequences and logprobs that differ from those of the first way, and what it costs."""
    promising, other = (
        prepare_model("qwen2-0.5b-random", make_model(), None, device, deterministic=is_asked)
        for is_asked in (True, False)
    )
    requests = reproducibility.requests_of(count, num_tokens)
    reference: reproducibility.Answers = {}
    kept = reproducibility.Kept(None)
    rate = reproducibility.decode(promising, reproducibility.REFERENCE, requests, kept, reference)
    reference = kept.answers
    other_rate = reproducibility.decode(
        other, reproducibility.REFERENCE, requests, reproducibility.Kept(None), reference
    )
    print(f"\n--deterministic, {len(requests)} sequences: {other_rate / rate:.2f} x the time without it")
    for way in reproducibility.WAYS:
        kept = reproducibility.Kept(None)
        reproducibility.decode(promising, way, way.requests(requests), kept, reference)
        sequences, numbers = reproducibility.compare(kept.answers, reference)
        print(f"{way.name:38} differing: {sequences} sequences, {numbers} logprobs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--static-batch", type=int, default=64)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="two layers and short requests")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.tiny:
        given.requests, given.slots, given.longest = [6], 4, 20

    def make_model() -> Any:
        return qwen2_half_billion(torch.bfloat16, num_layers=2 if given.tiny else 24).to(device)

    model, plain = make_model(), make_model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    loaded = prepare_model("qwen2-0.5b-random", model, None, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    attention = "SDPA tiles" if loaded.paged_attention is None else type(loaded.paged_attention).__name__
    roofline = Roofline(loaded, num_parameters)
    print(f"{name}, torch {torch.__version__}, attention: {attention}")
    print(f"measured: {roofline.bandwidth / 1e9:,.0f} GB/s, {roofline.rate / 1e12:,.1f} T multiply-adds/s")
    for count in given.requests:
        peer = Transformers(plain, given.static_batch)
        compare(loaded, peer, roofline, long_requests(count, given.longest), given.slots)
    compare_ways(loaded, min(given.requests), given.longest, given.slots)
    compare_with_cpu(device)
    check_reproducibility(make_model, device, *((2, 4) if given.tiny else (32, 64)))


if __name__ == "__main__":
    main()
