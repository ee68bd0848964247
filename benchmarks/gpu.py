"""Everything that is claimed of a GPU, measured by one command. Needs torch, transformers, pydantic, this repository.

    python -m benchmarks.gpu --requests 256 1024

Qwen2-0.5B's shape with random weights in bf16; prompts of 100 to 1,024 ids, as many forced output ids. Prints useful
tokens/s of ours, of `generate` in static batches, of Transformers' continuous batching, and of the roofline: for
each of our steps the larger of its bytes at the measured bandwidth and its matmuls at the measured rate. Then come
CUDA graphs against eager steps, synchronous steps, nucleus against greedy, the toy model's greedy answers in fp32
beside the CPU's, and the batch-invariance of `--deterministic`. `--device cpu --tiny` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks import reproducibility
from benchmarks.support.timing import alternate, timed
from benchmarks.support.workload import TOY_MODEL, qwen2_half_billion
from benchmarks.throughput import Transformers
from models.params import GenerationParams
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, load_model, prepare_model
from worker.engine.request import Request

VOCAB = 150_000


@dataclass(frozen=True)
class Step:
    """One step of the engine, counted."""

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
    """A device's peaks, measured: bytes/s of a copy, multiply-adds/s of a square bf16 matmul."""

    def __init__(self, loaded: LoadedModel, num_parameters: int) -> None:
        self.device = loaded.model.device
        self._bytes_per_key = (
            sum(shape.num_elements for shape in loaded.model.layers.values()) * loaded.model.dtype.itemsize
        )
        self._num_parameters = num_parameters
        self._weight_bytes = num_parameters * loaded.model.dtype.itemsize
        size = 8192 if self.device.type == "cuda" else 1024
        source = torch.empty(size * size * 8, dtype=torch.uint8, device=self.device)
        self.bandwidth = 2 * source.numel() / self._best(source.clone)
        square = torch.randn(size, size, device=self.device).to(loaded.model.dtype)
        self.rate = size**3 / self._best(lambda: square @ square)

    def seconds(self, step: Step) -> float:
        moved = self._weight_bytes + step.keys * self._bytes_per_key
        return max(moved / self.bandwidth, step.rows * self._num_parameters / self.rate)

    def _best(self, action: Callable[[], Any]) -> float:
        return min(timed_on(self.device, action) for _ in range(5))


def timed_on(device: torch.device, action: Callable[[], Any]) -> float:
    """Seconds that the action takes, the device's part included."""

    def synchronized() -> None:
        action()
        synchronize(device)

    synchronize(device)
    return timed(synchronized)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decode(loaded: LoadedModel, requests: Sequence[Request], **config: Any) -> list[Step]:
    """Decodes all requests with a fresh engine; returns its steps."""
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


def compare_with_peers(
    loaded: LoadedModel, peer: Transformers, roofline: Roofline, requests: list[Request], max_num_seqs: int
) -> None:
    """Ours and Transformers' continuous batching alternately, static batches once, and the roofline of our steps."""
    num_tokens = sum(request.params.max_new_tokens for request in requests)
    peer.requests = requests
    steps: list[Step] = []

    def ours() -> None:
        steps[:] = decode(loaded, requests, max_num_seqs=max_num_seqs)

    seconds: dict[str, list[float]] = {"ours": [], "continuous": [], "static": []}
    for _ in range(3):
        seconds["ours"].append(timed_on(loaded.model.device, ours))
        seconds["continuous"].append(timed_on(loaded.model.device, peer.continuous))
    seconds["static"].append(timed_on(loaded.model.device, peer.static))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bound = sum(roofline.seconds(step) for step in steps)
    print(f"\n{len(requests)} requests, {num_tokens} tokens, at most {max_num_seqs} running")
    for name, value in (*medians.items(), ("bound", bound)):
        print(f"{name:12} {num_tokens / value:10,.0f} tokens/s   ours is {value / medians['ours']:.2f} x as fast")
    print(json.dumps({"requests": len(requests), "tokens": num_tokens, "seconds": seconds, "bound": bound}))


