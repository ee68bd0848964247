"""Runs one step through the model: packed rows in, logits of the wanted rows out. Knows no requests' rules."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from torch import Tensor

from worker.engine.attention import AttentionStep, PagedAttention
from worker.engine.kv_cache import KVCache
from worker.engine.model_loader import LoadedModel
from worker.engine.scheduler import StepPlan
from worker.engine.sequence import Sequence
from worker.engine.step_batch import Paging, build_step_batch


class ModelRunner:
    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._decoder = loaded.decoder
        self._paged_attention = loaded.paged_attention
        self._paging = _paging_of(loaded.paged_attention)
        self._device = loaded.device
        self._cache = cache

    def run(self, plan: StepPlan, copies: list[tuple[int, int]]) -> tuple[Tensor | None, SequenceOf[Sequence]]:
        """Computes the plan after copying blocks; returns logits [num_logits, vocab] and whose they are.

        The logits are None where no prompt was completed and nothing decodes.
        """
        if copies:
            self._cache.copy_blocks(copies)
        batch, sequences = build_step_batch(
            plan.decodes, plan.prefills, self._cache.block_size, self._device, self._paging
        )
        logits = self._decoder(AttentionStep(batch, self._cache, self._paged_attention))
        return (logits[: len(sequences)], sequences) if sequences else (None, [])


def _paging_of(paged_attention: PagedAttention | None) -> Paging:
    if paged_attention is None:
        return Paging.NONE
    return Paging.ALL if paged_attention.covers_prefill else Paging.DECODES
