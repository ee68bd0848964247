"""Plain values that are known when an engine starts. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

from models.engine_options import SizeOptions


class EngineConfig(SizeOptions):
    """The size of an engine and how it computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_size: int | None = None  # tokens in a KV block, and queries in a prefill tile; None: the device's own
    share_prefixes: bool = True
    use_graphs: bool = True  # CUDA: record decode steps and replay them


@dataclass(frozen=True)
class ModelLimits:
    """The facts of a model that requests are checked against and sequences end by."""

    name: str
    context_window: int  # tokens, prompt and answer together
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    has_tokenizer: bool = False
    dtype: str = "float32"
