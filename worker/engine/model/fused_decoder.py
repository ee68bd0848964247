"""The decoder of Llama's family with few operations a layer: one matmul for query, key and value, one for
gate and up, and every activation and residual fused into the matmul before it as its epilogue.

Takes the weights of Transformers' own model and computes the same function; tests compare the two. Transformers'
layers make about sixty small operations each, which cost as much as the matmuls when few sequences run
(`docs/log.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.model.attention import AttentionLayer, AttentionStep, attend
from worker.engine.model.linear import Linear, MakeLinear

#: Transformers' layers that `FusedLayer` computes. Gemma's and others' have their norms in other places.
FUSABLE_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


class RowOperations(Protocol):
    """A layer's operations on rows beside matmuls and attention."""

    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows / sqrt(mean of squares + eps) * weight over the last dimension."""

    def rotate(self, heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        """Rotates heads [rows, heads, dim], in place or not, by the angles of a `Rotation`."""


class PlainRowOperations:
    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(rows, (rows.shape[-1],), weight, eps)

    def rotate(self, heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        swapped = heads.roll(heads.shape[-1] // 2, -1)
        return torch.addcmul(heads * cos, swapped, signed_sin)


@dataclass(frozen=True)
class RMSNorm:
    weight: Tensor
    eps: float
    operations: RowOperations

    def __call__(self, rows: Tensor) -> Tensor:
        return self.operations.rms_norm(rows, self.weight, self.eps)


@dataclass(frozen=True)
class Rotation:
    """Rotary angles of a step's rows: cosines, and sines with the first half negated; [rows, 1, dim] each."""

    cos: Tensor
    signed_sin: Tensor
    operations: RowOperations

    def __call__(self, heads: Tensor) -> Tensor:
        """Rotates heads [rows, heads, dim], and may overwrite them."""
        return self.operations.rotate(heads, self.cos, self.signed_sin)


@dataclass(frozen=True)
class FusedLayer:
    attention: AttentionLayer
    num_heads: int
    num_kv_heads: int
    input_norm: RMSNorm
    qkv: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    output: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    def __call__(self, hidden: Tensor, rotation: Rotation, step: AttentionStep) -> Tensor:
        """[rows, hidden] to [rows, hidden]"""
        query, key, value = self._project(self.input_norm(hidden), rotation)
        attended = attend(self.attention, query, key, value, step)
        hidden = self.output.add_residual(attended.view(len(hidden), -1), hidden)
        rows = self.mlp_norm(hidden)
        return self.down.add_residual(self.gate_up.swiglu(rows), hidden)

    def _project(self, rows: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Query [rows, heads, dim], key and value [rows, kv_heads, dim]."""
        heads = self.qkv(rows).view(len(rows), self.num_heads + 2 * self.num_kv_heads, -1)
        query_key, value = heads[:, : -self.num_kv_heads], heads[:, -self.num_kv_heads :]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = query_key[:, : self.num_heads], query_key[:, self.num_heads :]
            query_key = torch.cat([self.query_norm(query), self.key_norm(key)], dim=1)
        rotated = rotation(query_key)
        return rotated[:, : self.num_heads], rotated[:, self.num_heads :], value


class FusedDecoder:
    """Rows of a step to logits, as `TransformersDecoder` does, for models that `can_fuse` accepts."""

    def __init__(self, model: Any, make_linear: MakeLinear, operations: RowOperations = PlainRowOperations()) -> None:
        self._operations = operations
        self._embedding: Tensor = model.model.embed_tokens.weight.detach()
        self._rotary: Any = model.model.rotary_emb
        self.layers = [_fused_layer(layer, make_linear, operations) for layer in model.model.layers]
        self._norm = _norm(model.model.norm, operations)
        self.head = make_linear([model.lm_head])

    def __call__(self, step: AttentionStep) -> Tensor:
        """Logits [num_logits, vocab] of the rows that the step asks for; the next call may overwrite them."""
        batch = step.batch
        hidden = F.embedding(batch.input_ids[0], self._embedding)
        rotation = self._rotation(hidden, batch.positions)
        for layer in self.layers:
            hidden = layer(hidden, rotation, step)
        return self.head(self._norm(hidden.index_select(0, batch.logit_rows)))

    def _rotation(self, hidden: Tensor, positions: Tensor) -> Rotation:
        cos, sin = self._rotary(hidden, positions)  # [1, rows, dim]
        half = sin.shape[-1] // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return Rotation(cos[0, :, None], signed_sin[0, :, None], self._operations)


def can_fuse(model: Any) -> bool:
    """Whether every layer of the model is one that `FusedLayer` computes."""
    layers: Any = getattr(getattr(model, "model", None), "layers", None) or []
    return (
        bool(layers)
        and all(type(layer).__name__ in FUSABLE_LAYERS for layer in layers)
        and model.config.hidden_act == "silu"
        and 2 * len(model.model.rotary_emb.inv_freq) == layers[0].self_attn.head_dim
        and type(model.lm_head) is nn.Linear
    )


def _fused_layer(layer: Any, make_linear: MakeLinear, operations: RowOperations) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    dim = attention.head_dim
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return FusedLayer(
        attention=AttentionLayer(attention.layer_idx, attention.scaling, _window(attention)),
        num_heads=attention.q_proj.out_features // dim,
        num_kv_heads=attention.k_proj.out_features // dim,
        input_norm=_norm(layer.input_layernorm, operations),
        qkv=make_linear([attention.q_proj, attention.k_proj, attention.v_proj]),
        query_norm=None if query_norm is None else _norm(query_norm, operations),
        key_norm=None if key_norm is None else _norm(key_norm, operations),
        output=make_linear([attention.o_proj]),
        mlp_norm=_norm(layer.post_attention_layernorm, operations),
        gate_up=make_linear([mlp.gate_proj, mlp.up_proj], is_gate_up=True),
        down=make_linear([mlp.down_proj]),
    )


def _window(attention: Any) -> int | None:
    """The tokens that a row sees; some layers say so themselves, Mistral's in the configuration."""
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
        return window
    return getattr(attention.config, "sliding_window", None)


def _norm(norm: Any, operations: RowOperations) -> RMSNorm:
    return RMSNorm(norm.weight.detach(), norm.variance_epsilon, operations)
