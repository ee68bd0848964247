"""Part four: whole runs beside the bound of their own steps; variants; rows in another order; `--deterministic`."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import reproducibility
from benchmarks.gpu.bound import Bound, Ceilings, Step, decode, engine_of, num_multiplied
from benchmarks.gpu.setting import Setting, num_output_tokens
from benchmarks.support.timing import alternate
from worker.engine.backend import LoadOptions
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel
from worker.engine.scheduling.prompt_chunks import PromptGroups

ROUNDS = 3

#: Sequences whose prompts begin together; the first is one by one.
GROUP_SIZES = (1, 8, 16, 32)


def measure(setting: Setting) -> None:
    loaded = setting.loaded()
    bound = Bound(Ceilings(setting), loaded, num_multiplied(setting.config()))
    for count in setting.num_requests:
        setting.attempt(f"{count} requests", partial(beside_the_bound, setting, loaded, bound, count))
    setting.attempt("variants", lambda: variants(setting, loaded))
    setting.attempt("prompts in groups", lambda: prompts_in_groups(setting, loaded))
    setting.attempt("deterministic", lambda: deterministic(setting, bound))
    for options in (LoadOptions(deterministic=True), LoadOptions()):
        setting.attempt("batch invariance", partial(batch_invariance, setting, options))


def beside_the_bound(setting: Setting, loaded: LoadedModel, bound: Bound, count: int) -> None:
    """Rounds as many as time is left for; the engine is made before."""
    requests, steps = setting.requests(count), list[Step]()
    num_tokens = num_output_tokens(requests)
    engine = engine_of(loaded, **setting.sizes)

    def ours() -> None:
        steps[:] = decode(engine, requests)

    seconds: list[float] = []
    for number in range(1 if setting.is_tiny else ROUNDS):
        if seconds and setting.seconds_left < 1.2 * seconds[-1]:
            break
        seconds.append(setting.seconds(ours))
        print(f"round {number + 1}: {num_tokens / seconds[-1]:,.0f} tokens/s", flush=True)
    median, least = statistics.median(seconds), sum(map(bound.seconds, steps))
    print(
        f"{count} requests, {num_tokens} tokens, at most {setting.max_num_seqs} running: {num_tokens / median:,.0f} "
        f"tokens/s, {least / median:.0%} of the bound's {num_tokens / least:,.0f}"
    )
    print_times(steps)
    print(json.dumps({"requests": count, "tokens": num_tokens, "seconds": seconds, "bound": least}), flush=True)


def deterministic(setting: Setting, bound: Bound) -> None:
    """The fewest requests once more, with `--deterministic`."""
    loaded = setting.loaded(LoadOptions(deterministic=True))
    print("deterministic True:", flush=True)
    beside_the_bound(setting, loaded, bound, min(setting.num_requests))


def print_times(steps: Sequence[Step]) -> None:
    """Prints the time of steps with prompts, and of those that only decode so many rows."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        most = 64 * -(-step.num_decode_rows // 64)
        kinds["with prompts" if step.num_prompt_rows else f"of up to {most:4} rows"].append(step.seconds)
    for name, seconds in sorted(kinds.items()):
        median = 1000 * statistics.median(seconds)
        print(f"  steps {name:18} {len(seconds):5}, median {median:6.2f} ms, in all {sum(seconds):6.3f} s", flush=True)


def variants(setting: Setting, loaded: LoadedModel) -> None:
    """Traces, sampling and nucleus beside greedy, alternately; then eager and synchronous steps, an engine each."""
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {},
        "greedy, traces": {"trace": "tokens"},
        "sample": {"strategy": "sample"},
        "nucleus 0.9": {"strategy": "nucleus", "top_p": 0.9},
    }
    baseline = _beside_greedy(setting, engine_of(loaded, **setting.sizes), kinds, None)
    synchronous = replace(loaded, model=replace(loaded.model, launch_sample_batch=None, logits=None))
    engines: dict[str, Callable[[], Engine]] = {
        "greedy, eager": lambda: engine_of(loaded, **setting.sizes, use_graphs=False),
        "greedy, synchronous": lambda: engine_of(synchronous, **setting.sizes),
    }
    for name, make_engine in engines.items():
        setting.attempt(name, lambda: _beside_greedy(setting, make_engine(), {name: {}}, baseline))  # noqa: B023


def prompts_in_groups(setting: Setting, loaded: LoadedModel) -> None:
    """The most requests, with prompts that begin in groups of other sizes; where all run at once none matters."""
    requests, engine = setting.requests(max(setting.num_requests)), engine_of(loaded, **setting.sizes)
    last = 0.0
    for size in GROUP_SIZES[: 1 if setting.is_tiny else None]:
        if setting.seconds_left < 1.2 * last:
            break
        engine.scheduler.prompt_groups = PromptGroups(size, 2 * size)
        last = setting.seconds(partial(decode, engine, requests))
        print(f"prompts in groups of {size:2}: {num_output_tokens(requests) / last:,.0f} tokens/s", flush=True)


def _beside_greedy(setting: Setting, engine: Engine, kinds: dict[str, dict[str, Any]], baseline: float | None) -> float:
    """Prints each kind's time beside greedy's, which is that of the first kind where it is not given; returns it."""
    count = min(setting.num_requests)
    runs = {
        name: partial(setting.seconds, partial(decode, engine, setting.requests(count, **params)))
        for name, params in kinds.items()
    }
    seconds = alternate(runs, 1 if setting.is_tiny or setting.seconds_left < 150 else 2)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    baseline = baseline or next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:20} {median / baseline:6.3f} x the time of greedy", flush=True)
    return baseline


def batch_invariance(setting: Setting, options: LoadOptions) -> None:
    """The rate with `--deterministic` or without, and each variant's sequences and logprobs unlike the reference's."""
    count, num_tokens = (2, 4) if setting.is_tiny else (32, 64)
    requests = reproducibility.requests_of(count, num_tokens)
    loaded, stored = setting.loaded(options), reproducibility.StoredAnswers(None)
    rate = reproducibility.decode(loaded, reproducibility.REFERENCE, requests, stored, {})
    print(f"deterministic {options.deterministic}: {rate:,.0f} tokens/s", flush=True)
    for variant in reproducibility.VARIANTS[: 1 if setting.is_tiny else None]:
        again = reproducibility.StoredAnswers(None)
        reproducibility.decode(loaded, variant, variant.requests(requests), again, stored.answers)
        differences = reproducibility.count_differences(again.answers, stored.answers)
        line = f"deterministic {options.deterministic}, {variant.name}, differing: {differences}"
        if options.deterministic:
            setting.tell(line, differences == reproducibility.Differences(0, 0))
        else:
            print(line, flush=True)
