"""A model on its device, and how a step runs there: plan in, logits and tokens in flight out.

`Backend` is for any device that torch knows; `cpu/backend.py` and `cuda/backend.py` hold what those two add.
Knows neither the queue nor when a sequence ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from models.states import Quantization
from worker.engine.batch_builder import Paging, build_step_batch
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.fallback.own_cache import OwnCacheDecoder, OwnCacheModel, measured
from worker.engine.kv_memory import GIB, choose_num_blocks, choose_num_states
from worker.engine.model.attention import AttentionStep, PagedAttention
from worker.engine.model.fused_decoder import FusedDecoder, can_fuse
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.linear import PlainLinear
from worker.engine.model.recurrent.state_pool import StateLayout, StatePool
from worker.engine.model.step_batch import MIN_ROWS, StepBatch
from worker.engine.model.transformers_decoder import TransformersDecoder
from worker.engine.sampling.batch_sampler import LaunchSampleBatch, SampleBatch
from worker.engine.sampling.in_flight import BatchInFlight, InFlight
from worker.engine.scheduling.prompt_chunks import ChunkRule, PromptGroups
from worker.engine.scheduling.step_plan import SampledRow, StepPlan

#: Share of the free memory that the KV cache takes where no size is given.
MEMORY_SHARE = 0.25

#: A step's rows to the logits [num_logits, vocab] that the step asks for.
Decoder = Callable[[AttentionStep], Tensor]


@dataclass(frozen=True)
class LoadOptions:
    """The loading of a model. `fuse` and `use_kernels` are for tests: without them it runs on torch's operations."""

    deterministic: bool = False
    quantize: Quantization = "none"
    is_spread: bool = False  # over several devices
    allow_slow: bool = False  # attention by torch's own operations, where a GPU has no kernel
    is_packed: bool = True  # all rows of a step together; else each sequence through `generate`'s own loop
    fuse: bool = True
    use_kernels: bool = True

    def can_fuse(self, model: Any) -> bool:
        """Whether the fused decoder takes the model's place."""
        return self.fuse and not self.is_spread and can_fuse(model)


@dataclass(frozen=True)
class LogitsLayout:
    """The logits that the decoder makes."""

    vocab: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class DeviceModel:
    """A model in its device's memory, and the functions that compute it there. Several engines may share one."""

    device: torch.device
    dtype: torch.dtype
    layers: dict[int, LayerShape]
    decoder: Decoder
    gemm: str  # which one the decoder uses, for the provenance of results
    paged_attention: PagedAttention | None = None  # None: attention goes through SDPA's tiles
    sample_batch: SampleBatch | None = None  # None: rows are sampled a few at a time
    launch_sample_batch: LaunchSampleBatch | None = (
        None  # where a step may begin before the last one's tokens are known
    )
    logits: LogitsLayout | None = None  # of a device with a fused sampler; it takes `launch_sample_batch`'s place
    block_size: int = 64  # tokens in a KV block, where nothing else is asked for
    own_cache: OwnCacheModel | None = None  # where the model runs through `generate`'s loop, and `decoder` never does
    needs_fixed_sizes: bool = False  # answers are to be batch-invariant, and matmuls depend on their size
    is_spread: bool = False
    states: StateLayout = StateLayout()  # of one sequence; empty where the model keeps none

    @property
    def description(self) -> str:
        """The kernels that results come from."""
        if self.own_cache is not None:
            return f"own cache, one sequence at a time, {self.gemm}"
        kernel = "sdpa tiles" if self.paged_attention is None else "paged kernel"
        attention = [kernel] if self.layers else []
        return ", ".join([*attention, *(["recurrent states"] if self.states else []), self.gemm])


