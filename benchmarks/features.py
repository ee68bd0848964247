"""The cost or gain of the engine's features, each beside doing without it, alternately; medians and ratios.

    python -m benchmarks.features --parts sampling parameters prefix beams samples memory

`sampling`: strategies and traces against greedy without a trace, 64 running. `parameters`: each parameter of sampling
against a plain sample, 64 running; about 4 minutes of two cores for its three rounds, and longer prompts
(`--parameters-prompt 200`) take three times as long. `prefix`: jobs that share a 512-token
prompt, with sharing on and off. `beams`: 16 prompts of 4 beams against `generate(num_beams=4)`. `samples`: eight
samples of a 256-token prompt against eight one-token prompts. `memory`: what the process holds over many jobs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.support.timing import alternate, timed
from benchmarks.support.workload import TOY_MODEL, engine_for, qwen2_half_billion
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.request import Request

MEMORY_BATCH = 500


def request(number: int, prompt_ids: Sequence[int], **params: Any) -> Request:
    values = {"ignore_eos": True, "trace": "none", "seed": number, **params}
    return Request(number, tuple(prompt_ids), GenerationParams.model_validate(values))


def random_ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 150_000), k=count)


def decode(base: Engine, requests: Sequence[Request], **config: Any) -> float:
    """Decodes all requests with a fresh engine; returns the seconds, its construction left out."""
    engine = Engine(base.loaded, EngineConfig(**{"kv_memory": 2.0, **config}))
    return timed(lambda: list(engine.generate(requests)))


def print_seconds(number: int, name: str, seconds: float) -> None:
    """A measurement as soon as it is there: a round of a large model takes minutes."""
    print(f"round {number}: {name:36} {seconds:8.2f} s", flush=True)


def compare(title: str, variants: Mapping[str, Callable[[], float]], rounds: int) -> None:
    """Prints each variant's median and its ratio to the first variant's."""
    seconds = alternate(variants, rounds, print_seconds)
    first = median(next(iter(seconds.values())))
    print(f"\n{title}")
    for name, values in seconds.items():
        print(f"{name:36} {median(values):8.2f} s {median(values) / first:8.3f} x", flush=True)


def sampling(base: Engine, rounds: int) -> None:
    params_by_name: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sample": {"strategy": "sample"},
        "nucleus 0.9": {"strategy": "nucleus", "top_p": 0.9},
        "sample, temperature 10": {"strategy": "sample", "temperature": 10.0},
        "nucleus, temperature 10": {"strategy": "nucleus", "temperature": 10.0, "top_p": 0.9},
        "greedy, trace tokens": {"trace": "tokens"},
        "greedy, trace top:5": {"trace": "top:5"},
    }
    variants = {
        name: partial(decode, base, [request(n, random_ids(4, n), max_new_tokens=24, **params) for n in range(64)])
        for name, params in params_by_name.items()
    }
    compare("64 sequences side by side", variants, rounds)


def parameters(base: Engine, rounds: int, num_prompt_ids: int) -> None:
    every = {"top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.5}
    given: list[dict[str, Any]] = [
        {},
        {"top_k": 50},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"logit_bias": {str(token_id): 1.0 for token_id in range(0, 3000, 10)}},
        every,
    ]
    variants = {
        "all" if params is every else ", ".join(params) or "sample": partial(
            decode,
            base,
            [
                request(n, random_ids(num_prompt_ids, n), max_new_tokens=24, strategy="sample", **params)
                for n in range(64)
            ],
        )
        for params in given
    }
    compare("64 samples side by side", variants, rounds)


def prefix(base: Engine, rounds: int, num_jobs: int, max_num_seqs: int) -> None:
    system = random_ids(512, 1)
    requests = [request(n, [*system, *random_ids(32, n)], max_new_tokens=32) for n in range(num_jobs)]
    variants = {
        "shared": partial(decode, base, requests, max_num_seqs=max_num_seqs),
        "each computed": partial(decode, base, requests, max_num_seqs=max_num_seqs, share_prefixes=False),
    }
    compare(f"{num_jobs} jobs with one 512-token system prompt, at most {max_num_seqs} running", variants, rounds)


def beams(base: Engine, rounds: int) -> None:
    prompts = [random_ids(32, n) for n in range(16)]
    params = {"strategy": "beam", "num_beams": 4, "max_new_tokens": 64}
    requests = [request(n, prompt, **params) for n, prompt in enumerate(prompts)]
    plain = qwen2_half_billion(torch.bfloat16)

    def generate() -> None:
        plain.generate(
            torch.tensor(prompts), attention_mask=torch.ones(16, 32, dtype=torch.long), num_beams=4,
            early_stopping=True, do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip

    variants: dict[str, Callable[[], float]] = {
        "ours": partial(decode, base, requests),
        "generate": partial(timed, generate),
    }
    compare("16 prompts of 4 beams and 64 tokens", variants, rounds)


def samples(base: Engine, rounds: int) -> None:
    params = {"strategy": "sample", "max_new_tokens": 64}
    variants = {
        "8 one-token prompts": partial(decode, base, [request(n, random_ids(1, n), **params) for n in range(8)]),
        "n=8 of a 256-token prompt": partial(decode, base, [request(0, random_ids(256, 0), n=8, **params)]),
    }
    compare("eight samples", variants, rounds)


def memory(num_jobs: int) -> None:
    """Decodes batch after batch with one engine of the toy model; prints the process's resident memory."""
    engine = Engine.load(str(TOY_MODEL), device="cpu", kv_memory=0.2)
    process = psutil.Process()
    resident: list[tuple[int, float]] = []  # jobs so far, MiB
    rng = random.Random(0)
    for start in range(0, num_jobs, MEMORY_BATCH):
        requests = [
            Request(n, engine.encode(f"Story {n}"), GenerationParams(max_new_tokens=rng.randint(4, 40), seed=n))
            for n in range(start, start + MEMORY_BATCH)
        ]
        for _ in engine.generate(requests):
            pass
        resident.append((start + MEMORY_BATCH, process.memory_info().rss / 2**20))
    steady = resident[len(resident) // 4 :]
    mib_per_thousand = (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0]) * 1000
    line = ", ".join(f"{count:,} jobs {mib:.0f} MiB" for count, mib in resident[:: max(1, len(resident) // 8)])
    print(f"\nresident memory after {line}")
    print(f"growth over the last three quarters: {mib_per_thousand:.3f} MiB per 1,000 jobs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["sampling", "parameters", "prefix", "beams", "samples", "memory"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefix-jobs", type=int, default=256)
    parser.add_argument("--prefix-max-num-seqs", type=int, default=64)
    parser.add_argument("--parameters-prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--memory-jobs", type=int, default=20_000)
    given = parser.parse_args()
    if "memory" in given.parts:
        memory(given.memory_jobs)
    if given.parts == ["memory"]:
        return
    base = engine_for(torch.bfloat16)
    for part in given.parts:
        if part == "prefix":
            prefix(base, given.rounds, given.prefix_jobs, given.prefix_max_num_seqs)
        elif part == "parameters":
            parameters(base, given.rounds, given.parameters_prompt)
        elif part != "memory":
            measure = {"sampling": sampling, "beams": beams, "samples": samples}[part]
            measure(base, given.rounds)


if __name__ == "__main__":
    main()
