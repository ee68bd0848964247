"""The engine: requests in, finished requests out, decoded in one continuous batch.

    engine = Engine.load("examples/tiny/model")
    for output in engine.generate([Request(0, engine.encode("Hello"), GenerationParams())]):
        print(output.completions[0].text)

A step is: plan, launch, collect, sample, accept, retire. Where the device samples on its own, a step's tokens are
collected while the next step already computes with them, and a sequence that has ended is computed once too often.
Not thread-safe, but for `Engine.output_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from operator import index
from time import monotonic
from typing import Any, Self

import torch

from models.chat import ChatInputs, Messages
from models.engine_options import EngineOptions, SizeOptions, default_sizes
from models.states import Quantization
from worker.engine.config import EngineConfig
from worker.engine.detokenizer import Detokenizer
from worker.engine.device_selection import backend_of
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.out_of_memory import first_line, is_out_of_memory, memory_errors
from worker.engine.output import check_output, failed_output, finished_output
from worker.engine.request import EngineError, InvalidRequest, OutOfMemory, Request, RequestOutput, failing_alone
from worker.engine.sampling.beam_search import BeamSearch
from worker.engine.sampling.in_flight import InFlight
from worker.engine.sampling.sampler import Sampler, collect
from worker.engine.scheduling.acceptor import Acceptor
from worker.engine.scheduling.admission import check_request
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.scheduler import Scheduler
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.state_manager import StateManager
from worker.engine.scheduling.state_snapshots import StateSnapshots
from worker.engine.scheduling.step_plan import StepPlan
from worker.engine.scheduling.stopping import eos_ids_of
from worker.engine.stats import EngineStats
from worker.engine.text.chat_template import ChatTemplate
from worker.engine.text.tokenizer import encode_prompt

#: A request that has ended: with its sequences, of which `output_of` makes the output, or failed before it had any.
Ended = SequenceGroup | RequestOutput


class Engine:
    """Decodes requests with one loaded model in one continuous batch.

    Queue requests with `submit`, call `step` while `has_work`, and take each finished request from its outputs.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig = EngineConfig()) -> None:
        self.loaded = loaded = loaded.shortened(config.max_model_len)
        self.config = config
        self.stats = EngineStats()
        self.detokenizer = None if loaded.tokenizer is None else Detokenizer(loaded.tokenizer)
        self._chat_template = None if loaded.tokenizer is None else ChatTemplate(loaded.limits.name, loaded.tokenizer)
        with memory_errors(f"the KV cache of {loaded.limits.name}; lower --max-num-seqs or --gpu-memory-utilization"):
            self._backend = backend_of(loaded.model)(loaded.model, loaded.limits, config)
        self.scheduler = Scheduler(
            self._make_blocks(),
            self._backend.num_states.sequences or config.max_num_seqs,
            config.prefill_tokens,
            keep_phases_apart=loaded.model.needs_fixed_sizes,
            chunk_rule=self._backend.chunk_rule,
            prompt_groups=self._backend.prompt_groups,
        )
        self._sampler = Sampler(loaded.limits, self.scheduler.is_live, loaded.model.sample_batch)
        self._acceptor = Acceptor(self.scheduler, loaded.limits, self.detokenizer, BeamSearch, self.stats)
        self._in_flight: InFlight | None = None  # the last step, whose tokens may still be on the device
        self._ready: list[Ended] = []  # of the next step

    def _make_blocks(self) -> BlockManager:
        backend = self._backend
        has_own_caches = self.loaded.model.own_cache is not None
        states, snapshots = self._make_states()
        return BlockManager(
            backend.num_blocks,
            backend.block_size,
            share_prefixes=self.config.share_prefixes and not has_own_caches,
            share_forks=not has_own_caches,
            states=states,
            snapshots=snapshots,
        )

    def _make_states(self) -> tuple[StateManager | None, StateSnapshots | None]:
        num_states, rule = self._backend.num_states, self._backend.chunk_rule
        if not num_states.total:
            return None, None
        states = StateManager(num_states.total)
        if not num_states.snapshots:
            return states, None
        return states, StateSnapshots(states, num_states.snapshots, rule, self._backend.block_size)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        deterministic: bool = False,
        quantize: Quantization = "none",
        allow_slow: bool = False,
        adapter: str | None = None,
        **config: Any,
    ) -> Self:
        """An engine on a model folder or hub id; `config` are the fields of `EngineConfig`, by default the device's.

        With `deterministic` answers are batch-invariant on a GPU too; on a CPU they are but for the kinds of models
        that `docs/models.md` names.
        Raises `ModelUnavailable`.
        """
        loaded = load_model(
            model,
            device,
            dtype,
            deterministic=deterministic,
            quantize=quantize,
            allow_slow=allow_slow,
            adapter=adapter,
            max_model_len=config.get("max_model_len"),
        )
        given = {name: value for name, value in config.items() if value is not None}
        return cls(loaded, EngineConfig(**{**default_sizes(loaded.model.device.type), **given}))

    @classmethod
    def start(cls, options: EngineOptions) -> Self:
        """An engine with the options of a worker. Raises `ModelUnavailable`."""
        sizes = options.model_dump(include=set(SizeOptions.model_fields))
        chosen = options.model_dump(include={"device", "dtype", "deterministic", "quantize", "allow_slow", "adapter"})
        return cls.load(options.model, **chosen, **sizes)

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt; special tokens written in it count as such, and a BOS is not doubled."""
        with failing_alone("the prompt cannot be tokenized"):
            return tuple(map(index, encode_prompt(self.loaded.tokenizer, prompt)))

    def chat_text(
        self, messages: Messages, inputs: ChatInputs = ChatInputs(), created_at: datetime | None = None
    ) -> str:
        """A conversation through the model's chat template, up to the answer. Raises `InvalidRequest`."""
        if self._chat_template is None:
            raise InvalidRequest(f"{self.loaded.limits.name} has no tokenizer; chats need one")
        with failing_alone("the chat template refuses it"):
            return self._chat_template.text(messages, inputs, created_at or datetime.now(UTC))

    def encode_chat(
        self, messages: Messages, inputs: ChatInputs = ChatInputs(), created_at: datetime | None = None
    ) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's answer. Raises `InvalidRequest`."""
        return self.encode_rendered(self.chat_text(messages, inputs, created_at))

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of a rendered conversation, which has its special tokens in it."""
        with failing_alone("the prompt cannot be tokenized"):
            return tuple(map(index, self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]))

    @property
    def has_work(self) -> bool:
        return bool(self._ready) or self.scheduler.has_work

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.scheduler.blocks.num_usable * self.scheduler.blocks.block_size

    def submit(self, request: Request) -> None:
        """Queues a request; one that can never run comes back from the next `step` with its error."""
        if request.id in self.scheduler.groups:
            raise ValueError(f"request {request.id} is already in the engine")
        try:
            with failing_alone("the request cannot be admitted"):
                self._enqueue(request)
        except EngineError as error:
            self._ready.append(failed_output(request, error))

    def _enqueue(self, request: Request) -> None:
        """Queues a request. Raises `EngineError` for one that can never run."""
        limits = self.loaded.limits
        check_request(request, limits, None if self.detokenizer is None else self.detokenizer.token_text)
        max_new_tokens = min(request.params.max_new_tokens, limits.context_window - len(request.prompt_ids))
        group = SequenceGroup(request, [Sequence(request, 0, max_new_tokens)], arrived=monotonic())
        if (error := self.scheduler.capacity_error(group)) is not None:
            raise error
        self.scheduler.enqueue(group)

    def cancel(self, request_id: int) -> bool:
        """Drops a request and frees its blocks; false where it is not here (any more)."""
        group = self.scheduler.groups.get(request_id)
        if group is not None:
            self.scheduler.retire(group)
        return group is not None

    def generate(self, requests: Iterable[Request]) -> Iterator[RequestOutput]:
        """Decodes all requests; yields each as it finishes."""
        for request in requests:
            self.submit(request)
        while self.has_work:
            yield from self.step()

    def step(self, on_admitted: Callable[[list[int]], None] | None = None) -> list[RequestOutput]:
        """Runs one step; returns the requests that finished, or that can never run.

        `on_admitted` gets the ids of requests that enter the running batch, before anything of them is computed.
        Where memory runs out, everything that runs starts over in a batch half as large; a request that
        needs too much even alone comes back with `OutOfMemory`.
        """
        return [self.output_of(each) for each in self.step_without_texts(on_admitted)]

    def step_without_texts(self, on_admitted: Callable[[list[int]], None] | None = None) -> list[Ended]:
        """Runs one step like `step`; returns what has ended, for `output_of`.

        Text and trace take a microsecond a token and more, for which a GPU would wait.
        """
        reason = None
        try:
            self._step(on_admitted)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        if reason is not None:  # outside of the handler: the error's frames held the tensors that took the memory
            self._shrink(reason)
        ready, self._ready = self._ready, []
        return ready

    @torch.inference_mode()
    def _step(self, on_admitted: Callable[[list[int]], None] | None) -> None:
        started, plan = monotonic(), self.scheduler.plan()
        if on_admitted is not None and plan.admitted:
            on_admitted([group.request.id for group in plan.admitted])
        previous, self._in_flight = self._in_flight, self._launch(plan)
        self._retire_finished(self._acceptor.accept(collect(previous)))
        self.scheduler.complete(plan)
        self._retire_finished(self._acceptor.accept(self._sampler.sample(self._in_flight)))
        self.stats.time(plan, monotonic() - started)

    def _launch(self, plan: StepPlan) -> InFlight | None:
        if plan.is_empty:
            return None
        step = self._backend.launch(plan, self._in_flight)
        self.stats.count(plan)
        return step

    def _retire_finished(self, groups: Iterable[SequenceGroup]) -> None:
        for group in self.scheduler.retire_finished(groups):
            group.retired = monotonic()
            self._ready.append(group)

    def output_of(self, ended: Ended) -> RequestOutput:
        """The output of a request that has ended. May be called on another thread than `step_without_texts`."""
        if isinstance(ended, RequestOutput):
            return ended
        group = ended
        try:
            if group.error is not None:
                raise group.error
            with failing_alone("the answer cannot be detokenized"):
                eos_ids = eos_ids_of(group.request.params, self.loaded.limits.eos_token_ids)
                output = finished_output(group, eos_ids, self.detokenizer)
                check_output(output)
                return output
        except EngineError as error:
            return failed_output(group.request, error)

    def _shrink(self, reason: str) -> None:
        """Starts over with a smaller batch, after memory ran out."""
        self.stats.num_out_of_memory += 1
        self._in_flight = None  # its sequences start over; draws are keyed by position, so the same tokens come again
        self._backend.release_memory()
        if (alone := self.scheduler.halve()) is not None:
            message = f"memory ran out with the job alone in the batch: {reason}; shorten the prompt or lower n"
            self._ready.append(failed_output(alone.request, OutOfMemory(message)))
