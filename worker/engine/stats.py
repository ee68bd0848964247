"""What an engine has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EngineStats:
    """Counts since the start."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_generated_tokens: int = 0
    num_decode_rows: int = 0  # rows that decoded, summed over the steps
    num_sequence_steps: int = 0  # sequences worked on, prefilling ones too, summed over the steps
    num_out_of_memory: int = 0  # steps that did not go through
