"""Torch references behind the calls of Triton's kernels, for the pretend device; each call is one launch there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.pretend_cuda.machine import DeviceMismatch
from tests.support.pretend_cuda.tensors import DeviceTensor, State, inner_of, record_or_run
from worker.engine.cuda.kernels.rms_norm import rms_norm_in_torch
from worker.engine.cuda.kernels.rotation import rotate_and_write_in_torch
from worker.engine.cuda.kernels.swiglu import swiglu_in_torch
from worker.engine.cuda.running_rows import RunningRows, fill_in_torch, paged_rows_of
from worker.engine.cuda.sampling.output import Column, SamplerOutput
from worker.engine.cuda.sampling.reference import sample_in_torch, write_alternatives
from worker.engine.cuda.sampling.sampler import SampledKinds
from worker.engine.cuda.sampling.table import Integer, SamplingTable
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.row_operations import HeadNorms, Rotation, RowOperations
from worker.engine.model.step_batch import PagedRows, StepBatch


def unwrapped(value: Any) -> Any:
    """A value with the inner tensors of all device tensors in it."""
    if isinstance(value, Tensor):
        return inner_of(value)
    if isinstance(value, list | tuple):
        return type(value)(map(unwrapped, value))
    if is_dataclass(value) and not isinstance(value, type):
        named = [each.name for each in fields(value) if each.init]
        return replace(value, **{name: unwrapped(getattr(value, name)) for name in named})
    return value


def devices_in(value: Any) -> set[torch.device]:
    if isinstance(value, Tensor):
        return {value.device}
    if isinstance(value, list | tuple):
        return {device for each in value for device in devices_in(each)}
    if is_dataclass(value) and not isinstance(value, type):
        return {device for each in fields(value) for device in devices_in(getattr(value, each.name))}
    return set()


def launch(name: str, kernel: Callable[..., None], output: Tensor | list[Tensor], *arguments: Any) -> None:
    """Launches a kernel that writes `output`; on a CPU it is called.

    Triton launches on the current device, whatever its arguments are on.
    """
    devices = devices_in([output, *arguments] if isinstance(output, Tensor) else [*output, *arguments])
    if all(device.type == "cpu" for device in devices):
        kernel(output, *arguments)
        return
    machine = State.machine
    if devices != {torch.device("cuda", machine.current)}:
        raise DeviceMismatch(f"{name} is launched on cuda:{machine.current} with tensors of {devices}")
    if machine.tape is None:
        machine.activity.kernels[name] += 1
    inner_output, inner = unwrapped(output), unwrapped(list(arguments))

    def operation() -> None:
        with _disable_current_modes():
            kernel(inner_output, *inner)

    record_or_run(machine, operation, [inner_output] if isinstance(inner_output, Tensor) else inner_output)


class ReferenceSampler:
    """A `TritonSampler` by Torch's operations, with as many launches."""

    def __init__(self, max_rows: int, vocab: int, device: torch.device) -> None:
        self._max_rows, self._vocab, self._device = max_rows, vocab, device

    def __call__(
        self,
        logits: Tensor,
        batch_index: Tensor,
        table: SamplingTable,
        output: SamplerOutput,
        kinds: SampledKinds = SampledKinds(),
    ) -> None:
        assert len(logits) <= self._max_rows and logits.shape[1] == self._vocab == table.vocab
        assert logits.stride(1) == 1 and logits.device == self._device
        cuts = ["draw from candidates", "draw from whole rows"] * kinds.has_cuts
        names = ["sample plain rows", *cuts, *["count ranks"] * kinds.has_traces]
        launch("reduce blocks", _sample, [output.packed, table.words], logits, batch_index, table)
        for name in names:
            launch(name, lambda _: None, output.packed)
        if output.num_alternatives:
            self.find_alternatives(logits, batch_index, table, output)

    def find_alternatives(
        self, logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput
    ) -> None:
        launch("find alternatives", _find_alternatives, output.packed, logits, batch_index, table)


def _sample(written: list[Tensor], logits: Tensor, batch_index: Tensor, table: SamplingTable) -> None:
    sample_in_torch(logits, batch_index, table, SamplerOutput(written[0][:, : len(Column)]))


def _find_alternatives(packed: Tensor, logits: Tensor, batch_index: Tensor, table: SamplingTable) -> None:
    counts = table.integers[batch_index.long(), Integer.NUM_ALTERNATIVES]
    write_alternatives(SamplerOutput(packed), torch.log_softmax(logits.float(), dim=-1), counts)


def fill_from_rows(batch: StepBatch, rows: RunningRows, block_size: int) -> None:
    """`fill_kernel`'s function."""
    paged = paged_rows_of(batch)
    written = [batch.input_ids, batch.positions, batch.slot_mapping, paged.seqused_k, paged.block_table]
    launch("fill rows", _fill, written, batch, rows, block_size)


