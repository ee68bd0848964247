"""Runs one step through the model: packed rows in, logits of the wanted rows out. Knows no requests' rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.batch_builder import Paging, build_step_batch
from worker.engine.cuda.decode_graphs import DecodeGraphs, Record, bucket_for, graph_buckets
from worker.engine.model.attention import AttentionStep
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.model_loader import LoadedModel
from worker.engine.scheduling.step_plan import SampledRow, StepPlan

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FixedSizes:
    """What every step is padded to where a product's bits depend on its number of rows, as on a GPU."""

    decode_rows: int
    prefill_rows: int
    num_logits: int


class ModelRunner:
    """With `fixed` every step has the same shape; with `use_graphs` decode steps are recorded and replayed."""

    def __init__(
        self,
        loaded: LoadedModel,
        cache: KVCache,
        max_num_seqs: int,
        *,
        fixed: FixedSizes | None = None,
        use_graphs: bool = False,
        record: Record | None = None,
    ) -> None:
        self._decoder = loaded.decoder
        self._device = loaded.device
        self._cache = cache
        self._fixed = fixed
        self._paged_attention = loaded.paged_attention
        self._paging = Paging.of(loaded.paged_attention)
        self._graphs = None
        if use_graphs and loaded.paged_attention is not None:
            buckets = graph_buckets(max_num_seqs) if fixed is None else [fixed.decode_rows]
            self._graphs = DecodeGraphs(
                loaded.decoder,
                cache,
                loaded.paged_attention,
                buckets,
                loaded.limits.context_window,
                loaded.device,
                record,
            )

    def run(self, plan: StepPlan, ids_in_flight: Tensor | None = None) -> tuple[Tensor, list[SampledRow]]:
        """Logits [num_logits, vocab], and which sequences get a token from which of their rows.

        `ids_in_flight` [tokens] are the last step's where the host does not know them yet.
        """
        if plan.block_copies:
            self._cache.copy_blocks(plan.block_copies)
        num_rows, num_logits = self._least_sizes(plan)
        graphs = self._graphs
        if graphs is not None and (plan.prefills or bucket_for(len(plan.decodes), graphs.buckets) is None):
            graphs = None
        batch, sampled = build_step_batch(
            plan,
            self._cache.block_size,
            self._device if graphs is None else CPU,  # a graph's own tensors are filled from there
            self._paging,
            num_rows=num_rows,
            num_logits=num_logits,
        )
        if graphs is not None:
            logits = graphs.run(batch, ids_in_flight)
        else:
            if batch.in_flight is not None:
                batch.in_flight.insert(batch.input_ids, ids_in_flight)
            logits = self._decoder(AttentionStep(batch, self._cache, self._paged_attention))
        return logits, sampled

    def _least_sizes(self, plan: StepPlan) -> tuple[int, int]:
        """Rows and logits that the step is padded to."""
        if self._fixed is None:
            return MIN_ROWS, MIN_ROWS
        rows = self._fixed.prefill_rows if plan.prefills else self._fixed.decode_rows
        return rows, self._fixed.num_logits