def compare_variants(loaded: LoadedModel, count: int, longest: int, max_num_seqs: int) -> None:
    """Greedy against eager steps, synchronous steps and nucleus: alternately, on the same lengths."""
    greedy = long_requests(count, longest)
    nucleus = long_requests(count, longest, strategy="nucleus", top_p=0.9)
    synchronous = replace(loaded, model=replace(loaded.model, launch_sample_batch=None))
    variants: dict[str, Callable[[], Any]] = {
        "greedy": lambda: decode(loaded, greedy, max_num_seqs=max_num_seqs),
        "greedy, eager": lambda: decode(loaded, greedy, max_num_seqs=max_num_seqs, use_graphs=False),
        "greedy, synchronous": lambda: decode(synchronous, greedy, max_num_seqs=max_num_seqs),
        "nucleus 0.9": lambda: decode(loaded, nucleus, max_num_seqs=max_num_seqs),
    }
    seconds = alternate(
        {name: partial(timed_on, loaded.model.device, action) for name, action in variants.items()}, rounds=3
    )
    baseline = statistics.median(seconds["greedy"])
    print()
    for name, values in seconds.items():
        print(f"{name:20} {statistics.median(values) / baseline:6.3f} x the time of greedy")


def compare_with_cpu(device: torch.device) -> None:
    """Greedy answers of the toy model in fp32 on the device and on the CPU."""
    found = []
    for name in (str(device), "cpu"):
        engine = Engine(load_model(str(TOY_MODEL), name, "float32"), EngineConfig(max_num_seqs=16, kv_memory=0.2))
        prompts = [f"Once upon a time, number {number}" for number in range(100)]
        requests = [
            Request(n, engine.encode(text), GenerationParams(max_new_tokens=60)) for n, text in enumerate(prompts)
        ]
        found.append({done.request_id: done.completions[0].token_ids for done in engine.generate(requests)})
    differing = sum(found[0][number] != found[1][number] for number in found[0])
    print(f"\ntoy model, greedy, fp32: {differing} of {len(found[0])} answers differ from the CPU's")


def check_batch_invariance(make_model: Callable[[], Any], device: torch.device, count: int, num_tokens: int) -> None:
    """With `--deterministic`: its cost, and the sequences and logprobs of each variant that are not the reference's."""
    invariant, other = (
        prepare_model("qwen2-0.5b-random", make_model(), None, device, LoadOptions(deterministic=is_deterministic))
        for is_deterministic in (True, False)
    )
    requests = reproducibility.requests_of(count, num_tokens)
    rates, answers = [], []
    for loaded in (invariant, other):
        stored = reproducibility.StoredAnswers(None)
        rates.append(reproducibility.decode(loaded, reproducibility.REFERENCE, requests, stored, {}))
        answers.append(stored.answers)
    print(f"\n--deterministic, {len(requests)} sequences: {rates[1] / rates[0]:.2f} x the time without it")
    reference = answers[0]
    for variant in reproducibility.VARIANTS:
        stored = reproducibility.StoredAnswers(None)
        reproducibility.decode(invariant, variant, variant.requests(requests), stored, reference)
        differences = reproducibility.count_differences(stored.answers, reference)
        print(f"{variant.name:38} differing: {differences}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--static-batch", type=int, default=64)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="two layers and short requests")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.tiny:
        given.requests, given.max_num_seqs, given.longest = [6], 4, 20

    def make_model() -> Any:
        return qwen2_half_billion(torch.bfloat16, num_layers=2 if given.tiny else 24).to(device)

    model, plain = make_model(), make_model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    loaded = prepare_model("qwen2-0.5b-random", model, None, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    attention = "SDPA tiles" if loaded.model.paged_attention is None else type(loaded.model.paged_attention).__name__
    roofline = Roofline(loaded, num_parameters)
    print(f"{name}, torch {torch.__version__}, attention: {attention}")
    print(f"measured: {roofline.bandwidth / 1e9:,.0f} GB/s, {roofline.rate / 1e12:,.1f} T multiply-adds/s")
    for count in given.requests:
        peer = Transformers(plain, given.static_batch)
        compare_with_peers(loaded, peer, roofline, long_requests(count, given.longest), given.max_num_seqs)
    compare_variants(loaded, min(given.requests), given.longest, given.max_num_seqs)
    compare_with_cpu(device)
    check_batch_invariance(make_model, device, *((2, 4) if given.tiny else (32, 64)))


if __name__ == "__main__":
    main()
