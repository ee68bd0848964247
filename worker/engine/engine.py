"""The engine: requests in, finished requests out, decoded in one continuous batch.

    engine = Engine.load("examples/tiny/model")
    for output in engine.generate([Request(0, engine.encode("Hello"), GenerationParams())]):
        print(output.completions[0].text)

A step is: admit, prefill and decode in one forward pass, choose tokens, stop, retire. Where the device chooses by
itself, a step's tokens are read while the next step already computes with them, and a sequence that has ended is
computed once too often. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from time import monotonic
from typing import Any, Self

import torch

from models.states import Quantization
from worker.engine.config import EngineConfig
from worker.engine.cpu.allocator import is_out_of_memory
from worker.engine.detokenizer import Detokenizer
from worker.engine.kv_memory import choose_num_blocks
from worker.engine.model.kv_cache import KVCache
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.model_runner import FixedSizes, ModelRunner
from worker.engine.output import failed_output, finished_output
from worker.engine.request import EngineError, InvalidRequest, OutOfMemory, Request, RequestOutput
from worker.engine.sampling.sampler import TokenChooser
from worker.engine.scheduling.admission import refusal_by_model, refusal_by_room
from worker.engine.scheduling.block_manager import KVBlocks
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.stopping import eos_ids_of
from worker.engine.stats import EngineStats


class Engine:
    def __init__(self, loaded: LoadedModel, config: EngineConfig = EngineConfig()) -> None:
        self.loaded = loaded
        self.config = config
        self.stats = EngineStats()
        self.detokenizer = None if loaded.tokenizer is None else Detokenizer(loaded.tokenizer)
        self.block_size = config.block_size or loaded.block_size
        num_blocks = choose_num_blocks(loaded, config, self.block_size)
        self.blocks = KVBlocks(num_blocks, self.block_size, share_prefixes=config.share_prefixes)
        cache = KVCache(loaded.layers, num_blocks, self.block_size, loaded.dtype, loaded.device)
        fixed = None
        if loaded.needs_fixed_sizes:
            fixed = FixedSizes(config.max_num_seqs, config.prefill_tokens, config.max_num_seqs)
        use_graphs = config.use_graphs and loaded.device.type == "cuda" and not loaded.is_spread
        self._runner = ModelRunner(loaded, cache, config.max_num_seqs, fixed=fixed, use_graphs=use_graphs)
        self._scheduler = Scheduler(
            self.blocks,
            config.max_num_seqs,
            config.prefill_tokens,
            self.block_size,
            keep_phases_apart=loaded.needs_fixed_sizes,
        )
        self._groups: dict[int, SequenceGroup] = {}
        self._ready: list[RequestOutput] = []  # what the next step returns
        self._chooser = TokenChooser(loaded, self.blocks, self.detokenizer, self._groups, self.stats)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        deterministic: bool = False,
        quantize: Quantization = "none",
        **config: Any,
    ) -> Self:
        """An engine on a model folder or hub id; `config` are the fields of `EngineConfig`.

        With `deterministic` answers do not depend on the batch on a GPU either; on a CPU they never do.
        Raises `ModelUnavailable`.
        """
        loaded = load_model(model, device, dtype, deterministic=deterministic, quantize=quantize)
        return cls(loaded, EngineConfig(**config))

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt; special tokens written in it are honoured."""
        return tuple(self.loaded.tokenizer(prompt)["input_ids"])

    def encode_chat(self, messages: list[dict[str, Any]]) -> tuple[int, ...]:
        """Token ids of a conversation through the model's chat template, ready for the assistant's answer."""
        if not getattr(self.loaded.tokenizer, "chat_template", None):
            raise InvalidRequest(f"{self.loaded.name} has no chat template; give a prompt instead of messages")
        text = self.loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tuple(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def has_work(self) -> bool:
        return bool(self._ready) or self._scheduler.has_work

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    def submit(self, request: Request) -> None:
        """Queues a request; one that can never run comes back from the next `step` with its error."""
        sequence = Sequence(request, 0, self._effective_max_new_tokens(request))
        group = SequenceGroup(request, [sequence], arrived=monotonic())
        if request.id in self._groups:
            raise ValueError(f"request {request.id} is already in the engine")
        if (error := self._refusal(group)) is not None:
            self._ready.append(failed_output(request, error))
            return
        group.prefix = self.blocks.prefix_of(request.prompt_ids)
        self._groups[request.id] = group
        self._scheduler.enqueue(group)

    def cancel(self, request_id: int) -> bool:
        """Drops a request and frees its room; false where it is not here (any more)."""
        group = self._groups.pop(request_id, None)
        if group is not None:
            self._scheduler.retire(group)
        return group is not None

    def generate(self, requests: Iterable[Request]) -> Iterator[RequestOutput]:
        """Decodes all requests; yields each as it finishes."""
        for request in requests:
            self.submit(request)
        while self.has_work:
            yield from self.step()

    def admit(self) -> list[int]:
        """Lets waiting requests into the running batch; the ids of those. `step` does so by itself."""
        return [group.request.id for group in self._scheduler.admit()]

    def step(self) -> list[RequestOutput]:
        """One forward pass and what follows from it; returns the requests that finished.

        Where memory runs out, everything that runs starts over in a batch half as large; a request that
        needs too much even alone comes back with `OutOfMemory`.
        """
        reason = None
        try:
            self._step()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        if reason is not None:  # outside of the handler: the error's frames held the tensors that took the memory
            self._shrink(reason)
        ready, self._ready = self._ready, []
        return ready

    def _shrink(self, reason: str) -> None:
        self.stats.num_out_of_memory += 1
        self._chooser.drop_pending()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(self._scheduler.running) > 1:
            self._scheduler.halve()
            return
        (group,) = self._scheduler.running
        self._scheduler.retire(group)
        del self._groups[group.request.id]
        error = OutOfMemory(f"memory ran out with the job alone in the batch: {reason}; shorten the prompt or lower n")
        self._ready.append(failed_output(group.request, error))

    @torch.inference_mode()
    def _step(self) -> None:
        plan = self._scheduler.plan()
        if not plan.decodes and not plan.prefills:
            self._retire_finished(self._chooser.settle())
            return
        copies = self._make_room(plan.decodes)
        for chunk in plan.prefills:
            self.blocks.extend(chunk.sequence.table, chunk.end)
        logits, sequences = self._runner.run(plan, copies, self._chooser.pending_ids)
        self.stats.num_steps += 1
        self.stats.num_prefill_tokens += sum(chunk.end - chunk.start for chunk in plan.prefills)
        self.stats.num_decode_rows += len(plan.decodes)
        self.stats.num_sequence_steps += len(plan.decodes) + len(plan.prefills)
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.prefills:
            chunk.sequence.num_computed = chunk.end
            prefix = self._groups[chunk.sequence.request.id].prefix
            self.blocks.remember_prefix(prefix, chunk.sequence.table, chunk.end)
        self._retire_finished(self._chooser.settle())
        if logits is not None:
            self._retire_finished(self._chooser.choose(logits, sequences))

    def _make_room(self, decodes: SequenceOf[Sequence]) -> list[tuple[int, int]]:
        """Gives every decoding sequence a block of its own to write to; returns the copies that this needs."""
        copies = []
        for sequence in decodes:
            self.blocks.extend(sequence.table, sequence.num_tokens)
            index = (sequence.num_tokens - 1) // self.block_size
            if (copy := self.blocks.make_writable(sequence.table, index)) is not None:
                copies.append(copy)
        return copies

    def _is_finished(self, group: SequenceGroup) -> bool:
        if group.is_beam:
            return bool(group.beam_search.is_done)
        return all(sequence.finish_reason is not None for sequence in group.sequences)

    def _retire_finished(self, groups: Iterable[SequenceGroup]) -> None:
        for group in groups:
            if self._is_finished(group):
                self._scheduler.retire(group)
                del self._groups[group.request.id]
                eos_ids = eos_ids_of(group.request.params, self.loaded.eos_token_ids)
                self._ready.append(finished_output(group, eos_ids, self.detokenizer))

    def _refusal(self, group: SequenceGroup) -> EngineError | None:
        """Why the request can never run, or None."""
        return refusal_by_model(group, self.loaded) or refusal_by_room(
            group, self.config.max_num_seqs, self._scheduler.blocks_needed(group), self.blocks
        )

    def _effective_max_new_tokens(self, request: Request) -> int:
        return min(request.params.max_new_tokens, self.loaded.context_window - len(request.prompt_ids))
