"""Runs one step through the model: packed rows in, logits of the wanted rows out. Knows no requests' rules."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from worker.engine.attention import AttentionStep
from worker.engine.kv_cache import KVCache
from worker.engine.model_loader import LoadedModel
from worker.engine.scheduler import StepPlan
from worker.engine.sequence import Sequence
from worker.engine.step_batch import MIN_ROWS, build_step_batch


class ModelRunner:
    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._cache = cache

    def run(self, plan: StepPlan, copies: list[tuple[int, int]]) -> tuple[Tensor | None, SequenceOf[Sequence]]:
        """Computes the plan after copying blocks; returns logits [num_logits, vocab] and whose they are.

        The logits are None where no prompt was completed and nothing decodes.
        """
        if copies:
            self._cache.copy_blocks(copies)
        batch, sequences = build_step_batch(plan.decodes, plan.prefills, self._cache.block_size, self._device)
        # The model's last product needs MIN_ROWS rows too, as every other.
        wanted = batch.logit_rows
        if len(wanted) < MIN_ROWS:
            wanted = torch.cat([wanted, wanted.new_tensor(range(MIN_ROWS - len(wanted)))])
        output = self._model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=wanted,
            nocturne_step=AttentionStep(batch, self._cache),
        )
        if not sequences:
            return None, []
        return output.logits[0, : len(sequences)], sequences
