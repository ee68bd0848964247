"""The least time of a step on a device: its bytes at the measured bandwidth, or its matmuls at the measured rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.support.timing import timed
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request


@dataclass(frozen=True)
class Step:
    """One step of the engine, counted."""

    num_prompt_rows: int
    num_decode_rows: int
    keys: int  # read from the cache by all rows
    seconds: float  # of the host, which waits for the device's step before

    @property
    def rows(self) -> int:
        return self.num_prompt_rows + self.num_decode_rows


class Ceilings:
    """A device's peaks, measured: bytes/s of a copy, multiply-adds/s of a square bf16 matmul."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        size = 8192 if setting.device.type == "cuda" and not setting.is_tiny else 512
        source = torch.empty(size * size * 8, dtype=torch.uint8, device=setting.device)
        self.bandwidth = 2 * source.numel() / self._best(source.clone)
        square = torch.randn(size, size, device=setting.device).to(torch.bfloat16)
        self.rate = size**3 / self._best(lambda: square @ square)
        print(f"measured: {self.bandwidth / 1e9:,.0f} GB/s, {self.rate / 1e12:,.1f} T multiply-adds/s", flush=True)

    def _best(self, action: Callable[[], Any]) -> float:
        return min(self._setting.seconds(action) for _ in range(5))


class Bound:
    """The least seconds of steps of one model."""

    def __init__(self, ceilings: Ceilings, loaded: LoadedModel, num_parameters: int) -> None:
        itemsize = loaded.model.dtype.itemsize
        self._ceilings = ceilings
        self._bytes_per_key = sum(shape.num_elements for shape in loaded.model.layers.values()) * itemsize
        self._num_parameters = num_parameters
        self._weight_bytes = num_parameters * itemsize

    def seconds(self, step: Step) -> float:
        moved = self._weight_bytes + step.keys * self._bytes_per_key
        return max(moved / self._ceilings.bandwidth, step.rows * self._num_parameters / self._ceilings.rate)


def num_multiplied(config: Any) -> int:
    """Parameters that a row is multiplied with: all but an embedding that is not the head too."""
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    untied = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return int(sum(parameter.numel() for parameter in model.parameters()) - untied)


def engine_of(loaded: LoadedModel, **config: Any) -> Engine:
    """An engine that decodes the same requests again and again: it shares no prefixes."""
    return Engine(loaded, EngineConfig(**{"share_prefixes": False, **config}))


def decode(engine: Engine, requests: Sequence[Request]) -> list[Step]:
    """Decodes all requests; returns the steps."""
    for request in requests:
        engine.submit(request)
    return decode_with(engine)


def decode_with(engine: Engine, max_steps: int | None = None) -> list[Step]:
    """Steps until nothing is left, or so many; returns them."""
    steps: list[Step] = []
    while engine.has_work and (max_steps is None or len(steps) < max_steps):
        stats = engine.stats
        num_prompt_rows, num_decode_rows = stats.num_prefill_tokens, stats.num_decode_rows
        blocks = engine.scheduler.blocks
        keys = blocks.num_in_use * blocks.block_size
        seconds = timed(engine.step)
        steps.append(
            Step(stats.num_prefill_tokens - num_prompt_rows, stats.num_decode_rows - num_decode_rows, keys, seconds)
        )
    return steps
