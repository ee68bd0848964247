"""Counts of the work that an engine has done."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.scheduling.step_plan import StepPlan


@dataclass
class EngineStats:
    """Counts since the start."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_generated_tokens: int = 0
    num_decode_rows: int = 0  # rows that decoded, summed over the steps
    num_sequence_steps: int = 0  # sequences worked on, prefilling ones too, summed over the steps
    num_out_of_memory: int = 0  # steps that did not go through

    def count(self, plan: StepPlan) -> None:
        """Adds a step that was computed."""
        self.num_steps += 1
        self.num_prefill_tokens += plan.num_prefill_tokens
        self.num_decode_rows += len(plan.decodes)
        self.num_sequence_steps += len(plan.decodes) + len(plan.prefills)
