"""The host's part of a GPU's decode step: milliseconds of Python with a null model, counted without a GPU.

    python -m benchmarks.host_time --running 256 1024 --steps 60

The engine, its scheduler and the CUDA backend run as they do on a GPU, and the device is the CPU: decoder, kernels and
graphs do nothing, and every token is the same one. So launches and copies, some 10 µs each, come on top. Prints the
processor time of a step, the median and the least, where the device keeps the state of running sequences, and where the
host builds each batch. Kinds of jobs alternate, some steps each: the first one had met a cold process, and whatever
else the machine did at its time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.support.workload import TOY_MODEL
from models.params import GenerationParams
from worker.engine import engine as engine_module
from worker.engine.backend import LogitsLayout
from worker.engine.choices import COLUMNS
from worker.engine.config import EngineConfig
from worker.engine.cuda import fill_kernel
from worker.engine.cuda.backend import CudaBackend
from worker.engine.cuda.sampling import sampler
from worker.engine.cuda.sampling.output import Column, SamplerOutput
from worker.engine.engine import Engine
from worker.engine.model.attention import AttentionLayer, AttentionStep
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.step_batch import PagedRows
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.request import Request
from worker.engine.sampling.batch_sampler import ChoicesInFlight
from worker.engine.sampling_row import SamplingRow

#: The one token; no stop string is in its text.
TOKEN_ID = 100

#: Keys of the shortest sequence.
PROMPT = 100

#: Steps that count for nothing, and those that a kind takes at a time.
WARM_STEPS, STEPS_AT_ONCE = 10, 10

KINDS: dict[str, dict[str, Any]] = {
    "traces": {},
    "no traces": {"trace": "none"},
    "traces, nucleus": {"strategy": "nucleus", "top_p": 0.9},
    "traces, 5 alternatives": {"top_logprobs": 5},
    "traces, stop strings": {"stop": ["a text that never comes"]},
}


class NullAttention:
    covers_prefill = True

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:  # noqa: ARG002
        raise AssertionError("the null model attends to nothing")


class NullSampler:
    """Stands in for `TritonSampler`: what it would have sampled is there already."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *given: Any) -> None:
        output: SamplerOutput = given[3]
        output.packed[:, Column.TOKEN_ID] = TOKEN_ID

    def find_alternatives(self, *_: Any) -> None:
        pass


def null_model(*, keeps_state: bool) -> LoadedModel:
    loaded = load_model(str(TOY_MODEL), "cpu", "float32")
    vocab = loaded.limits.vocab_size

    def decode(step: AttentionStep) -> Tensor:
        return torch.zeros(len(step.batch.logit_rows), vocab)

    model = replace(
        loaded.model, decoder=decode, paged_attention=NullAttention(), sample_batch=None,
        launch_sample_batch=launch_null_batch,
        logits=LogitsLayout(vocab, torch.float32, torch.device("cpu")) if keeps_state else None,
    )  # fmt: skip
    limits = replace(loaded.limits, context_window=8192)
    return replace(loaded, model=model, limits=limits)


def launch_null_batch(_: Tensor, rows: Sequence[SamplingRow], __: Tensor | None = None) -> ChoicesInFlight:
    num_alternatives = max(each.params.top_logprobs for each in rows)
    columns = torch.zeros(len(rows), len(COLUMNS) + 2 * num_alternatives, dtype=torch.float64)
    columns[:, 0] = TOKEN_ID
    return ChoicesInFlight(torch.full((len(rows),), TOKEN_ID), lambda: columns, num_alternatives)


def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A graph that leaves its results as they were when it was recorded."""
    output = function()
    return lambda: output


@contextmanager
def null_device() -> Iterator[None]:
    """The CUDA backend on the CPU."""
    with (
        patch.object(torch.cuda, "device", lambda _: nullcontext()),
        patch.object(engine_module, "backend_of", lambda _: partial(CudaBackend, record=record)),
        patch.object(sampler, "TritonSampler", NullSampler),
        patch.object(fill_kernel, "fill_from_rows", lambda *_: None),
    ):
        yield


def decoding_engine(loaded: LoadedModel, num_running: int, num_steps: int, kind: dict[str, Any]) -> Engine:
    """An engine whose prompts are computed; their lengths differ, so that blocks fill up at all steps alike."""
    config = EngineConfig(max_num_seqs=num_running, kv_memory=0.5, block_size=64, prefill_tokens=300_000)
    engine = Engine(loaded, config)
    for number in range(num_running):
        params = GenerationParams(max_new_tokens=2 * num_steps + 20, ignore_eos=True, seed=number, **kind)
        prompt_ids = tuple((number * 13 + place * 7) % 290 + 1 for place in range(PROMPT + number % 97))
        engine.submit(Request(number, prompt_ids, params))
    for _ in range(4):
        engine.step()
    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--profile", action="store_true", help="print where the time of the first kind goes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for keeps_state in (False, True):
        with null_device():
            loaded = null_model(keeps_state=keeps_state)
            for count in given.running:
                for name, spent in alternately(loaded, count, given.steps, given.kinds).items():
                    where = "state on the device" if keeps_state else "batches of the host"
                    print(
                        f"{where}, {count:5} running, {name:22} {median(spent):6.2f} ms, least {min(spent):6.2f}",
                        flush=True,
                    )
            if given.profile:
                profile(decoding_engine(loaded, given.running[0], given.steps, KINDS[given.kinds[0]]), given.steps)


def alternately(loaded: LoadedModel, num_running: int, num_steps: int, kinds: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of each kind's steps."""
    engines = {name: decoding_engine(loaded, num_running, num_steps + WARM_STEPS, KINDS[name]) for name in kinds}
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for engine in engines.values():
        for _ in range(WARM_STEPS):
            engine.step()
    for start in range(0, num_steps, STEPS_AT_ONCE):
        for name, engine in engines.items():
            engine.step()  # brings its sequences back into the caches
            count = min(STEPS_AT_ONCE, num_steps - start)
            spent[name] += [1000 * processor_seconds(engine.step) for _ in range(count)]
    return spent


def processor_seconds(action: Callable[[], object]) -> float:
    """Of this thread: other programs do not count."""
    started = time.thread_time()
    action()
    return time.thread_time() - started


def profile(engine: Engine, num_steps: int) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(num_steps):
        engine.step()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