def _fill(_: list[Tensor], batch: StepBatch, rows: RunningRows, block_size: int) -> None:
    fill_in_torch(batch, rows, block_size)


class ReferenceLayerKernels(RowOperations):
    """The kernels of a layer by torch's operations; the matmul's bits do not depend on the number of rows."""

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _launch_one("rms_norm", rms_norm_in_torch, torch.empty_like(rows), rows, weight, eps)

    def rotate_and_write(
        self,
        heads: Tensor,
        norms: HeadNorms | None,
        rotation: Rotation,
        slot_mapping: Tensor,
        pools: tuple[Tensor, Tensor],
    ) -> Tensor:
        num_rows, num_all, dim = heads.shape
        query = heads.new_empty(num_rows, num_all - 2 * pools[0].shape[1], dim)

        def rotate(outputs: list[Tensor], heads: Tensor, norms: Any, rotation: Rotation, slot_mapping: Tensor) -> None:
            written, *pools = outputs
            written.copy_(rotate_and_write_in_torch(heads, norms, rotation, slot_mapping, (pools[0], pools[1])))

        launch("rotate_and_write", rotate, [query, *pools], heads, norms, rotation, slot_mapping)
        return query

    def swiglu(self, gate_up: Tensor) -> Tensor:
        output = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        return _launch_one("swiglu", swiglu_in_torch, output, gate_up)

    def matmul(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        return _launch_one("matmul", _matmul, rows.new_empty(len(rows), len(weight)), rows, weight, bias, residual)


def _launch_one(name: str, function: Callable[..., Tensor], output: Tensor, *arguments: Any) -> Tensor:
    """Launches a function as a kernel that writes its result."""
    launch(name, lambda output, *given: output.copy_(function(*given)), output, *arguments)
    return output


def _matmul(rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Sums in float64, whose order is lost when they are rounded."""
    total = rows.double() @ weight.double().T
    for addend in (bias, residual):
        total = total if addend is None else total + addend
    return total.to(rows.dtype)


class ReferenceAttention:
    """A `PagedAttention` by SDPA, a segment at a time; asserts what a kernel takes for granted of its rows."""

    covers_prefill = True

    def __init__(self, num_processors: int = 132) -> None:
        pass

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        keys, values = cache.pools(layer.index)
        output = query.new_empty(*query.shape[:2], values.shape[2])
        launch("attention", _attend, output, layer, query, keys, values, cache.block_size, rows)
        return output


def _attend(
    output: Tensor, layer: AttentionLayer, query: Tensor, key_pool: Tensor, value_pool: Tensor, block_size: int,
    rows: PagedRows,
) -> None:  # fmt: skip
    num_rows = rows.cu_seqlens_q.diff().tolist()
    assert {rows.cu_seqlens_q.dtype, rows.seqused_k.dtype, rows.block_table.dtype} == {torch.int32}
    assert max(num_rows) == rows.max_seqlen_q and int(rows.seqused_k.max()) <= rows.max_seqlen_k
    assert sum(num_rows) == len(query) and set(num_rows[: rows.num_decoding]) <= {1}
    for segment, (own, out) in enumerate(zip(query.split(num_rows), output.split(num_rows), strict=True)):
        seqlen_k = int(rows.seqused_k[segment])
        block_ids = rows.block_table[segment, : -(-seqlen_k // block_size)].long()
        keys, values = (
            pool.unflatten(0, (-1, block_size))[block_ids].flatten(0, 1)[:seqlen_k].transpose(0, 1)
            for pool in (key_pool, value_pool)
        )
        group = query.shape[1] // keys.shape[0]
        out.copy_(_attend_segment(layer, own.transpose(0, 1), keys, values, group).transpose(0, 1))


def _attend_segment(layer: AttentionLayer, query: Tensor, keys: Tensor, values: Tensor, group: int) -> Tensor:
    """[heads, rows, dim]"""
    seqlen_k = keys.shape[1]
    positions = torch.arange(seqlen_k - query.shape[1], seqlen_k)[:, None]
    is_visible = torch.arange(seqlen_k) <= positions
    if layer.window is not None:
        is_visible &= torch.arange(seqlen_k) > positions - layer.window
    if layer.chunk is not None:
        is_visible &= torch.arange(seqlen_k) >= positions // layer.chunk * layer.chunk
    if layer.softcap is None:
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=is_visible, scale=layer.scale, enable_gqa=True
        )
    scores = query @ keys.repeat_interleave(group, 0).transpose(1, 2) * layer.scale
    scores = (torch.tanh(scores / layer.softcap) * layer.softcap).masked_fill(~is_visible, float("-inf"))
    return torch.softmax(scores, -1) @ values.repeat_interleave(group, 0)


__all__ = [
    "DeviceTensor",
    "ReferenceAttention",
    "ReferenceLayerKernels",
    "ReferenceSampler",
    "fill_from_rows",
    "launch",
]
