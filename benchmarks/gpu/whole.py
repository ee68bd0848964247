"""Part four: whole runs beside the bound of their own steps; variants; rows in another order; `--deterministic`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import reproducibility
from benchmarks.gpu.bound import Bound, Ceilings, Step, decode, num_multiplied
from benchmarks.gpu.setting import Setting, num_output_tokens
from benchmarks.support.timing import alternate
from worker.engine.backend import LoadOptions
from worker.engine.model_loader import LoadedModel

ROUNDS = 3


def measure(setting: Setting) -> None:
    loaded = setting.loaded()
    bound = Bound(Ceilings(setting), loaded, num_multiplied(setting.config()))
    for count in setting.num_requests:
        beside_the_bound(setting, loaded, bound, count)
    variants(setting, loaded)
    batch_invariance(setting)


def beside_the_bound(setting: Setting, loaded: LoadedModel, bound: Bound, count: int) -> None:
    requests, steps = setting.requests(count), list[Step]()
    num_tokens = num_output_tokens(requests)

    def ours() -> None:
        steps[:] = decode(loaded, requests, **setting.sizes)

    seconds = []
    for number in range(1 if setting.is_tiny else ROUNDS):
        seconds.append(setting.seconds(ours))
        print(f"round {number + 1}: {num_tokens / seconds[-1]:,.0f} tokens/s", flush=True)
    median, least = statistics.median(seconds), sum(map(bound.seconds, steps))
    print(
        f"{count} requests, {num_tokens} tokens, at most {setting.max_num_seqs} running: {num_tokens / median:,.0f} "
        f"tokens/s, {least / median:.0%} of the bound's {num_tokens / least:,.0f}"
    )
    print(json.dumps({"requests": count, "tokens": num_tokens, "seconds": seconds, "bound": least}), flush=True)


def variants(setting: Setting, loaded: LoadedModel) -> None:
    """Traces, nucleus, eager and synchronous steps beside greedy without traces, alternately."""
    count = min(setting.num_requests)
    synchronous = replace(loaded, model=replace(loaded.model, launch_sample_batch=None, logits=None))
    runs: dict[str, Callable[[], Any]] = {
        "greedy": lambda: decode(loaded, setting.requests(count), **setting.sizes),
        "greedy, traces": lambda: decode(loaded, setting.requests(count, trace="tokens"), **setting.sizes),
        "sample": lambda: decode(loaded, setting.requests(count, strategy="sample"), **setting.sizes),
        "nucleus 0.9": lambda: decode(loaded, setting.requests(count, strategy="nucleus", top_p=0.9), **setting.sizes),
        "greedy, eager": lambda: decode(loaded, setting.requests(count), use_graphs=False, **setting.sizes),
        "greedy, synchronous": lambda: decode(synchronous, setting.requests(count), **setting.sizes),
    }
    timed = {name: partial(setting.seconds, action) for name, action in runs.items()}
    seconds = alternate(timed, 1 if setting.is_tiny else 2)
    baseline = statistics.median(seconds["greedy"])
    for name, values in seconds.items():
        print(f"{name:20} {statistics.median(values) / baseline:6.3f} x the time of greedy", flush=True)


def batch_invariance(setting: Setting) -> None:
    """The cost of `--deterministic`, and the sequences and logprobs of each variant that are not the reference's."""
    count, num_tokens = (2, 4) if setting.is_tiny else (32, 64)
    requests = reproducibility.requests_of(count, num_tokens)
    reference: reproducibility.Answers = {}
    rates = {}
    for is_deterministic in (True, False):
        loaded = setting.loaded(LoadOptions(deterministic=is_deterministic))
        stored = reproducibility.StoredAnswers(None)
        rates[is_deterministic] = reproducibility.decode(loaded, reproducibility.REFERENCE, requests, stored, reference)
        for variant in reproducibility.VARIANTS[: 1 if setting.is_tiny else None]:
            again = reproducibility.StoredAnswers(None)
            reproducibility.decode(loaded, variant, variant.requests(requests), again, stored.answers)
            differences = reproducibility.count_differences(again.answers, stored.answers)
            name = f"deterministic {is_deterministic}, {variant.name}"
            print(f"{name:58} differing: {differences}", flush=True)
    print(f"--deterministic: {rates[False] / rates[True]:.2f} x the time without it", flush=True)
