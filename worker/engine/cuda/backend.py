"""Steps on an NVIDIA GPU: paged attention, sampling on the device, decode steps as CUDA graphs."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from worker.engine.backend import Backend, Decoder, DeviceModel, LoadOptions, LogitsLayout
from worker.engine.batch_builder import Paging
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.cuda.decode_graphs import DecodeGraphs, DeviceState, Record, bucket_for, graph_buckets
from worker.engine.cuda.layers.decoder import checked_kernels, load_with_kernels
from worker.engine.cuda.memory import devices_of, empty_step, max_blocks, room_for_cache, step_memory
from worker.engine.cuda.paged_attention import PAGE_SIZE, NoKernel, OnItsDevice, paged_attention
from worker.engine.cuda.running_rows import RowUpdates, RunningRows, fill_states
from worker.engine.cuda.sampling.device_sampler import DeviceSampler
from worker.engine.cuda.usable import check_fill, check_sampler
from worker.engine.cuda.warm_up import decode_step, prompt_step
from worker.engine.model.attention import AttentionStep, PagedAttention
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.recurrent.state_pool import StatePool
from worker.engine.model.step_batch import MIN_ROWS, StepBatch
from worker.engine.out_of_memory import first_line, is_out_of_memory
from worker.engine.request import ModelUnavailable
from worker.engine.sampling.batch_sampler import launch_sample_batch, sample_batch
from worker.engine.sampling.in_flight import InFlight, InFlightParts
from worker.engine.scheduling.prompt_chunks import ChunkRule, PromptGroups
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import SampledRow, StepPlan

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

#: Rows of the prompt that is computed before the first request.
WARM_UP_ROWS = 33

#: Prompts begin beside decoding rows when they fill one in so many rows of the batch, or after so many steps. They are
#: launched operation by operation: on an H200 a step with 8,192 rows of Qwen2-0.5B's prompts takes 30 ms, a replay 2.3.
GROUP_SHARE, MAX_STEPS_HELD = 16, 32


class CudaBackend(Backend):
    """Does the base's steps, and replays those that only decode as graphs, where there is a paged kernel."""

    def __init__(
        self, model: DeviceModel, limits: ModelLimits, config: EngineConfig, record: Record | None = None
    ) -> None:
        self._can_record = True
        self._max_blocks = max_blocks(model, limits, config)
        with torch.cuda.device(model.device):
            # Before the cache, which takes all memory that is left.
            self._sampler = None if model.logits is None else self._make_sampler(model.logits, limits, config)
            super().__init__(model, limits, config)
            if self._sampler is not None and self._states is not None:
                self._sampler.updates.rows.state_indices[:1].fill_(self._states.scratch)  # padding's row
            self._warm_up()
            self._graphs = self._recorded(self._make_graphs(self._cache, self._states, self._buckets(), record))

    @classmethod
    def prepare_process(cls, dtype: torch.dtype, options: LoadOptions) -> None:  # noqa: ARG003
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew, for tens of milliseconds, for each number of tiles

    @classmethod
    def load(cls, model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions) -> DeviceModel:
        with torch.cuda.device(device):  # Triton launches on the current device
            return cls._load(model, layers, device, options)

    @classmethod
    def _load(
        cls, model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions
    ) -> DeviceModel:
        attention = _paged_attention(model, layers, device, options)
        if attention is not None and options.is_spread:
            attention = OnItsDevice(attention, attention.covers_prefill)
        kernels = checked_kernels(model, layers, device, options)
        loaded = (
            super().load(model, layers, device, options)
            if kernels is None
            else load_with_kernels(model, layers, device, options, kernels)
        )
        loaded = replace(
            loaded,
            paged_attention=attention,
            # The shapes of SDPA's tiles depend on the step.
            needs_fixed_sizes=loaded.needs_fixed_sizes or (options.deterministic and attention is None),
            sample_batch=sample_batch,
            launch_sample_batch=launch_sample_batch,
            block_size=PAGE_SIZE,
        )
        if attention is None and options.deterministic:
            loaded = replace(loaded, decoder=_with_one_sdpa(loaded.decoder))
        return replace(loaded, logits=_sampled_logits(loaded) if options.use_kernels else None)

    @property
    def chunk_rule(self) -> ChunkRule:
        """A paged kernel for prompts needs no borders; tiles, fixed sizes and recurrent states do."""
        model = self._model
        is_free = self._paging is Paging.ALL and not model.needs_fixed_sizes and not model.states
        return replace(super().chunk_rule, in_blocks=not is_free)

    @property
    def prompt_groups(self) -> PromptGroups:
        if self._sampler is None or self._graphs is None:
            return super().prompt_groups
        return PromptGroups(max(1, self._config.max_num_seqs // GROUP_SHARE), MAX_STEPS_HELD)

    def launch(self, plan: StepPlan, previous: InFlight | None = None) -> InFlight:
        """Replays the decoding rows; prompts beside them are launched afterwards, while the device is at work."""
        with torch.cuda.device(self._model.device):  # Triton launches on the current device
            if self._sampler is None or self._graphs is None:
                return super().launch(plan, previous)
            self._sampler.updates.grow(plan.grown)
            self._prepare_cache(plan)
            parts = [self._replay(self._graphs, self._sampler, plan.decodes)] if plan.decodes else []
            if plan.prefills:
                logits, rows = self._forward(replace(plan, decodes=[]), None)
                parts.append(self._in_flight(logits, rows, None))
            return parts[0] if len(parts) == 1 else InFlightParts(parts)

    def _replay(self, graphs: DecodeGraphs, sampler: DeviceSampler, sequences: list[Sequence]) -> InFlight:
        sampler.updates.decode(sequences)
        sampler.updates.send()
        logits = graphs.replay(len(sequences))
        return sampler.fetch_step(logits, list(enumerate(sequences)))

    def release_memory(self) -> None:
        if self._sampler is not None:
            self._sampler.updates.drop()
        torch.cuda.empty_cache()

    def _in_flight(self, logits: Tensor, rows: list[SampledRow], ids_in_flight: Tensor | None) -> InFlight:
        if self._sampler is None:
            return super()._in_flight(logits, rows, ids_in_flight)
        return self._sampler.launch(logits, rows)

    def _make_sampler(self, layout: LogitsLayout, limits: ModelLimits, config: EngineConfig) -> DeviceSampler:
        """The sampler, with the state of the rows that it keeps on the device."""
        rows = RunningRows.make(config.max_num_seqs, layout.vocab, self._max_blocks, layout.device)
        return DeviceSampler(layout, RowUpdates(rows), limits.eos_token_ids)

    def _free_memory(self, limits: ModelLimits) -> int:
        """A share of each GPU, less what is in use and what the largest step takes."""
        model = self._model
        gc.collect()  # the model's own layers, whose weights were merged, are in cycles
        devices = devices_of(model)
        empty_cache = KVCache(model.layers, 1, self.block_size, model.dtype, model.device)
        step = step_memory(model, empty_cache, devices, self._config, limits)
        step[model.device] += self._graph_memory(empty_cache)
        del empty_cache
        gc.collect()
        torch.cuda.empty_cache()
        room = room_for_cache(model, self._config.gpu_memory_utilization, step)
        return room - model.states.num_bytes  # of the scratch state

    @property
    def _max_tokens(self) -> int:
        """Tokens of the longest sequence that a step can have."""
        return min(self._limits.context_window, self._max_blocks * self.block_size)

    def _buckets(self) -> list[int]:
        most = self._config.max_num_seqs
        return [most] if self._model.needs_fixed_sizes else graph_buckets(most)

    def _make_graphs(
        self, cache: KVCache, states: StatePool | None, buckets: list[int], record: Record | None = None
    ) -> DecodeGraphs | None:
        """Graphs of decode steps on a cache, none recorded yet; None for a model whose steps are not recorded."""
        model = self._model
        is_asked_for = self._config.use_graphs and self._can_record
        if not is_asked_for or model.paged_attention is None or model.is_spread:
            return None
        state = None if self._sampler is None else _device_state(self._sampler, cache.block_size)
        return DecodeGraphs(
            model.decoder, cache, model.paged_attention, buckets, self._max_tokens, model.device, record, state, states
        )

    def _recorded(self, graphs: DecodeGraphs | None) -> DecodeGraphs | None:
        """The graphs, recorded; None where the model does what cannot be recorded, such as to wait for the device."""
        if graphs is None:
            return None
        try:
            graphs.record_all()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._can_record = False
            logger.warning(
                "decode steps are launched operation by operation, which is slower, for they cannot be recorded: %s",
                first_line(error),
            )
            return None
        return graphs

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Computes a step of each form that a run has, so that no kernel is compiled while requests wait."""
        model = self._model
        if model.paged_attention is None:
            return
        window, scratch = self._max_tokens, None if self._states is None else self._states.scratch
        for batch in (
            prompt_step(min(WARM_UP_ROWS, window), MIN_ROWS, self.block_size, model.device, scratch),
            decode_step(1, self.block_size, model.device, scratch),
            decode_step(window, self.block_size, model.device, scratch),
        ):
            model.decoder(self._attention_step(batch))

    def _graph_memory(self, cache: KVCache) -> int:
        """The bytes that the graphs will keep: the largest is recorded on a small cache to see, and dropped."""
        *others, largest = self._buckets()
        states = StatePool(self._model.states, 0) if self._model.states else None
        graphs = self._make_graphs(cache, states, [largest])
        if graphs is None:
            return 0
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self._model.device)
        if self._recorded(graphs) is None:
            return 0
        left, _ = torch.cuda.mem_get_info(self._model.device)
        # The others share its pool; their logits and block tables are their own.
        row = self._limits.vocab_size * self._model.dtype.itemsize + 4 * self._max_blocks
        return max(0, free - left) + sum(others) * row

    def _forward(self, plan: StepPlan, ids_in_flight: Tensor | None) -> tuple[Tensor, list[SampledRow]]:
        if self._graphs is None or not self._is_recorded(plan):
            return super()._forward(plan, ids_in_flight)
        batch, rows = self._build(plan, CPU)  # the graph's own tensors are filled from there
        return self._graphs.run(batch, ids_in_flight), rows

    def _is_recorded(self, plan: StepPlan) -> bool:
        graphs = self._graphs
        return graphs is not None and not plan.prefills and bucket_for(len(plan.decodes), graphs.buckets) is not None


def _device_state(sampler: DeviceSampler, block_size: int) -> DeviceState:
    from worker.engine.cuda.fill_kernel import fill_from_rows  # a CPU's installation lacks Triton

    def fill(batch: StepBatch) -> None:
        fill_from_rows(batch, sampler.updates.rows, block_size)
        fill_states(batch, sampler.updates.rows)

    return DeviceState(fill, sampler.sample_step)


def _with_one_sdpa(decoder: Decoder) -> Decoder:
    """A decoder whose tiles go through SDPA's memory-efficient backend, or through matmuls where it lacks their shape.

    The others may be chosen by the number of tiles, on which the order of sums would then depend.
    """

    def decode(step: AttentionStep) -> Tensor:
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return decoder(step)

    return decode


def _paged_attention(
    model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions
) -> PagedAttention | None:
    if not options.use_kernels or not layers:
        return None
    num_heads = model.config.get_text_config().num_attention_heads
    try:
        return paged_attention(device, model.dtype, layers.values(), num_heads)
    except NoKernel as error:
        if not options.allow_slow:
            raise ModelUnavailable(
                f"attention has no kernel on {device}: {error}; --allow-slow does without, many times slower"
            ) from error
        logger.warning("attention goes through torch's SDPA, which is slow, because it has no kernel: %s", error)
        return None


@torch.inference_mode()
def _sampled_logits(model: DeviceModel) -> LogitsLayout | None:
    """The logits that the fused sampler takes; None where it does not work."""
    cache = KVCache(model.layers, 1, model.block_size, model.dtype, model.device)
    logits = model.decoder(AttentionStep(empty_step(MIN_ROWS, MIN_ROWS, model.device), cache))
    layout = LogitsLayout(logits.shape[1], logits.dtype, logits.device)
    try:
        check_sampler(layout)
        check_fill(layout.device)
    except NoKernel as error:
        logger.warning(
            "tokens are sampled by torch's operations, several times slower, because the sampler has no kernel: %s",
            error,
        )
        return None
    return layout
