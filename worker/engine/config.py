"""Plain values that are known when an engine starts. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, Field

from models.engine_options import SizeOptions, default_sizes


class EngineConfig(SizeOptions):
    """The size of an engine and how it computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = Field(default=default_sizes("cpu")["max_num_seqs"], ge=1)
    prefill_tokens: int = Field(default=default_sizes("cpu")["prefill_tokens"], ge=16)
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
