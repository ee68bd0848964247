"""The device, the model's shape and the requests of a measurement on a GPU."""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers

from benchmarks.support.timing import timed
from benchmarks.support.workload import qwen2_half_billion_config, random_model
from models.engine_options import default_sizes
from models.params import GenerationParams
from worker.engine.backend import LoadOptions
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request

VOCAB = 150_000


def qwen3_8b_config(num_layers: int = 36) -> Any:
    """36 layers of 4,096, 32 heads of 128 over 8 KV heads."""
    return transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=num_layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=4096,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


SHAPES: dict[str, Callable[..., Any]] = {"qwen2-0.5b": qwen2_half_billion_config, "qwen3-8b": qwen3_8b_config}


@dataclass(frozen=True)
class Setting:
    """The choices of one call."""

    device: torch.device
    shape: str
    num_requests: Sequence[int]
    max_num_seqs: int
    longest: int  # tokens of the longest prompt and of the longest answer
    is_tiny: bool = False
    peers: tuple[str, ...] = ()
    peer_seconds: float = 100.0
    budget_seconds: float = 270.0  # no case begins later
    failed: list[str] = field(default_factory=list)  # the cases that failed or were wrong
    _started: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        return self.budget_seconds - (time.monotonic() - self._started)

    def attempt(self, name: str, case: Callable[[], object]) -> None:
        """Does a case; one that fails is told of, and the next one goes on. None begins after the budget's end."""
        if self.seconds_left <= 0:
            print(f"{name}: left out, the part has taken {self.budget_seconds:.0f} s", flush=True)
            return
        try:
            case()
        except Exception as error:  # whatever it is, the cases after it are of use
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = ", ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
            reason = (str(error).strip() or "no message").splitlines()[0][:300]
            self.tell_failure(f"{name}: FAILED, {type(error).__name__}: {reason} ({place})")
        gc.collect()  # the memory that the case has taken is the next one's
        if self.device.type == "cuda":
            self._empty_cache()

    def tell(self, line: str, is_right: bool) -> None:
        if is_right:
            print(f"{line} right", flush=True)
        else:
            self.tell_failure(f"{line} WRONG")

    def tell_failure(self, line: str) -> None:
        self.failed.append(line)
        print(line, flush=True)

    def _empty_cache(self) -> None:
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # of a device that has failed
            print(f"the device gives no memory back: {str(error).splitlines()[0]}", flush=True)

    @property
    def title(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        return f"{name}, {versions}, {self.shape}{', tiny' if self.is_tiny else ''}"

    def config(self) -> Any:
        config = SHAPES[self.shape]()
        if self.is_tiny:
            config.update(
                {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "layer_types": ["full_attention"] * 2}
            )  # fmt: skip
        return config

    def plain_model(self) -> Any:
        """Random weights, made on the device; their logits spread as a trained model's do."""
        model = random_model(self.config(), torch.bfloat16, self.device)
        # 0.02 gives logits a spread of 0.6, at which a nucleus of 0.9 holds most of the vocabulary.
        model.model.norm.weight.fill_(5.0)
        return model

    def loaded(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        loaded = prepare_model(self.shape, self.plain_model(), None, self.device, options)
        attention = loaded.model.paged_attention
        print(f"attention: {'SDPA tiles' if attention is None else type(attention).__name__}", flush=True)
        return loaded

    def requests(self, count: int, **params: Any) -> list[Request]:
        """Prompts of random ids and forced lengths, both from a tenth of the longest to the longest."""
        rng = random.Random(0)
        shortest = max(2, self.longest // 10)
        return [
            Request(
                number,
                tuple(rng.choices(range(10, VOCAB), k=rng.randint(shortest, self.longest))),
                GenerationParams(
                    max_new_tokens=rng.randint(shortest, self.longest), ignore_eos=True, seed=number,
                    **{"trace": "none", **params},
                ),
            )
            for number in range(count)
        ]  # fmt: skip

    def seconds(self, action: Callable[[], object]) -> float:
        """Seconds that the action takes, the device's part included."""
        self.synchronize()
        return timed(partial(self._run, action))

    def milliseconds(self, action: Callable[[], object]) -> float:
        """The median of many calls. On a GPU they are in a graph: the host takes longer to launch a small kernel."""
        if self.device.type != "cuda":
            return 1000 * min(self.seconds(action) for _ in range(2))
        from triton.testing import do_bench_cudagraph

        return float(do_bench_cudagraph(action, return_mode="median"))

    @property
    def sizes(self) -> dict[str, Any]:
        """The engine's size, a device's own but for the rows that run; a CPU's cache is small."""
        sizes = {**default_sizes(str(self.device)), "max_num_seqs": self.max_num_seqs}
        return {**sizes, **({"kv_memory": 0.1} if self.device.type == "cpu" else {})}

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _run(self, action: Callable[[], object]) -> None:
        action()
        self.synchronize()


def num_output_tokens(requests: Sequence[Request]) -> int:
    return sum(request.params.max_new_tokens for request in requests)
