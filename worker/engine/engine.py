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
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

import torch
from torch import Tensor

from models.states import Quantization
from worker.engine.batched_sampler import LaunchedChoices
from worker.engine.beam_group import advance_beams, fork_sequences, start_beams
from worker.engine.config import EngineConfig
from worker.engine.detokenizer import Detokenizer
from worker.engine.kv_blocks import KVBlocks
from worker.engine.kv_cache import KVCache
from worker.engine.kv_memory import choose_num_blocks
from worker.engine.memory import is_out_of_memory
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.model_runner import FixedSizes, ModelRunner
from worker.engine.output import failed_output, finished_output
from worker.engine.refusal import refusal_by_model, refusal_by_room
from worker.engine.request import EngineError, InvalidRequest, OutOfMemory, Request, RequestOutput
from worker.engine.sampler import Choice, SamplingRow, choice_of, choose_tokens, is_special
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, SequenceGroup
from worker.engine.stopping import check_stop, eos_ids_of
from worker.engine.transfer import to_device
from worker.engine.uniform import uniforms


@dataclass
class EngineStats:
    """Counts since the start."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_generated_tokens: int = 0
    num_decode_rows: int = 0  # rows that decoded, summed over the steps
    num_sequence_steps: int = 0  # sequences worked on, prefilling ones too, summed over the steps
    num_out_of_memory: int = 0  # steps that did not go through


@dataclass(frozen=True)
class PendingChoices:
    """A step's choices that the host has not read yet, and whose they are."""

    rows: list[tuple[Sequence, SequenceGroup]]
    launched: LaunchedChoices


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
        self._pending: PendingChoices | None = None

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
        # Whose tokens they were starts over; draws are keyed by position, so the same ones come again.
        self._pending = None
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
            self._settle()
            return
        copies = self._make_room(plan.decodes)
        for chunk in plan.prefills:
            self.blocks.extend(chunk.sequence.table, chunk.end)
        logits, sequences = self._runner.run(plan, copies, self._chosen_ids)
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
        self._settle()
        if logits is not None:
            self._retire_finished(self._choose(logits, sequences))

    @property
    def _chosen_ids(self) -> Tensor | None:
        """The last step's tokens [choices], where they are still on the device."""
        return None if self._pending is None else self._pending.launched.token_ids

    def _settle(self) -> None:
        """Takes the tokens of the step before, if they are still on the device."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        found = pending.launched.read()
        touched: dict[int, SequenceGroup] = {}
        for place, (sequence, group) in enumerate(pending.rows):
            sequence.pending_row = None
            if self._groups.get(group.request.id) is group:  # not cancelled meanwhile
                self._take(sequence, choice_of(found, place, sequence.request.params.top_logprobs))
                touched[group.request.id] = group
        self._retire_finished(touched.values())

    def _make_room(self, decodes: SequenceOf[Sequence]) -> list[tuple[int, int]]:
        """Gives every decoding sequence a block of its own to write to; returns the copies that this needs."""
        copies = []
        for sequence in decodes:
            self.blocks.extend(sequence.table, sequence.num_tokens)
            index = (sequence.num_tokens - 1) // self.block_size
            if (copy := self.blocks.make_writable(sequence.table, index)) is not None:
                copies.append(copy)
        return copies

    def _choose(self, logits: Tensor, sequences: SequenceOf[Sequence]) -> list[SequenceGroup]:
        """Appends a token to every sequence that has logits; returns the groups they belong to."""
        rows_of_group: dict[int, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows_of_group.setdefault(sequence.request.id, []).append(row)
        # Those that have ended meanwhile were computed once too often.
        touched = [self._groups[request_id] for request_id in rows_of_group if request_id in self._groups]
        plain: list[tuple[int, Sequence]] = []
        for group in touched:
            rows = rows_of_group[group.request.id]
            if group.prefilled == 0.0:
                self._after_prefill(group)
                rows = rows * len(group.sequences)
            if group.is_beam:
                self.stats.num_generated_tokens += len(rows)
                self._advance_beams(group, logits, rows, sequences)
            else:
                alive = [s for s in group.sequences if s.finish_reason is None]
                by_row = {id(sequences[row]): row for row in rows}
                plain += [(by_row.get(id(sequence), rows[0]), sequence) for sequence in alive]
        if plain:
            self.stats.num_generated_tokens += len(plain)
            self._sample(logits, plain)
        return touched

    def _after_prefill(self, group: SequenceGroup) -> None:
        group.prefilled = monotonic()
        if group.is_beam:
            start_beams(group, self._eos_ids(group.request), self.blocks)
        else:
            fork_sequences(group, self.blocks)

    def _advance_beams(
        self, group: SequenceGroup, logits: Tensor, rows: list[int], sequences: SequenceOf[Sequence]
    ) -> None:
        # The batch ordered the beams by their blocks; the search wants them by their index.
        ordered = sorted(rows, key=lambda row: sequences[row].index)
        advance_beams(group, logits[ordered], self._eos_ids(group.request), self.detokenizer, self.blocks)

    def _sample(self, logits: Tensor, plain: list[tuple[int, Sequence]]) -> None:
        rows = [row for row, _ in plain]
        sequences = [sequence for _, sequence in plain]
        params = [s.request.params for s in sequences]
        numbers = uniforms(
            [each.seed or 0 for each in params],
            [s.index for s in sequences],
            [len(s.token_ids) for s in sequences],
        ).tolist()
        is_all = rows == list(range(logits.shape[0]))
        picked = logits if is_all else logits[to_device(rows, None, logits.device)]
        if self.loaded.launch_batch is not None and not any(map(is_special, params)):
            launched = self.loaded.launch_batch(picked, params, numbers)
            self._pending = PendingChoices([(s, self._groups[s.request.id]) for s in sequences], launched)
            for place, sequence in enumerate(sequences):
                sequence.pending_row = place
            return
        sampling_rows = [
            SamplingRow(s.request.params, s.request.prompt_ids, s.token_ids, self._eos_ids(s.request), number)
            for s, number in zip(sequences, numbers, strict=True)
        ]
        choices = choose_tokens(picked, sampling_rows, self.loaded.choose_batch)
        for sequence, choice in zip(sequences, choices, strict=True):
            self._take(sequence, choice)

    def _take(self, sequence: Sequence, choice: Choice) -> None:
        _append(sequence, choice)
        check_stop(sequence, self._eos_ids(sequence.request), self.detokenizer)
        if sequence.finish_reason is not None:
            self.blocks.free(sequence.table)

    def _is_finished(self, group: SequenceGroup) -> bool:
        if group.is_beam:
            return bool(group.beam_search.is_done)
        return all(sequence.finish_reason is not None for sequence in group.sequences)

    def _retire_finished(self, groups: Iterable[SequenceGroup]) -> None:
        for group in groups:
            if self._is_finished(group):
                self._scheduler.retire(group)
                del self._groups[group.request.id]
                self._ready.append(finished_output(group, self._eos_ids(group.request), self.detokenizer))

    def _eos_ids(self, request: Request) -> tuple[int, ...]:
        return eos_ids_of(request.params, self.loaded.eos_token_ids)

    def _refusal(self, group: SequenceGroup) -> EngineError | None:
        """Why the request can never run, or None."""
        return refusal_by_model(group, self.loaded) or refusal_by_room(
            group, self.config.max_num_seqs, self._scheduler.blocks_needed(group), self.blocks
        )

    def _effective_max_new_tokens(self, request: Request) -> int:
        return min(request.params.max_new_tokens, self.loaded.context_window - len(request.prompt_ids))


def _append(sequence: Sequence, choice: Choice) -> None:
    sequence.token_ids.append(choice.token_id)
    sequence.cumulative_logprob += choice.logprob
    if sequence.request.params.trace != "none":
        trace = sequence.trace
        trace.logprobs.append(choice.logprob)
        trace.sampling_logprobs.append(choice.sampling_logprob)
        trace.entropies.append(choice.entropy)
        trace.ranks.append(choice.rank)
        trace.kept.append(choice.kept)
        trace.alternatives.append(choice.alternatives)
