"""Transformers' own decoder with our attention, for every architecture without a fused one."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from worker.engine.model.attention import AttentionStep, step_at_hand
from worker.engine.model.batch_invariant_mode import BatchInvariantMode
from worker.engine.model.recurrent.mixer import RecurrentMixer


class TransformersDecoder:
    """Rows of a step to logits, through the model's own forward pass."""

    def __init__(self, model: Any, mode: BatchInvariantMode | None = None) -> None:
        """`mode` is active while the model computes."""
        self._model = model
        self._mode = mode
        self._mixers = [module for module in model.modules() if isinstance(module, RecurrentMixer)]
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        # In a model on several devices the hidden rows, which are picked by index, are where its last norm is.
        self._device = list(model.base_model.parameters())[-1].device

    def __call__(self, step: AttentionStep) -> Tensor:
        """Logits [num_logits, vocab] of the rows that the step asks for."""
        for mixer in self._mixers:
            mixer.step = step
        arguments: dict[str, Any] = {}
        if self._keeps_logits:
            arguments["logits_to_keep"] = step.batch.on(self._device).logit_rows
        with step_at_hand(step), self._mode or nullcontext():
            output = self._model(
                input_ids=step.batch.input_ids, position_ids=step.batch.positions, use_cache=False, **arguments
            )
        logits: Tensor = output.logits[0]
        return logits if self._keeps_logits else logits.index_select(0, step.batch.on(logits.device).logit_rows)
