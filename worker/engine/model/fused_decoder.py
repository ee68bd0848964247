"""The decoder of Llama's family with few operations a layer: one matmul for query, key and value, one for
gate and up, and every activation and residual fused into the matmul before it as its epilogue.

Takes the weights of Transformers' own model and computes the same function; tests compare the two. Transformers'
layers make about sixty small operations each, which cost as much as the matmuls when few sequences run
(`docs/log.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.model.attention import AttentionLayer, AttentionStep, attend_to_cache
from worker.engine.model.linear import Linear, MakeLinear
from worker.engine.model.row_operations import HeadNorms, PlainRowOperations, RMSNorm, Rotation, RowOperations

#: Transformers' layers that `FusedLayer` computes. Gemma's and others' have their norms in other places.
FUSABLE_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


@dataclass(frozen=True)
class FusedLayer:
    operations: RowOperations
    attention: AttentionLayer
    input_norm: RMSNorm
    qkv: Linear
    head_dim: int
    head_norms: HeadNorms | None
    output: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    def __call__(self, hidden: Tensor, rotation: Rotation, step: AttentionStep) -> Tensor:
        """[rows, hidden] to [rows, hidden]; may overwrite its input."""
        num_rows, operations = len(hidden), self.operations
        heads = self.qkv(operations.norm(hidden, self.input_norm)).view(num_rows, -1, self.head_dim)
        pools = step.cache.pools(self.attention.index)
        query = operations.rotate_and_write(heads, self.head_norms, rotation, step.batch.slot_mapping, pools)
        attended = attend_to_cache(self.attention, query, step)
        hidden = self.output.add_residual(attended.view(num_rows, -1), hidden)
        activated = self.gate_up.swiglu(operations.norm(hidden, self.mlp_norm))
        return self.down.add_residual(activated, hidden)


class FusedDecoder:
    """Rows of a step to logits, as `TransformersDecoder` does, for models that `can_fuse` accepts."""

    def __init__(self, model: Any, make_linear: MakeLinear, operations: RowOperations = PlainRowOperations()) -> None:
        """Takes the model's weights, layer by layer: a layer's own are dropped before the next ones are merged."""
        self._operations = operations
        self._embedding: Tensor = model.model.embed_tokens.weight.detach()
        self._rotary: Any = model.model.rotary_emb
        self.layers = [_take_layer(layer, make_linear, operations) for layer in model.model.layers]
        self._norm = _norm(model.model.norm)
        self.head = make_linear([model.lm_head])
        drop_weights(model.lm_head)

    def __call__(self, step: AttentionStep) -> Tensor:
        """Logits [num_logits, vocab] of the rows that the step asks for; the next call may overwrite them."""
        batch = step.batch
        hidden = F.embedding(batch.input_ids[0], self._embedding)
        rotation = self._rotation(hidden, batch.positions)
        for layer in self.layers:
            hidden = layer(hidden, rotation, step)
        return self.head(self._operations.norm(hidden.index_select(0, batch.logit_rows), self._norm))

    def _rotation(self, hidden: Tensor, positions: Tensor) -> Rotation:
        cos, sin = self._rotary(hidden, positions)  # [1, rows, dim]
        half = sin.shape[-1] // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return Rotation(cos[0, :, None], signed_sin[0, :, None])


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


def _take_layer(layer: Any, make_linear: MakeLinear, operations: RowOperations) -> FusedLayer:
    """A layer of Transformers' model, which loses its weights: those of all layers twice would not fit a GPU."""
    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    fused = FusedLayer(
        operations=operations,
        attention=AttentionLayer(attention.layer_idx, attention.scaling, _window(attention)),
        input_norm=_norm(layer.input_layernorm),
        qkv=make_linear([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_dim=attention.head_dim,
        head_norms=None if query_norm is None else HeadNorms(_norm(query_norm), _norm(key_norm)),
        output=make_linear([attention.o_proj]),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=make_linear([mlp.gate_proj, mlp.up_proj], is_gate_up=True),
        down=make_linear([mlp.down_proj]),
    )
    drop_weights(layer)
    return fused


def drop_weights(module: nn.Module) -> None:
    """Frees the parameters of a module that nothing else holds."""
    for each in module.modules():
        each._parameters.update(dict.fromkeys(each._parameters))


def _window(attention: Any) -> int | None:
    """The tokens that a row sees; some layers say so themselves, Mistral's in the configuration."""
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
        return window
    return getattr(attention.config, "sliding_window", None)


def _norm(norm: Any) -> RMSNorm:
    return RMSNorm(norm.weight.detach(), norm.variance_epsilon)
