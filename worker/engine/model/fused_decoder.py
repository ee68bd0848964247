"""The decoder of Llama's family, and of Qwen3.5's hybrids, with few operations a layer: one matmul for query, key and
value, one for gate and up, and every activation and residual fused into the matmul before it as its epilogue.

Takes the weights of Transformers' own model and computes the same function; tests compare the two. Transformers'
layers make about sixty small operations each, which cost as much as the matmuls when few sequences run
(`docs/log.md`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.model.attention import AttentionStep
from worker.engine.model.fused_layers import is_fusable, norm_of, take_layer
from worker.engine.model.linear import MakeLinear
from worker.engine.model.replace_modules import drop_weights
from worker.engine.model.row_operations import PlainRowOperations, Rotation, RowOperations


class FusedDecoder:
    """Rows of a step to logits, as `TransformersDecoder` does, for models that `can_fuse` accepts."""

    def __init__(self, model: Any, make_linear: MakeLinear, operations: RowOperations = PlainRowOperations()) -> None:
        """Takes the model's weights, layer by layer: a layer's own are dropped before the next ones are merged."""
        self._operations = operations
        self._embedding: Tensor = model.model.embed_tokens.weight.detach()
        self._rotary: Any = model.model.rotary_emb
        self.head_dim = _head_dim(model.model.layers)
        num_rotated = _num_rotated(model)
        self.layers = [take_layer(layer, num_rotated, make_linear, operations) for layer in model.model.layers]
        self._norm = norm_of(model.model.norm)
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
        return Rotation(_widened(cos, self.head_dim, 1), _widened(signed_sin, self.head_dim, 0))


def can_fuse(model: Any) -> bool:
    """Whether every layer of the model is one that `FusedLayer` computes."""
    layers: Any = getattr(getattr(model, "model", None), "layers", None) or []
    return (
        bool(layers)
        and all(map(is_fusable, layers))
        and model.config.hidden_act == "silu"
        and _num_rotated(model) <= (dim := _head_dim(layers))
        and dim % 2 == 0
        and type(model.lm_head) is nn.Linear
    )


def _num_rotated(model: Any) -> int:
    """The dimensions of a head that are rotated."""
    return 2 * len(model.model.rotary_emb.inv_freq)


def _head_dim(layers: Any) -> int:
    """The size of all heads of the attention layers; 0 where there are none, or several sizes."""
    dims: set[int] = {layer.self_attn.head_dim for layer in layers if hasattr(layer, "self_attn")}
    return dims.pop() if len(dims) == 1 else 0


def _widened(angles: Tensor, dim: int, rest: float) -> Tensor:
    """Angles [1, rows, rotated] in the order of `halves_first`: [rows, 1, dim]; those beyond have the value `rest`."""
    missing = (dim - angles.shape[-1]) // 2
    if missing:
        angles = F.pad(angles.unflatten(-1, (2, -1)), (0, missing), value=rest).flatten(-2)
    return angles[0, :, None]
