"""What is decided when an engine starts. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """What is decided when an engine starts."""

    max_num_seqs: int = 64  # sequences that decode side by side
    kv_memory: float | None = None  # GiB; None takes a share of what is free
    prefill_tokens: int = 2048  # most prompt tokens in one step
    block_size: int = 64  # tokens in a KV block, and queries in a prefill tile
    share_prefixes: bool = True
