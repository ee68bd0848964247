"""Decode steps of fixed sizes that are recorded once and replayed: a CUDA graph costs one launch instead of hundreds.

A step is padded to the next bucket; padding rows read and write the scratch block, and the scratch state. `record`
makes a graph of a function: all except CUDA's own recording runs, and is tested, on any device.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.model.attention import AttentionStep, PagedAttention
from worker.engine.model.device_copies import send
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.recurrent.state_pool import StatePool
from worker.engine.model.step_batch import MIN_ROWS, SCRATCH_BLOCK, PagedRows, SequenceRows, StateRows, StepBatch

#: Runs a function once to record it; calling the result repeats it on whatever its inputs hold then.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def graph_buckets(max_num_seqs: int) -> list[int]:
    """Sizes that are recorded: powers of two up to 16, steps of 16 up to 128, of 64 beyond; the last is the most."""
    sizes = [size for size in (2, 4, 8, 16) if size < max_num_seqs]
    sizes += range(32, min(max_num_seqs, 128), 16)
    sizes += range(128, max_num_seqs, 64)
    return [*sizes, max(max_num_seqs, MIN_ROWS)]


def bucket_for(num_rows: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds the rows; None where none does."""
    index = bisect_left(buckets, num_rows)
    return buckets[index] if index < len(buckets) else None


@dataclass(frozen=True)
class DeviceState:
    """A recorded step's part beside the decoder, where the rows' state is on the device and need not be sent."""

    fill: Callable[[StepBatch], None]  # writes the batch
    sample: Callable[[Tensor], None]  # takes the logits, and notes the tokens for the next step


@dataclass(frozen=True)
class _Recorded:
    batch: StepBatch  # the tensors that the recording reads
    replay: Callable[[], Tensor]


class DecodeGraphs:
    """One recording for each bucket, all made at the start: none interrupts a step, and their memory is known."""

    def __init__(
        self,
        decoder: Callable[[AttentionStep], Tensor],
        cache: KVCache,
        paged_attention: PagedAttention,
        buckets: Sequence[int],
        max_seqlen_k: int,
        device: torch.device,
        record: Record | None = None,
        state: DeviceState | None = None,
        states: StatePool | None = None,
    ) -> None:
        """`states` are the recurrent ones of a model that keeps some."""
        self.buckets = buckets
        self._decoder = decoder
        self._cache = cache
        self._paged_attention = paged_attention
        self._max_seqlen_k = max_seqlen_k
        self._device = device
        self._record = record or CudaRecorder(device)
        self._state = state
        self._states = states
        self._recorded: dict[int, _Recorded] = {}

    @torch.inference_mode()
    def record_all(self) -> None:
        """Records every bucket, the largest first: the others find their memory in its pool."""
        for bucket in reversed(self.buckets):
            self._recorded[bucket] = self._make(bucket)

    def run(self, batch: StepBatch, ids_in_flight: Tensor | None = None) -> Tensor:
        """Logits [bucket, vocab] of a batch of decoding rows alone, as `build_step_batch` made it on the CPU.

        `ids_in_flight` [tokens] are the last step's where the host does not know them yet. The logits hold until the
        next call.
        """
        num_rows = batch.num_rows
        bucket = bucket_for(num_rows, self.buckets)
        assert bucket is not None and batch.paged is not None, "the step has more rows than the largest bucket"
        recorded = self._recorded[bucket]
        fill(recorded.batch, batch, self._states)
        if batch.in_flight is not None:
            batch.in_flight.insert(recorded.batch.input_ids, ids_in_flight)
        return recorded.replay()

    def replay(self, num_rows: int) -> Tensor:
        """`run` where the state of the rows, and which ones they are, is on the device."""
        bucket = bucket_for(num_rows, self.buckets)
        assert bucket is not None and self._state is not None
        return self._recorded[bucket].replay()

    def _make(self, bucket: int) -> _Recorded:
        batch = static_batch(bucket, self._max_seqlen_k, self._cache.block_size, self._device)
        if self._states is not None:
            batch = replace(batch, states=static_states(bucket, self._device))
        step = AttentionStep(batch, self._cache, self._paged_attention, self._states)
        return _Recorded(batch, self._record(lambda: self._compute(step)))

    def _compute(self, step: AttentionStep) -> Tensor:
        if self._state is None:
            return self._decoder(step)
        self._state.fill(step.batch)
        logits = self._decoder(step)
        self._state.sample(logits)
        return logits


