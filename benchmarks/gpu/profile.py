"""Part three: the host's part of steps of prompts; twenty full decode steps under torch's profiler: kernels, gaps."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bound import decode_with, engine_of
from benchmarks.gpu.setting import Setting
from benchmarks.support.timing import timed
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel

NUM_STEPS, NUM_WARM_STEPS, MOST_STEPS = 20, 10, 5000
MOST_KERNELS = 25
NUM_PROMPT_STEPS = 3


def measure(setting: Setting) -> None:
    loaded = setting.loaded()
    setting.attempt("steps of prompts", lambda: time_prompt_steps(setting, loaded))
    for params in ({}, {"trace": "tokens"}, {"strategy": "nucleus", "top_p": 0.9, "trace": "tokens"}):
        setting.attempt(str(params or "greedy"), partial(profile_steps, setting, loaded, params))


def time_prompt_steps(setting: Setting, loaded: LoadedModel) -> None:
    """Steps of prompts, each waited for, in a second run: what it compiles and allocates is there."""
    engine = engine_of(loaded, **setting.sizes)
    for is_told in (False, True):
        for request in setting.requests(setting.max_num_seqs):
            engine.submit(request)
        for _ in range(NUM_PROMPT_STEPS):
            num_rows = engine.stats.num_prefill_tokens
            host, rest = (1000 * timed(part) for part in (engine.step, setting.synchronize))
            num_rows = engine.stats.num_prefill_tokens - num_rows
            if is_told and num_rows:
                print(f"{num_rows} prompt rows: {host:.1f} ms of the host, then {rest:.1f} of the device", flush=True)
        decode_with(engine)


def profile_steps(setting: Setting, loaded: LoadedModel, params: dict[str, Any]) -> None:
    engine = full_engine(setting, loaded, params)
    decode_with(engine, NUM_WARM_STEPS)
    seconds = setting.seconds(lambda: decode_with(engine, NUM_STEPS))
    print(f"\n{params or 'greedy'}: {1000 * seconds / NUM_STEPS:.2f} ms a step", flush=True)
    print_profile(setting, engine)


def full_engine(setting: Setting, loaded: LoadedModel, params: dict[str, Any]) -> Engine:
    """An engine whose batch is full of sequences past their prompts."""
    engine = Engine(loaded, EngineConfig(**setting.sizes))
    for request in setting.requests(setting.max_num_seqs, **params):
        # The longest answer for all: none ends while it is looked at.
        longest = request.params.model_copy(update={"max_new_tokens": setting.longest + 4 * NUM_STEPS})
        engine.submit(type(request)(request.id, request.prompt_ids, longest))
    for _ in range(MOST_STEPS):
        num_prompt_tokens = engine.stats.num_prefill_tokens
        engine.step()
        if engine.stats.num_prefill_tokens == num_prompt_tokens:  # nothing but decoding rows
            return engine
    raise RuntimeError(f"prompts are still computed after {MOST_STEPS} steps: {engine.stats}")


def print_profile(setting: Setting, engine: Engine) -> None:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (setting.device.type == "cuda")
    with profile(activities=activities) as profiled:
        decode_with(engine, NUM_STEPS)
        setting.synchronize()
    events = [event for event in profiled.events() if event.device_type == DeviceType.CUDA]
    if not events:
        print(f"{len(profiled.events())} operations on the host, none on a device", flush=True)
        return
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        spent[event.name].append(event.time_range.elapsed_us())
    busy = sum(map(sum, spent.values()))
    whole = max(each.time_range.end for each in events) - min(each.time_range.start for each in events)
    print(
        f"{len(events) / NUM_STEPS:.0f} kernels and copies a step, busy {busy / whole:.0%} of its "
        f"{whole / NUM_STEPS:.0f} us"
    )
    for name, each in sorted(spent.items(), key=lambda item: -sum(item[1]))[:MOST_KERNELS]:
        print(f"{sum(each) / NUM_STEPS:9.1f} us a step {len(each) / NUM_STEPS:6.1f} x  {name[:90]}", flush=True)
    launches = [event for event in profiled.events() if "Launch" in event.name]
    print(f"{len(launches) / NUM_STEPS:.1f} launches a step by the host", flush=True)
