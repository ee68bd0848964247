"""The steps of an engine whose model runs through `generate`'s own loop: each planned row by itself.

Scheduling, sampling, stopping, beams and traces are the engine's as ever. A KV block stands here for the memory of its
tokens in some sequence's own cache.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from worker.engine.backend import Backend, DeviceModel
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.fallback.own_cache import OwnCache, OwnCacheModel
from worker.engine.kv_memory import GIB, NumStates
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.request import CapacityExceeded
from worker.engine.sampling.in_flight import InFlight
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import SampledRow, StepPlan

#: The number of a sequence's prompt tokens, and all its tokens. Where a token was computed decides its last bits.
_Key = tuple[int, tuple[int, ...]]


class FallbackBackend(Backend):
    """Keeps a cache for each sequence that decoded in the last step; every other one is computed from its tokens.

    Prompts are computed whole, with their last chunk.
    """

    def __init__(self, model: DeviceModel, limits: ModelLimits, config: EngineConfig) -> None:
        assert model.own_cache is not None
        self._model = model
        self._own: OwnCacheModel = model.own_cache
        self._limits = limits
        self._config = config
        self.block_size = config.block_size or model.block_size
        self.num_states = NumStates()
        self.num_blocks = self._num_blocks()
        self._caches: dict[_Key, OwnCache] = {}  # of the sequences of the last step

    def launch(self, plan: StepPlan, previous: InFlight | None = None) -> InFlight:
        assert previous is None or previous.token_ids is None, "tokens in flight, and no sampler on the device"
        caches, self._caches = self._caches, {}
        users = Counter(_consumed(sequence) for sequence in plan.decodes)
        logits: list[Tensor] = []
        rows: list[SampledRow] = []
        for sequence in plan.decodes:
            key = _consumed(sequence)
            users[key] -= 1
            rows.append((len(logits), sequence))
            logits.append(self._decode(sequence, caches, is_last_user=not users[key]))
        for chunk in plan.prefills:
            if chunk.is_last:
                rows += [(len(logits), sequence) for sequence in chunk.group.sequences]
                logits.append(self._prefill(chunk.sequence))
        return InFlight(self._stacked(logits), [], rows)

    def release_memory(self) -> None:
        self._caches = {}
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _num_blocks(self) -> int:
        """Blocks for the tokens of all sequences, beside the memory that each has however short it is."""
        config, own = self._config, self._own
        memory = self._free_memory(self._limits) if config.kv_memory is None else int(config.kv_memory * GIB)
        left = memory - config.max_num_seqs * own.bytes_per_sequence
        num_blocks = left // (own.bytes_per_token * self.block_size)
        if num_blocks < 2:
            raise CapacityExceeded(
                f"{memory / GIB:.3f} GiB of KV memory do not hold {config.max_num_seqs} sequences of "
                f"{own.bytes_per_sequence:,} bytes each; raise --kv-memory or lower --max-num-seqs"
            )
        return int(min(num_blocks, config.max_num_seqs * -(-self._limits.context_window // self.block_size) + 1))

    def _decode(self, sequence: Sequence, caches: dict[_Key, OwnCache], *, is_last_user: bool) -> Tensor:
        """The logits of a sequence's newest token; other sequences may go on from the same cache."""
        key = _consumed(sequence)
        cache = caches.get(key)
        if cache is None:
            cache = self._recomputed(sequence)
        elif is_last_user:
            del caches[key]
        else:
            cache = cache.fork()
        cache, logits = self._own.decoder.decode(cache, sequence.token_ids[-1])
        self._caches[len(sequence.request.prompt_ids), (*key[1], sequence.token_ids[-1])] = cache
        return logits

    def _prefill(self, sequence: Sequence) -> Tensor:
        prompt_ids = sequence.request.prompt_ids
        cache, logits = self._own.decoder.prefill(prompt_ids)
        self._caches[len(prompt_ids), tuple(prompt_ids)] = cache
        return logits

    def _recomputed(self, sequence: Sequence) -> OwnCache:
        """The cache of all tokens but the newest, for a sequence that rested."""
        cache, _ = self._own.decoder.prefill(sequence.request.prompt_ids)
        for token_id in sequence.token_ids[:-1]:
            cache, _ = self._own.decoder.decode(cache, token_id)
        return cache

    def _stacked(self, logits: list[Tensor]) -> Tensor:
        """[rows, vocab], as many rows as every other step has at least."""
        missing = MIN_ROWS - len(logits)
        padding = [torch.zeros(self._limits.vocab_size, dtype=self._model.dtype, device=self._model.device)] * missing
        return torch.stack([*(row[: self._limits.vocab_size].to(self._model.dtype) for row in logits), *padding])


def _consumed(sequence: Sequence) -> _Key:
    """The tokens whose states a decoding sequence goes on from."""
    prompt_ids = sequence.request.prompt_ids
    return len(prompt_ids), (*prompt_ids, *sequence.token_ids[:-1])