class Backend:
    """Runs the steps of one engine.

    Owns the tensors that sequences keep from step to step: the KV cache, and the recurrent states of hybrids beside it,
    one a sequence.
    """

    def __init__(self, model: DeviceModel, limits: ModelLimits, config: EngineConfig) -> None:
        self._model = model
        self._limits = limits
        self._config = config
        self.block_size = config.block_size or model.block_size
        memory = self._free_memory(limits) if config.kv_memory is None else int(config.kv_memory * GIB)
        self.num_states = choose_num_states(
            memory,
            model.states,
            config.max_num_seqs,
            has_keys=bool(model.layers),
            share_prefixes=config.share_prefixes,
        )
        memory -= self.num_states.total * model.states.num_bytes
        self.num_blocks = choose_num_blocks(
            memory, model.layers, model.dtype, self.block_size, config.max_num_seqs, limits.context_window
        )
        self._cache = KVCache(model.layers, self.num_blocks, self.block_size, model.dtype, model.device)
        self._states = StatePool(model.states, self.num_states.total) if model.states else None
        self._paging = Paging.of(model.paged_attention)

    @property
    def chunk_rule(self) -> ChunkRule:
        """The borders at which prompts may be divided."""
        states = self._model.states
        return ChunkRule(states.prompt_unit, states.splits_prompts, MIN_ROWS) if states else ChunkRule()

    @property
    def prompt_groups(self) -> PromptGroups:
        """The groups in which prompts begin beside sequences that decode."""
        return PromptGroups()

    @classmethod
    def prepare_process(cls, dtype: torch.dtype, options: LoadOptions) -> None:
        """Called before the process computes anything with a model."""

    @classmethod
    def can_quantize(cls, model: Any, options: LoadOptions) -> bool:  # noqa: ARG003
        """Whether the model can be computed in int8 here."""
        return False

    @classmethod
    def load(cls, model: Any, layers: dict[int, LayerShape], device: torch.device, options: LoadOptions) -> DeviceModel:
        """The model, which is on the device already, ready to decode; its own layers are of no use afterwards."""
        is_fused = options.can_fuse(model)
        return DeviceModel(
            device=device,
            dtype=model.dtype,
            layers=layers,
            decoder=FusedDecoder(model, PlainLinear) if is_fused else TransformersDecoder(model),
            gemm="fused decoder, torch gemm" if is_fused else "torch gemm",
            needs_fixed_sizes=options.deterministic,
            is_spread=options.is_spread,
        )

    @classmethod
    def load_unpacked(cls, model: Any, device: torch.device, options: LoadOptions) -> DeviceModel:
        """The model, which keeps its layers, decoded through its own cache."""
        return DeviceModel(
            device=device,
            dtype=model.dtype,
            layers={},
            decoder=_no_step,
            gemm="torch gemm",
            own_cache=measured(OwnCacheDecoder(model)),
            is_spread=options.is_spread,
        )

    def launch(self, plan: StepPlan, previous: InFlight | None = None) -> InFlight:
        """Begins to compute a plan that is not empty; `previous` is the step before, where it is still in flight."""
        self._prepare_cache(plan)
        ids_in_flight = None if previous is None else previous.token_ids
        logits, rows = self._forward(plan, ids_in_flight)
        return self._in_flight(logits, rows, ids_in_flight)

    def _prepare_cache(self, plan: StepPlan) -> None:
        """Does what comes before anything is computed: clears and copies blocks and states."""
        if plan.block_clears:
            self._cache.clear_blocks(plan.block_clears)
        if plan.block_copies:
            self._cache.copy_blocks(plan.block_copies)
        if plan.state_copies:
            assert self._states is not None, "a plan copies states of a model that keeps none"
            self._states.copy(plan.state_copies)

    def release_memory(self) -> None:
        """Gives memory that the process holds and does not use back to the device, after it ran out."""

    def _free_memory(self, limits: ModelLimits) -> int:  # noqa: ARG002
        """Bytes for the KV cache where no size is given."""
        return int(psutil.virtual_memory().available * MEMORY_SHARE)

    def _forward(self, plan: StepPlan, ids_in_flight: Tensor | None) -> tuple[Tensor, list[SampledRow]]:
        """Logits [num_logits, vocab], and which sequences get a token from which of their rows."""
        batch, rows = self._build(plan, self._model.device)
        if batch.in_flight is not None:
            batch.in_flight.insert(batch.input_ids, ids_in_flight)
        return self._model.decoder(self._attention_step(batch)), rows

    def _in_flight(self, logits: Tensor, rows: list[SampledRow], ids_in_flight: Tensor | None) -> InFlight:
        """The step, whose rows the device begins to sample where it can."""
        launch_sample_batch = self._model.launch_sample_batch
        return BatchInFlight(logits, rows, launch_sample_batch, self._limits.eos_token_ids, ids_in_flight)

    def _attention_step(self, batch: StepBatch) -> AttentionStep:
        return AttentionStep(batch, self._cache, self._model.paged_attention, self._states)

    def _build(self, plan: StepPlan, device: torch.device) -> tuple[StepBatch, list[SampledRow]]:
        num_rows, num_logits = self._min_sizes(plan)
        return build_step_batch(plan, self.block_size, device, self._paging, num_rows=num_rows, num_logits=num_logits)

    def _min_sizes(self, plan: StepPlan) -> tuple[int, int]:
        """Rows and logits that a step is padded to."""
        if not self._model.needs_fixed_sizes:
            return MIN_ROWS, MIN_ROWS
        most = self._config.max_num_seqs
        # The scheduler fills whole blocks, at least one.
        num_prefill = max(self._config.prefill_tokens // self.block_size, 1) * self.block_size
        return (num_prefill if plan.prefills else most), most


def _no_step(step: AttentionStep) -> Tensor:
    raise AssertionError(f"{step} was planned for a model that runs through its own cache")
