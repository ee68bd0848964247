"""Part one: each kernel against float64, with outputs that are NaN until they are written, and its time beside bytes.

On a CPU the kernels run in Triton's interpreter, where TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.deterministic as deterministic
from torch import Tensor

from benchmarks.gpu import layers, samplers
from benchmarks.gpu.bound import Ceilings
from benchmarks.gpu.setting import Setting
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows

BLOCK_SIZE = 64

#: Largest relative error, ‖out − reference‖ / ‖reference‖, that the rounding of a dtype explains.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}

DTYPES = (torch.bfloat16, torch.float32, torch.float16)

#: Query heads, key heads, head dimension.
Heads = tuple[int, int, int]
LAYERS: list[Heads] = [(14, 2, 64), (32, 8, 128), (8, 4, 256)]


@dataclass(frozen=True)
class Segments:
    """Rows and keys of sequences; those with one row decode and come first."""

    name: str
    rows_and_keys: tuple[tuple[int, int], ...]


CASES = [
    Segments("decoding, short and long", ((1, 1), (1, 61), (1, 257), (1, 1500))),
    Segments("256 decoding", tuple((1, 1 + 5 * n) for n in range(256))),
    Segments("prompts", ((1, 300), (5, 5), (65, 65), (130, 700))),
]


def measure(setting: Setting) -> None:
    """The kernels of bf16 first, then all times: compilation takes most of the part, and may take all that is left."""
    attention = attention_of(setting)
    first, *others = (torch.float32,) if setting.is_tiny else DTYPES  # the interpreter has no matmuls of bf16
    check(setting, attention, first, LAYERS[:1])
    ceilings = Ceilings(setting)
    setting.attempt("time of attention", lambda: time_attention(setting, attention, ceilings))
    setting.attempt("times of layer kernels", lambda: layers.time_all(setting, ceilings))
    setting.attempt("times of matmuls", lambda: time_matmuls(setting, ceilings))
    samplers.measure(setting, ceilings)
    if others:
        check(setting, attention, first, LAYERS[1:], has_layers=False)
    for dtype in others:
        check(setting, attention, dtype, LAYERS[:1])


def check(
    setting: Setting, attention: Any, dtype: torch.dtype, heads: Sequence[Heads], *, has_layers: bool = True
) -> None:
    with poisoned_outputs():
        for each in heads:
            setting.attempt(f"attention {each}", partial(check_attention, setting, attention, dtype, each))
        if has_layers:
            setting.attempt("layer kernels", partial(layers.compare, setting, dtype))


def attention_of(setting: Setting) -> Any:
    from worker.engine.cuda.triton_attention import TritonAttention

    is_gpu = setting.device.type == "cuda"
    return TritonAttention(torch.cuda.get_device_properties(setting.device).multi_processor_count if is_gpu else 2)


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Memory that torch hands out is NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_attention(setting: Setting, attention: Any, dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, dim = heads
    for case in CASES[:1] if setting.is_tiny else CASES:
        for window in (None, 24):
            layer = AttentionLayer(0, dim**-0.5, window)
            inputs = Inputs.make(setting.device, dtype, case.rows_and_keys, num_heads, num_kv_heads, dim)
            found = attention(layer, inputs.query, inputs.cache, inputs.rows).double()
            expected = inputs.expected(layer)
            error = float((found - expected).norm() / expected.norm())
            name = f"{str(dtype).removeprefix('torch.')}, {num_heads}/{num_kv_heads} heads of {dim}, window {window}"
            line = f"attention, {name:45} {case.name:26} error {error:.1e}"
            setting.tell(line, error <= TOLERANCES[dtype])  # NaN is wrong


@dataclass(frozen=True)
class Inputs:
    """Random keys, values and queries of one layer."""

    query: Tensor
    cache: KVCache
    rows: PagedRows
    table: Tensor
    segments: tuple[tuple[int, int], ...]

    @classmethod
    def make(
        cls, device: torch.device, dtype: torch.dtype, segments: tuple[tuple[int, int], ...], num_heads: int,
        num_kv_heads: int, dim: int,
    ) -> Inputs:  # fmt: skip
        width = -(-max(keys for _, keys in segments) // BLOCK_SIZE)
        cache = KVCache({0: LayerShape(num_kv_heads, dim, dim)}, 1 + len(segments) * width, BLOCK_SIZE, dtype, device)
        for pool in cache.pools(0):
            pool.normal_()
        num_rows = [rows for rows, _ in segments]
        query = torch.randn(sum(num_rows), num_heads, dim, device=device).to(dtype)
        table = 1 + torch.randperm(len(segments) * width, device=device).view(len(segments), width)
        rows = PagedRows(
            block_table=table.int(),
            seqused_k=torch.tensor([keys for _, keys in segments], dtype=torch.int32, device=device),
            cu_seqlens_q=F.pad(torch.tensor(num_rows), (1, 0)).cumsum(0).to(device, torch.int32),
            max_seqlen_q=max(num_rows),
            max_seqlen_k=max(keys for _, keys in segments),
            num_decoding=sum(rows == 1 for rows, _ in segments),
        )
        return cls(query, cache, rows, table, segments)

    def expected(self, layer: AttentionLayer) -> Tensor:
        """The same attention in float64, sequence by sequence."""
        outputs, start = [], 0
        for (num_rows, seqlen_k), blocks in zip(self.segments, self.table, strict=True):
            outputs.append(self._expected(layer, self.query[start : start + num_rows].double(), blocks, seqlen_k))
            start += num_rows
        return torch.cat(outputs)

    def _expected(self, layer: AttentionLayer, query: Tensor, blocks: Tensor, seqlen_k: int) -> Tensor:
        positions_k = torch.arange(seqlen_k, device=query.device)
        slots = blocks[positions_k // BLOCK_SIZE] * BLOCK_SIZE + positions_k % BLOCK_SIZE
        keys, values = (pool[slots].double() for pool in self.cache.pools(layer.index))
        group = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("rhd,khd->hrk", query, keys) * layer.scale
        positions = torch.arange(seqlen_k - len(query), seqlen_k, device=query.device)[:, None]
        is_visible = positions_k <= positions
        if layer.window is not None:
            is_visible &= positions_k > positions - layer.window
        return torch.einsum("hrk,khd->rhd", scores.masked_fill(~is_visible, -torch.inf).softmax(-1), values)


def time_attention(setting: Setting, attention: Any, ceilings: Ceilings) -> None:
    """256 decoding rows of 600 keys, as one layer of the shape has them."""
    config = setting.config()
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    segments = ((1, 80),) if setting.is_tiny else ((1, 600),) * 256
    heads = config.num_attention_heads, config.num_key_value_heads
    inputs = Inputs.make(setting.device, torch.bfloat16, segments, *heads, dim)
    layer = AttentionLayer(0, dim**-0.5, None)
    spent = setting.milliseconds(lambda: attention(layer, inputs.query, inputs.cache, inputs.rows))
    moved = 2 * sum(keys for _, keys in segments) * heads[1] * dim * 2
    least = 1000 * moved / ceilings.bandwidth
    print(
        f"attention of {len(segments)} rows over {segments[0][1]} keys, one layer: {spent:.3f} ms, {least / spent:.0%} "
        f"of the bandwidth; all {config.num_hidden_layers} layers: {spent * config.num_hidden_layers:.2f} ms",
        flush=True,
    )


def time_matmuls(setting: Setting, ceilings: Ceilings) -> None:
    """The matmuls of a layer and of the head at 256 rows."""
    config = setting.config()
    rows, hidden, inner = (4 if setting.is_tiny else 256), config.hidden_size, config.intermediate_size
    dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    heads = config.num_attention_heads, config.num_key_value_heads
    matmuls = {
        "qkv": (hidden, (heads[0] + 2 * heads[1]) * dim),
        "output": (heads[0] * dim, hidden),
        "gate and up": (hidden, 2 * inner),
        "down": (inner, hidden),
        "head": (hidden, config.vocab_size),
    }
    for name, (num_in, num_out) in matmuls.items():
        inputs = torch.randn(rows, num_in, device=setting.device).to(torch.bfloat16)
        weight = torch.randn(num_out, num_in, device=setting.device).to(torch.bfloat16)
        spent = setting.milliseconds(lambda inputs=inputs, weight=weight: F.linear(inputs, weight))  # type: ignore[misc]
        least = 1000 * max(weight.numel() * 2 / ceilings.bandwidth, rows * weight.numel() / ceilings.rate)
        print(f"matmul {name:12} {rows} x {num_in} x {num_out}: {spent:.3f} ms, bound {least:.3f} ms", flush=True)
