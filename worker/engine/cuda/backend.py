"""Steps on an NVIDIA GPU: paged attention, sampling on the device, decode steps as CUDA graphs."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worker.engine.backend import Backend, DeviceModel, LoadOptions
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.cuda.decode_graphs import DecodeGraphs, Record, bucket_for, graph_buckets
from worker.engine.cuda.memory import least_memory, left_for_cache, step_memory
from worker.engine.cuda.paged_attention import PAGE_SIZE, NoKernel, OnItsDevice, paged_attention
from worker.engine.model.attention import PagedAttention
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.request import ModelUnavailable
from worker.engine.sampling.batch_sampler import launch_sample_batch, sample_batch
from worker.engine.sampling.in_flight import InFlight
from worker.engine.scheduling.step_plan import SampledRow, StepPlan

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class CudaBackend(Backend):
    """Does the base's steps, and replays those that only decode as graphs, where there is a paged kernel."""

    def __init__(
        self, model: DeviceModel, limits: ModelLimits, config: EngineConfig, record: Record | None = None
    ) -> None:
        with torch.cuda.device(model.device):
            super().__init__(model, limits, config)
        self._graphs = None
        if config.use_graphs and model.paged_attention is not None and not model.is_spread and not model.states:
            most = config.max_num_seqs
            self._graphs = DecodeGraphs(
                model.decoder,
                self._cache,
                model.paged_attention,
                [most] if model.needs_fixed_sizes else graph_buckets(most),
                limits.context_window,
                model.device,
                record,
            )

    @classmethod
    def prepare_process(cls, dtype: torch.dtype, options: LoadOptions) -> None:  # noqa: ARG003
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew, for tens of milliseconds, for each number of tiles

    @classmethod
    def load(cls, model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions) -> DeviceModel:
        with torch.cuda.device(device):
            attention = _paged_attention(model, layers, device, options)
        if attention is not None and options.is_spread:
            attention = OnItsDevice(attention, attention.covers_prefill)
        return replace(
            super().load(model, layers, device, options),
            paged_attention=attention,
            sample_batch=sample_batch,
            launch_sample_batch=launch_sample_batch,
            block_size=PAGE_SIZE,
        )

    def launch(self, plan: StepPlan, previous: InFlight | None = None) -> InFlight:
        with torch.cuda.device(self._model.device):  # Triton launches on the current device
            return super().launch(plan, previous)

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def _free_memory(self, limits: ModelLimits) -> int:
        """A share of each GPU, less what is in use and what the largest step takes."""
        model, share = self._model, self._config.gpu_memory_utilization
        gc.collect()  # the model's own layers, whose weights were merged, are in cycles
        devices = list(dict.fromkeys([model.device, *(each.device or model.device for each in model.layers.values())]))
        empty_cache = KVCache(model.layers, 1, self.block_size, model.dtype, model.device)
        step = step_memory(model.decoder, empty_cache, devices, self._config, limits)
        del empty_cache
        torch.cuda.empty_cache()
        left = {}
        for device in devices:
            free, total = torch.cuda.mem_get_info(device)
            left[device] = left_for_cache(total, free, share, step[device])
        return least_memory(model.layers, left, model.device)

    def _forward(self, plan: StepPlan, ids_in_flight: Tensor | None) -> tuple[Tensor, list[SampledRow]]:
        graphs = self._graphs
        if graphs is None or plan.prefills or bucket_for(len(plan.decodes), graphs.buckets) is None:
            return super()._forward(plan, ids_in_flight)
        batch, rows = self._build(plan, CPU)  # the graph's own tensors are filled from there
        return graphs.run(batch, ids_in_flight), rows


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
