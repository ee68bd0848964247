"""Plain values that are known when an engine starts. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """The size of an engine and how it computes."""

    max_num_seqs: int = 64  # sequences that decode side by side
    kv_memory: float | None = None  # GiB; None takes a share of what is free
    prefill_tokens: int = 2048  # most prompt tokens in one step
    block_size: int | None = None  # tokens in a KV block, and queries in a prefill tile; None: the device's own
    share_prefixes: bool = True
    gpu_memory_utilization: float = 0.9  # share of a GPU's memory for weights, step and KV cache together
    use_graphs: bool = True  # CUDA: record decode steps and replay them


@dataclass(frozen=True)
class ModelLimits:
    """The facts of a model that requests are checked against and sequences end by."""

    name: str
    context_window: int  # tokens, prompt and answer together
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    has_tokenizer: bool = False
