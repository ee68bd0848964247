"""Attention on our KV cache: a layer's keys go into the cache, its rows attend through a paged kernel or in tiles.

The fused decoder calls `attend_to_cache`, Transformers' models `attention_forward`, registered as `ATTENTION_NAME`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.recurrent.state_pool import StatePool
from worker.engine.model.step_batch import AttentionTiles, PagedRows, StepBatch
from worker.engine.request import ModelUnavailable

ATTENTION_NAME = "nocturne"

#: Query rows of a tile come in so many: what is left over goes another way through MKL's matmul.
ROW_MULTIPLE = 4


@dataclass
class ShapeProbe:
    """Stands in for a step when a model is loaded: notes the shape of each layer's keys and values."""

    layers: dict[int, LayerShape] = field(default_factory=dict)
    modules: set[nn.Module] = field(default_factory=set)  # that attended

    def note(self, layer: int, module: nn.Module, shape: LayerShape) -> None:
        if layer in self.layers or module in self.modules:
            raise ModelUnavailable("its layers share an attention module; not supported")
        self.layers[layer] = shape
        self.modules.add(module)


@dataclass(frozen=True)
class AttentionLayer:
    """The constants of one layer's attention."""

    index: int
    scale: float
    window: int | None = None  # tokens that a row sees, itself included; None for all
    softcap: float | None = None
    sinks: Tensor | None = None  # [heads], a score that every row of a head meets and that has no value
    chunk: int | None = None  # tokens; a row sees those of its own chunk; None for all


class PagedAttention(Protocol):
    """A kernel that finds a row's keys through its block table (Kwon et al. 2023)."""

    covers_prefill: bool  # else it takes rows one by one, and of prompts only those with few keys

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        """Attention of rows [rows, heads, dim] over their own keys; returns [rows, heads, value_dim]."""


@dataclass(frozen=True)
class AttentionStep:
    """The inputs of a step's attention."""

    batch: StepBatch
    cache: KVCache
    paged_attention: PagedAttention | None = None
    states: StatePool | None = None  # only of models that keep recurrent states


_STEP: ContextVar[AttentionStep | ShapeProbe | None] = ContextVar("step", default=None)


@contextmanager
def step_at_hand(step: AttentionStep | ShapeProbe) -> Iterator[None]:
    """Hands a step to the attention of a Transformers model beside its arguments, which not every model passes on."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


def has_softcap(model: Any) -> bool:
    """Whether the model squashes its attention's scores, which no kernel for CPUs does."""
    return getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None


