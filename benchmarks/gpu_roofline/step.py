"""A decode step on tensors without values, and its kernels and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from benchmarks.gpu.setting import SHAPES
from worker.engine.cuda.attention_bytes import AttentionBytes
from worker.engine.cuda.decode_graphs import static_batch
from worker.engine.cuda.kernels.matmul import is_split, matmul_bytes
from worker.engine.cuda.kernels.rms_norm import rms_norm_bytes
from worker.engine.cuda.kernels.rotation import rotation_bytes
from worker.engine.cuda.kernels.swiglu import swiglu_bytes
from worker.engine.cuda.layers.layer_kernels import LayerKernels
from worker.engine.cuda.layers.linear import BatchInvariantLinear, CublasLinear
from worker.engine.cuda.paged_attention import PAGE_SIZE
from worker.engine.cuda.sampling.sampler import SampledKinds, TritonSampler
from worker.engine.model.attention import AttentionLayer, AttentionStep
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.row_operations import HeadNorms, Rotation
from worker.engine.model.step_batch import PagedRows

META = torch.device("meta")
DTYPE = torch.bfloat16
KEYS = 600  # of each sequence
WINDOW = 4096  # tokens of the longest sequence, for which a graph is made
H100_PROCESSORS = 132
H100_BANDWIDTH = 3.0e12  # bytes/s, as a copy measured it

#: Operations that launch nothing.
WITHOUT_KERNEL = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "_unsafe_view"}

#: Whether rows draw, and the sampler's kernels beside the first two.
SAMPLERS = {
    "greedy": (False, SampledKinds(has_cuts=False, has_traces=False)),
    "sample with rank": (True, SampledKinds(has_cuts=False)),
    "nucleus": (True, SampledKinds(has_traces=False)),
}


@dataclass
class Counts:
    """Kernels and bytes, by the kernel's name."""

    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, num_bytes: int, launches: int = 1) -> None:
        self.kernels[name] += launches
        self.moved[name] += num_bytes


class CountedOperations(TorchDispatchMode):
    """Adds torch's operations; of a table only the rows that are looked up are read."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        if not func.is_view and name not in WITHOUT_KERNEL:
            written = _num_bytes(outputs)
            looked_up = name in ("embedding", "index_select")
            self._counts.add(name, written + (written if looked_up else _num_bytes((args, kwargs))))
        return outputs


class CountedKernels(LayerKernels):
    """Adds what each kernel declares, and computes nothing."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ARG002
        size = rows.shape[-1]
        self._counts.add("rms_norm", rms_norm_bytes(rows.numel() // size, size, rows.itemsize))
        return torch.empty_like(rows)

    def rotate_and_write(
        self,
        heads: Tensor,
        norms: HeadNorms | None,
        rotation: Rotation,  # noqa: ARG002
        slot_mapping: Tensor,  # noqa: ARG002
        pools: tuple[Tensor, Tensor],
    ) -> Tensor:
        num_rows, num_all, dim = heads.shape
        moved = rotation_bytes(num_rows, num_all, dim, heads.itemsize, has_norms=norms is not None)
        self._counts.add("rotate_and_write", moved)
        return heads.new_empty(len(heads), heads.shape[1] - 2 * pools[0].shape[1], heads.shape[2])

    def swiglu(self, gate_up: Tensor) -> Tensor:
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        self._counts.add("swiglu", swiglu_bytes(num_rows, size, gate_up.itemsize))
        return gate_up.new_empty(num_rows, size)

    def matmul(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,  # noqa: ARG002
        residual: Tensor | None = None,
    ) -> Tensor:
        sizes = (len(rows), *weight.shape, rows.itemsize)
        moved = matmul_bytes(*sizes) + (0 if residual is None else _num_bytes(residual))
        self._counts.add("matmul", moved, launches=2 if is_split(*sizes) else 1)
        return rows.new_empty(len(rows), len(weight))


@dataclass
class CountedAttention:
    """Adds a layer's attention of decoding rows, each over as many keys."""

    counts: Counts
    covers_prefill: bool = True

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        keys, values = cache.pools(layer.index)
        shape = LayerShape(keys.shape[1], keys.shape[2], values.shape[2])
        declared = AttentionBytes(layer, shape, query.shape[1], query.itemsize, H100_PROCESSORS)
        segments = [(1, KEYS)] * rows.num_decoding
        self.counts.add(
            "attention", declared.of(segments, rows.max_seqlen_k), declared.num_launches(segments, rows.max_seqlen_k)
        )
        return query.new_empty(*query.shape[:2], values.shape[2])


@dataclass(frozen=True)
class DecodeStep:
    """A counted step of decoding rows, and its bounds."""

    num_layers: int
    layer: Counts  # of one
    whole: Counts  # without the sampler
    weights: int  # bytes, each once
    keys: int

    @property
    def ratio(self) -> float:
        """The step's bytes beside weights and keys."""
        return self.whole.moved.total() / (self.weights + self.keys)


def count_step(shape: str, num_rows: int, *, deterministic: bool = False) -> DecodeStep:
    """A decode step of a model of the shape with so many sequences running."""
    counts = Counts()
    config = SHAPES[shape]()
    with META:
        model: Any = AutoModelForCausalLM.from_config(config).to(DTYPE).eval().requires_grad_(False)
    tied = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    weights = (sum(each.numel() for each in model.parameters()) - tied) * DTYPE.itemsize
    kernels = CountedKernels(counts)
    linear = BatchInvariantLinear if deterministic else CublasLinear
    decoder = FusedDecoder(model, partial(linear, kernels=kernels), kernels)
    dim = decoder.head_dim
    layers = {index: LayerShape(config.num_key_value_heads, dim, dim) for index in range(len(decoder.layers))}
    cache = KVCache(layers, 2, PAGE_SIZE, DTYPE, META)
    step = AttentionStep(static_batch(num_rows, WINDOW, PAGE_SIZE, META), cache, CountedAttention(counts))
    keys = num_rows * KEYS * sum(each.num_elements for each in layers.values()) * DTYPE.itemsize
    with torch.no_grad():
        whole = _counted(counts, lambda: decoder(step))
        hidden, angles = (
            torch.empty(num_rows, config.hidden_size, dtype=DTYPE, device=META),
            torch.empty(num_rows, 1, dim, dtype=DTYPE, device=META),
        )
        layer = _counted(counts, lambda: decoder.layers[0](hidden, Rotation(angles, angles), step))
    return DecodeStep(len(decoder.layers), layer, whole, weights, keys)


def sampler_bytes(name: str, num_rows: int, vocab: int) -> tuple[int, int]:
    """The most bytes that a sampler moves where its candidates fit, and those of the logits."""
    draws, kinds = SAMPLERS[name]
    sampler = TritonSampler(1, vocab, META)
    moved = sampler.most_bytes(num_rows, vocab, DTYPE.itemsize, draws=draws, kinds=kinds)
    return moved, num_rows * vocab * DTYPE.itemsize


def _counted(counts: Counts, action: Callable[[], Any]) -> Counts:
    counts.kernels.clear()
    counts.moved.clear()
    with CountedOperations(counts):
        action()
    return Counts(counts.kernels.copy(), counts.moved.copy())


def _num_bytes(value: Any) -> int:
    return sum(each.numel() * each.itemsize for each in tree_leaves(value) if isinstance(each, Tensor))
