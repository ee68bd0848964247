"""The decoder as Transformers has it, with our attention: for every architecture that has no fused one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worker.engine.attention import AttentionStep
from worker.engine.kv_cache import KVCache
from worker.engine.step_batch import StepBatch


class TransformersDecoder:
    """Rows of a step to logits, through the model's own forward pass."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, batch: StepBatch, cache: KVCache) -> Tensor:
        """Logits [num_logits, vocab] of the rows that the batch asks for."""
        output = self._model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            nocturne_step=AttentionStep(batch, cache),
        )
        logits: Tensor = output.logits[0]
        return logits