def attention_forward(
    module: nn.Module,
    query: Tensor,  # [1, heads, rows, dim]
    key: Tensor,  # [1, kv_heads, rows, dim]
    value: Tensor,  # [1, kv_heads, rows, dim]
    attention_mask: Tensor | None,  # noqa: ARG001 - ours are made from positions
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of every row over its own sequence; returns [1, rows, heads, value_dim]."""
    step = _STEP.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    if kwargs.get("position_bias") is not None:
        raise ModelUnavailable("this model's attention has a position bias, which is not supported")
    if isinstance(step, ShapeProbe):
        step.note(layer, module, LayerShape(key.shape[1], key.shape[3], value.shape[3], key.device))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    assert step is not None, "attention outside of a step"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend(
        AttentionLayer(layer, scale, sliding_window, softcap, kwargs.get("s_aux"), _chunk_of(module)),
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        step,
    )
    return output[None], None


def attend(layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor, step: AttentionStep) -> Tensor:
    """Attention of every row over its own sequence.

    Takes query [rows, heads, dim], key and value [rows, kv_heads, dim]; returns [rows, heads, value_dim].
    """
    step.cache.write(layer.index, step.batch.on(query.device).slot_mapping, key, value)
    return attend_to_cache(layer, query, step)


def attend_to_cache(layer: AttentionLayer, query: Tensor, step: AttentionStep) -> Tensor:
    """Attention of rows [rows, heads, dim] whose own keys and values are in the cache; [rows, heads, value_dim]."""
    batch, cache = step.batch.on(query.device), step.cache
    paged = None
    if batch.paged is not None:
        assert step.paged_attention is not None, "the batch was made for a paged kernel"
        num_rows = batch.num_paged_rows
        paged = step.paged_attention(layer, query[:num_rows], cache, batch.paged)
        if num_rows == len(query):
            return paged
    output = query.new_zeros(*query.shape[:2], cache.pools(layer.index)[1].shape[2])
    if paged is not None:
        output[: len(paged)] = paged
    for tiles in batch.tiles:
        keys, values = cache.gather(layer.index, tiles.block_ids, tiles.keys_per_tile)
        _scatter(output, tiles, _attend_tiles(layer, _queries(query, tiles), keys, values, tiles))
    return output


def _queries(rows: Tensor, tiles: AttentionTiles) -> Tensor:
    """[num_tiles, queries, heads, dim]"""
    num_tiles, num_queries = tiles.rows.shape
    if tiles.is_contiguous:
        return rows[tiles.first_row : tiles.first_row + num_tiles, None]
    return rows.index_select(0, tiles.rows.view(-1)).view(num_tiles, num_queries, *rows.shape[1:])


def _attend_tiles(
    layer: AttentionLayer, queries: Tensor, keys: Tensor, values: Tensor, tiles: AttentionTiles
) -> Tensor:
    """Grouped query heads are folded into the query length, so keys are never repeated.

    Returns [num_tiles, queries, heads, value_dim].
    """
    num_tiles, num_queries, num_heads, dim = queries.shape
    num_kv_heads = keys.shape[1]
    group = num_heads // num_kv_heads
    folded = queries.view(num_tiles, num_queries, num_kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(num_tiles, num_kv_heads, group * num_queries, dim)
    mask = tiles.mask(layer.window, layer.chunk, group, queries.dtype)
    if layer.sinks is not None:
        keys, values, mask = _with_sinks(layer.sinks, keys, values, mask, num_queries)
    folded, mask = _whole_rows(folded), _whole_rows(mask)
    if layer.softcap is None:
        size = max(dim, values.shape[-1])
        query, key, value = (_widened(part, size) for part in (folded, keys, values))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=layer.scale)
    else:
        attended = _softcapped_attention(folded, keys, values, mask, layer.scale, layer.softcap)
    attended = attended[:, :, : group * num_queries, : values.shape[-1]]
    attended = attended.reshape(num_tiles, num_kv_heads, group, num_queries, -1).permute(0, 3, 1, 2, 4)
    return attended.reshape(num_tiles, num_queries, num_heads, -1)


def _whole_rows(part: Tensor) -> Tensor:
    """Queries or their mask [num_tiles, heads, rows, …] with zeros up to whole `ROW_MULTIPLE` rows.

    In fp32 torch rounds three rows by the thread that has their tile, and five to seven by whether it is the only one.
    """
    missing = -part.shape[2] % ROW_MULTIPLE
    return F.pad(part, (0, 0, 0, missing)) if missing else part


def _widened(part: Tensor, size: int) -> Tensor:
    """Queries, keys or values with zeros up to a head size.

    torch's fused attention takes one size for all; what it calls for several rounds by the number of tiles.
    """
    return F.pad(part, (0, size - part.shape[-1])) if part.shape[-1] < size else part


def _with_sinks(
    sinks: Tensor, keys: Tensor, values: Tensor, mask: Tensor, num_queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One key more, whose score is the mask alone: the head's sink. Its value adds nothing."""
    num_tiles, num_kv_heads = keys.shape[:2]
    column = sinks.to(mask.dtype).view(num_kv_heads, -1, 1).repeat(1, 1, num_queries).view(1, num_kv_heads, -1, 1)
    mask = torch.cat([mask.expand(-1, num_kv_heads, -1, -1), column.expand(num_tiles, -1, -1, -1)], dim=-1)
    return F.pad(keys, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1)), mask


def _chunk_of(module: nn.Module) -> int | None:
    """Llama 4 hands its chunks over in masks alone, which ours are not made of."""
    config: Any = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or kinds[module.layer_idx] != "chunked_attention":
        return None
    chunk: int = config.attention_chunk_size
    return chunk


def _softcapped_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """Gemma 2's attention: scores are squashed by `softcap * tanh(scores / softcap)` before the mask.

    One tile at a time: a batched matmul divides its work by the number of tiles, and its rounding depends on it.
    """
    attended = []
    for tile in range(queries.shape[0]):
        scores = torch.matmul(queries[tile], keys[tile].transpose(1, 2)) * scale
        scores = torch.tanh(scores / softcap) * softcap + mask[tile]
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)
        attended.append(torch.matmul(weights, values[tile]))
    return torch.stack(attended)


def _scatter(output: Tensor, tiles: AttentionTiles, attended: Tensor) -> None:
    num_tiles, num_queries = tiles.rows.shape
    if tiles.is_contiguous:
        output[tiles.first_row : tiles.first_row + num_tiles] = attended[:, 0]
        return
    flat = attended.reshape(num_tiles * num_queries, *attended.shape[2:])
    if tiles.kept is not None:
        flat = flat.index_select(0, tiles.kept)
    output.index_copy_(0, tiles.kept_rows, flat)


AttentionInterface.register(ATTENTION_NAME, attention_forward)
