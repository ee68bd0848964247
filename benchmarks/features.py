"""What each way of decoding costs beside another on the same engine, alternately; medians and ratios.

    python -m benchmarks.features --parts sampling prefix beams samples memory

`sampling`: strategies and traces against greedy without a trace, 64 running. `prefix`: jobs that share a 512-token
prompt, with sharing on and off. `beams`: 16 prompts of 4 beams against `generate(num_beams=4)`. `samples`: eight
samples of a 256-token prompt against eight one-token prompts. `memory`: what the process holds over many jobs.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.support.workload import TOY_MODEL, engine_for, qwen2_half_billion
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.request import Request


def request(number: int, prompt_ids: Sequence[int], **params: Any) -> Request:
    values = {"ignore_eos": True, "trace": "none", "seed": number, **params}
    return Request(number, tuple(prompt_ids), GenerationParams.model_validate(values))


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 150_000), k=count)


def seconds(base: Engine, requests: Sequence[Request], **config: Any) -> float:
    engine = Engine(base.loaded, EngineConfig(**{"kv_memory": 2.0, **config}))
    started = time.perf_counter()
    for _ in engine.generate(requests):
        pass
    return time.perf_counter() - started


def compare(title: str, ways: dict[str, Callable[[], float]], rounds: int) -> None:
    """The first way is what the others are held against."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(way())
    first = median(next(iter(taken.values())))
    print(f"\n{title}")
    for name, values in taken.items():
        print(f"{name:28} {median(values):8.2f} s {median(values) / first:8.3f} x", flush=True)


def sampling(base: Engine, rounds: int) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sample": {"strategy": "sample"},
        "nucleus 0.9": {"strategy": "nucleus", "top_p": 0.9},
        "sample, temperature 10": {"strategy": "sample", "temperature": 10.0},
        "nucleus, temperature 10": {"strategy": "nucleus", "temperature": 10.0, "top_p": 0.9},
        "greedy, trace tokens": {"trace": "tokens"},
        "greedy, trace top:5": {"trace": "top:5"},
    }

    def way(kind: dict[str, Any]) -> Callable[[], float]:
        return lambda: seconds(base, [request(n, ids(4, n), max_new_tokens=24, **kind) for n in range(64)])

    compare("64 sequences side by side", {name: way(kind) for name, kind in kinds.items()}, rounds)


def prefix(base: Engine, rounds: int, num_jobs: int, slots: int) -> None:
    system = ids(512, 1)
    requests = [request(n, [*system, *ids(32, n)], max_new_tokens=32) for n in range(num_jobs)]
    ways = {
        "shared": lambda: seconds(base, requests, max_num_seqs=slots),
        "each computed": lambda: seconds(base, requests, max_num_seqs=slots, share_prefixes=False),
    }
    compare(f"{num_jobs} jobs with one 512-token system prompt, {slots} slots", ways, rounds)


def beams(base: Engine, rounds: int) -> None:
    prompts = [ids(32, n) for n in range(16)]
    plain = qwen2_half_billion(torch.bfloat16)

    def ours() -> float:
        params = {"strategy": "beam", "num_beams": 4, "max_new_tokens": 64}
        return seconds(base, [request(n, prompt, **params) for n, prompt in enumerate(prompts)])

    def generate() -> float:
        started = time.perf_counter()
        plain.generate(
            torch.tensor(prompts), attention_mask=torch.ones(16, 32, dtype=torch.long), num_beams=4,
            early_stopping=True, do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return time.perf_counter() - started

    compare("16 prompts of 4 beams and 64 tokens", {"ours": ours, "generate": generate}, rounds)


def samples(base: Engine, rounds: int) -> None:
    sampled = {"strategy": "sample", "max_new_tokens": 64}
    ways = {
        "8 one-token prompts": lambda: seconds(base, [request(n, ids(1, n), **sampled) for n in range(8)]),
        "n=8 of a 256-token prompt": lambda: seconds(base, [request(0, ids(256, 0), n=8, **sampled)]),
    }
    compare("eight samples", ways, rounds)


def memory(num_jobs: int) -> None:
    engine = Engine.load(str(TOY_MODEL), device="cpu", kv_memory=0.2)
    process = psutil.Process()
    noted: list[tuple[int, float]] = []
    rng = random.Random(0)
    for start in range(0, num_jobs, 500):
        requests = [
            Request(n, engine.encode(f"Story {n}"), GenerationParams(max_new_tokens=rng.randint(4, 40), seed=n))
            for n in range(start, start + 500)
        ]
        for _ in engine.generate(requests):
            pass
        noted.append((start + 500, process.memory_info().rss / 2**20))
    settled = noted[len(noted) // 4 :]
    growth = (settled[-1][1] - settled[0][1]) / (settled[-1][0] - settled[0][0]) * 1000
    told = ", ".join(f"{count:,} jobs {mib:.0f} MiB" for count, mib in noted[:: max(1, len(noted) // 8)])
    print(f"\nresident memory after {told}")
    print(f"growth over the last three quarters: {growth:.3f} MiB per 1,000 jobs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["sampling", "prefix", "beams", "samples", "memory"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefix-jobs", type=int, default=256)
    parser.add_argument("--prefix-slots", type=int, default=64)
    parser.add_argument("--memory-jobs", type=int, default=20_000)
    given = parser.parse_args()
    if "memory" in given.parts:
        memory(given.memory_jobs)
    if given.parts == ["memory"]:
        return
    base = engine_for(torch.bfloat16)
    for part in given.parts:
        if part == "prefix":
            prefix(base, given.rounds, given.prefix_jobs, given.prefix_slots)
        elif part != "memory":
            {"sampling": sampling, "beams": beams, "samples": samples}[part](base, given.rounds)


if __name__ == "__main__":
    main()