def static_batch(bucket: int, max_seqlen_k: int, block_size: int, device: torch.device) -> StepBatch:
    """A batch of `bucket` padding rows whose block tables are long enough for any sequence."""
    width = -(-max_seqlen_k // block_size)

    def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return StepBatch(
        input_ids=zeros(1, bucket),
        positions=zeros(1, bucket),
        slot_mapping=zeros(bucket),
        logit_rows=torch.arange(bucket, device=device),
        tiles=[],
        paged=PagedRows(
            block_table=torch.full((bucket, width), SCRATCH_BLOCK, dtype=torch.int32, device=device),
            seqused_k=torch.ones(bucket, dtype=torch.int32, device=device),
            cu_seqlens_q=torch.arange(bucket + 1, dtype=torch.int32, device=device),
            max_seqlen_q=1,
            max_seqlen_k=max_seqlen_k,
            num_decoding=bucket,
        ),
        num_paged_rows=bucket,
    )


def fill(static: StepBatch, batch: StepBatch, states: StatePool | None = None) -> None:
    """Writes a batch of decoding rows into a larger one; the rows after it become padding."""
    assert static.paged is not None and batch.paged is not None
    num_rows, width = batch.input_ids.shape[1], batch.paged.block_table.shape[1]
    device = static.input_ids.device
    static.input_ids[:, :num_rows] = send(batch.input_ids, device)
    static.positions[:, :num_rows] = send(batch.positions, device)
    static.slot_mapping.fill_(SCRATCH_BLOCK)
    static.slot_mapping[:num_rows] = send(batch.slot_mapping, device)
    static.paged.seqused_k.fill_(1)
    static.paged.seqused_k[:num_rows] = send(batch.paged.seqused_k, device)
    static.paged.block_table[num_rows:, :1].fill_(SCRATCH_BLOCK)
    static.paged.block_table[:num_rows, :width] = send(batch.paged.block_table, device)
    if states is not None:
        assert static.states is not None and batch.states is not None
        static.states.decoding.fill_(states.scratch)
        static.states.decoding[:num_rows] = send(batch.states.decoding, device)


def static_states(bucket: int, device: torch.device) -> StateRows:
    """The states of `bucket` decoding rows, each of which goes on from its own."""
    rows, states = torch.arange(bucket + 1, device=device), torch.zeros(bucket, dtype=torch.long, device=device)
    begins = torch.zeros(bucket, dtype=torch.bool, device=device)
    return StateRows(bucket, states, [], SequenceRows(rows[:bucket], rows, states, begins))


class CudaRecorder:
    """Records CUDA graphs of one device that share one pool of memory: only one of them runs at a time.

    All are recorded on one stream, for cuBLAS keeps a workspace of up to 32 MiB for each stream that it runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Raises `RuntimeError` where the function cannot be recorded."""
        with torch.cuda.device(self._device):  # on another device's stream the capture would be empty
            current = torch.cuda.current_stream()
            try:
                return self._recorded(function)
            finally:  # a capture that fails leaves its own
                torch.cuda.set_stream(current)

    def _recorded(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self._run_before(function)
        graph = torch.cuda.CUDAGraph()
        # Calls of other threads, such as a profiler's, are none of the capture's business.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _run_before(self, function: Callable[[], Tensor]) -> None:
        """Libraries initialize themselves and kernels are compiled in a first call, which cannot be recorded.

        A second one that waits for the device could not either, and is refused before it spoils a capture.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
            with waiting_refused():
                function()
        torch.cuda.current_stream().wait_stream(self._stream)


@contextmanager
def waiting_refused() -> Iterator[None]:
    """Operations that wait for the device raise `RuntimeError`."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
